"""The long check of a content store: every byte against its digest, every tree and list against what it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import apsw

from stateroom.workspaces.content.cut import PAGE, PIECE, SMALL_MAX, pieces_of
from stateroom.workspaces.content.errors import ContentDamaged, ContentMissing
from stateroom.workspaces.content.file import ContentFile, rows
from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.tree import DIGEST_BYTES, DIRECTORY, FILE, Node, summarise

Progress: TypeAlias = Callable[[str, int, int], None]
"""What is being read, how much of it was, and how much there is; 0: unknown."""

FINDINGS_MAX: Final = 100
_AT_ONCE: Final = 200


def verify_file(file: ContentFile, progress: Progress) -> list[str]:
    """What is wrong, in words; empty when all is well. Reads everything; stops after 100 findings."""
    try:
        with file.read() as cursor:
            found = [f"file: {text}" for (text,) in cursor.execute("PRAGMA integrity_check(20)") if text != "ok"]
    except ContentDamaged as error:
        return [f"file: {error.message}"]
    if found:
        return found
    check = _Check(file)
    for table, one in (("chunks", check.of_chunk), ("lists", check.of_list), ("trees", check.of_tree)):
        for number, (digest, total) in enumerate(_digests(file, table)):
            if number % _AT_ONCE == 0:
                progress(table, number, total)
            try:
                found += one(digest)
            except (ContentDamaged, ContentMissing) as error:
                found.append(f"{table}: {digest.hex()}: {error.message}")
            if len(found) >= FINDINGS_MAX:
                return [*found[:FINDINGS_MAX], "There may be more: the check has stopped here."]
    return found


class _Check:
    def __init__(self, file: ContentFile) -> None:
        self._file = file
        self._reader = Reader(file)

    def of_chunk(self, digest: bytes) -> list[str]:
        self._reader.chunk(digest)
        return []

    def of_list(self, digest: bytes) -> list[str]:
        found = self._reader.list(digest)
        if found is None:
            return []
        size, pages = found
        told: list[str] = []
        with self._file.read() as cursor:
            for number, piece in enumerate(self._reader.pieces(pages)):
                if _chunk_size(cursor, piece) != min(PIECE, size - number * PIECE):
                    told.append(f"lists: {digest.hex()}: its piece {number} is missing or has another size")
        count = sum(len(self._reader.chunk(page)) for page in _split(pages)) // DIGEST_BYTES
        if count != pieces_of(size) or any(len(self._reader.chunk(page)) != PAGE * 32 for page in _split(pages)[:-1]):
            told.append(f"lists: {digest.hex()}: it has {count} pieces and should have {pieces_of(size)}")
        return told

    def of_tree(self, digest: bytes) -> list[str]:
        node = self._reader.node(digest)
        if node.pages:
            self._reader.directory(digest)
            below = [self._reader.summary(page) for page in node.pages]
            should = (
                1 + max(one.height for one in below if one),
                sum(one.files for one in below if one),
                sum(one.bytes for one in below if one),
            )
            told: list[str] = []
        else:
            told = self._entries(digest, node)
            found = {
                entry.name: summary
                for entry in node.entries
                if entry.kind == DIRECTORY and (summary := self._reader.summary(entry.digest))
            }
            if told:
                return told
            should = summarise(node.entries, found)
        own = self._reader.summary(digest)
        if own is None or (own.height, own.files, own.bytes) != should:
            told.append(f"trees: {digest.hex()}: its row does not tell what it holds")
        return told

    def _entries(self, digest: bytes, node: Node) -> list[str]:
        told = []
        for entry in node.entries:
            if entry.kind == DIRECTORY:
                there = self._reader.summary(entry.digest) is not None
            elif entry.kind == FILE and entry.size > SMALL_MAX:
                found = self._reader.list(entry.digest)
                there = found is not None and found[0] == entry.size
            elif entry.kind == FILE:
                with self._file.read() as cursor:
                    there = _chunk_size(cursor, entry.digest) == entry.size
            else:
                there = True
            if not there:
                told.append(f"trees: {digest.hex()}: what {entry.name!r} names is missing or has another size")
        return told


def _chunk_size(cursor: apsw.Cursor, digest: bytes) -> int | None:
    found = rows(cursor, "SELECT size FROM chunks WHERE digest = ?", digest)
    return found[0][0] if found else None


def _split(pages: bytes) -> list[bytes]:
    return [pages[at : at + DIGEST_BYTES] for at in range(0, len(pages), DIGEST_BYTES)]


def _digests(file: ContentFile, table: str) -> Iterator[tuple[bytes, int]]:
    """Every digest of a table, with how many there are."""
    last = 0
    with file.read() as cursor:
        total = rows(cursor, f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608  # our own names
    while True:
        with file.read() as cursor:
            found = rows(
                cursor,
                f"SELECT id, digest FROM {table} WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608  # our own names
                last,
                _AT_ONCE,
            )
        if not found:
            return
        last = found[-1][0]
        yield from ((digest, total) for _, digest in found)
