"""Frames between the server, the relay and the kernel: one letter, a length, so many bytes.

Names of other modules are bound here once: what a cell does to `json` or `os` afterwards changes nothing.
"""

from __future__ import annotations

from json import dumps as _dumps
from json import loads as _loads
from os import read as _read
from os import write as _write
from struct import Struct
from typing import Any

_HEADER = Struct(">cI")
HEADER_BYTES = _HEADER.size
header = _HEADER.pack
parse_header = _HEADER.unpack_from

# To the kernel.
RUN = b"R"
SAVE = b"S"
RESTORE = b"L"
DATA = b"D"

# From the kernel.
READY = b"r"
BEGIN = b"b"
OUTPUT = b"o"
SKIPPED = b"k"
IMAGE = b"i"
DONE = b"d"
STATE = b"s"
NOTE = b"n"
SAVED = b"v"
RESTORED = b"l"
DIED = b"x"

OUTPUT_BYTES = 32 * 1024
"""Longest OUTPUT frame."""
STATE_BYTES = 256 * 1024
"""Longest STATE and DATA frame."""
TEXT_BYTES = 1024 * 1024
"""Longest frame of JSON, but for RUN."""
IMAGE_BYTES = 4 * 1024 * 1024
"""Longest image."""
IMAGES = 16
"""How many images a cell has at most."""
CODE_BYTES = 16 * 1024 * 1024
"""Longest RUN frame."""

LIMITS = {
    READY: TEXT_BYTES,
    OUTPUT: OUTPUT_BYTES,
    SKIPPED: TEXT_BYTES,
    IMAGE: IMAGE_BYTES,
    DONE: TEXT_BYTES,
    STATE: STATE_BYTES,
    SAVED: TEXT_BYTES,
    RESTORED: TEXT_BYTES,
    DIED: TEXT_BYTES,
}
"""What the server takes, and how long it may be."""


class Broken(Exception):
    """The other side does not keep to the frames."""


def encode(value: Any) -> bytes:
    """JSON in ASCII: lone surrogates survive it."""
    return _dumps(value).encode("ascii")


def encode_told(value: Any) -> bytes:
    """The same for whoever takes JSON only where it is Unicode: lone surrogates become question marks."""
    return _dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def decode(body: bytes | memoryview) -> Any:
    return _loads(bytes(body))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[_write(fd, view) :]


def send(fd: int, kind: bytes, body: bytes = b"") -> None:
    if len(body) < 64 * 1024:
        write_all(fd, header(kind, len(body)) + body)
        return
    write_all(fd, header(kind, len(body)))
    write_all(fd, body)


def read_exactly(fd: int, size: int) -> bytes:
    """Raises EOFError."""
    parts = []
    while size:
        part = _read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive(fd: int) -> tuple[bytes, bytes]:
    kind, size = parse_header(read_exactly(fd, HEADER_BYTES))
    return kind, read_exactly(fd, size)


class Parser:
    """Frames out of pieces of a stream."""

    def __init__(self, limits: dict[bytes, int] | None = None, longest: int = CODE_BYTES) -> None:
        self._limits = limits
        self._longest = longest
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        self._held += data

    def next(self) -> tuple[bytes, bytes] | None:
        """None: more has to be fed. Raises Broken."""
        if len(self._held) < HEADER_BYTES:
            return None
        kind, size = parse_header(self._held)
        limit = self._longest if self._limits is None else self._limits.get(kind, -1)
        if size > limit:
            raise Broken(f"a frame {kind!r} of {size} bytes")
        end = HEADER_BYTES + size
        if len(self._held) < end:
            return None
        with memoryview(self._held) as view:
            body = bytes(view[HEADER_BYTES:end])
        del self._held[:end]
        return kind, body
