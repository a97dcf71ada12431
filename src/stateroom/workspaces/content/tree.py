"""Trees: what a directory holds, as bytes whose SHA-256 names it. Pure: nothing is read or written here.

A directory is a list of entries in the order of their names' bytes. A large one is cut into pages, where the names say
so and not the number of entries before them: a change then rewrites its page and the index of pages, not all of it.
Whatever comes out of a store may be hostile: `decode` lets no entry through that could lead out of a directory.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from stateroom.workspaces.content.errors import ContentDamaged
from stateroom.workspaces.files.walk import NAME_BYTES_MAX

FILE: Final = 0
DIRECTORY: Final = 1
LINK: Final = 2
KINDS: Final[tuple[Literal["file", "directory", "symlink"], ...]] = ("file", "directory", "symlink")

DIGEST_BYTES: Final = 32
TARGET_BYTES_MAX: Final = 4095
TREE_BYTES_MAX: Final = 32 * 1024 * 1024
"""No node of a tree is larger."""

_PAGE_LEAST: Final = 16
_PAGE_MOST: Final = 256
_CUT_MASK: Final = 31
"""One name in 32 ends its page."""
_ENTRIES: Final = b"\x01"
_INDEX: Final = b"\x02"
_INT64: Final = 2**63

_Name: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_Kind: TypeAlias = Annotated[int, msgspec.Meta(ge=FILE, le=LINK)]
_Mode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_INT64 - 1)]
_Time: TypeAlias = Annotated[int, msgspec.Meta(ge=-_INT64 + 1, le=_INT64 - 1)]
_Digest: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One name in a directory."""

    name: _Name
    kind: _Kind
    mode: _Mode
    """Permission bits; of a symlink always 0o777."""
    mtime_ns: _Time
    """Of a file; 0 of everything else: a directory's changes with every file that comes and goes."""
    size: _Size
    """Of a file's content; 0 of everything else."""
    digest: Annotated[bytes, msgspec.Meta(max_length=TARGET_BYTES_MAX)]
    """Of the content or of the tree; a symlink has its target here."""


class Node(msgspec.Struct, frozen=True):
    """A decoded node: entries, or the digests of the pages that have them."""

    entries: list[Entry]
    pages: list[bytes]


class Summary(msgspec.Struct, frozen=True, gc=False):
    """What is known of a node without reading it."""

    digest: bytes
    height: int
    files: int
    bytes: int


class Encoded(msgspec.Struct, frozen=True):
    """A node on its way into the store."""

    summary: Summary
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
_decode_pages = msgspec.msgpack.Decoder(list[_Digest]).decode


def encode(entries: Sequence[Entry], below: dict[bytes, Summary]) -> list[Encoded]:
    """The nodes of a directory, the one that stands for it last. `below` knows its directories by their name.

    The entries are in the order of their names.
    """
    pages = [_encode_page(page, below) for page in _cut(entries)]
    if len(pages) == 1:
        return pages
    body = _INDEX + _encode([page.summary.digest for page in pages])
    top = Summary(
        digest=_digest(body),
        height=1 + max(page.summary.height for page in pages),
        files=sum(page.summary.files for page in pages),
        bytes=sum(page.summary.bytes for page in pages),
    )
    return [*pages, Encoded(top, body)]


def summarise(entries: Sequence[Entry], below: dict[bytes, Summary]) -> tuple[int, int, int]:
    """Height, files and bytes of a page of entries."""
    found = [below[entry.name] for entry in entries if entry.kind == DIRECTORY]
    height = 1 + max(one.height for one in found) if found else 0
    files = len(entries) - len(found) + sum(one.files for one in found)
    # A tree can name the same directory often, so that sums may grow beyond what a column holds.
    size = sum(entry.size for entry in entries) + sum(one.bytes for one in found)
    return height, min(files, _INT64 - 1), min(size, _INT64 - 1)


def time_within(nanoseconds: int) -> int:
    """The time of a file as a tree can hold it: file systems reach beyond, and anybody can set it so."""
    return max(-_INT64 + 1, min(nanoseconds, _INT64 - 1))


def decode(body: bytes) -> Node:
    """The node that these bytes are. Raises ContentDamaged for whatever `encode` would not have made."""
    try:
        if body[:1] == _ENTRIES:
            entries = _decode_entries(body[1:])
            check_order(entries)
            return Node(entries, [])
        if body[:1] == _INDEX:
            pages = _decode_pages(body[1:])
            if len(pages) > 1:
                return Node([], pages)
    except msgspec.MsgspecError as error:
        raise ContentDamaged(f"A tree of the content store is none: {error}") from error
    raise ContentDamaged("A tree of the content store is none: it does not begin as one.")


def check_order(entries: Sequence[Entry]) -> None:
    """Refuse names that are no names, names twice or out of order, and digests that are none."""
    last = b""
    for entry in entries:
        name = entry.name
        if name <= last or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise ContentDamaged(f"A tree of the content store has a name that must not be: {name!r}")
        if entry.kind == LINK:
            if not entry.digest or b"\0" in entry.digest:
                raise ContentDamaged(f"A tree of the content store has a link to nowhere: {name!r}")
        elif len(entry.digest) != DIGEST_BYTES:
            raise ContentDamaged(f"A tree of the content store has a name without a digest: {name!r}")
        last = name


def _cut(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Pages of entries; at least one, which may be empty."""
    first = 0
    for number, entry in enumerate(entries, 1):
        count = number - first
        if count >= _PAGE_MOST or (count >= _PAGE_LEAST and zlib.crc32(entry.name) & _CUT_MASK == 0):
            yield entries[first:number]
            first = number
    if first < len(entries) or not first:
        yield entries[first:]


def _encode_page(entries: Sequence[Entry], below: dict[bytes, Summary]) -> Encoded:
    body = _ENTRIES + _encode(entries)
    return Encoded(Summary(_digest(body), *summarise(entries, below)), body)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
