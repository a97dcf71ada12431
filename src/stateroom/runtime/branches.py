"""Active branches: folded state and encoded context kept in memory, and who may write next.

Losing any of this costs time and nothing else: a branch that is not here is folded from the journal. Branches in use
are never dropped; the others go, longest unused first, when they pass the memory bound.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from stateroom import ids
from stateroom.agent.context import Context
from stateroom.agent.state import BranchState
from stateroom.clock import Clock
from stateroom.errors import Fenced, InvalidRequest, StorageError
from stateroom.journal.entries import ContextItem
from stateroom.journal.store import Branch, Journal, RunRow
from stateroom.runtime.lineage import Line, Lineage
from stateroom.runtime.writer import BranchWriter, Flusher


class ActiveBranch:
    """A branch in memory."""

    def __init__(self, project: str, branch: str, state: BranchState, context: Context | None = None) -> None:
        self.project = project
        self.branch = branch
        self.state = state
        self.context = context or Context()
        self.writer: BranchWriter | None = None
        """Whoever writes it now."""
        self.stale = False
        """What is in memory must not be used again once it is free."""
        self.parent: Branch | None = None
        """Set on a branch that its first append has yet to create."""
        self.derived = False
        """It lives in memory alone, and began with items of stored runs."""
        self.busy = False
        """Taken by a run or another writer."""
        self.counted = 0
        """Its size as it stands in the total of all branches."""
        self.latest: RunRow | None = None
        """The run that ended last on it, as the index has it."""
        self.line: Line | None = None
        """Its place among the branches of the journal; None on one that lives in memory alone."""
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def size(self) -> int:
        """A guess at its memory, in bytes: the items as objects and once more as the backend's request."""
        return 4_000 + 4 * self.state.size

    def try_take(self) -> bool:
        """Take it if it is free."""
        if self.busy:
            return False
        self.busy = True
        return True

    async def take(self, *, queue_max: int, wait_seconds: float) -> None:
        """Take it in turn. Raises InvalidRequest `conversation_locked` when too many wait, or for too long."""
        if self.try_take():
            return
        locked = InvalidRequest(
            "Another process is currently operating on this conversation. Please retry in a few seconds.",
            code="conversation_locked",
            param="conversation",
        )
        if len(self._queue) >= queue_max:
            raise locked
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the turn.
            async with asyncio.timeout(wait_seconds):
                await asyncio.shield(turn)
        except (TimeoutError, asyncio.CancelledError) as stopped:
            if turn.done() and not turn.cancelled():
                self.free()
            else:
                self._queue.remove(turn)
                turn.cancel()
            if isinstance(stopped, TimeoutError):
                raise locked from None
            raise

    def free(self) -> None:
        """Let the next one in line have it."""
        self.writer = None
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.busy = False

    async def settled(self) -> None:
        """Wait until the state shows nothing that is not durable. Raises StorageError."""
        while self.writer is not None and self.writer.failure is None and not self.writer.is_settled:
            await self.writer.settled()


