"""The index tables of the journal on SQLite, as they are written. How they are asked is in sqlite_reads.py.

Runs inside the ledger's transactions. Every row comes from `journal.index`; what an entry means is known only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import apsw
import msgspec

from stateroom.journal.codes import KIND_CODES, STATUS_CODES, SURFACE_CODES, kind_name, pack_digest, pack_word
from stateroom.journal.entries import Entry, Kind
from stateroom.journal.index import (
    INDEXED,
    DropConversation,
    EndRun,
    IndexChange,
    PutBlob,
    PutConversation,
    PutItem,
    PutRun,
    SetMetadata,
    index_changes,
)

SEQ_BITS: Final = 32
PLACE_MAX: Final = 2**63 - 1

_encode = msgspec.json.Encoder().encode
_INDEXED_CODES: Final = _encode(sorted(KIND_CODES[kind] for kind in INDEXED)).decode()
_CONVERSATION_KINDS: Final = (Kind.CONVERSATION_CREATED, Kind.CONVERSATION_UPDATED, Kind.CONVERSATION_DELETED)
_CONVERSATION_CODES: Final = _encode([KIND_CODES[kind] for kind in _CONVERSATION_KINDS]).decode()
_ENDED_CODES: Final = _encode([KIND_CODES[Kind.RUN_ENDED]]).decode()


class IndexWriter:
    """Applies index changes on the writer's connection. `branch` and `project` are the numbers of theirs."""

    def __init__(self, cursor: apsw.Cursor, queries: Mapping[str, str]) -> None:
        self._execute = cursor.execute
        self._queries = queries

    def apply(self, branch: int, project: int, changes: Sequence[IndexChange]) -> None:
        """Write the rows that follow from new entries, in order."""
        for change in changes:
            self._apply_one(branch, project, change)

    def replace(self, branch: int, project: int, old: Entry, new: Entry) -> None:
        """Exchange the rows of an entry whose body changed."""
        was = index_changes(old.seq, old.kind, old.at, old.run, old.body)
        now = index_changes(new.seq, new.kind, new.at, new.run, new.body)
        for change in was:
            match change:
                case PutItem():
                    self._do("drop_item", (project, change.id, place_of(branch, change.seq), change.position))
                case PutBlob():
                    self._do("drop_blob_use", (pack_digest(change.digest), place_of(branch, change.seq)))
                case PutRun():
                    if not now:
                        self._do("drop_run", (place_of(branch, change.start),))
                case EndRun():
                    if not now:
                        self._find_end(branch, project, change.start)
        if old.kind in _CONVERSATION_KINDS:
            self._derive_conversation(branch, project)
        else:
            for change in now:
                self._apply_one(branch, project, change)

    def rebuild(self, reader: apsw.Cursor) -> None:
        """Drop every row and derive it from the entries, which `reader` reads on the same connection."""
        for table in ("runs", "items", "conversations", "blob_uses"):
            self._do(f"clear_{table}", ())
        projects: dict[int, int] = dict(reader.execute(self._queries["branch_projects"]))
        entries: Any = reader.execute(self._queries["read_kinds"], (-1, PLACE_MAX, _INDEXED_CODES))
        for place, kind, run, at, body in entries:
            branch = place >> SEQ_BITS
            changes = index_changes(place - (branch << SEQ_BITS), kind_name(kind), at, run, body)
            self.apply(branch, projects[branch], changes)

    def _apply_one(self, branch: int, project: int, change: IndexChange) -> None:
        match change:
            case PutRun():
                surface = pack_word(SURFACE_CODES, change.surface)
                self._do("put_run", (place_of(branch, change.start), project, change.id, surface, change.created_at))
            case EndRun():
                status = pack_word(STATUS_CODES, change.status)
                self._do("end_run", (change.end, status, place_of(branch, change.start)))
            case PutItem():
                self._do("put_item", (project, change.id, place_of(branch, change.seq), change.position))
            case PutBlob():
                self._do("put_blob_use", (pack_digest(change.digest), place_of(branch, change.seq)))
            case PutConversation():
                row = (branch, project, change.id, change.created_at, _encode(change.metadata), change.forked_from)
                self._do("put_conversation", row)
            case SetMetadata():
                self._do("set_metadata", (_encode(change.metadata), branch))
            case DropConversation():
                self._do("drop_conversation", (branch, change.id))

    def _find_end(self, branch: int, project: int, start: int) -> None:
        self._do("reopen_run", (place_of(branch, start),))
        span = (place_of(branch, start), place_of(branch + 1, -1))
        for place, kind, run, at, body in self._do("read_kinds", (*span, _ENDED_CODES)).fetchall():
            if run == start:
                seq = place - (branch << SEQ_BITS)
                self.apply(branch, project, index_changes(seq, kind_name(kind), at, run, body))

    def _derive_conversation(self, branch: int, project: int) -> None:
        self._do("drop_branch_conversation", (branch,))
        span = (place_of(branch, -1), place_of(branch + 1, -1))
        for place, kind, run, at, body in self._do("read_kinds", (*span, _CONVERSATION_CODES)).fetchall():
            seq = place - (branch << SEQ_BITS)
            self.apply(branch, project, index_changes(seq, kind_name(kind), at, run, body))

    def _do(self, query: str, values: tuple[Any, ...]) -> Any:
        return self._execute(self._queries[query], values)


def place_of(branch: int, seq: int) -> int:
    """(branch, seq) as one integer that sorts alike; seq -1 is the place before a branch's first."""
    return (branch << SEQ_BITS) + seq
