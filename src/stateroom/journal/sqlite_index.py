"""The index tables of the journal on SQLite, as they are written. How they are asked is in sqlite_reads.py.

Runs inside the ledger's transactions. Every row comes from `journal.index`; what an entry means is known only there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import apsw
import msgspec

from stateroom.journal.codes import (
    KIND_CODES,
    PADDED,
    STATUS_CODES,
    SURFACE_CODES,
    pack_digest,
    pack_identifier,
    pack_record,
    pack_word,
    read_entry,
)
from stateroom.journal.entries import Entry, Kind, RecordPut, decode
from stateroom.journal.index import (
    INDEXED,
    DropConversation,
    DropRecord,
    EndRun,
    IndexChange,
    NoteRecord,
    PutBlob,
    PutConversation,
    PutItem,
    PutRecord,
    PutRun,
    SetMetadata,
    index_changes,
)

SEQ_BITS: Final = 32
PLACE_MAX: Final = 2**63 - 1

NOTE: Final = 2
_SAYS: Final[dict[type, int]] = {DropRecord: 0, PutRecord: 1, NoteRecord: NOTE}
"""What an entry says of a record, as its row has it."""
TABLES: Final = ("runs", "run_ids", "items", "conversations", "blob_uses", "record_entries", "records")
"""All of the index: they can be emptied and derived anew."""
_CONVERSATION_KINDS: Final = (Kind.CONVERSATION_CREATED, Kind.CONVERSATION_UPDATED, Kind.CONVERSATION_DELETED)


def _codes(kinds: Iterable[str]) -> str:
    """Codes of these kinds, shortened bodies too, as the JSON list that a query takes."""
    codes = [KIND_CODES[kind] for kind in kinds]
    return msgspec.json.encode(sorted([*codes, *[code + PADDED for code in codes]])).decode()


_INDEXED_CODES: Final = _codes(INDEXED)
_CONVERSATION_CODES: Final = _codes(_CONVERSATION_KINDS)
_ENDED_CODES: Final = _codes([Kind.RUN_ENDED])


class IndexWriter:
    """Applies index changes on the writer's connection.

    `branch`, `project` and `entry` are the numbers of theirs: `entry` is where the changes come from.
    """

    def __init__(self, cursor: apsw.Cursor, queries: Mapping[str, str]) -> None:
        self._execute = cursor.execute
        self._queries = queries
        self._unsettled: set[tuple[int, bytes]] = set()

    def apply(
        self, branch: int, project: int, entry: int, changes: Sequence[IndexChange], *, latest: bool = True
    ) -> None:
        """Write the rows of one entry, in order; `latest` of all there are, or its records have to be settled."""
        for change in changes:
            match change:
                case PutRun():
                    place, surface = place_of(branch, change.start), pack_word(SURFACE_CODES, change.surface)
                    self._do("put_run", (entry, place, project, surface))
                    self._do("put_run_id", (project, change.id, entry))
                case EndRun():
                    status = pack_word(STATUS_CODES, change.status)
                    self._do("end_run", (change.end, change.at, status, place_of(branch, change.start)))
                case PutItem():
                    key, place = pack_identifier(change.id), place_of(branch, change.seq)
                    self._do("put_item", (project, key, entry, change.position, place))
                case PutBlob():
                    self._do("put_blob_use", (pack_digest(change.digest), entry))
                case PutConversation():
                    row = (branch, entry, project, change.id, change.created_at, entry, change.forked_from)
                    self._do("put_conversation", row)
                case SetMetadata():
                    self._do("set_metadata", (entry, branch))
                case DropConversation():
                    self._do("drop_conversation", (branch, change.id))
                case PutRecord() | NoteRecord() | DropRecord():
                    self._apply_record(place_of(branch, change.seq), project, entry, change, latest)

    def replace(self, branch: int, project: int, number: int, old: Entry, new: Entry) -> None:
        """Exchange the rows of an entry whose body changed; `settle` has to follow."""
        now = index_changes(new.seq, new.kind, new.at, new.run, new.body)
        for change in index_changes(old.seq, old.kind, old.at, old.run, old.body):
            match change:
                case PutItem():
                    self._do("drop_item", (project, pack_identifier(change.id), number, change.position))
                case PutBlob():
                    self._do("drop_blob_use", (pack_digest(change.digest), number))
                case PutRun():
                    self._do("drop_run_id", (project, change.id, number))
                    if not now:
                        self._do("drop_run", (number,))
                case EndRun():
                    self._find_end(branch, project, change.start)
                case PutRecord() | NoteRecord() | DropRecord():
                    key = pack_record(change.collection, change.id)
                    self._do("drop_record_entry", (project, key, _SAYS[type(change)], number))
                    self._unsettled.add((project, key))
        if old.kind in _CONVERSATION_KINDS:
            self._derive_conversation(branch, project)
        elif old.kind != Kind.RUN_ENDED:
            self.apply(branch, project, number, now, latest=False)

    def settle(self) -> None:
        """Derive those records anew of which entries have changed."""
        for project, key in self._unsettled:
            self._derive_record(project, key)
        self._unsettled.clear()

    def reset(self) -> None:
        """Forget what a rolled back transaction has changed."""
        self._unsettled.clear()

    def rebuild(self, reader: apsw.Cursor, progress: Callable[[int], None] | None = None) -> None:
        """Drop every row and derive it from the entries, which `reader` reads on the same connection.

        `progress` is told now and then how many entries have been read.
        """
        for table in TABLES:
            self._do(f"clear_{table}", ())
        projects: dict[int, int] = dict(reader.execute(self._queries["branch_projects"]))
        entries: Any = reader.execute(self._queries["read_kinds"], (-1, PLACE_MAX, _INDEXED_CODES))
        for count, (place, number, *columns) in enumerate(entries):
            if progress is not None and count % 1_000 == 0:
                progress(count)
            branch = place >> SEQ_BITS
            self._derive(branch, projects[branch], place, number, columns)
        # Entries come branch by branch above: which put of a record is the latest is known only when all are there.
        self._unsettled.clear()
        keys = [(-1, b"")]
        while keys:
            keys = self._do("record_keys", keys[-1]).fetchall()
            for project, key in keys:
                self._derive_record(project, key)

    def _apply_record(
        self, place: int, project: int, entry: int, change: PutRecord | NoteRecord | DropRecord, latest: bool
    ) -> None:
        key = pack_record(change.collection, change.id)
        if not latest:
            self._do("put_record_entry", (project, key, _SAYS[type(change)], entry, place))
            self._unsettled.add((project, key))
        elif isinstance(change, DropRecord):
            self._do("put_record_drop", (project, key, entry, place))
            self._do("drop_record", (project, key))
        else:
            self._do("put_record_entry", (project, key, _SAYS[type(change)], entry, place))
            if isinstance(change, PutRecord):
                row = (entry, project, change.collection, key, entry, place, change.open, change.expires_at)
                self._do("put_record", row)

    def _derive_record(self, project: int, key: bytes) -> None:
        """Find anew which entry says the state of a record, if any does, and which of its drops still matter."""
        self._do("settle_drops", (project, key))
        self._do("drop_record", (project, key))
        [(dropped,)] = self._do("record_death", (project, key)).fetchall()
        for first, latest, place in self._do("record_life", (project, key, dropped)).fetchall():
            [columns] = self._do("read_numbered", (latest,)).fetchall()
            entry = read_entry(0, *columns)
            put = decode(entry.kind, entry.body)
            if isinstance(put, RecordPut):
                row = (first, project, put.collection, key, latest, place, put.open, put.expires_at)
                self._do("put_record", row)

    def _find_end(self, branch: int, project: int, start: int) -> None:
        if not self._do("run_end", (place_of(branch, start),)).fetchall():
            return  # the run itself is gone, as it is when all of it is erased: a long branch has many to look through
        self._do("reopen_run", (place_of(branch, start),))
        span = (place_of(branch, start), place_of(branch + 1, -1))
        for place, number, *columns in self._do("read_kinds", (*span, _ENDED_CODES)).fetchall():
            if columns[1] == start:
                self._derive(branch, project, place, number, columns)

    def _derive_conversation(self, branch: int, project: int) -> None:
        self._do("drop_branch_conversation", (branch,))
        span = (place_of(branch, -1), place_of(branch + 1, -1))
        for place, number, *columns in self._do("read_kinds", (*span, _CONVERSATION_CODES)).fetchall():
            self._derive(branch, project, place, number, columns)

    def _derive(self, branch: int, project: int, place: int, number: int, columns: Sequence[Any]) -> None:
        entry = read_entry(place - place_of(branch, 0), *columns)
        changes = index_changes(entry.seq, entry.kind, entry.at, entry.run, entry.body)
        self.apply(branch, project, number, changes, latest=False)

    def _do(self, query: str, values: tuple[Any, ...]) -> Any:
        return self._execute(self._queries[query], values)


def place_of(branch: int, seq: int) -> int:
    """(branch, seq) as one integer that sorts alike; seq -1 is the place before a branch's first."""
    return (branch << SEQ_BITS) + seq
