"""Clients that ask for much and take in nothing: their answers do not stay in memory for ever."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from stateroom.api import connection
from stateroom.api.connection import bounded
from stateroom.serving import bind

ANSWER = bytes(32 * 1024 * 1024)
SECONDS = 20.0


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(ANSWER))]})
    await send({"type": "http.response.body", "body": ANSWER})


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(connection, "TAKE_SECONDS", 0.3)
    config = uvicorn.Config(answer, http=bounded(64), lifespan="off", log_config=None, timeout_keep_alive=1)
    server, listening = _Server(config), bind("127.0.0.1", 0)
    serving = asyncio.create_task(server._serve([listening]))
    await asyncio.wait_for(server.listens.wait(), SECONDS)
    yield listening.getsockname()[1]
    server.should_exit = server.force_exit = True
    await asyncio.wait_for(serving, SECONDS)


async def asked(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    return reader, writer


async def test_who_takes_nothing_in_is_dropped_with_the_answer(port: int) -> None:
    reader, writer = await asked(port)
    await reader.readexactly(100)
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not writer.is_closing():
        # What is asked here is answered by a reset as soon as the connection is dropped.
        writer.write(b"\r\n")
        await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() < deadline, "the answer is still kept"
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(len(ANSWER))


async def test_who_takes_it_in_slowly_gets_all_of_it(port: int) -> None:
    reader, writer = await asked(port)
    taken = 0
    while taken < len(ANSWER):
        for _ in range(64):
            taken += len(await asyncio.wait_for(reader.read(65_536), SECONDS))
        await asyncio.sleep(0.02)
    writer.close()
