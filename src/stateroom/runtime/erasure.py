"""Erasing content: from entries, frames, index, blobs and memory. What stays holds places and times, nothing said.

A fork shares the entries of its parent. A response is erased wherever it is seen, forks included. A conversation takes
only what no living fork still needs; the rest goes with the last of them.
"""

from __future__ import annotations

import msgspec

from stateroom import ids
from stateroom.agent.context import blob_digests
from stateroom.agent.state import fold_run
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.journal.entries import (
    ERASED_ITEM,
    ConversationDeleted,
    Entry,
    Item,
    ItemFinished,
    ItemsAdded,
    Kind,
    RunStarted,
    decode,
    encode,
    item_prefix,
)
from stateroom.journal.store import Index, Journal, RunRow
from stateroom.runtime.branches import ActiveBranch, Branches

KEPT_KINDS = frozenset({Kind.CONVERSATION_DELETED, Kind.ERASED})
"""Entries without content."""


class Erasure:
    """Erases runs, conversations and single items."""

    def __init__(
        self, journal: Journal, index: Index, blobs: Blobs, held: HeldBlobs, branches: Branches, clock: Clock
    ) -> None:
        self._journal = journal
        self._index = index
        self._blobs = blobs
        self._held = held
        self._branches = branches
        self._clock = clock

    async def erase_run(self, project: str, row: RunRow) -> None:
        """Erase all entries and frames of a run."""
        entries = await self._journal.read(project, row.branch, run=row.start)
        run = fold_run(entries)
        await self._erase(project, row.branch, entries)
        if run is not None:
            # Its branch knows the items by the run's last entry, a context in which it was prepared by its first.
            held = [*run.input_items(row.start), *run.output_items(row.start)]
            self._branches.erase(project, frozenset((item.id, seq) for item in held for seq in (row.start, row.end)))

    async def erase_conversation(self, active: ActiveBranch) -> None:
        """Erase a conversation that the caller has taken, as far as no fork needs it."""
        writer = self._branches.writer(active)
        writer.add(ConversationDeleted(active.state.conversation))
        await writer.commit(release=True)
        await self._erase_unneeded(active.project, active.branch)

    async def _erase_unneeded(self, project: str, branch: str) -> None:
        row = await self._journal.branch(project, branch)
        if row is None:
            return
        children = await self._index.children(project, branch)
        after = row.parent_seq
        for child in children:
            if child.parent_seq > after and await self._lives(project, child.id):
                after = child.parent_seq
        entries = await self._journal.read(project, branch, after=after)
        await self._erase(project, branch, entries)
        self._branches.forget(project, branch)
        if row.parent and not await self._lives(project, row.parent):
            await self._erase_unneeded(project, row.parent)

    async def _lives(self, project: str, branch: str) -> bool:
        """Whether anybody can still reach the branch: its conversation, one of its runs, or a fork of it."""
        active = await self._branches.open(project, branch)
        if active.state.conversation:
            if not active.state.deleted:
                return True
        elif await self._index.runs_on(project, branch):
            return True
        children = await self._index.children(project, branch)
        return any([await self._lives(project, child.id) for child in children])

    async def erase_item(self, active: ActiveBranch, item_id: str) -> bool:
        """Erase one item of a conversation that the caller has taken; False when it has no such item."""
        held = next((held for held in active.state.items if held.id == item_id), None)
        if held is None:
            return False
        row = await self._journal.branch(active.project, active.branch)
        branch = active.branch
        while row is not None and held.seq <= row.parent_seq:
            branch = row.parent
            row = await self._journal.branch(active.project, branch)
        after = row.parent_seq if row is not None else -1
        for entry in await self._journal.read(active.project, branch, after=after, upto=held.seq):
            body = _without(entry, item_id)
            if body is not None:
                await self._redact(active.project, branch, {entry.seq: body[0]}, body[1])
                self._branches.erase(active.project, frozenset({(held.id, held.seq), (held.id, entry.run)}))
                return True
        return False

    async def _erase(self, project: str, branch: str, entries: list[Entry]) -> None:
        bodies: dict[int, bytes | None] = {}
        digests: set[str] = set()
        for entry in entries:
            if entry.kind in KEPT_KINDS:
                continue
            bodies[entry.seq] = None
            digests |= _digests(entry)
        await self._redact(project, branch, bodies, digests)

    async def _redact(self, project: str, branch: str, bodies: dict[int, bytes | None], digests: set[str]) -> None:
        if bodies:
            await self._journal.redact(project, branch, bodies, at=int(self._clock.now() * 1000))
        for digest in digests:
            if not await self._index.blob_in_use(digest) and not self._held.is_held(digest):
                await self._blobs.delete(digest)


def _digests(entry: Entry) -> set[str]:
    record = decode(entry.kind, entry.body)
    match record:
        case RunStarted():
            named = {record.settings.tools_blob, record.settings.instructions_blob} - {""}
            return named | set(blob_digests(record.input))
        case ItemsAdded():
            return set(blob_digests(record.items))
        case ItemFinished():
            return set(blob_digests([record.item]))
        case _:
            return set()


def _without(entry: Entry, item_id: str) -> tuple[bytes | None, set[str]] | None:
    """The entry's body without the item (None: nothing of it is left) and the item's blobs; None: not in there."""
    record = decode(entry.kind, entry.body)
    parsed = ids.parse_item_id(item_id)
    if isinstance(record, ItemFinished):
        owner = parsed is not None and parsed[1] == ids.OUTPUT_BASE + record.index
        return (None, set(blob_digests([record.item]))) if owner else None
    if isinstance(record, RunStarted):
        key, items = ids.key_of(record.id), record.input
    elif isinstance(record, ItemsAdded):
        key, items = record.key, record.items
    else:
        return None
    for position, item in enumerate(items):
        own = item.get("id") or ids.item_id(item_prefix(item), key, position)
        if item.get("type") != "erased" and own == item_id:
            rest: list[Item] = [*items[:position], dict(ERASED_ITEM), *items[position + 1 :]]
            field = "input" if isinstance(record, RunStarted) else "items"
            return encode(msgspec.structs.replace(record, **{field: rest})), set(blob_digests([item]))
    return None
