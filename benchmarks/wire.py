"""A client's side of HTTP/1.1, as cheap as it gets: one request at a time on one connection, the answer as bytes."""

from __future__ import annotations

import asyncio
from typing import Self, cast

import httptools


class Connection(asyncio.Protocol):
    """One connection to one server. The parser calls the `on_` methods."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, port: int) -> Self:
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and whole body of the answer, also when it is a stream."""
        return await self._ask(f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}", body)

    async def get(self, path: str) -> tuple[int, bytes]:
        """The same."""
        return await self._ask(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1", b"")

    async def _ask(self, head: str, body: bytes) -> tuple[int, bytes]:
        assert self._transport is not None
        if not self.is_open:
            raise ConnectionError("the server has closed the connection, which was idle for too long")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        return await self._answer

    @property
    def is_open(self) -> bool:
        """Whether the server has kept it until now."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection in mid-answer"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = []

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))
