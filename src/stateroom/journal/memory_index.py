"""The index of the in-memory journal: the same look-ups as on disk, in dictionaries, one set of rows for each branch.

A branch's rows are dropped and derived again as a whole, which is what forgetting and redacting need.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from stateroom.journal.entries import Entry
from stateroom.journal.index import (
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
from stateroom.journal.store import ConversationRow, ItemRow, RunRow

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BranchRows:
    """The index rows of one branch. `order` is its age among the branches."""

    __slots__ = ("blobs", "conversation", "items", "name", "order", "project", "runs")

    def __init__(self, name: str, project: str, order: int) -> None:
        self.name = name
        self.project = project
        self.order = order
        self.runs: dict[int, RunRow] = {}
        self.items: list[tuple[str, tuple[int, int, int, int]]] = []
        self.blobs: list[str] = []
        self.conversation: ConversationRow | None = None


class MemoryIndex:
    """Rows by what is looked for. Nothing here is async: it is dictionaries."""

    def __init__(self) -> None:
        self._branches: dict[str, BranchRows] = {}
        self._runs: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
        self._items: dict[tuple[str, str], set[tuple[int, int, int, int]]] = defaultdict(set)
        self._conversations: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._blobs: dict[str, int] = defaultdict(int)
        self._by_order: dict[int, BranchRows] = {}

    def add_branch(self, name: str, project: str, order: int) -> None:
        rows = BranchRows(name, project, order)
        self._branches[name] = rows
        self._by_order[order] = rows

    def drop_branch(self, name: str) -> None:
        """Forget every row of the branch."""
        rows = self._branches.pop(name)
        del self._by_order[rows.order]
        for start, run in rows.runs.items():
            _discard(self._runs, (rows.project, run.id), (rows.order, start))
        for identifier, place in rows.items:
            _discard(self._items, (rows.project, identifier), place)
        for digest in rows.blobs:
            self._release_blob(digest)
        if rows.conversation is not None:
            _discard(self._conversations, (rows.project, rows.conversation.id), rows.order)

    def derive_branch(self, name: str, entries: Iterable[Entry]) -> None:
        """Replace the branch's rows by those of `entries`."""
        old = self._branches[name]
        self.drop_branch(name)
        self.add_branch(name, old.project, old.order)
        for entry in entries:
            self.apply(name, entry, index_changes(entry.seq, entry.kind, entry.at, entry.run, entry.body))

    def apply(self, name: str, entry: Entry, changes: list[IndexChange]) -> None:
        """Keep the rows that `index_changes` gave for `entry`."""
        rows = self._branches[name]
        for change in changes:
            match change:
                case PutRun():
                    row = RunRow(
                        change.id,
                        name,
                        change.start,
                        -1,
                        "in_progress",
                        change.surface,
                        change.created_at,
                        rows.project,
                    )
                    rows.runs[change.start] = row
                    self._runs[rows.project, change.id].add((rows.order, change.start))
                case EndRun():
                    if change.start in rows.runs:
                        rows.runs[change.start] = msgspec.structs.replace(
                            rows.runs[change.start], end=change.end, status=change.status
                        )
                case PutItem():
                    place = (entry.at, rows.order, change.seq, change.position)
                    rows.items.append((change.id, place))
                    self._items[rows.project, change.id].add(place)
                case PutBlob():
                    rows.blobs.append(change.digest)
                    self._blobs[change.digest] += 1
                case PutConversation():
                    self._put_conversation(
                        rows,
                        ConversationRow(change.id, name, change.created_at, change.metadata, change.forked_from),
                    )
                case SetMetadata():
                    if rows.conversation is not None:
                        rows.conversation = msgspec.structs.replace(rows.conversation, metadata=change.metadata)
                case DropConversation():
                    if rows.conversation is not None and rows.conversation.id == change.id:
                        self._put_conversation(rows, None)

    def run(self, project: str, run_id: str) -> RunRow | None:
        found = [self._by_order[order].runs[start] for order, start in self._runs.get((project, run_id), ())]
        return max(found, key=self._run_age, default=None)

    def runs(self, project: str) -> list[RunRow]:
        """All runs of a project, oldest first."""
        rows = [run for rows in self._branches.values() if rows.project == project for run in rows.runs.values()]
        return sorted(rows, key=self._run_age)

    def open_runs(self) -> list[RunRow]:
        rows = [run for rows in self._branches.values() for run in rows.runs.values() if run.end == -1]
        return sorted(rows, key=self._run_age)

    def runs_on(self, project: str, branch: str) -> list[RunRow]:
        rows = self._branches.get(branch)
        if rows is None or rows.project != project:
            return []
        return [rows.runs[start] for start in sorted(rows.runs)]

    def item(self, project: str, item_id: str) -> ItemRow | None:
        places = self._items.get((project, item_id))
        if not places:
            return None
        _, order, seq, position = max(places)
        return ItemRow(item_id, self._by_order[order].name, seq, position)

    def conversation(self, project: str, conversation_id: str) -> ConversationRow | None:
        found = [self._by_order[order] for order in self._conversations.get((project, conversation_id), ())]
        latest = max(found, key=_conversation_age, default=None)
        return None if latest is None else latest.conversation

    def conversations(self, project: str) -> list[ConversationRow]:
        """All living conversations of a project, oldest first."""
        found = [rows for rows in self._branches.values() if rows.project == project and rows.conversation]
        return [rows.conversation for rows in sorted(found, key=_conversation_age) if rows.conversation]

    def blob_in_use(self, digest: str) -> bool:
        return digest in self._blobs

    def _run_age(self, row: RunRow) -> tuple[int, int, int]:
        return (row.created_at, self._branches[row.branch].order, row.start)

    def _put_conversation(self, rows: BranchRows, row: ConversationRow | None) -> None:
        if rows.conversation is not None:
            _discard(self._conversations, (rows.project, rows.conversation.id), rows.order)
        rows.conversation = row
        if row is not None:
            self._conversations[rows.project, row.id].add(rows.order)

    def _release_blob(self, digest: str) -> None:
        self._blobs[digest] -= 1
        if not self._blobs[digest]:
            del self._blobs[digest]


def _conversation_age(rows: BranchRows) -> tuple[int, int]:
    return (rows.conversation.created_at if rows.conversation else -1, rows.order)


def _discard(table: dict[_Key, set[_Value]], key: _Key, value: _Value) -> None:
    table[key].discard(value)
    if not table[key]:
        del table[key]
