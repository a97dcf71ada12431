"""The journal in memory: for runs that leave nothing behind, and for tests.

It keeps every promise of the seam but durability, and refuses what the journal on disk refuses. One object serves a
whole process; `forget` drops a branch and all that is known of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from stateroom.clock import Clock, SystemClock
from stateroom.errors import Fenced, HeadMoved, StateroomError, StorageError
from stateroom.journal.drafts import check_append, this_run
from stateroom.journal.entries import Entry, Erased, Frame, Kind, encode
from stateroom.journal.index import RECORD_KINDS, index_changes
from stateroom.journal.memory_index import MemoryIndex
from stateroom.journal.store import (
    MARK_MAX,
    THIS,
    Append,
    Appended,
    Branch,
    ConversationRow,
    EndedRun,
    ItemRow,
    Lease,
    NoteRow,
    RecordName,
    RecordPlace,
    RecordRow,
    RunRow,
)

_Answer = TypeVar("_Answer")
_Row = TypeVar("_Row")


class _Line:
    """One branch: its own entries, its frames by run, its lease."""

    __slots__ = (
        "ages",
        "entries",
        "fence",
        "frames",
        "head",
        "holder",
        "name",
        "order",
        "parent",
        "parent_seq",
        "project",
        "until",
    )

    def __init__(self, create: Branch, order: int) -> None:
        self.name = create.id
        self.project = create.project
        self.parent = create.parent
        self.parent_seq = create.parent_seq
        self.head = create.parent_seq
        self.order = order
        self.entries: list[Entry] = []
        self.ages: list[int] = []
        self.frames: dict[int, dict[int, Frame]] = {}
        self.fence = 0
        self.holder = ""
        self.until = 0.0

    def view(self) -> Branch:
        return Branch(self.name, self.project, self.parent, self.parent_seq, self.head)


class MemoryJournal:
    """Implements `Journal` and `Index`."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lines: dict[str, _Line] = {}
        self._index = MemoryIndex()
        self._orders = 0
        self._age = 0
        self._closed = False

    def append(self, change: Append) -> Awaitable[Appended]:
        return self._settled(lambda: self._append(change))

    def renew(self, leases: Sequence[Lease], seconds: float) -> Awaitable[Sequence[Lease]]:
        return self._settled(lambda: self._renew(leases, seconds))

    async def branch(self, project: str, branch: str) -> Branch | None:
        self._check_open()
        line = self._line(project, branch)
        return line.view() if line else None

    async def read(
        self, project: str, branch: str, *, after: int = -1, upto: int | None = None, run: int | None = None
    ) -> list[Entry]:
        self._check_open()
        line = self._line(project, branch)
        if line is None:
            return []
        last = line.head if upto is None else min(upto, line.head)
        if run is not None:
            return [entry for entry in _own(line, max(after, run - 1), last) if entry.run == run]
        parts: list[list[Entry]] = []
        while line is not None and after < last:
            parts.append(_own(line, after, last))
            last = min(last, line.parent_seq)
            line = self._line(project, line.parent)
        return [entry for part in reversed(parts) for entry in part]

    async def frames(self, project: str, branch: str, run: int, *, after: int = -1) -> list[Frame]:
        self._check_open()
        line = self._line(project, branch)
        kept = line.frames.get(run, {}) if line else {}
        return sorted([frame for frame in kept.values() if frame.last > after], key=lambda frame: frame.first)

    def redact(self, project: str, branch: str, bodies: Mapping[int, bytes | None], *, at: int) -> Awaitable[None]:
        return self._settled(lambda: self._redact(project, branch, bodies, at))

    async def rebuild(self) -> None:
        self._check_open()
        for line in self._lines.values():
            self._index.derive_branch(line.name, zip(line.ages, line.entries, strict=True))

    async def close(self) -> None:
        self._closed = True

    def forget(self, branch: str) -> None:
        """Drop a branch, its frames and its index rows. Forks of it lose what they shared with it."""
        if self._lines.pop(branch, None) is not None:
            self._index.drop_branch(branch)

    async def run(self, project: str, run_id: str) -> RunRow | None:
        self._check_open()
        return self._index.run(project, run_id)

    async def runs(
        self,
        project: str,
        *,
        surface: str = "",
        after: str = "",
        before: str = "",
        limit: int = 20,
        descending: bool = True,
    ) -> list[RunRow]:
        self._check_open()
        marks = [(named, self._index.run(project, named)) for named in (after, before)]
        bounds = [mark for _, mark in marks]
        rows = [row for row in self._index.runs(project) if surface in ("", row.surface) or row in bounds]
        return [row for row in _page(rows, marks, len(rows), descending) if surface in ("", row.surface)][:limit]

    async def open_runs(self) -> list[RunRow]:
        self._check_open()
        return self._index.open_runs()

    async def runs_on(self, project: str, branch: str) -> list[RunRow]:
        self._check_open()
        return self._index.runs_on(project, branch)

    async def projects(self) -> list[str]:
        self._check_open()
        lines = sorted(self._lines.values(), key=lambda line: line.order)
        return list(dict.fromkeys(line.project for line in lines))

    async def branches(self, project: str, *, after: str = "", limit: int = 100) -> list[Branch]:
        self._check_open()
        lines = sorted([line for line in self._lines.values() if line.project == project], key=lambda line: line.order)
        mark = self._line(project, after) if after else None
        return [line.view() for line in _page(lines, ((after, mark), ("", None)), limit, False)]

    async def ended_runs(self, project: str, upto: int, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        self._check_open()
        ended = [run for run in self._index.ended_runs() if run.project == project and run.ended_at <= upto]
        return [run for run in ended if run.mark > after][:limit]

    async def kept_streams(self, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        self._check_open()
        kept = [run for run in self._index.ended_runs() if self._lines[run.branch].frames.get(run.start)]
        return [run for run in kept if run.mark > after][:limit]

    async def needed(self, project: str, branch: str, since: int) -> int:
        self._check_open()
        line = self._line(project, branch)
        return -1 if line is None else self._index.needed(branch, line.head, since)

    async def item(self, project: str, item_id: str) -> ItemRow | None:
        self._check_open()
        return self._index.item(project, item_id)

    async def conversation(self, project: str, conversation_id: str) -> ConversationRow | None:
        self._check_open()
        return self._index.conversation(project, conversation_id)

    async def conversations(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True
    ) -> list[ConversationRow]:
        self._check_open()
        rows = self._index.conversations(project)
        marks = [(named, self._index.conversation(project, named)) for named in (after, before)]
        return _page(rows, marks, limit, descending)

    async def children(self, project: str, branch: str) -> list[Branch]:
        self._check_open()
        found = [line for line in self._lines.values() if line.parent == branch and line.project == project]
        return [line.view() for line in sorted(found, key=lambda line: line.order)]

    async def blob_in_use(self, digest: str) -> bool:
        self._check_open()
        return self._index.blob_in_use(digest)

    async def record(self, project: str, collection: str, record_id: str) -> RecordRow | None:
        self._check_open()
        return self._index.records.find(project, collection, record_id)

    async def records(
        self,
        project: str,
        collection: str,
        *,
        after: str = "",
        before: str = "",
        limit: int = 20,
        descending: bool = True,
    ) -> list[RecordRow]:
        self._check_open()
        rows = self._index.records.of(project, collection)
        marks = [(named, self._index.records.find(project, collection, named)) for named in (after, before)]
        return _page(rows, marks, limit, descending)

    async def open_records(self, collection: str) -> list[RecordRow]:
        self._check_open()
        return [row for row in self._index.records.all() if row.open and row.collection == collection]

    async def expired_records(self, now: int, *, limit: int = 100) -> list[RecordRow]:
        self._check_open()
        due = [row for row in self._index.records.all() if 0 < row.expires_at <= now]
        return sorted(due, key=lambda row: row.expires_at)[:limit]

    async def record_places(self, project: str, collection: str, record_id: str) -> list[RecordPlace]:
        self._check_open()
        return self._index.records.places(project, collection, record_id)

    async def record_notes(
        self,
        project: str,
        collection: str,
        record_id: str,
        *,
        after: int = -1,
        before: int = MARK_MAX,
        limit: int = 100,
        descending: bool = True,
    ) -> list[NoteRow]:
        self._check_open()
        rows = [row for row in self._index.records.notes(project, collection, record_id) if after < row.mark < before]
        return (rows[::-1] if descending else rows)[:limit]

    async def unerased_records(self) -> list[RecordName]:
        self._check_open()
        return self._index.records.unerased()

    def _settled(self, action: Callable[[], _Answer]) -> asyncio.Future[_Answer]:
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        try:
            self._check_open()
            future.set_result(action())
        except StateroomError as error:
            future.set_exception(error)
        except msgspec.MsgspecError as error:
            future.set_exception(StorageError(f"An entry's body is not of its kind: {error}", code="malformed_append"))
        return future

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("The journal is closed.", code="journal_closed")

    def _line(self, project: str, branch: str) -> _Line | None:
        line = self._lines.get(branch)
        return line if line is not None and line.project == project else None

    def _append(self, change: Append) -> Appended:
        check_append(change)
        line = self._line(change.project, change.branch) if change.create is None else self._new_line(change.create)
        if line is None:
            raise HeadMoved(f"Branch {change.branch!r} is not there.")
        self._check_writer(line, change)
        this = this_run(change.entries, line.head + 1)
        entries = [
            Entry(line.head + 1 + offset, draft.kind, this if draft.run == THIS else draft.run, draft.at, draft.body)
            for offset, draft in enumerate(change.entries)
        ]
        changes = [index_changes(entry.seq, entry.kind, entry.at, entry.run, entry.body) for entry in entries]
        run = this if change.frames_run == THIS else change.frames_run
        _check_frames(line, run, change)
        # Nothing can fail below this line: an append happens entirely or not at all.
        if change.create is not None:
            self._lines[line.name] = line
            self._index.add_branch(line.name, line.project)
        for entry, rows in zip(entries, changes, strict=True):
            self._age += 1
            line.entries.append(entry)
            line.ages.append(self._age)
            if rows:
                self._index.apply(line.name, self._age, entry, rows)
        line.head += len(entries)
        if change.seal:
            line.frames[run] = {}
        for frame in change.frames:
            line.frames.setdefault(run, {})[frame.first] = frame
        return Appended(line.head, self._lease_after(line, change))

    def _new_line(self, create: Branch) -> _Line:
        if create.id in self._lines:
            raise HeadMoved(f"Branch {create.id!r} is already there.")
        if create.parent:
            parent = self._line(create.project, create.parent)
            if parent is None or create.parent_seq > parent.head:
                raise HeadMoved(f"Branch {create.parent!r} cannot be forked at {create.parent_seq}.")
        self._orders += 1
        return _Line(create, self._orders)

    def _check_writer(self, line: _Line, change: Append) -> None:
        if change.lease is not None and not _is_current(line, change.lease):
            raise Fenced(f"The lease of branch {line.name!r} went to another writer.")
        if change.expected is not None and change.expected != line.head:
            raise HeadMoved(f"Branch {line.name!r} stands at {line.head}, not at {change.expected}.")
        if change.lease is None and (change.acquire or change.entries) and self._is_held(line, change.acquire):
            raise HeadMoved(f"Branch {line.name!r} is held by another writer.")

    def _is_held(self, line: _Line, by_other_than: str) -> bool:
        return line.holder not in ("", by_other_than) and line.until > self._clock.now()

    def _lease_after(self, line: _Line, change: Append) -> Lease | None:
        if change.lease is None and not change.acquire:
            return None
        if change.lease is None:
            line.fence += 1
            line.holder = change.acquire
        if change.release:
            line.holder = ""
            return None
        if change.entries or change.lease is None:
            line.until = self._clock.now() + change.lease_seconds
        return Lease(line.name, line.fence)

    def _renew(self, leases: Sequence[Lease], seconds: float) -> Sequence[Lease]:
        kept = []
        for lease in leases:
            line = self._lines.get(lease.branch)
            if line is not None and _is_current(line, lease):
                line.until = self._clock.now() + seconds
                kept.append(lease)
        return kept

    def _redact(self, project: str, branch: str, bodies: Mapping[int, bytes | None], at: int) -> None:
        line = self._line(project, branch)
        if line is None:
            return
        first = line.parent_seq + 1
        entries = list(line.entries)
        erased_runs = []
        for seq, body in bodies.items():
            if not first <= seq <= line.head or entries[seq - first].kind == Kind.ERASED:
                continue
            old = entries[seq - first]
            if body is None:
                if old.kind not in RECORD_KINDS:
                    erased_runs.append(seq if old.kind == Kind.RUN_STARTED else old.run)
                entries[seq - first] = Entry(seq, Kind.ERASED, old.run, old.at, encode(Erased(old.kind, at)))
            else:
                index_changes(seq, old.kind, old.at, old.run, body)
                entries[seq - first] = Entry(seq, old.kind, old.run, old.at, body)
        line.entries = entries
        self._index.derive_branch(line.name, zip(line.ages, entries, strict=True))
        for run in erased_runs:
            line.frames.pop(run, None)


def _is_current(line: _Line, lease: Lease) -> bool:
    return bool(line.holder) and line.fence == lease.fence


def _check_frames(line: _Line, run: int, change: Append) -> None:
    kept = line.frames.get(run, {})
    for frame in change.frames:
        if frame.first in kept and not change.seal:
            raise StorageError(f"Event {frame.first} of run {run} on branch {line.name!r} is already kept.")


def _own(line: _Line, after: int, upto: int) -> list[Entry]:
    first = line.parent_seq + 1
    return line.entries[max(after + 1 - first, 0) : max(upto + 1 - first, 0)]


def _page(rows: list[_Row], marks: Iterable[tuple[str, _Row | None]], limit: int, descending: bool) -> list[_Row]:
    """Those between two marks, each of which comes with the id that names it ('' = no bound)."""
    if descending:
        rows = rows[::-1]
    (after, first), (before, end) = marks
    if (after and first is None) or (before and end is None):
        return []
    start = rows.index(first) + 1 if first is not None else 0
    stop = rows.index(end) if end is not None else len(rows)
    return rows[start:stop][:limit]
