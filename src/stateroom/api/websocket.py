"""WebSocket connections within bounds: uvicorn's protocol over the `websockets` library, and what it lacks for ours.

Refused handshakes and messages that are too large get an answer in OpenAI's shape, several frames go out in one write,
and a server that stops leaves it to the application when a connection is closed. Nothing is compressed: a compressor
takes many times the memory of an idle connection. What came is read a little at a time, so that a client which sends
thousands of the smallest frames at once waits for the others and not they for it; and nobody needs many of those.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from stateroom import ids
from stateroom.errors import InvalidRequest, TooLarge
from stateroom.wire.sockets import error_event

PING_SECONDS: Final = 30.0
PONG_SECONDS: Final = 60.0
"""How long a client may take nothing in: a ping waits behind what was sent before it."""
LINGER_SECONDS: Final = 2.0
"""How long a client that is hung up on may take in why: what it still sends would make the system forget that."""

SLICE_BYTES: Final = 8 * 1024
"""What of one connection is read before the others have their turn: up to some thousand frames."""
PINGS_MAX: Final = 1_024
"""Pings and pongs of a client between two of our own pings. Answers to pings are not held up by a slow reader."""
FRAGMENTS_MAX: Final = 1_024
"""Frames that a message may come in, whatever is in them; beyond it one for each `FRAGMENT_BYTES`."""
FRAGMENT_BYTES: Final = 1_024

_SHORT: Final = 126
_MEDIUM: Final = 1 << 16


def text_frames(texts: list[bytes]) -> bytes:
    """Text frames of a server, one behind the other, as they go out."""
    parts = []
    for text in texts:
        size = len(text)
        if size < _SHORT:
            parts.append(b"\x81%c" % size)
        elif size < _MEDIUM:
            parts.append(b"\x81\x7e" + size.to_bytes(2, "big"))
        else:
            parts.append(b"\x81\x7f" + size.to_bytes(8, "big"))
        parts.append(text)
    return b"".join(parts)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Handshake(max_size=self.config.ws_max_size, logger=self.logger)
        self._kept = b""
        """What came and is not read yet."""
        self._at = 0
        self._pings = 0
        self._message_bytes = 0
        self._message_frames = 0

    async def send(self, message: Any) -> None:
        """As in ASGI; `websocket.send` may also have `texts`: encoded texts that become a frame each."""
        texts = message.get("texts")
        if texts is None:
            await super().send(message)
            if message["type"] == "websocket.http.response.body":
                self.handshake_complete = True  # it was refused: nothing is left to be completed
            return
        await self.writable.wait()
        if self.disconnected or self.transport.is_closing() or self.conn.state is not State.OPEN:
            raise ClientDisconnected
        self.transport.write(text_frames(texts))

    async def receive(self) -> Any:
        message = await super().receive()
        if self._kept and not self.read_paused:
            self.transport.pause_reading()  # first comes what is here already
            self.loop.call_soon(self._read_on)
        return message

    def data_received(self, data: bytes) -> None:
        if not self._kept and len(data) <= SLICE_BYTES:
            self._read(data)
            return
        self._kept, self._at = self._kept[self._at :] + data, 0
        self._read_on()

    def _read_on(self) -> None:
        """Read the next slice of what is here, unless the application has to take something first."""
        if self._waits() or not self._kept:
            return
        if self.transport.is_closing():
            self._kept = b""
            return
        piece = self._kept[self._at : self._at + SLICE_BYTES]
        self._at += len(piece)
        if self._at >= len(self._kept):
            self._kept, self._at = b"", 0
        self._read(piece)
        if self._kept:
            self.transport.pause_reading()
            self.loop.call_soon(self._read_on)
        elif not self._waits():
            self.transport.resume_reading()

    def _waits(self) -> bool:
        """Whether the application has to take a message first; `receive` has it go on then."""
        return self.read_paused

    def _read(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            refusal = _refusal(HTTPStatus.BAD_REQUEST, "This is no WebSocket handshake as this server understands it.")
            self.transport.write(refusal.serialize())
            self.transport.close()

    def handle_ping(self) -> None:
        super().handle_ping()
        self._count_ping()

    def handle_pong(self, event: Frame) -> None:
        super().handle_pong(event)
        self._count_ping()

    def send_keepalive_ping(self) -> None:
        self._pings = 0
        super().send_keepalive_ping()

    def _count_ping(self) -> None:
        self._pings += 1
        if self._pings == PINGS_MAX:
            self._refuse("too many pings")

    def handle_text(self, event: Frame) -> None:
        self._message_bytes, self._message_frames = len(event.data), 1
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._message_bytes, self._message_frames = len(event.data), 1
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        self._message_bytes += len(event.data)
        self._message_frames += 1
        if self._message_frames > FRAGMENTS_MAX + self._message_bytes // FRAGMENT_BYTES:
            self.frames = []
            self._refuse("a message in too many pieces")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                self.frames = [b"".join(self.frames)]
                self.frames[0].decode()
            except UnicodeDecodeError:  # the base class would log it with its trace
                self.frames = []
                self.conn.fail(CloseCode.INVALID_DATA, "not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def _refuse(self, why: str) -> None:
        """Hang up on a client that sends what nobody needs."""
        if not self.close_sent and self.conn.state is State.OPEN:
            self.conn.fail(CloseCode.POLICY_VIOLATION, why)
            self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        if self.close_sent or self.conn.close_sent is None:
            return
        closed = self.conn.close_sent
        if closed.code == CloseCode.MESSAGE_TOO_BIG:
            message = f"A message may have {self.config.ws_max_size} bytes (`limits.body_bytes`). Connect again."
            self.transport.write(text_frames([error_event(TooLarge(message))]))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self.stop_keepalive()
        self.close_sent = True
        self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        """The server stops. The application closes what it has accepted, when the runs have had their time."""
        if not self.handshake_complete:
            super().shutdown()


class _Handshake(ServerProtocol):
    """The library's protocol, with refusals in OpenAI's shape."""

    def accept(self, request: Request) -> Response:
        try:
            response = super().accept(request)
        except UnicodeEncodeError:  # of what was wrong with a header, which has to be told in UTF-8
            return _refusal(HTTPStatus.BAD_REQUEST, "A header of the handshake is not ASCII.")
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            return response
        said = (
            response.body.decode("utf-8", "replace").split("\n")[0] if response.body else "The handshake was refused."
        )
        refusal = _refusal(HTTPStatus(response.status_code), said)
        if "Upgrade" in response.headers:
            refusal.headers["Upgrade"] = response.headers["Upgrade"]
        return refusal


def _refusal(status: HTTPStatus, message: str) -> Response:
    body = msgspec.json.encode(InvalidRequest(message, code="invalid_handshake").body())
    headers = Headers(
        {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-Id": ids.new_id("req"),
        }
    )
    return Response(status.value, status.phrase, headers, body)
