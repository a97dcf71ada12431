"""How a content is cut: whole up to a mebibyte, in pieces of 64 KiB above, so that a small write costs a piece or two.

The digest of a small content is its SHA-256. A large one is a list: its size and the digests of pages, each of which is
the digests of 256 pieces. Its own digest is made by another function (SHA-512, cut to 256 bits): no file can be written
whose SHA-256 is the digest of a list.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

SMALL_MAX: Final = 1024 * 1024
PIECE: Final = 64 * 1024
PAGE: Final = 256
_DIGEST: Final = 32

_ZEROS: Final = bytes(PIECE)
ZERO_DIGEST: Final = hashlib.sha256(_ZEROS).digest()
"""Of a piece without anything in it, which is a hole when it is written to a file again."""


class Sink(Protocol):
    """Where the pieces go."""

    def chunk(self, digest: bytes, data: bytes | memoryview) -> None: ...

    def list(self, digest: bytes, size: int, pages: bytes) -> None: ...


class Nowhere:
    """Implements `Sink` for whoever only wants the digest."""

    def chunk(self, digest: bytes, data: bytes | memoryview) -> None:
        return None

    def list(self, digest: bytes, size: int, pages: bytes) -> None:
        return None


class NoRoom(Exception):
    """The content is larger than it may be."""


Fill: TypeAlias = Callable[[memoryview, int], int]
"""Fills a buffer from an offset on; fewer bytes than it has room for: the end."""


def cut_file(descriptor: int, size: int, room: int, sink: Sink) -> tuple[bytes, int]:
    """Digest and size of an open plain file of about `size` bytes. Raises NoRoom beyond `room`, OSError."""
    if size <= SMALL_MAX:
        data = os.pread(descriptor, size + 1, 0)
        if len(data) <= size:
            return _small(data, room, sink)
    return _cut(lambda view, offset: _fill(descriptor, view, offset), room, sink, find_data(descriptor))


def cut_bytes(data: bytes | memoryview, sink: Sink) -> tuple[bytes, int]:
    """Digest and size of bytes."""
    if len(data) <= SMALL_MAX:
        return _small(data, len(data), sink)
    whole = memoryview(data)

    def fill(view: memoryview, offset: int) -> int:
        piece = whole[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    return _cut(fill, len(data), sink, None)


def list_digest(size: int, pages: bytes) -> bytes:
    return hashlib.sha512(size.to_bytes(8, "big") + pages).digest()[:_DIGEST]


def pieces_of(size: int) -> int:
    """How many pieces a large content has."""
    return -(-size // PIECE)


def find_data(descriptor: int) -> Callable[[int], int]:
    """Tells where, from an offset on, the next byte is that was ever written; -1: nobody knows."""

    def next_data(offset: int) -> int:
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            # None is left, or the file system cannot tell.
            return os.fstat(descriptor).st_size if error.errno == errno.ENXIO else -1

    return next_data


def _small(data: bytes | memoryview, room: int, sink: Sink) -> tuple[bytes, int]:
    if len(data) > room:
        raise NoRoom
    digest = hashlib.sha256(data).digest()
    sink.chunk(digest, data)
    return digest, len(data)


def _cut(fill: Fill, room: int, sink: Sink, next_data: Callable[[int], int] | None) -> tuple[bytes, int]:
    """A content of unknown size, read a mebibyte at a time."""
    view = memoryview(bytearray(SMALL_MAX))
    digests: list[bytes] = []
    size = 0
    while True:
        if next_data is not None and size and (data_at := next_data(size)) >= size + SMALL_MAX:
            count = (min(data_at, room) - size) // SMALL_MAX
            if count:
                sink.chunk(ZERO_DIGEST, _ZEROS)
                digests += [ZERO_DIGEST] * (count * (SMALL_MAX // PIECE))
                size += count * SMALL_MAX
        read = fill(view, size)
        if size + read > room:
            raise NoRoom
        if not size and (read < SMALL_MAX or not fill(memoryview(bytearray(1)), read)):
            return _small(view[:read], room, sink)
        for start in range(0, read, PIECE):
            piece = view[start : min(start + PIECE, read)]
            digest = hashlib.sha256(piece).digest()
            digests.append(digest)
            sink.chunk(digest, piece)
        size += read
        if read < SMALL_MAX:
            return _list(digests, size, sink), size


def _list(digests: list[bytes], size: int, sink: Sink) -> bytes:
    pages = bytearray()
    for first in range(0, len(digests), PAGE):
        page = b"".join(digests[first : first + PAGE])
        page_digest = hashlib.sha256(page).digest()
        sink.chunk(page_digest, page)
        pages += page_digest
    digest = list_digest(size, bytes(pages))
    sink.list(digest, size, bytes(pages))
    return digest


def _fill(descriptor: int, view: memoryview, offset: int) -> int:
    read = 0
    while read < len(view):
        got = os.preadv(descriptor, [view[read:]], offset + read)
        if not got:
            break
        read += got
    return read
