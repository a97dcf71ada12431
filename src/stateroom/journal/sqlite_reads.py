"""What is read from the journal on SQLite: entries, frames and every look-up of the index.

Small reads run where they are asked for, on a read-only connection of their own: they take tens of microseconds, less
than a hop to a thread. What may be large goes on in a thread, on a second connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import apsw
import msgspec

from stateroom.errors import JournalDamaged
from stateroom.journal.codes import (
    SURFACE_CODES,
    pack_digest,
    pack_identifier,
    pack_record,
    pack_word,
    read_entry,
    status_name,
    surface_name,
)
from stateroom.journal.entries import (
    ConversationCreated,
    ConversationUpdated,
    Entry,
    Frame,
    RecordDropped,
    RecordNoted,
    RecordPut,
    decode,
)
from stateroom.journal.frames import FramePacker
from stateroom.journal.sqlite_errors import TRANSLATED
from stateroom.journal.sqlite_index import NOTE, PLACE_MAX, SEQ_BITS, place_of
from stateroom.journal.store import (
    MARK_MAX,
    Branch,
    ConversationRow,
    EndedRun,
    ItemRow,
    NoteRow,
    RecordName,
    RecordPlace,
    RecordRow,
    RunRow,
)

_INLINE: Final = 256
"""Rows that a read fetches on the event loop before it goes on in a thread."""
_INLINE_PACKED: Final = 32 * 1024
"""Bytes of a sealed stream that are unpacked on the event loop."""
_CACHED: Final = 16_384
_SEQ_END: Final = 2**32 - 1

_Answer = TypeVar("_Answer")


class _Named(msgspec.Struct):
    """The one field that a look-up needs of a run's first entry."""

    id: str


_read_name: Final = msgspec.json.Decoder(_Named).decode


class _Line(NamedTuple):
    """What never changes about a branch; `parent` 0 for none."""

    id: int
    parent: int
    parent_seq: int