class Branches:
    """All active branches."""

    def __init__(
        self,
        journal: Journal,
        flusher: Flusher,
        clock: Clock,
        *,
        memory_bytes: int,
        holder: str,
        on_fenced: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._flusher = flusher
        self._clock = clock
        self._memory_bytes = memory_bytes
        self._holder = holder
        self._on_fenced = on_fenced
        self.on_erase: list[Callable[[str, frozenset[tuple[str, int]]], None]] = []
        """Told of what is erased: whoever holds items of branches elsewhere."""
        self._active: OrderedDict[tuple[str, str], ActiveBranch] = OrderedDict()
        self._lineage = Lineage()
        self._loading: dict[tuple[str, str], asyncio.Future[ActiveBranch]] = {}
        self._ended: dict[tuple[str, str], ActiveBranch] = {}
        """By project and id of the latest run of each branch, which is the one that most turns continue."""
        self._size = 0
        self._erased_meanwhile: dict[tuple[str, str], list[frozenset[tuple[str, int]] | None]] = {}
        """What was erased while a branch was being loaded; None: something of the branch, whatever it was."""

    @property
    def size(self) -> int:
        """Memory of the cached branches, in bytes, as it is estimated."""
        return self._size

    async def open(self, project: str, branch: str) -> ActiveBranch:
        """The branch, folded to its head."""
        key = (project, branch)
        active = self._active.get(key)
        if active is not None and (active.busy or not active.stale):
            self._active.move_to_end(key)
            return active
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.ensure_future(self._load(project, branch))
            self._loading[key] = loading
            loading.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(loading)

    async def _load(self, project: str, branch: str) -> ActiveBranch:
        key = (project, branch)
        try:
            while True:
                erased = self._erased_meanwhile[key] = []
                state = await self._fold(project, branch)
                line = await self._line(project, branch)
                if not any(gone is None or state.erase(gone) for gone in erased):
                    break
        finally:
            del self._erased_meanwhile[key]
        active = ActiveBranch(project, branch, state)
        active.line = line
        self._keep(active)
        return active

    async def _line(self, project: str, branch: str) -> Line | None:
        """Its line, below those of all that it descends from."""
        line, unknown = self._lineage.find(project, branch), []
        while line is None and branch:
            unknown.append(branch)
            row = await self._journal.branch(project, branch)
            branch = row.parent if row is not None else ""
            line = self._lineage.find(project, branch)
        for name in reversed(unknown):
            line = self._lineage.line(project, name, line)
        return line

    async def _fold(self, project: str, branch: str) -> BranchState:
        state = BranchState()
        row = await self._journal.branch(project, branch)
        if row is not None:
            state.head = row.parent_seq
            for number, entry in enumerate(await self._journal.read(project, branch)):
                if entry.seq == row.parent_seq + 1:
                    state.begin_own()
                state.apply(entry)
                if number % 512 == 511:
                    await asyncio.sleep(0)
        return state

    def in_use(self, project: str, branch: str) -> bool:
        """Whether somebody writes the branch, or is about to fork it."""
        active = self._active.get((project, branch))
        if active is not None and active.busy:
            return True
        waiting = (each.parent for each in self._active.values() if each.project == project)
        return any(parent is not None and parent.parent == branch for parent in waiting)

    def _begin(self, project: str, state: BranchState, parent: Branch, above: Line | None) -> ActiveBranch:
        """A new branch, taken by the caller; its first append creates it."""
        active = ActiveBranch(project, parent.id, state)
        active.line = self._lineage.line(project, parent.id, above)
        active.parent = parent
        active.busy = True
        self._keep(active)
        return active

    def new(self, project: str) -> ActiveBranch:
        """A new branch without a parent, taken by the caller."""
        return self._begin(project, BranchState(), Branch(ids.new_id("br"), project), None)

    def fork(self, source: ActiveBranch, seq: int) -> ActiveBranch:
        """A new branch that shares `source` up to `seq`, taken by the caller."""
        parent = Branch(ids.new_id("br"), source.project, source.branch, seq, seq)
        return self._begin(source.project, source.state.fork(seq), parent, source.line)

    def writer(self, active: ActiveBranch, *, journal: Journal | None = None) -> BranchWriter:
        """The writer of a branch that the caller has taken. A failed commit drops the branch from memory."""

        def failed(error: StorageError) -> None:
            active.stale = True
            if isinstance(error, Fenced):
                self._on_fenced()

        writer = BranchWriter(
            journal or self._journal,
            self._flusher,
            self._clock,
            project=active.project,
            branch=active.branch,
            state=active.state,
            holder=self._holder,
            create=active.parent,
            on_failure=failed,
        )
        active.parent = None
        active.writer = writer
        return writer

    def done(self, active: ActiveBranch) -> None:
        """The caller is through with a branch that it had taken."""
        active.free()
        key = (active.project, active.branch)
        if self._active.get(key) is not active:
            return
        never_written = active.parent is not None
        if active.stale or never_written:
            self._drop(active)
        else:
            self._count(active)

    def note_ended(self, active: ActiveBranch, row: RunRow) -> None:
        """A run has ended on a branch, durably: who continues it need not ask the index."""
        if self._active.get((active.project, active.branch)) is active:
            self._forget_ended(active)
            active.latest = row
            self._ended[active.project, row.id] = active

    def find_ended(self, project: str, run_id: str) -> RunRow | None:
        """The row of a run that is the latest of a branch in memory; None says nothing."""
        active = self._ended.get((project, run_id))
        return active.latest if active is not None and not active.stale else None

    def _forget_ended(self, active: ActiveBranch) -> None:
        if active.latest is not None:
            self._ended.pop((active.project, active.latest.id), None)
            active.latest = None

    def erase(self, project: str, branch: str, gone: frozenset[tuple[str, int]]) -> None:
        """Forget items of a branch, by id and seq, in it and all that descend from it: their content was erased.

        Ids that clients choose may stand for other items there, so whatever was touched is folded anew afterwards.
        """
        for key, erased in self._erased_meanwhile.items():
            if key[0] == project:
                erased.append(gone)
        for told in self.on_erase:
            told(project, gone)
        if (own := self._active.get((project, branch))) is not None:
            self._forget_ended(own)
        seqs = {seq for _, seq in gone}
        holders = [
            active
            for name in self._lineage.below(project, branch)
            if (active := self._active.get((project, name))) is not None
            and (_holds(active.state.items, gone, seqs) or _sees(active.context, gone, seqs))
        ]
        for active in holders:
            in_context = active.state.items[: active.context.source_count]
            active.context.erase(gone, sum((held.id, held.seq) in gone for held in in_context))
            active.state.erase(gone)
            self.forget(project, active.branch)

    def forget(self, project: str, branch: str) -> None:
        """Drop a branch whose content was erased; whoever has it in hand keeps it until it is done."""
        if (project, branch) in self._erased_meanwhile:
            self._erased_meanwhile[project, branch].append(None)
        active = self._active.get((project, branch))
        if active is not None:
            active.stale = True
            if not active.busy:
                self._drop(active)

    def _keep(self, active: ActiveBranch) -> None:
        self._active[(active.project, active.branch)] = active
        self._count(active)

    def _count(self, active: ActiveBranch) -> None:
        self._size += active.size - active.counted
        active.counted = active.size
        excess = self._size - self._memory_bytes
        if excess <= 0:
            return
        going = []
        for old in self._active.values():
            if not old.busy and old is not active:
                going.append(old)
                excess -= old.counted
                if excess <= 0:
                    break
        for old in going:
            self._drop(old)

    def _drop(self, active: ActiveBranch) -> None:
        self._forget_ended(active)
        del self._active[(active.project, active.branch)]
        self._size -= active.counted
        active.counted = 0
        active.stale = True  # for whoever has just opened it and has not taken it yet


def _holds(items: Sequence[ContextItem], gone: frozenset[tuple[str, int]], seqs: set[int]) -> bool:
    """Whether any of these items is among them. They are in the order of their seqs."""
    for seq in seqs:
        at = bisect_left(items, seq, key=_seq_of)
        while at < len(items) and items[at].seq == seq:
            if (items[at].id, seq) in gone:
                return True
            at += 1
    return False


def _sees(context: Context, gone: frozenset[tuple[str, int]], seqs: set[int]) -> bool:
    """The same for a context; one that was compacted is in another order."""
    if context.summary is None:
        return _holds(context.items, gone, seqs)
    return any((held.id, held.seq) in gone for held in context.items)


def _seq_of(held: ContextItem) -> int:
    return held.seq


def items_before(state: BranchState, seq: int) -> list[ContextItem]:
    """What the branch held before the run that starts at `seq`."""
    return [held for held in state.items if held.seq < seq]
