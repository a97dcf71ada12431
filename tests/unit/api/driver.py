"""A client that speaks ASGI to an application, message by message, and can be slow or go away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Scope

HOST = (b"host", b"127.0.0.1:8000")


def scope_of(
    method: str, path: str, *, query: str = "", headers: Iterable[tuple[bytes, bytes]] = (HOST,), kind: str = "http"
) -> Scope:
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


class Exchange:
    """One request. What the application sends is kept; it may be held up at its n-th message."""

    def __init__(self, body: Iterable[bytes] = (b"",), *, stays: bool = True) -> None:
        self.sent: list[Message] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = asyncio.Event()
        self.failure: Exception | None = None
        """Raised from the application's next `send`."""
        self._body = list(body)
        self._stays = stays

    async def receive(self) -> Message:
        if self._body:
            chunk = self._body.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._body) or not self._stays}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:] if message["body"]]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def whole(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


async def call(app: ASGIApp, method: str, path: str, body: Any = None, **scope: Any) -> Exchange:
    """A request with a JSON body, or with bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    exchange = Exchange([data])
    await asyncio.wait_for(app(scope_of(method, path, **scope), exchange.receive, exchange.send), 10)
    return exchange
