"""Sweeps what nothing refers to any more, in small steps, while others read and write.

1. Marking goes from everything that is alive down to the pieces: what the caller names, what is held or was a moment
   ago (content_hold.py), and what is young. A bit for each row says that it was reached.
2. Sweeping deletes rows without that bit, from the top down: trees by height, then lists, then chunks. So a tree that
   is there has all that it names, after every step. Rows that were put since the marking began have higher numbers
   than there are bits, and stay.
3. Between the steps somebody may hold something that is doomed. The hold takes the same lock as a step and marks what
   it holds with all below, before it looks for it.
4. At the end free room is given back to the disk and the log is cut: what was deleted was overwritten, and is nowhere.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import apsw
import msgspec

from stateroom.workspaces.content.cut import SMALL_MAX
from stateroom.workspaces.content.file import ContentFile, rows
from stateroom.workspaces.content.hold import Holds
from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.tree import DIGEST_BYTES, DIRECTORY, FILE

_MARKED_AT_ONCE: Final = 128
_ROWS_AT_ONCE: Final = 256
_BYTES_AT_ONCE: Final = 2 * 1024 * 1024
_SCANNED_AT_ONCE: Final = 2_000
_PAGES_AT_ONCE: Final = 256
_CUT_TRIES: Final = 20
_NEVER: Final = 1 << 60
_TABLES: Final = {"trees": "body", "lists": "pages", "chunks": "data"}
"""From the top down."""


class Collected(msgspec.Struct, frozen=True):
    """What a sweep did."""

    trees: int
    contents: int
    """Large contents and chunks."""
    bytes: int
    """Of what was deleted, as it was packed."""
    scrubbed: bool
    """Whether the log was cut. If not, somebody was reading all the time, and deleted bytes may still be in it."""


class Marks:
    """Implements `Reaching`: which rows were reached. Used under the lock of the holds only."""

    def __init__(self, file: ContentFile, reader: Reader) -> None:
        self._file = file
        self._reader = reader
        self._bits: dict[str, bytearray] = {}
        self._later: dict[str, set[int]] = {table: set() for table in _TABLES}
        """Rows that were put since, as far as they were reached."""
        self._waiting: list[tuple[str, bytes]] = []
        self.is_complete = False
        """Set when sweeping begins: from then on everything is followed to its end at once."""
        with file.read() as cursor:
            for table in _TABLES:
                last = rows(cursor, f"SELECT coalesce(max(id), 0) FROM {table}")  # noqa: S608  # our own names
                self._bits[table] = bytearray(last[0][0] + 1)

    def last(self, table: str) -> int:
        """The number of the last row that may be swept."""
        return len(self._bits[table]) - 1

    def is_marked(self, table: str, row: int) -> bool:
        return bool(self._bits[table][row])

    def reach(self, digest: bytes) -> None:
        self._waiting += [(table, digest) for table in _TABLES]
        if self.is_complete:
            while self.follow():
                pass

    def follow(self) -> bool:
        """Go on for a while; False when there is nothing left."""
        with self._file.read() as cursor:
            for _ in range(_MARKED_AT_ONCE):
                if not self._waiting:
                    return False
                table, digest = self._waiting.pop()
                if self._mark(cursor, table, digest) and table != "chunks":
                    self._follow(cursor, table, digest)
        return True

    def _follow(self, cursor: apsw.Cursor, table: str, digest: bytes) -> None:
        if table == "lists":
            found = self._reader.list(digest)
            for at in range(0, len(found[1]) if found else 0, DIGEST_BYTES):
                page = found[1][at : at + DIGEST_BYTES] if found else b""
                self._mark(cursor, "chunks", page)
                pieces = self._reader.chunk(page)
                for start in range(0, len(pieces), DIGEST_BYTES):
                    self._mark(cursor, "chunks", pieces[start : start + DIGEST_BYTES])
            return
        node = self._reader.node(digest)
        self._waiting += [("trees", page) for page in node.pages]
        for entry in node.entries:
            if entry.kind == DIRECTORY:
                self._waiting.append(("trees", entry.digest))
            elif entry.kind == FILE and entry.size > SMALL_MAX:
                self._waiting.append(("lists", entry.digest))
            elif entry.kind == FILE:
                self._mark(cursor, "chunks", entry.digest)

    def _mark(self, cursor: apsw.Cursor, table: str, digest: bytes) -> bool:
        """Whether the row is there and was not reached before."""
        found = rows(cursor, f"SELECT id FROM {table} WHERE digest = ?", digest)  # noqa: S608  # our own names
        if not found:
            return False
        row: int = found[0][0]
        bits, later = self._bits[table], self._later[table]
        if row < len(bits):
            if bits[row]:
                return False
            bits[row] = 1
            return True
        if row in later:
            return False
        later.add(row)
        return True


class Collection:
    """One sweep."""

    def __init__(self, file: ContentFile, holds: Holds, stop: threading.Event, *, rest_seconds: float) -> None:
        """It ends early, and does no harm, when `stop` is set."""
        self._file = file
        self._holds = holds
        self._stop = stop
        self._rest_seconds = rest_seconds
        self._deleted = dict.fromkeys(_TABLES, 0)
        self._bytes = 0

    def run(self, live: Iterable[bytes], *, now_ms: int, younger_than: float) -> Collected:
        """Delete what is neither among `live`, nor below it, nor held, nor younger than so many seconds."""
        # Nothing at all is young when nothing is to be spared for its youth.
        oldest = now_ms - math.ceil(younger_than * 1000) if younger_than > 0 else now_ms + _NEVER
        with self._holds.lock:
            marks = Marks(self._file, Reader(self._file))
            self._holds.begin(marks, younger_than=younger_than)
        try:
            if self._mark(marks, live, oldest):
                for table in _TABLES:
                    self._sweep(marks, table, oldest)
        finally:
            self._holds.end()
        while not self._stop.is_set() and self._file.shrink(_PAGES_AT_ONCE):
            self._rest()
        scrubbed = False
        for _ in range(_CUT_TRIES):
            scrubbed = self._file.cut_log()
            if scrubbed or self._stop.is_set():
                break
            self._rest()
        contents = self._deleted["lists"] + self._deleted["chunks"]
        return Collected(self._deleted["trees"], contents, self._bytes, scrubbed)

    def _mark(self, marks: Marks, live: Iterable[bytes], oldest: int) -> bool:
        """Whether everything was reached that can be."""
        roots = iter(live)
        young = [self._young(table, oldest) for table in ("trees", "lists")]
        for source in (roots, *young):
            while batch := list(islice(source, _MARKED_AT_ONCE)):
                with self._holds.lock:
                    for digest in batch:
                        marks.reach(digest)
        while not self._stop.is_set():
            with self._holds.lock:
                if not marks.follow():
                    marks.is_complete = True
                    return True
            self._rest()
        return False

    def _young(self, table: str, oldest: int) -> Iterator[bytes]:
        """The digests of rows that are too young to be swept; numbers grow with time."""
        below = 1 << 62
        while True:
            with self._file.read() as cursor:
                found = rows(
                    cursor,
                    f"SELECT id, digest, born FROM {table} WHERE id < ? ORDER BY id DESC LIMIT ?",  # noqa: S608  # our own names
                    below,
                    _SCANNED_AT_ONCE,
                )
            young = [digest for _, digest, born in found if born >= oldest]
            if not young:
                return
            below = found[-1][0]
            yield from young

    def _sweep(self, marks: Marks, table: str, oldest: int) -> None:
        doomed = list(self._doomed(marks, table, oldest))
        # A tree goes before those below it.
        doomed.sort(reverse=True)
        left = [row for _, row in doomed]
        while left and not self._stop.is_set():
            with self._holds.lock, self._file.write() as cursor:
                left = left[self._delete(cursor, marks, table, left) :]
            self._rest()

    def _doomed(self, marks: Marks, table: str, oldest: int) -> Iterator[tuple[int, int]]:
        """Height and number of each row that was not reached and is old enough."""
        height = "height" if table == "trees" else "0"
        last = 0
        while True:
            with self._file.read() as cursor:
                found = rows(
                    cursor,
                    f"SELECT {height}, id, born FROM {table} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",  # noqa: S608  # our own names
                    last,
                    marks.last(table),
                    _SCANNED_AT_ONCE,
                )
            if not found:
                return
            last = found[-1][1]
            yield from ((up, row) for up, row, born in found if born < oldest and not marks.is_marked(table, row))

    def _delete(self, cursor: apsw.Cursor, marks: Marks, table: str, left: list[int]) -> int:
        """Delete some of the first of these rows, but for those that were reached since; how many are done with."""
        size = done = 0
        for row in left[:_ROWS_AT_ONCE]:
            done += 1
            if marks.is_marked(table, row):
                continue
            found = rows(
                cursor,
                f"SELECT length({_TABLES[table]}) FROM {table} WHERE id = ?",  # noqa: S608  # our own names
                row,
            )
            if found:
                cursor.execute(f"DELETE FROM {table} WHERE id = ?", (row,))  # noqa: S608  # our own names
                self._deleted[table] += 1
                size += found[0][0]
            if size >= _BYTES_AT_ONCE:
                break
        self._bytes += size
        return done

    def _rest(self) -> None:
        self._stop.wait(self._rest_seconds)
