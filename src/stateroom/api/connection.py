"""Connections within bounds: a request's head may be so large and take so long, and nonsense gets a clear answer.

uvicorn's protocol does the rest. By itself it bounds neither: one connection could fill the memory with headers, and
any number could stay open without ever asking for anything. Bodies are bounded where they are read.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stateroom import ids
from stateroom.errors import InvalidRequest, StateroomError

log = logging.getLogger("stateroom.api")

HEAD_BYTES: Final = 64 * 1024
"""Request line and headers; the same for what follows a chunked body."""

HEAD_SECONDS: Final = 20.0
"""How long they may take, and how long a connection may be open without a request."""


TAKE_SECONDS: Final = 60.0
TAKE_BYTES: Final = 64 * 1024
"""How much of an answer that is whole a client has to take in meanwhile: until then it is in memory."""
REFUSED_MAX: Final = 256
"""Connections beyond the bound that are told so; whoever comes then finds the door shut."""
_DESCRIPTORS: Final = 1_024
"""Of files, threads' pipes, model servers: what a server has open beside its clients' connections."""


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    connections_max = 4_096

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._surplus = False
        """One too many: it is told so as soon as it has asked for something."""
        self._unread = 0
        """Bytes of which nothing has come yet: neither a head nor a piece of a body."""
        self._came = False
        self._upgraded = False
        """It is a WebSocket now, and another protocol's."""
        self._deadline: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        excess = len(self.connections) - self.connections_max
        self._surplus = excess > 0
        if excess > REFUSED_MAX:
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        if self._taking is not None:
            self._taking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came = False
        super().data_received(data)
        if self._upgraded or self.transport.is_closing():
            return
        self._unread = 0 if self._came else self._unread + len(data)
        if self._unread > HEAD_BYTES:
            message = f"The head of a request may have {HEAD_BYTES} bytes: its address and headers."
            self._refuse(431, message, "request_head_too_large")
        elif self._is_idle() and self._deadline is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._taking is not None:
            self._taking.cancel()
        self._see_taken(0)

    def _see_taken(self, before: int) -> None:
        """Drop the connection when nobody takes in what was answered: closing it would wait for that."""
        self._taking = None
        left = self.transport.get_write_buffer_size()
        if left and before and self._is_idle() and before - left < TAKE_BYTES:
            self.transport.abort()
        elif left:
            self._taking = self.loop.call_later(TAKE_SECONDS, self._see_taken, left)

    def on_headers_complete(self) -> None:
        self._head_came()
        if self._surplus:
            message = "This server has as many connections as it may have (`limits.connections`). Try again."
            self._refuse(503, message, code="too_many_connections")
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._came = True
        if self._surplus:
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._came = True
        if self._surplus:
            return
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "This is not HTTP as this server understands it.", "invalid_http")

    def _should_upgrade(self) -> bool:
        return self.scope.get("method") == "GET" and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        if self.transport.is_closing():
            return
        self._head_came()
        self._upgraded = True
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]  # as uvicorn has it: they would hold each other

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
        if self.transport.is_closing():
            return
        if self._is_idle() or not (self.pipeline or self.cycle.response_started):
            if self.cycle is not None:
                self.cycle.disconnected = True  # whatever the application would still say
            error = StateroomError if status >= 500 else InvalidRequest
            body = msgspec.json.encode(error(message, code=code).body())
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"x-request-id", ids.new_id("req").encode()),
                (b"connection", b"close"),
            ]
            if status == 503:
                headers.append((b"retry-after", b"1"))
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()


def bounded(connections_max: int) -> type[BoundedHttp]:
    """The protocol of a server that has so many connections at the same time."""

    class Bounded(BoundedHttp):
        pass

    Bounded.connections_max = connections_max
    return Bounded


def make_room(connections_max: int) -> None:
    """Have the system let this process open as many files as its connections need, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections_max + REFUSED_MAX + _DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("server.few_descriptors allowed=%d wanted=%d for `limits.connections`", allowed, wanted)
