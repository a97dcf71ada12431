"""Server-sent events out of bytes as they come in, whatever the cuts and line ends. Pure; what they say is a dialect's.

Other than `wire.sse`, which writes our own events and reads them back, this reads what any server may send.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from stateroom.errors import BackendFailed
from stateroom.models.chat_errors import without_key

EVENT_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of one event."""

QUIET_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a stream that may go by without a delta coming of them."""

DONE: Final = b"[DONE]"
"""The data of what is no event: it ends a stream."""

BAD_ANSWER: Final = "backend_bad_answer"


class EventBytes:
    """Holds back what is not complete yet."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._held = bytearray()
        self._quiet = 0
        """Bytes since the last delta."""

    @property
    def pending(self) -> bool:
        """Whether the stream ends, if it ends here, in the middle of an event."""
        return bool(self._held)

    def take(self, data: bytes) -> bytes:
        """What these bytes make complete, up to its last blank line and with LF for every line end.

        Raises BackendFailed on an event that is too long.
        """
        held = self._held
        if held:
            start = max(0, len(held) - 3)
            held += data
            cut = _boundary(held, start)
            whole = bytes(held[:cut])
            del held[:cut]
        else:
            cut = _boundary(data, 0)
            whole = data if cut == len(data) else data[:cut]
            held += data[cut:]
        if len(held) > EVENT_LIMIT:
            raise BackendFailed(f"{self._server} sent an event of more than {EVENT_LIMIT} bytes.", code=BAD_ANSWER)
        if b"\r" in whole:
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return whole

    def watch(self, size: int, *, told: bool) -> None:
        """Note that so many bytes told something or not. Raises BackendFailed when a flood of them tells nothing."""
        self._quiet = 0 if told else self._quiet + size
        if self._quiet > QUIET_LIMIT:
            raise BackendFailed(f"{self._server} sent {QUIET_LIMIT} bytes without saying anything.", code=BAD_ANSWER)


def payloads(whole: bytes) -> Iterator[bytes]:
    """The data of each event by the rules of server-sent events: comments, other fields, data over several lines.

    Some servers send errors in a field of that name; they come out as objects with an `error`.
    """
    for event in whole.split(b"\n\n"):
        data: list[bytes] = []
        for line in event.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            field, _, value = line.partition(b":")
            if field in (b"data", b"error"):
                data.append(value.removeprefix(b" "))
                if field == b"error":
                    data[-1] = b'{"error":' + data[-1] + b"}"
        payload = b"\n".join(data).strip()
        if payload:
            yield payload


def nonsense(server: str, key: str | None, payload: bytes, wanted: str) -> BackendFailed:
    """The error for something that is not what was to come."""
    excerpt = without_key(payload[:8192].decode("utf-8", "replace"), key)[:200]
    return BackendFailed(f"{server} answered something that is no {wanted}: {excerpt}", code=BAD_ANSWER)


def _boundary(data: bytes | bytearray, start: int) -> int:
    """The end of the last blank line from `start` on; 0 when there is none."""
    cut = data.rfind(b"\n\n", start) + 2
    if data.find(b"\r", start) >= 0:
        cut = max(cut, data.rfind(b"\n\r\n", start) + 3, data.rfind(b"\r\r", start) + 2)
        return cut if cut > 2 else 0
    return cut if cut > 1 else 0