class SqliteReads:
    """Implements `Index` and the reading half of `Journal`."""

    def __init__(self, connect: Callable[[], apsw.Connection], queries: Mapping[str, str]) -> None:
        self._connect = connect
        self._queries = queries
        self._near = connect()
        self._near_execute = self._near.execute
        self._far: apsw.Connection | None = None
        self._far_lock = threading.Lock()
        self._unpack = FramePacker().unpack
        self._lines: dict[tuple[str, str], _Line] = {}
        self._names: dict[int, str] = {}
        self._projects: dict[str, int] = {}

    async def branch(self, project: str, branch: str) -> Branch | None:
        with TRANSLATED:
            line = self._line(project, branch)
            return None if line is None else Branch(*self._rows("read_branch", (line.id,))[0])

    async def read(
        self, project: str, branch: str, *, after: int = -1, upto: int | None = None, run: int | None = None
    ) -> list[Entry]:
        with TRANSLATED:
            line = self._line(project, branch)
            if line is None:
                return []
            last = _SEQ_END if upto is None else min(upto, _SEQ_END)
            if run is not None:
                return await self._read_run(line, after, last, run)
            entries: list[Entry] = []
            for span in reversed(self._spans(line, after, last)):
                entries += await self._read_span("read_entries", *span)
            return entries

    async def frames(self, project: str, branch: str, run: int, *, after: int = -1) -> list[Frame]:
        with TRANSLATED:
            line = self._line(project, branch)
            if line is None:
                return []
            place = place_of(line.id, run)
            frames = []
            for first, last, packed in self._rows("read_sealed", (place, after)):
                large = len(packed) > _INLINE_PACKED
                body = await asyncio.to_thread(self._unpack, packed) if large else self._unpack(packed)
                frames.append(Frame(first, last, body))
            rows = self._rows("read_frames", (place, after, -1, _INLINE))
            if len(rows) == _INLINE:
                rest = (place, after, rows[-1][0], -1)
                rows += await self.in_thread(lambda far: far.execute(self._queries["read_frames"], rest).fetchall())
            return [*frames, *[Frame(*row) for row in rows]]

    async def run(self, project: str, run_id: str) -> RunRow | None:
        with TRANSLATED:
            # Asked with every turn: what the other look-ups join is kept in memory here.
            rows = self._rows("find_run", (self._project(project), run_id))
            if not rows:
                return None
            place, end, status, surface, created_at = rows[0]
            branch = place >> SEQ_BITS
            start = place - place_of(branch, 0)
            words = (status_name(status), surface_name(surface))
            return RunRow(run_id, self._name(branch), start, end, *words, created_at, project)

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
        with TRANSLATED:
            mark = self._mark("run_mark", project, after, descending)
            end = self._mark("run_mark", project, before, not descending)
            if mark is None or end is None:
                return []
            name = "runs_before" if descending else "runs_after"
            wanted = pack_word(SURFACE_CODES, surface) if surface else None
            return [_run_row(row) for row in self._rows(name, (project, mark, limit, wanted, end))]

    async def open_runs(self) -> list[RunRow]:
        with TRANSLATED:
            return [_run_row(row) for row in self._rows("open_runs", ())]

    async def runs_on(self, project: str, branch: str) -> list[RunRow]:
        with TRANSLATED:
            line = self._line(project, branch)
            if line is None:
                return []
            span = (place_of(line.id, -1), place_of(line.id, _SEQ_END))
            return [_run_row(row) for row in self._rows("runs_between", span)]

    async def projects(self) -> list[str]:
        with TRANSLATED:
            return [name for (name,) in self._rows("all_projects", ())]

    async def branches(self, project: str, *, after: str = "", limit: int = 100) -> list[Branch]:
        with TRANSLATED:
            line = self._line(project, after) if after else _Line(0, 0, -1)
            if line is None:
                return []
            asked = (self._project(project), line.id, limit)
            rows: Any = await self.in_thread(lambda far: far.execute(self._queries["branches_of"], asked).fetchall())
            return [Branch(*row) for row in rows]

    async def ended_runs(self, project: str, upto: int, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        with TRANSLATED:
            asked = (self._project(project), upto, after, limit)
            rows: Any = await self.in_thread(lambda far: far.execute(self._queries["ended_runs"], asked).fetchall())
            return [_ended_run(mark, project, *row) for mark, *row in rows]

    async def kept_streams(self, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        with TRANSLATED:
            return [_ended_run(*row) for row in self._rows("kept_streams", (after, limit))]

    async def needed(self, project: str, branch: str, since: int) -> int:
        with TRANSLATED:
            line = self._line(project, branch)
            if line is None:
                return -1
            asked = (line.id, since)
            rows: Any = await self.in_thread(lambda far: far.execute(self._queries["branch_needs"], asked).fetchall())
            return int(rows[0][0])

    async def item(self, project: str, item_id: str) -> ItemRow | None:
        with TRANSLATED:
            rows = self._rows("find_item", (project, pack_identifier(item_id)))
            return ItemRow(item_id, *rows[0]) if rows else None

    async def conversation(self, project: str, conversation_id: str) -> ConversationRow | None:
        with TRANSLATED:
            rows = self._rows("find_conversation", (project, conversation_id))
            return _conversation_row(rows[0]) if rows else None

    async def conversations(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True
    ) -> list[ConversationRow]:
        with TRANSLATED:
            mark = self._mark("conversation_mark", project, after, descending)
            end = self._mark("conversation_mark", project, before, not descending)
            if mark is None or end is None:
                return []
            name = "conversations_before" if descending else "conversations_after"
            return [_conversation_row(row) for row in self._rows(name, (project, mark, end, limit))]

    async def children(self, project: str, branch: str) -> list[Branch]:
        with TRANSLATED:
            line = self._line(project, branch)
            return [] if line is None else [Branch(*row) for row in self._rows("read_children", (line.id,))]

    async def blob_in_use(self, digest: str) -> bool:
        with TRANSLATED:
            return bool(self._rows("find_blob_use", (pack_digest(digest),)))

    async def record(self, project: str, collection: str, record_id: str) -> RecordRow | None:
        with TRANSLATED:
            rows = self._rows("find_record", (self._project(project), pack_record(collection, record_id)))
            return _record_row(rows[0]) if rows else None

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
        with TRANSLATED:
            number = self._project(project)
            marks = [PLACE_MAX if descending else -1, -1 if descending else PLACE_MAX]
            for at, named in enumerate((after, before)):
                if named:
                    rows = self._rows("record_mark", (number, collection, pack_record(collection, named)))
                    if not rows:
                        return []
                    marks[at] = rows[0][0]
            name = "records_before" if descending else "records_after"
            return [_record_row(row) for row in self._rows(name, (number, collection, *marks, limit))]

    async def open_records(self, collection: str) -> list[RecordRow]:
        with TRANSLATED:
            return [_record_row(row) for row in self._rows("open_records", (collection,))]

    async def expired_records(self, now: int, *, limit: int = 100) -> list[RecordRow]:
        with TRANSLATED:
            return [_record_row(row) for row in self._rows("expired_records", (now, limit))]

    async def record_places(self, project: str, collection: str, record_id: str) -> list[RecordPlace]:
        with TRANSLATED:
            rows = self._rows("record_places", (self._project(project), pack_record(collection, record_id)))
            return [RecordPlace(branch, seq, says == NOTE, bool(gone)) for branch, seq, says, gone in rows]

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
        with TRANSLATED:
            asked = (self._project(project), pack_record(collection, record_id), before, after, limit)
            return [_note_row(row) for row in self._rows("notes_before" if descending else "notes_after", asked)]

    async def unerased_records(self) -> list[RecordName]:
        with TRANSLATED:
            found: dict[RecordName, None] = {}
            for project, code, body in self._rows("unerased_records", ()):
                entry = read_entry(0, code, -1, 0, body)
                said = decode(entry.kind, entry.body)
                if isinstance(said, RecordDropped):
                    found[RecordName(project, said.collection, said.id)] = None
            return list(found)

    async def in_thread(self, action: Callable[[apsw.Connection], _Answer]) -> _Answer:
        """Run a long read off the event loop, on the connection kept for that."""
        return await asyncio.to_thread(self._on_far, action)

    def close_reads(self) -> None:
        self._near.close()
        with self._far_lock:
            if self._far is not None:
                self._far.close()

    def _on_far(self, action: Callable[[apsw.Connection], _Answer]) -> _Answer:
        with self._far_lock:
            if self._far is None:
                self._far = self._connect()
            return action(self._far)

    async def _read_run(self, line: _Line, after: int, last: int, run: int) -> list[Entry]:
        # A run that has ended has nothing beyond its end; an open one stands at the end of its branch.
        ended = self._rows("run_end", (place_of(line.id, run),))
        if ended and ended[0][0] is not None:
            last = min(last, ended[0][0])
        return await self._read_span("read_run_entries", line.id, max(after, run - 1), last, run)

    async def _read_span(self, query: str, branch: int, after: int, last: int, *more: int) -> list[Entry]:
        end = place_of(branch, last)
        entries = _entries(self._rows(query, (place_of(branch, after), end, *more, _INLINE)))
        if len(entries) == _INLINE:
            rest = (place_of(branch, entries[-1].seq), end, *more, -1)
            entries += await self.in_thread(lambda far: _entries(far.execute(self._queries[query], rest)))
        return entries

    def _spans(self, line: _Line, after: int, last: int) -> list[tuple[int, int, int]]:
        """Branch, `after` and last seq of the entries wanted, youngest branch first."""
        spans = []
        while True:
            first = max(after, line.parent_seq)
            if first < last:
                spans.append((line.id, first, last))
            last = min(last, line.parent_seq)
            if not line.parent or after >= last:
                return spans
            line = self._ancestor(line.parent)

    def _line(self, project: str, branch: str) -> _Line | None:
        line = self._lines.get((project, branch))
        if line is None:
            rows = self._rows("find_branch", (branch,))
            if not rows or rows[0][1] != project:
                return None
            line = _Line(rows[0][0], rows[0][2] or 0, rows[0][3])
            if len(self._lines) >= _CACHED:
                self._lines.clear()
            self._lines[project, branch] = line
        return line

    def _project(self, project: str) -> int:
        number = self._projects.get(project)
        if number is None:
            rows = self._rows("find_project", (project,))
            if not rows:
                return 0
            number = self._projects[project] = rows[0][0]
        return number

    def _name(self, branch: int) -> str:
        name = self._names.get(branch)
        if name is None:
            if len(self._names) >= _CACHED:
                self._names.clear()
            name = self._names[branch] = self._rows("find_branch_name", (branch,))[0][0]
        return name

    def _ancestor(self, branch: int) -> _Line:
        parent, parent_seq = self._rows("find_branch_by_id", (branch,))[0]
        return _Line(branch, parent or 0, parent_seq)

    def _mark(self, query: str, project: str, after: str, descending: bool) -> int | None:
        if not after:
            return PLACE_MAX if descending else -1
        rows = self._rows(query, (project, after))
        return int(rows[0][0]) if rows else None

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        return self._near_execute(self._queries[query], values).fetchall()


def _entries(rows: Iterable[Any]) -> list[Entry]:
    return [read_entry(*row) for row in rows]


def _run_row(row: Sequence[Any]) -> RunRow:
    branch, start, end, status, surface, created_at, project, code, body = row
    id = _read_name(read_entry(start, code, start, created_at, body).body).id
    return RunRow(id, branch, start, end, status_name(status), surface_name(surface), created_at, project)


def _ended_run(
    mark: int, project: str, branch: str, start: int, end: int, ended_at: int, conversation: int
) -> EndedRun:
    return EndedRun(project, branch, start, end, ended_at, bool(conversation), mark)


def _conversation_row(row: Sequence[Any]) -> ConversationRow:
    id, branch, created_at, forked_from, code, body = row
    entry = read_entry(0, code, 0, 0, body)
    said = decode(entry.kind, entry.body)
    metadata = said.metadata if isinstance(said, ConversationCreated | ConversationUpdated) else {}
    return ConversationRow(id, branch, created_at, metadata, forked_from)


def _note_row(row: Sequence[Any]) -> NoteRow:
    mark, at, code, body = row
    entry = read_entry(0, code, -1, at, body)
    noted = decode(entry.kind, entry.body)
    if not isinstance(noted, RecordNoted):
        raise JournalDamaged(f"The index takes entry {mark} of the file for a note. Rebuild the index.")
    return NoteRow(mark, at, noted.note)


def _record_row(row: Sequence[Any]) -> RecordRow:
    branch, seq, created_at, changed_at, project, code, body = row
    entry = read_entry(seq, code, -1, changed_at, body)
    put = decode(entry.kind, entry.body)
    if not isinstance(put, RecordPut):
        raise JournalDamaged(f"The index takes entry {seq} of branch {branch!r} for a record. Rebuild the index.")
    return RecordRow(
        put.collection,
        put.id,
        branch,
        seq,
        put.state,
        created_at,
        changed_at,
        put.open,
        put.expires_at,
        project,
        put.blobs,
    )
