"""Erasing content: from entries, frames, index, blobs and memory. What stays holds places and times, nothing said.

A fork shares the entries of its parent. A response is erased wherever it is seen, forks included. A conversation takes
only what no living fork still needs; the rest goes with the last of them. What others hold is erased first, and last
that by which the erased thing is found: when a crash comes in between, the erasure can be asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from stateroom import ids
from stateroom.agent.compaction import compacted_of
from stateroom.agent.context import blob_digests
from stateroom.agent.state import BranchState, fold_run
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.journal.entries import (
    ERASED_ITEM,
    ConversationCreated,
    ConversationDeleted,
    Entry,
    Erased,
    Fact,
    Item,
    ItemFinished,
    ItemsAdded,
    Kind,
    RecordNoted,
    RecordPut,
    RunStarted,
    RunSteered,
    ToolOutcome,
    decode,
    encode,
    item_prefix,
)
from stateroom.journal.store import Branch, Index, Journal, RunRow
from stateroom.runtime.branches import ActiveBranch, Branches

KEPT_KINDS = frozenset({Kind.CONVERSATION_DELETED, Kind.ERASED})
"""Entries without content."""
_ERASED_AT_ONCE = 100
"""Entries that one commit erases where it may be done in pieces: it keeps everybody else's waiting."""


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
        self.on_erased: list[Callable[[], None]] = []
        """Told when something of a branch was erased: what was kept for its sake may not be needed any more."""

    async def erase_run(self, project: str, row: RunRow) -> None:
        """Erase all entries and frames of a run."""
        entries = await self._journal.read(project, row.branch, run=row.start)
        run = fold_run(entries)
        held = [*run.input_items(row.start), *run.output_items(row.start)] if run is not None else []
        await self._erase_compactions(project, row.branch, row.start)
        await self._erase_copies(project, row.branch, row.end, frozenset(item.id for item in held))
        if not await self._reached(project, row.branch, row.id):
            await self._erase_unneeded(project, row.branch, row.id)
        if run is not None:
            await self._forget_steers(project, row.branch, run.started.previous)
        await self._erase(project, row.branch, entries)
        # Its branch knows the items by the run's last entry, a context in which it was prepared by its first.
        gone = frozenset((item.id, seq) for item in held for seq in (row.start, row.end))
        self._branches.erase(project, row.branch, gone)

    async def _forget_steers(self, project: str, branch: str, previous: str) -> None:
        """What was said to the run before a run that goes stands in that one's entries, too."""
        row = await self._index.run(project, previous) if previous else None
        if row is not None and row.branch == branch:
            bodies, digests = _without_steers(await self._journal.read(project, branch, run=row.start))
            await self._redact(project, branch, bodies, digests)

    async def erase_after(self, project: str, branch: str, seq: int, pause: Callable[[], Awaitable[None]]) -> int:
        """Erase what a branch itself has beyond `seq`, which nothing needs any more; how many runs it were.

        It is done in pieces, with a pause behind each; no run is cut in two.
        """
        row = await self._journal.branch(project, branch)
        after = max(seq, row.parent_seq) if row is not None else seq
        entries = [entry for entry in await self._journal.read(project, branch, after=after) if _is_beyond(entry, seq)]
        state = BranchState()
        runs = 0
        for entry in entries:
            state.apply(entry)
            started = state.open if entry.kind == Kind.RUN_STARTED else None
            if started is not None and not runs:
                await self._forget_steers(project, branch, started.started.previous)
            runs += started is not None
        for piece in _pieces(entries):
            await self._erase(project, branch, piece)
            await pause()
        if runs:
            self._branches.erase(project, branch, frozenset((held.id, held.seq) for held in state.items))
            self._branches.forget(project, branch)
        return runs

    async def erase_conversation(self, active: ActiveBranch) -> None:
        """Erase a conversation that the caller has taken, as far as no fork needs it."""
        dying = active.state.conversation
        await self._erase_unneeded(active.project, active.branch, dying)
        writer = self._branches.writer(active)
        writer.add(ConversationDeleted(dying))
        await writer.commit(release=True)

    async def sweep(self) -> None:
        """Remove the blobs that no entry refers to: a crash came before their entry, or after it was erased."""
        for number, digest in enumerate(await self._blobs.digests()):
            if not await self._index.blob_in_use(digest) and not self._held.is_held(digest):
                await self._blobs.delete(digest)
            if number % 64 == 63:
                await asyncio.sleep(0)

    async def _erase_unneeded(self, project: str, branch: str, dying: str) -> None:
        """Erase what only `dying`, a conversation or a run of this branch, has kept from being erased."""
        lines = [await self._journal.branch(project, branch)]
        while lines[-1] is not None and lines[-1].parent:
            if await self._reached(project, lines[-1].parent, dying):
                break
            lines.append(await self._journal.branch(project, lines[-1].parent))
        for line in reversed(lines):
            if line is not None:
                await self._erase_line(project, line, dying)

    async def _erase_line(self, project: str, row: Branch, dying: str) -> None:
        """Erase the branch's own entries beyond what its forks need."""
        branch, after = row.id, row.parent_seq
        for child in await self._index.children(project, branch):
            if child.parent_seq > after and await self._lives(project, child.id, dying):
                after = child.parent_seq
        entries = await self._journal.read(project, branch, after=after)
        await self._erase(project, branch, entries)
        state = BranchState()
        for entry in entries:
            state.apply(entry)
        # A fork that is being made just now has them in memory and is not among the children yet.
        self._branches.erase(project, branch, frozenset((held.id, held.seq) for held in state.items))
        self._branches.forget(project, branch)

    async def _lives(self, project: str, branch: str, dying: str) -> bool:
        """Whether anybody but `dying` needs the branch: it is reached by itself or by a fork."""
        waiting = [branch]
        while waiting:
            name = waiting.pop()
            if await self._reached(project, name, dying):
                return True
            waiting += [child.id for child in await self._index.children(project, name)]
        return False

    async def _reached(self, project: str, branch: str, dying: str) -> bool:
        """Whether the branch has a living conversation, or runs when it has none, other than `dying`."""
        row = await self._journal.branch(project, branch)
        own = row.parent_seq + 1 if row is not None else 0
        for entry in await self._journal.read(project, branch, after=own - 1, upto=own):
            record = decode(entry.kind, entry.body)
            if isinstance(record, ConversationCreated):
                return record.id != dying and await self._index.conversation(project, record.id) is not None
            if isinstance(record, Erased) and record.was == Kind.CONVERSATION_CREATED:
                return False
        return any(run.id != dying for run in await self._index.runs_on(project, branch))

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
        entries = await self._journal.read(active.project, branch, after=after, upto=held.seq)
        began = entries[-1].run if entries and entries[-1].run >= 0 else held.seq
        await self._erase_compactions(active.project, branch, began)
        found = await self._erase_items(active.project, branch, entries, frozenset({item_id}))
        self._branches.erase(active.project, branch, frozenset({(item_id, held.seq)}))
        await self._erase_copies(active.project, branch, held.seq, frozenset({item_id}))
        return found

    async def _erase_compactions(self, project: str, branch: str, seq: int) -> None:
        """What was compacted since this entry says what it said: it goes, and the model sees the history itself again.

        The streams that showed it go with it.
        """
        below = [(branch, seq)]
        while below:
            name, after = below.pop()
            for fork in await self._index.children(project, name):
                if fork.parent_seq >= after:
                    below.append((fork.id, fork.parent_seq))
            bodies: dict[int, bytes | None] = {}
            for entry in await self._journal.read(project, name, after=after):
                if entry.kind == Kind.ITEM_FINISHED and b'"compacted"' in entry.body:
                    record = decode(entry.kind, entry.body)
                    if isinstance(record, ItemFinished) and compacted_of(record.item) is not None:
                        bodies[entry.seq] = None
            if bodies:
                await self._redact(project, name, bodies, set())
                self._branches.forget(project, name)

    async def _erase_copies(self, project: str, branch: str, seq: int, item_ids: frozenset[str]) -> None:
        """A fork that cuts this entry of the branch in two begins with copies of some of its items: they go, too."""
        sharing = [branch]
        while sharing:
            for fork in await self._index.children(project, sharing.pop()):
                if fork.parent_seq >= seq:
                    sharing.append(fork.id)
                    continue
                first = fork.parent_seq + 1
                for entry in await self._journal.read(project, fork.id, after=first - 1, upto=first + 1):
                    record = decode(entry.kind, entry.body)
                    if isinstance(record, ItemsAdded) and record.copied == seq:
                        await self._erase_items(project, fork.id, [entry], item_ids)
                        await self._erase_copies(project, fork.id, entry.seq, item_ids)

    async def _erase_items(self, project: str, branch: str, entries: list[Entry], item_ids: frozenset[str]) -> bool:
        """Erase all items by these ids in own entries of a branch; whether there were any."""
        bodies: dict[int, bytes | None] = {}
        digests: set[str] = set()
        keys: dict[int, str] = {}
        calls: set[tuple[int, int]] = set()
        for entry in entries:
            record = decode(entry.kind, entry.body)
            if isinstance(record, RunStarted):
                keys[entry.seq] = ids.key_of(record.id)
            rest = _without(record, keys.get(entry.run, ""), item_ids)
            if rest is not None:
                bodies[entry.seq] = rest[0]
                digests |= rest[1]
                if isinstance(record, ItemFinished):
                    calls.add((entry.run, record.index))
            elif isinstance(record, ToolOutcome) and (entry.run, record.index) in calls:
                bodies[entry.seq] = None
        latest = max((seq for seq in bodies if seq in keys), default=-1)
        said, more = _without_steers([entry for entry in entries if entry.seq < latest])
        await self._redact(project, branch, {**bodies, **said}, digests | more)
        seqs = {seq for entry in entries if entry.seq in bodies for seq in (entry.seq, entry.run)}
        self._branches.erase(project, branch, frozenset((item_id, seq) for item_id in item_ids for seq in seqs))
        return bool(bodies)

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
            for tell in self.on_erased:
                tell()
        for digest in digests:
            if not await self._index.blob_in_use(digest) and not self._held.is_held(digest):
                await self._blobs.delete(digest)


