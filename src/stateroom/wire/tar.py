"""Tar archives in their plainest form, written and read piece by piece. Pure.

Only regular files with short names: what links, sparse files, devices and extended headers could do, they cannot do
here. A member's size stands in front of it, nothing is compressed, and so nothing can turn out larger than it said.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""Behind the last member."""
_SIZE_MAX: Final = 1 << 62
_OCTAL_MAX: Final = 8**11
_REGULAR: Final = (b"0", b"\0")


class Member(NamedTuple):
    """The beginning of a file."""

    name: str
    size: int


class _Over:
    """The end of a file."""


OVER: Final = _Over()
Piece: TypeAlias = Member | bytes | _Over


class BadTar(Exception):
    """The bytes are no archive of this kind; the message says why."""


def header(name: str, size: int, *, at: int = 0) -> bytes:
    """What stands in front of a file's bytes. `at` is its time in seconds."""
    assert len(name) <= 100, "names of members are short"
    octal = b"%011o\0" % size if size < _OCTAL_MAX else b"\x80" + size.to_bytes(11, "big")
    head = b"".join(
        (
            name.encode("ascii").ljust(100, b"\0"),
            b"0000600\0",
            b"0000000\0" * 2,
            octal,
            b"%011o\0" % at,
            b" " * 8,
            b"0".ljust(101, b"\0"),
            b"ustar\00000",
            bytes(BLOCK - 265),
        )
    )
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def padding(size: int) -> bytes:
    """What stands behind a file's bytes."""
    return bytes(-size % BLOCK)


def length(size: int) -> int:
    """Bytes that a file of this size takes in an archive."""
    return BLOCK + size + -size % BLOCK


class TarReader:
    """Takes an archive in as it comes, and gives its members out."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        """Bytes of the member that are still to come."""
        self._pad = 0
        self._ended = 0
        """Empty blocks at the end."""

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end."""
        return self._ended >= 2 and not self._rest

    def feed(self, data: bytes) -> list[Piece]:
        """What these bytes bring. Raises BadTar."""
        pieces: list[Piece] = []
        view = self._rest + data if self._rest else data
        at = 0
        while True:
            if self._left:
                some = view[at : at + self._left]
                if not some:
                    break
                at += len(some)
                self._left -= len(some)
                pieces.append(some)
                if not self._left:
                    pieces.append(OVER)
            elif self._pad:
                some = view[at : at + self._pad]
                if not some:
                    break
                at += len(some)
                self._pad -= len(some)
            elif len(view) - at >= BLOCK:
                self._head(view[at : at + BLOCK], pieces)
                at += BLOCK
            else:
                break
        self._rest = view[at:]
        return pieces

    def _head(self, block: bytes, pieces: list[Piece]) -> None:
        if not any(block):
            self._ended += 1
            return
        if self._ended:
            raise BadTar("something stands behind its end")
        member = _member(block)
        pieces.append(member)
        self._left, self._pad = member.size, -member.size % BLOCK
        if not member.size:
            pieces.append(OVER)


def _member(block: bytes) -> Member:
    if block[257:262] != b"ustar":
        raise BadTar("it is no tar archive")
    said = _octal(block[148:156])
    if said != sum(block) - sum(block[148:156]) + 8 * 32:
        raise BadTar("the checksum of a header is wrong")
    if block[156:157] not in _REGULAR:
        raise BadTar("it has a member that is no regular file")
    if any(block[345:500]):
        raise BadTar("a member has a long name")
    name = block[:100].split(b"\0", 1)[0]
    try:
        return Member(name.decode("ascii"), _size(block[124:136]))
    except UnicodeDecodeError:
        raise BadTar("a member has a name that is not ASCII") from None


def _size(field: bytes) -> int:
    if field[0] != 0x80:
        return _octal(field)
    size = int.from_bytes(field[1:], "big")
    if size > _SIZE_MAX:
        raise BadTar("a member says that it is larger than anything")
    return size


def _octal(field: bytes) -> int:
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits or digits.strip(b"01234567"):
        raise BadTar("a header has a number that is none")
    return int(digits, 8)
