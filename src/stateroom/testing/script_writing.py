"""Writing one scripted answer: its head, its events with their pauses, and the accidents that are asked for."""

from __future__ import annotations

import asyncio
from typing import Protocol

from stateroom.testing.script_dialect import Answer

_REASONS = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 429: b"Too Many Requests"}
_CHUNKED = {"transfer-encoding": "chunked", "cache-control": "no-cache"}


class Line(Protocol):
    """What is written to."""

    def write(self, data: bytes) -> None: ...

    def send_json(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        ...

    def finished(self) -> None:
        """The request at hand is answered."""
        ...

    def cut(self) -> None:
        """Hang up in the middle of an answer; what was written still arrives."""
        ...


class Writer:
    """Writes one answer, with its pauses and accidents, by callbacks rather than a task."""

    def __init__(self, connection: Line, answer: Answer, delay: float) -> None:
        """`delay`: seconds between chunks, where the answer has no pauses of its own."""
        self._connection = connection
        self._answer = answer
        reply = answer.reply
        self._delay = delay if reply.delay is None else reply.delay
        self._stream = answer.request.stream
        self._events = answer.events() if self._stream else []
        self._closing = answer.closing() if self._stream else []
        self._at = 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._gate: asyncio.Task[None] | None = None

    def start(self) -> None:
        reply = self._answer.reply
        stops = (reply.drop_after, reply.hang_after, reply.error_after, reply.gate)
        if not self._stream:
            pause = self._delay * len(self._answer.pieces)
            self._timer = asyncio.get_running_loop().call_later(pause, self._whole)
        elif self._delay == 0 and not self._answer.quirks.split and all(stop is None for stop in stops):
            self._head()
            self._end([*self._events, *self._closing])
        else:
            self._head()
            self._step()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._gate is not None:
            self._gate.cancel()

    def _whole(self) -> None:
        reply = self._answer.reply
        if reply.drop_after is not None:
            self._connection.cut()
        elif reply.hang_after is None:
            self._connection.send_json(200, self._answer.whole(), reply.headers)

    def _step(self) -> None:
        """Write the next event, or what happens in its place. The event that gives the role always goes out."""
        reply = self._answer.reply
        given = self._at - 1
        if reply.gate is not None and given >= reply.gate_after and not reply.gate.is_set():
            self._gate = asyncio.get_running_loop().create_task(self._wait(reply.gate))
            return
        if _due(reply.hang_after, given):
            return
        if _due(reply.drop_after, given):
            self._connection.cut()
            return
        if _due(reply.error_after, given):
            self._end([self._answer.error_event()])
            return
        if self._at == len(self._events):
            self._end(self._closing)
            return
        self._write([self._events[self._at]])
        self._at += 1
        loop = asyncio.get_running_loop()
        pause = self._delay if self._at > 1 else 0.0
        self._timer = loop.call_later(pause, self._step) if pause else loop.call_soon(self._step)

    async def _wait(self, gate: asyncio.Event) -> None:
        await gate.wait()
        self._gate = None
        self._step()

    def _end(self, events: list[bytes]) -> None:
        self._write(events, last=True)
        self._connection.finished()

    def _head(self) -> None:
        self._connection.write(head(200, "text/event-stream", {**_CHUNKED, **self._answer.reply.headers}))

    def _write(self, events: list[bytes], *, last: bool = False) -> None:
        """Each event goes out as an HTTP chunk of its own, as servers do it."""
        size = self._answer.quirks.split
        if size:
            whole = b"".join(events)
            events = [whole[i : i + size] for i in range(0, len(whole), size)]
        framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        if size:
            for piece in framed:
                self._connection.write(piece)
            framed.clear()
        if last:
            framed.append(b"0\r\n\r\n")
        self._connection.write(b"".join(framed))


def head(status: int, kind: str, headers: dict[str, str]) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"Status")), b"content-type: " + kind.encode()]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _due(after: int | None, given: int) -> bool:
    return after is not None and given >= after
