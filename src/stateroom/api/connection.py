"""Connections within bounds: a request's head may be so large and take so long, and nonsense gets a clear answer.

uvicorn's protocol does the rest. By itself it bounds neither: one connection could fill the memory with headers, and
any number could stay open without ever asking for anything. Bodies are bounded where they are read.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stateroom import ids
from stateroom.errors import InvalidRequest

HEAD_BYTES: Final = 64 * 1024
"""Request line and headers; the same for what follows a chunked body."""

HEAD_SECONDS: Final = 20.0
"""How long they may take, and how long a connection may be open without a request."""


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = 0
        """Bytes of which nothing has come yet: neither a head nor a piece of a body."""
        self._came = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._unread = 0 if self._came else self._unread + len(data)
        if self._unread > HEAD_BYTES:
            message = f"The head of a request may have {HEAD_BYTES} bytes: its address and headers."
            self._refuse(431, message, "request_head_too_large")
        elif self._is_idle() and self._deadline is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._came = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "This is not HTTP as this server understands it.", "invalid_http")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing to warn of: the request is answered as if it had not asked for another protocol."""

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_came(self) -> None:
        self._came = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._unread and not self.transport.is_closing():
            self._refuse(408, f"The head of the request took longer than {HEAD_SECONDS:g} seconds.", "request_too_slow")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer with an error and hang up; without one when another answer is being written."""
        if self._is_idle() or not (self.pipeline or self.cycle.response_started):
            if self.cycle is not None:
                self.cycle.disconnected = True  # whatever the application would still say
            body = msgspec.json.encode(InvalidRequest(message, code=code).body())
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"x-request-id", ids.new_id("req").encode()),
                (b"connection", b"close"),
            ]
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()
