"""Reads what the content store holds: directories, contents whole and in part. Everything is checked as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from stateroom.workspaces.content.codec import Codec, damaged
from stateroom.workspaces.content.cut import PAGE, PIECE, SMALL_MAX, list_digest, pieces_of
from stateroom.workspaces.content.errors import ContentDamaged, ContentMissing
from stateroom.workspaces.content.file import ContentFile, rows
from stateroom.workspaces.content.tree import DIGEST_BYTES, TREE_BYTES_MAX, Entry, Node, Summary, check_order, decode

_PAGE_BYTES: Final = PAGE * DIGEST_BYTES


class Reader:
    """For one thread."""

    def __init__(self, file: ContentFile) -> None:
        self._file = file
        self._codec = Codec()

    def node(self, digest: bytes) -> Node:
        """One node of a tree. Raises ContentMissing, ContentDamaged."""
        return decode(self._unpacked("SELECT size, packed, body FROM trees WHERE digest = ?", digest, TREE_BYTES_MAX))

    def directory(self, digest: bytes) -> list[Entry]:
        """All that is in a directory, in the order of the names."""
        node = self.node(digest)
        if not node.pages:
            return node.entries
        entries: list[Entry] = []
        for page in node.pages:
            found = self.node(page)
            if found.pages:
                raise ContentDamaged("A tree of the content store has pages of pages, which nothing writes.")
            entries += found.entries
        check_order(entries)
        return entries

    def summary(self, digest: bytes) -> Summary | None:
        """What is known of a tree; None: it is not there."""
        with self._file.read() as cursor:
            found = rows(cursor, "SELECT height, files, bytes FROM trees WHERE digest = ?", digest)
        return Summary(digest, *found[0]) if found else None

    def chunk(self, digest: bytes) -> bytes:
        """Raises ContentMissing, ContentDamaged."""
        return self._unpacked("SELECT size, packed, data FROM chunks WHERE digest = ?", digest, SMALL_MAX)

    def list(self, digest: bytes) -> tuple[int, bytes] | None:
        """Size and pages of a large content; None: it is a small one, or not there."""
        with self._file.read() as cursor:
            found = rows(cursor, "SELECT size, pages FROM lists WHERE digest = ?", digest)
        if not found:
            return None
        size, pages = found[0]
        count = -(-pieces_of(size) // PAGE)
        if list_digest(size, pages) != digest or size <= SMALL_MAX or len(pages) != count * DIGEST_BYTES:
            raise damaged(digest)
        return size, pages

    def pieces(self, pages: bytes, *, first: int = 0) -> Iterator[bytes]:
        """The digests of a large content's pieces, from one on."""
        for number in range(first // PAGE, len(pages) // DIGEST_BYTES):
            page_digest = pages[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            page = self.chunk(page_digest)
            if not page or len(page) % DIGEST_BYTES or len(page) > _PAGE_BYTES:
                raise damaged(page_digest)
            start = max(0, first - number * PAGE) * DIGEST_BYTES
            for at in range(start, len(page), DIGEST_BYTES):
                yield page[at : at + DIGEST_BYTES]

    def offsets(self, size: int, pages: bytes, *, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """Where each piece of a large content begins, and its digest."""
        at = first - first % PIECE
        for digest in self.pieces(pages, first=at // PIECE):
            if at >= size:
                raise damaged(digest)
            yield at, digest
            at += PIECE
        if at < size:
            raise ContentDamaged("A list of the content store has fewer pieces than its size needs.")

    def piece(self, digest: bytes, offset: int, size: int) -> bytes:
        """The piece of a large content of this size that begins here."""
        data = self.chunk(digest)
        if len(data) != min(PIECE, size - offset):
            raise damaged(digest)
        return data

    def size(self, digest: bytes) -> int | None:
        """Of a content; None: it is not there."""
        large = self.list(digest)
        if large is not None:
            return large[0]
        with self._file.read() as cursor:
            found = rows(cursor, "SELECT size FROM chunks WHERE digest = ?", digest)
        return found[0][0] if found else None

    def content(self, digest: bytes, *, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """The bytes from `first` to `last` (inclusive; None: the end). Raises ContentMissing, ContentDamaged."""
        found = self.list(digest)
        if found is None:
            data = self.chunk(digest)
            if piece := data[first : None if last is None else last + 1]:
                yield piece
            return
        size, pages = found
        end = size if last is None else min(size, last + 1)
        for offset, piece_digest in self.offsets(size, pages, first=min(first, size)):
            if offset >= end:
                return
            if piece := self.piece(piece_digest, offset, size)[max(0, first - offset) : end - offset]:
                yield piece

    def _unpacked(self, query: str, digest: bytes, size_max: int) -> bytes:
        """The bytes of a row with size, packing and what was packed. Raises ContentMissing, ContentDamaged."""
        with self._file.read() as cursor:
            found = rows(cursor, query, digest)
        if not found:
            raise _missing(digest)
        size, packed, data = found[0]
        return self._codec.unpack(digest, size, packed, data, size_max=size_max)


def _missing(digest: bytes) -> ContentMissing:
    return ContentMissing(f"{digest.hex()} is not in the content store.")
