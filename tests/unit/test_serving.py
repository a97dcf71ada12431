"""The HTTP server around an application: what it does while nobody asks, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from stateroom import serving

SECONDS = 20.0


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def served() -> AsyncIterator[int]:
    """A server's port; it is told to leave when nobody needs it any more."""
    server = serving.Server(uvicorn.Config(answer, lifespan="off", log_config=None))
    listening = serving.bind("127.0.0.1", 0)
    task = asyncio.create_task(server.serve([listening]))
    await asyncio.wait_for(server.listens.wait(), SECONDS)
    yield listening.getsockname()[1]
    server.leave()
    await asyncio.wait_for(task, SECONDS)


async def date(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SECONDS)
    writer.close()
    return next(line for line in head.split(b"\r\n") if line.lower().startswith(b"date:"))


async def test_a_server_that_is_told_to_leave_does_not_wait_for_its_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "DATE_SECONDS", 3600.0)
    async with served() as port:
        assert await date(port)


async def test_the_date_in_the_heads_of_answers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "DATE_SECONDS", 0.05)
    async with served() as port:
        first = await date(port)
        deadline = asyncio.get_running_loop().time() + SECONDS
        while await date(port) == first:
            assert asyncio.get_running_loop().time() < deadline, "the date stands still"
            await asyncio.sleep(0.05)
