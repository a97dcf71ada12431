"""What the writer does inside a transaction of the journal on SQLite: appends, renewals, redactions, rebuilds.

Synchronous, on one connection, in one thread. A refusal (HeadMoved, Fenced) is raised before anything of its change is
written, so that the others in the transaction stand; after any other error the caller must roll back and call `reset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import apsw

from stateroom.errors import Fenced, HeadMoved
from stateroom.journal.codes import KIND_CODES, PADDED, erased_body, read_entry
from stateroom.journal.drafts import check_append, this_run
from stateroom.journal.entries import Entry, Erased, Kind, encode
from stateroom.journal.frames import FramePacker
from stateroom.journal.index import INDEXED, RECORD_KINDS, index_changes
from stateroom.journal.sqlite_index import IndexWriter, place_of
from stateroom.journal.store import THIS, Append, Appended, Branch, Lease

_CACHED = 16_384
"""Branches whose unchanging facts are remembered; beyond it the memory starts anew."""


class _Line(NamedTuple):
    """What never changes about a branch."""

    id: int
    project: int
    first: int


class Ledger:
    """Writes the journal. `generation` is the one of the file when this store opened it."""

    def __init__(self, connection: apsw.Connection, queries: Mapping[str, str], generation: int) -> None:
        self._cursor = connection.cursor()
        self._connection = connection
        self._execute = self._cursor.execute
        self._queries = queries
        self._index = IndexWriter(self._cursor, queries)
        self._generation = generation
        self._packer = FramePacker()
        self._projects: dict[str, int] = {}
        self._lines: dict[tuple[str, str], _Line] = {}
        self._held: dict[int, tuple[int, int]] = {}
        """Head and fence of branches that are held. Nobody else may move them as long as the generation stands."""
        self._frames: list[tuple[int, int, int, bytes]] = []
        """What all streams of this transaction add: `finish` writes it in one go."""

    def reset(self) -> None:
        """Forget what a rolled back transaction may have put into memory."""
        self._projects.clear()
        self._lines.clear()
        self._held.clear()
        self._frames.clear()
        self._index.reset()

    def finish(self) -> None:
        """Write what was put off. Last in every transaction, and before anything else than an append."""
        if self._frames:
            self._cursor.executemany(self._queries["add_frame"], self._frames)
            self._frames.clear()

    def check_generation(self) -> None:
        """Raise Fenced when a server has opened the file since. First in every transaction."""
        if read_generation(self._cursor, self._queries) != self._generation:
            raise Fenced("Another server has taken over this data directory: this one may write nothing more.")

    def append(self, change: Append, now: int) -> Appended:
        """Write one append. `now` in milliseconds."""
        check_append(change)
        count = len(change.entries)
        if change.create is not None:
            line, head, lease = self._create(change, change.create, now)
        else:
            found = self._line(change.project, change.branch)
            if found is None:
                raise HeadMoved(f"Branch {change.branch!r} is not there.")
            line = found
            head = self._head(line) if change.expected is None else change.expected
            lease = self._advance(line, change, head, now)
        this = this_run(change.entries, head + 1) if count or change.frames_run == THIS else THIS
        if count:
            self._write_entries(line, change, head + 1, this)
        if change.frames_run != -1:
            self._write_frames(line, change, this if change.frames_run == THIS else change.frames_run)
        return Appended(head + count, lease)

    def renew(self, leases: Sequence[Lease], until: int) -> list[Lease]:
        """Extend those leases that are current, and return them."""
        kept = []
        for lease in leases:
            row = self._row("find_branch", (lease.branch,))
            if row is None:
                continue
            self._do("renew_lease", (until, row[0], lease.fence, self._generation))
            if self._connection.changes():
                kept.append(lease)
        return kept

    def redact(self, project: str, branch: str, bodies: Mapping[int, bytes | None], at: int) -> None:
        """Overwrite or erase own entries of a branch, with their index rows and frames."""
        line = self._line(project, branch)
        if line is None:
            return
        for seq, body in bodies.items():
            place = place_of(line.id, seq)
            row = self._row("read_entry", (place,)) if seq >= line.first else None
            if row is None:
                continue
            number, code, *columns = row
            old = read_entry(seq, code, *columns)
            if old.kind != Kind.ERASED:
                new = self._change_entry(number, old, len(columns[-1]), body, at)
                self._index.replace(line.id, line.project, number, old, new)
                if body is None and old.kind not in RECORD_KINDS:
                    started = place_of(line.id, old.run if old.kind != Kind.RUN_STARTED else seq)
                    self._do("drop_frames", (started,))
                    self._do("erase_sealed", (started,))
        self._index.settle()

    def rebuild(self) -> None:
        """Derive the whole index anew."""
        self._index.rebuild(self._connection.cursor())

    def trim(self) -> None:
        """Give up the room that erased content left; VACUUM has to follow, since rows change their size."""
        for query in ("drop_erased_frames", "trim_shortened", "trim_erased"):
            self._do(query, ())

    def _create(self, change: Append, create: Branch, now: int) -> tuple[_Line, int, Lease | None]:
        project = self._project(create.project)
        parent = None
        if create.parent:
            parent = self._line(create.project, create.parent)
            if parent is None or self._head(parent) < create.parent_seq:
                raise HeadMoved(f"Branch {create.parent!r} cannot be forked at {create.parent_seq}.")
        head = create.parent_seq
        if change.expected is not None and change.expected != head:
            raise HeadMoved(f"Branch {create.id!r} would stand at {head}, not at {change.expected}.")
        holds = bool(change.acquire) and not change.release
        until = now + _milliseconds(change.lease_seconds) if holds else 0
        values = (head + len(change.entries), int(bool(change.acquire)), change.acquire if holds else "", until)
        row = self._row(
            "add_branch",
            (create.id, project, parent.id if parent else None, create.parent_seq, *values, self._generation),
        )
        if row is None:
            raise HeadMoved(f"Branch {create.id!r} is already there.")
        line = self._remember(create.project, create.id, _Line(row[0], project, create.parent_seq + 1))
        if holds:
            self._held[line.id] = (head + len(change.entries), 1)
        return line, head, Lease(create.id, 1) if holds else None

    def _advance(self, line: _Line, change: Append, head: int, now: int) -> Lease | None:
        """Check who writes and where, and move the head: one statement, before anything else is written."""
        lease, new_head = change.lease, head + len(change.entries)
        generation = self._generation
        until = now + _milliseconds(change.lease_seconds)
        if lease is not None:
            if not change.entries and not change.release:
                return self._check_held(line, change, lease)
            self._held.pop(line.id, None)
            if change.release:
                self._do("advance_and_release", (new_head, line.id, head, lease.fence, generation))
            else:
                self._do("advance_held", (new_head, until, line.id, head, lease.fence, generation))
            if not self._connection.changes():
                self._refuse(line, change)
            if change.release:
                return None
            self._held[line.id] = (new_head, lease.fence)
            return lease
        self._held.pop(line.id, None)
        if change.acquire:
            holder, until = ("", 0) if change.release else (change.acquire, until)
            row = self._row(
                "advance_and_take", (new_head, holder, until, generation, line.id, head, change.acquire, now)
            )
            if row is None:
                self._refuse(line, change)
            if change.release:
                return None
            self._held[line.id] = (new_head, row[0])
            return Lease(change.branch, row[0])
        if change.entries:
            self._do("advance_free", (new_head, line.id, head, now, generation))
            if not self._connection.changes():
                self._refuse(line, change)
        elif change.expected is not None and self._head(line) != change.expected:
            self._refuse(line, change)
        return None

    def _check_held(self, line: _Line, change: Append, lease: Lease) -> Lease:
        """Frames alone do not touch the branch's row: a stream would rewrite it with each batch."""
        if self._held.get(line.id) == (change.expected, lease.fence):
            return lease
        head, fence, holder, _, generation = self._row("read_head", (line.id,))
        if fence != lease.fence or not holder or generation != self._generation:
            self._refuse(line, change)
        if change.expected is not None and change.expected != head:
            self._refuse(line, change)
        return lease

    def _refuse(self, line: _Line, change: Append) -> NoReturn:
        head, fence, holder, _, generation = self._row("read_head", (line.id,))
        lease = change.lease
        if lease is not None and (fence != lease.fence or not holder or generation != self._generation):
            raise Fenced(f"The lease of branch {change.branch!r} went to another writer.")
        if change.expected is not None and change.expected != head:
            raise HeadMoved(f"Branch {change.branch!r} stands at {head}, not at {change.expected}.")
        raise HeadMoved(f"Branch {change.branch!r} is held by another writer.")

    def _write_entries(self, line: _Line, change: Append, first: int, this: int) -> None:
        rows = [
            (KIND_CODES[draft.kind], this if draft.run == THIS else draft.run, draft.at, draft.body)
            for draft in change.entries
        ]
        self._cursor.executemany(self._queries["add_entry"], rows)
        count = len(rows)
        number = self._connection.last_insert_rowid() - count + 1
        place = place_of(line.id, first)
        self._cursor.executemany(
            self._queries["add_place"], zip(range(place, place + count), range(number, number + count), strict=True)
        )
        for offset, draft in enumerate(change.entries):
            if draft.kind in INDEXED:
                changes = index_changes(first + offset, draft.kind, draft.at, rows[offset][1], draft.body)
                if changes:
                    self._index.apply(line.id, line.project, number + offset, changes)

    def _change_entry(self, number: int, old: Entry, length: int, body: bytes | None, at: int) -> Entry:
        """Overwrite an entry in place: a row that changed its size might push others to another page."""
        if body is None:
            erased = erased_body(old.kind, at, length)
            self._do("change_entry", (KIND_CODES[Kind.ERASED], erased, number))
            return Entry(old.seq, Kind.ERASED, old.run, old.at, encode(Erased(old.kind, at)))
        code = KIND_CODES[old.kind] + (PADDED if len(body) < length else 0)
        self._do("change_entry", (code, body.ljust(length), number))
        return Entry(old.seq, old.kind, old.run, old.at, body)

    def _write_frames(self, line: _Line, change: Append, run: int) -> None:
        place = place_of(line.id, run)
        if not change.seal:
            self._frames += [(place, frame.first, frame.last, frame.body) for frame in change.frames]
            return
        self.finish()
        self._do("drop_frames", (place,))
        # What only goes is overwritten: the rows beside one that is deleted may move, and leave copies behind.
        self._do("drop_sealed" if change.frames else "erase_sealed", (place,))
        for frame in change.frames:
            self._do("seal", (place, frame.first, frame.last, self._packer.pack(frame.body)))

    def _head(self, line: _Line) -> int:
        head: int = self._row("read_head", (line.id,))[0]
        return head

    def _line(self, project: str, branch: str) -> _Line | None:
        line = self._lines.get((project, branch))
        if line is None:
            row = self._row("find_branch", (branch,))
            if row is None or row[1] != project:
                return None
            line = self._remember(project, branch, _Line(row[0], self._project(project), row[3] + 1))
        return line

    def _remember(self, project: str, branch: str, line: _Line) -> _Line:
        if len(self._lines) >= _CACHED:
            self._lines.clear()
        self._lines[project, branch] = line
        return line

    def _project(self, name: str) -> int:
        number = self._projects.get(name)
        if number is None:
            row = self._row("find_project", (name,)) or self._row("add_project", (name,))
            number = self._projects[name] = row[0]
        return number

    def _row(self, query: str, values: tuple[Any, ...]) -> Any:
        # All rows are fetched: a statement left half way would keep the transaction from ending.
        rows = self._execute(self._queries[query], values).fetchall()
        return rows[0] if rows else None

    def _do(self, query: str, values: tuple[Any, ...]) -> Any:
        return self._execute(self._queries[query], values)


def read_generation(cursor: apsw.Cursor | apsw.Connection, queries: Mapping[str, str]) -> int:
    """How often a server has opened the file."""
    rows: Any = cursor.execute(queries["read_generation"])
    [(generation,)] = rows
    return int(generation)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
