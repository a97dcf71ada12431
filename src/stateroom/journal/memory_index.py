"""The index of the in-memory journal: the same look-ups as on disk, in dictionaries, one set of rows for each branch.

A branch's rows are dropped and derived again as a whole, which is what forgetting and redacting need.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeAlias, TypeVar

from msgspec.structs import replace

from stateroom.journal.entries import Entry
from stateroom.journal.index import (
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
from stateroom.journal.memory_records import MemoryRecords, RecordKey
from stateroom.journal.store import ConversationRow, EndedRun, ItemRow, RunRow

_Place: TypeAlias = tuple[int, int, str, int]
"""Age, position in the entry, branch, seq: the latest place is the greatest."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BranchRows:
    """The index rows of one branch."""

    __slots__ = ("blobs", "conversation", "conversation_age", "ends", "items", "name", "project", "records", "runs")

    def __init__(self, name: str, project: str) -> None:
        self.name = name
        self.project = project
        self.runs: dict[int, tuple[int, RunRow]] = {}
        self.ends: dict[int, int] = {}
        self.items: list[tuple[str, _Place]] = []
        self.blobs: list[str] = []
        self.records: list[tuple[RecordKey, int]] = []
        self.conversation: ConversationRow | None = None
        self.conversation_age = -1


class MemoryIndex:
    """Rows by what is looked for. An entry's `age` is its number in the order of arrival, and orders all rows."""

    def __init__(self) -> None:
        self._branches: dict[str, BranchRows] = {}
        self._runs: dict[tuple[str, str], set[tuple[int, str, int]]] = defaultdict(set)
        self._items: dict[tuple[str, str], set[_Place]] = defaultdict(set)
        self._conversations: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._blobs: dict[str, int] = defaultdict(int)
        self.records = MemoryRecords()

    def add_branch(self, name: str, project: str) -> None:
        self._branches[name] = BranchRows(name, project)

    def drop_branch(self, name: str) -> None:
        """Forget every row of the branch."""
        rows = self._branches.pop(name)
        for start, (age, run) in rows.runs.items():
            _discard(self._runs, (rows.project, run.id), (age, name, start))
        for identifier, place in rows.items:
            _discard(self._items, (rows.project, identifier), place)
        for digest in rows.blobs:
            self._release_blob(digest)
        for key, age in rows.records:
            self.records.forget(key, age)
        self._put_conversation(rows, None, -1)

    def derive_branch(self, name: str, entries: Iterable[tuple[int, Entry]]) -> None:
        """Replace the branch's rows by those of `entries`, which come with their ages."""
        project = self._branches[name].project
        self.drop_branch(name)
        self.add_branch(name, project)
        for age, entry in entries:
            self.apply(name, age, entry, index_changes(entry.seq, entry.kind, entry.at, entry.run, entry.body))

    def apply(self, name: str, age: int, entry: Entry, changes: list[IndexChange]) -> None:
        """Keep the rows that `index_changes` gave for an entry."""
        rows = self._branches[name]
        for change in changes:
            match change:
                case PutRun():
                    run = RunRow(change.id, name, change.start, -1, "in_progress", change.surface, change.created_at)
                    rows.runs[change.start] = (age, replace(run, project=rows.project))
                    self._runs[rows.project, change.id].add((age, name, change.start))
                case EndRun():
                    if change.start in rows.runs:
                        begun, run = rows.runs[change.start]
                        rows.runs[change.start] = (begun, replace(run, end=change.end, status=change.status))
                        rows.ends[change.start] = change.at
                case PutItem():
                    place = (age, change.position, name, change.seq)
                    rows.items.append((change.id, place))
                    self._items[rows.project, change.id].add(place)
                case PutBlob():
                    rows.blobs.append(change.digest)
                    self._blobs[change.digest] += 1
                case PutConversation():
                    row = ConversationRow(change.id, name, change.created_at, change.metadata, change.forked_from)
                    self._put_conversation(rows, row, age)
                case SetMetadata():
                    if rows.conversation is not None:
                        rows.conversation = replace(rows.conversation, metadata=change.metadata)
                case DropConversation():
                    if rows.conversation is not None and rows.conversation.id == change.id:
                        self._put_conversation(rows, None, -1)
                case PutRecord() | NoteRecord() | DropRecord():
                    rows.records.append((self.records.add(rows.project, name, age, change, entry), age))

    def run(self, project: str, run_id: str) -> RunRow | None:
        found = self._runs.get((project, run_id))
        if not found:
            return None
        _, branch, start = max(found)
        return self._branches[branch].runs[start][1]

    def runs(self, project: str) -> list[RunRow]:
        """All runs of a project, oldest first."""
        found = [run for rows in self._branches.values() if rows.project == project for run in rows.runs.values()]
        return [run for _, run in sorted(found, key=_age)]

    def open_runs(self) -> list[RunRow]:
        found = [run for rows in self._branches.values() for run in rows.runs.values() if run[1].end == -1]
        return [run for _, run in sorted(found, key=_age)]

    def runs_on(self, project: str, branch: str) -> list[RunRow]:
        rows = self._branches.get(branch)
        if rows is None or rows.project != project:
            return []
        return [rows.runs[start][1] for start in sorted(rows.runs)]

    def ended_runs(self) -> list[EndedRun]:
        """All runs that have ended, by age."""
        found = [
            EndedRun(rows.project, rows.name, start, run.end, rows.ends[start], rows.conversation is not None, age)
            for rows in self._branches.values()
            for start, (age, run) in rows.runs.items()
            if run.end != -1
        ]
        return sorted(found, key=lambda run: run.mark)

    def needed(self, branch: str, head: int, since: int) -> int:
        """The last seq of a branch that its conversation or its runs need."""
        rows = self._branches[branch]
        if rows.conversation is not None or any(run.end == -1 for _, run in rows.runs.values()):
            return head
        return max((run.end for start, (_, run) in rows.runs.items() if rows.ends[start] > since), default=-1)

    def item(self, project: str, item_id: str) -> ItemRow | None:
        places = self._items.get((project, item_id))
        if not places:
            return None
        _, position, branch, seq = max(places)
        return ItemRow(item_id, branch, seq, position)

    def conversation(self, project: str, conversation_id: str) -> ConversationRow | None:
        found = [self._branches[name] for name in self._conversations.get((project, conversation_id), ())]
        latest = max(found, key=_conversation_age, default=None)
        return None if latest is None else latest.conversation

    def conversations(self, project: str) -> list[ConversationRow]:
        """All living conversations of a project, oldest first."""
        found = [rows for rows in self._branches.values() if rows.project == project and rows.conversation]
        return [rows.conversation for rows in sorted(found, key=_conversation_age) if rows.conversation]

    def blob_in_use(self, digest: str) -> bool:
        return digest in self._blobs

    def _put_conversation(self, rows: BranchRows, row: ConversationRow | None, age: int) -> None:
        if rows.conversation is not None:
            _discard(self._conversations, (rows.project, rows.conversation.id), rows.name)
        rows.conversation, rows.conversation_age = row, age
        if row is not None:
            self._conversations[rows.project, row.id].add(rows.name)

    def _release_blob(self, digest: str) -> None:
        self._blobs[digest] -= 1
        if not self._blobs[digest]:
            del self._blobs[digest]


def _age(aged: tuple[int, RunRow]) -> int:
    return aged[0]


def _conversation_age(rows: BranchRows) -> int:
    return rows.conversation_age


def _discard(table: dict[_Key, set[_Value]], key: _Key, value: _Value) -> None:
    table[key].discard(value)
    if not table[key]:
        del table[key]
