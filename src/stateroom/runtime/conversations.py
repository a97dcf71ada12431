"""Conversations from the outside: create, change, list, fork, erase. Each is a branch with an id of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from stateroom import ids
from stateroom.agent.state import BranchState, named_once
from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import (
    ContextItem,
    ConversationCreated,
    ConversationUpdated,
    Fact,
    Item,
    ItemsAdded,
)
from stateroom.journal.store import ConversationRow, Index
from stateroom.runtime.branches import ActiveBranch, Branches
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.reading import conversation_not_found
from stateroom.runtime.runs import Runs


class Conversation(msgspec.Struct, frozen=True):
    """A conversation as a surface shows it."""

    id: str
    created_at: int
    """Milliseconds since the epoch."""
    metadata: dict[str, str]
    forked_from: str = ""


class Conversations:
    """All conversations of the journal."""

    def __init__(self, index: Index, branches: Branches, runs: Runs, inputs: Inputs, erasure: Erasure) -> None:
        self._index = index
        self._branches = branches
        self._runs = runs
        self._inputs = inputs
        self._erasure = erasure

    async def create(
        self,
        project: str,
        *,
        metadata: dict[str, str],
        items: list[Item],
        new_id: str = "",
        also: Sequence[Fact] = (),
    ) -> Conversation:
        """A new conversation that begins with these items. `also` is committed with it."""
        with self._inputs.hold() as hold:
            whole = named_once(await self._inputs.resolve(project, items, present=frozenset(), hold=hold), ())
            branch = self._branches.new(project)
            return await self._begin(branch, metadata, whole, forked_from="", new_id=new_id, also=also)

    async def get(self, project: str, conversation_id: str) -> Conversation:
        """Raises NotFound."""
        return _shown(await self._row(project, conversation_id))

    async def page(
        self, project: str, *, after: str, before: str = "", limit: int, descending: bool
    ) -> list[Conversation]:
        """By age, one more than `limit` when there are more. Raises InvalidRequest on unknown cursors."""
        await check_cursors(partial(self._index.conversation, project), "conversation", after=after, before=before)
        rows = await self._index.conversations(
            project, after=after, before=before, limit=limit + 1, descending=descending
        )
        return [_shown(row) for row in rows]

    async def update(self, project: str, conversation_id: str, metadata: dict[str, str]) -> Conversation:
        """Replace its metadata. Raises NotFound, InvalidRequest `conversation_locked`."""
        active = await self._runs.take_conversation(project, conversation_id)
        try:
            writer = self._branches.writer(active)
            writer.add(ConversationUpdated(metadata))
            await writer.commit(release=True)
        finally:
            self._branches.done(active)
        return await self.get(project, conversation_id)

    async def delete(self, project: str, conversation_id: str) -> None:
        """Erase it. Raises NotFound, InvalidRequest `conversation_locked`."""
        active = await self._runs.take_conversation(project, conversation_id)
        try:
            await self._erasure.erase_conversation(active)
        finally:
            active.stale = True
            self._branches.done(active)

    async def items(self, project: str, conversation_id: str) -> list[ContextItem]:
        """All its items, oldest first; those of a run only once it has ended. Raises NotFound."""
        active = await self._open(project, conversation_id)
        return active.state.items

    async def shown(self, held: ContextItem) -> ContextItem:
        """The item with its images in place."""
        return ContextItem(held.id, await self._inputs.shown(held.item), held.seq)

    async def item(self, project: str, conversation_id: str, item_id: str) -> ContextItem:
        """Raises NotFound."""
        for held in await self.items(project, conversation_id):
            if held.id == item_id:
                return await self.shown(held)
        raise _item_not_found(item_id)

    async def add_items(
        self,
        project: str,
        conversation_id: str,
        items: list[Item],
        *,
        also: Callable[[str], Sequence[Fact]] = lambda seq: (),
    ) -> list[ContextItem]:
        """Append items; durable when this returns. Raises NotFound, InvalidRequest `conversation_locked`.

        What `also` makes of the seq by which `added` finds them is committed with them.
        """
        with self._inputs.hold() as hold:
            whole = await self._inputs.resolve(project, items, present=frozenset(), hold=hold)
            active = await self._runs.take_conversation(project, conversation_id)
            try:
                writer = self._branches.writer(active)
                before = len(active.state.items)
                writer.add(ItemsAdded(ids.new_key(), named_once(whole, active.state.items)))
                added = active.state.items[before:]
                for record in also(str(active.state.head)):
                    writer.add(record)
                await writer.commit(release=True)
            finally:
                self._branches.done(active)
        return [await self.shown(held) for held in added]

    async def added(self, project: str, conversation_id: str, seq: int) -> list[ContextItem]:
        """What was appended at this seq, but for what was deleted since. Raises NotFound."""
        held = await self.items(project, conversation_id)
        return [await self.shown(each) for each in held if each.seq == seq]

    async def delete_item(self, project: str, conversation_id: str, item_id: str) -> Conversation:
        """Erase one item. Raises NotFound, InvalidRequest `conversation_locked`."""
        active = await self._runs.take_conversation(project, conversation_id)
        try:
            if not await self._erasure.erase_item(active, item_id):
                raise _item_not_found(item_id)
        finally:
            self._branches.done(active)
        return await self.get(project, conversation_id)

    async def fork(
        self,
        project: str,
        conversation_id: str,
        *,
        after_item_id: str = "",
        response_id: str = "",
        metadata: dict[str, str] | None = None,
        new_id: str = "",
        also: Sequence[Fact] = (),
    ) -> Conversation:
        """A new conversation that shares this one's items: all, up to an item, or up to the end of a response."""
        row = await self._row(project, conversation_id)
        active = await self._open(project, conversation_id)
        seq = active.state.head
        rest: list[Item] = []
        cut = -1
        if after_item_id:
            seq, rest, cut = _fork_point(active.state, after_item_id)
        elif response_id:
            run = await self._index.run(project, response_id)
            if run is None or run.end < 0 or run.branch != active.branch:
                message = f"Response '{response_id}' is not a finished response of this conversation."
                raise InvalidRequest(message, code="response_not_in_conversation", param="response_id")
            seq = run.end
        elif active.state.open is not None:
            seq = active.state.open.start - 1
        wanted = row.metadata if metadata is None else metadata
        branch = self._branches.fork(active, seq)
        return await self._begin(branch, wanted, rest, forked_from=row.id, copied=cut, new_id=new_id, also=also)

    async def fork_chain(
        self, project: str, run_id: str, metadata: dict[str, str], *, new_id: str = "", also: Sequence[Fact] = ()
    ) -> Conversation:
        """A new conversation that begins with a response and all that came before it. Raises NotFound."""
        view = await self._runs.view(project, run_id)
        row = await self._index.run(project, run_id)
        if row is None or row.end < 0:
            message = f"Response '{view.id}' is still in progress; fork it when it has ended."
            raise InvalidRequest(message, code="response_in_progress", param="response_id")
        source = await self._branches.open(project, row.branch)
        branch = self._branches.fork(source, row.end)
        return await self._begin(branch, metadata, [], forked_from="", new_id=new_id, also=also)

    async def _begin(
        self,
        active: ActiveBranch,
        metadata: dict[str, str],
        items: list[Item],
        *,
        forked_from: str,
        copied: int = -1,
        new_id: str,
        also: Sequence[Fact],
    ) -> Conversation:
        try:
            writer = self._branches.writer(active)
            writer.add(ConversationCreated(new_id or ids.new_id("conv"), metadata, forked_from))
            if items:
                writer.add(ItemsAdded(ids.new_key(), items, copied))
            for record in also:
                writer.add(record)
            await writer.commit(release=True)
            state = active.state
        finally:
            self._branches.done(active)
        return Conversation(state.conversation, state.created_at, metadata, forked_from)

    async def _row(self, project: str, conversation_id: str) -> ConversationRow:
        row = await self._index.conversation(project, conversation_id)
        if row is None:
            raise conversation_not_found(conversation_id)
        return row

    async def _open(self, project: str, conversation_id: str) -> ActiveBranch:
        row = await self._row(project, conversation_id)
        active = await self._branches.open(project, row.branch)
        await active.settled()
        return active


def _fork_point(state: BranchState, item_id: str) -> tuple[int, list[Item], int]:
    """The last seq whose items all come before or at the item, the items between it and the item, and their seq."""
    position = next((n for n, held in enumerate(state.items) if held.id == item_id), None)
    if position is None:
        raise _item_not_found(item_id)
    seq = state.items[position].seq
    last_of_entry = position + 1 == len(state.items) or state.items[position + 1].seq != seq
    if last_of_entry:
        return seq, [], -1
    first = next(n for n, held in enumerate(state.items) if held.seq == seq)
    boundary = state.items[first - 1].seq if first else -1
    rest: list[Any] = [{**held.item, "id": held.id} for held in state.items[first : position + 1]]
    return boundary, rest, seq


def _item_not_found(item_id: str) -> NotFound:
    return NotFound(f"Item with id '{item_id}' not found.", code="item_not_found", param="item_id")


def _shown(row: ConversationRow) -> Conversation:
    return Conversation(row.id, row.created_at, row.metadata, row.forked_from)