def _pieces(entries: list[Entry]) -> Iterator[list[Entry]]:
    """The entries some at a time, all of a run together: of one that has lost its beginning nobody finds the rest."""
    piece: list[Entry] = []
    for entry in entries:
        begins = entry.run in (-1, entry.seq)
        if begins and len(piece) >= _ERASED_AT_ONCE:
            yield piece
            piece = []
        piece.append(entry)
    if piece:
        yield piece


def _is_beyond(entry: Entry, seq: int) -> bool:
    """Whether neither the entry nor the run that it belongs to begins at this seq or before."""
    return entry.seq > seq and (entry.run == -1 or entry.run > seq)


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
        case ToolOutcome():
            return set(blob_digests([record.fields]))
        case RunSteered():
            return set(blob_digests(record.input))
        case RecordPut() | RecordNoted():
            return set(record.blobs)
        case _:
            return set()


def _without_steers(entries: list[Entry]) -> tuple[dict[int, bytes | None], set[str]]:
    """Bodies without what was said to these runs, and its blobs. The runs that took it in hold it as their input."""
    bodies: dict[int, bytes | None] = {}
    digests: set[str] = set()
    for entry in entries:
        record = decode(entry.kind, entry.body) if entry.kind == Kind.RUN_STEERED else None
        if isinstance(record, RunSteered) and record.input:
            bodies[entry.seq] = encode(RunSteered(record.id, []))
            digests |= set(blob_digests(record.input))
    return bodies, digests


