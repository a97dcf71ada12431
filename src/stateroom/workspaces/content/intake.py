"""What goes into the content store: found to be there already, or packed and written a few mebibytes at a time.

A node of a tree is written with or after all that it names, so that whatever node is there is whole, at every moment.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import apsw

from stateroom.workspaces.content.codec import Codec
from stateroom.workspaces.content.file import ContentFile
from stateroom.workspaces.content.hold import Hold
from stateroom.workspaces.content.tree import Encoded

_FIND: Final = {table: f"SELECT 1 FROM {table} WHERE digest = ?" for table in ("chunks", "lists", "trees")}  # noqa: S608  # our own names
_GATHERED_BYTES: Final = 8 * 1024 * 1024


class Intake:
    """One writing: implements `Sink`. Nothing of it is referred to before it was flushed."""

    def __init__(self, file: ContentFile, hold: Hold, born: int) -> None:
        self._file = file
        self._hold = hold
        self._born = born
        self._codec = Codec()
        self._reading = file.read()
        self._cursor: apsw.Cursor = self._reading.__enter__()
        self._there: dict[str, set[bytes]] = {"chunks": set(), "lists": set(), "trees": set()}
        """Found or gathered: not looked for again."""
        self._chunks: list[tuple[bytes, int, int, int, bytes]] = []
        self._lists: list[tuple[bytes, int, int, bytes]] = []
        self._trees: list[tuple[bytes, int, int, int, int, int, int, bytes]] = []
        self._gathered = 0
        self.new_bytes = 0
        """Packed bytes that were not there before."""
        self.known: set[bytes] = set()
        """Pieces that are held by what they are a part of, and need not be looked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reading.__exit__(None, None, None)

    def chunk(self, digest: bytes, data: bytes | memoryview) -> None:
        if digest not in self.known and self._is_new("chunks", digest):
            packed, kept = self._codec.pack(data)
            self._chunks.append((digest, self._born, len(data), packed, kept))
            self._gather(len(kept))

    def list(self, digest: bytes, size: int, pages: bytes) -> None:
        if self._is_new("lists", digest):
            self._lists.append((digest, self._born, size, pages))
            self._gather(len(pages))

    def tree(self, node: Encoded) -> None:
        summary = node.summary
        if self._is_new("trees", summary.digest):
            packed, kept = self._codec.pack(node.body)
            self._trees.append(
                (
                    summary.digest,
                    self._born,
                    summary.height,
                    summary.files,
                    summary.bytes,
                    len(node.body),
                    packed,
                    kept,
                )
            )
            self._gather(len(kept))

    def flush(self) -> None:
        """Write what was gathered. Raises StorageFull."""
        if not (self._chunks or self._lists or self._trees):
            return
        with self._file.write() as cursor:
            # Somebody else may have put the same in the meantime.
            cursor.executemany(
                "INSERT OR IGNORE INTO chunks (digest, born, size, packed, data) VALUES (?, ?, ?, ?, ?)", self._chunks
            )
            cursor.executemany(
                "INSERT OR IGNORE INTO lists (digest, born, size, pages) VALUES (?, ?, ?, ?)", self._lists
            )
            cursor.executemany(
                "INSERT OR IGNORE INTO trees (digest, born, height, files, bytes, size, packed, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                self._trees,
            )
        self._chunks, self._lists, self._trees, self._gathered = [], [], [], 0

    def _is_new(self, table: str, digest: bytes) -> bool:
        there = self._there[table]
        if digest in there:
            return False
        there.add(digest)
        # Held first, looked for second: see content_hold.py.
        self._hold.keep(digest)
        return not self._cursor.execute(_FIND[table], (digest,)).fetchall()

    def _gather(self, size: int) -> None:
        self.new_bytes += size
        self._gathered += size
        if self._gathered >= _GATHERED_BYTES:
            self.flush()