def _without(record: Fact, run_key: str, item_ids: frozenset[str]) -> tuple[bytes | None, set[str]] | None:
    """An entry's body without these items (None: nothing of it is left), and their blobs; None: they are not in it.

    `run_key` owns the id of the item that a run finished.
    """
    if isinstance(record, ItemFinished):
        own = ids.item_id(item_prefix(record.item), run_key, ids.OUTPUT_BASE + record.index)
        return (None, set(blob_digests([record.item]))) if own in item_ids else None
    if isinstance(record, ToolOutcome):
        places = {ids.parse_item_id(item_id) for item_id in item_ids}
        own_place = (run_key, ids.OUTPUT_BASE + record.index)
        return (None, set(blob_digests([record.fields]))) if own_place in places else None
    if isinstance(record, RunStarted):
        key, items = ids.key_of(record.id), record.input
    elif isinstance(record, ItemsAdded):
        key, items = record.key, record.items
    else:
        return None
    own_ids = [item.get("id") or ids.item_id(item_prefix(item), key, position) for position, item in enumerate(items)]
    gone = [own in item_ids and item.get("type") != "erased" for own, item in zip(own_ids, items, strict=True)]
    if not any(gone):
        return None
    rest: list[Item] = [dict(ERASED_ITEM) if out else item for out, item in zip(gone, items, strict=True)]
    field = "input" if isinstance(record, RunStarted) else "items"
    body = encode(msgspec.structs.replace(record, **{field: rest}))
    return body, set(blob_digests(item for out, item in zip(gone, items, strict=True) if out))
