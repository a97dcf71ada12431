"""What a connection keeps of its unstored runs, so that they can be continued on it, and nowhere else.

It lives in memory alone, within two bounds: one for each connection and one for all of them. What was not used for
longest goes first, a whole chain of runs at a time; whoever would continue it is told that it is not there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from stateroom import ids
from stateroom.agent.state import BranchState, RunState
from stateroom.journal.store import Branch
from stateroom.runtime.branches import ActiveBranch

RUN_BYTES: Final = 300
"""What it takes to remember a run of a chain, beside its items."""


def detached(project: str, state: BranchState, *, derived: bool = False) -> ActiveBranch:
    """A branch that lives in memory alone, taken by the caller: it begins with the state's items.

    `derived`: they come from stored runs, and go when those are erased.
    """
    state.head = -1
    active = ActiveBranch(project, ids.new_id("br"), state)
    active.parent = Branch(active.branch, project)
    active.busy = True
    active.derived = derived
    return active


class _Chain:
    """Runs that continue each other, on one branch."""

    __slots__ = ("branch", "counted", "owner", "runs")

    def __init__(self, branch: ActiveBranch, owner: LocalContexts) -> None:
        self.branch = branch
        self.owner = owner
        self.runs: dict[str, int] = {}
        """How many items of the branch are there up to the end of each run."""
        self.counted = 0


class LocalMemory:
    """The chains of all connections, the one that was used last at the end."""

    def __init__(self, *, bytes_max: int, connection_bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.connection_bytes_max = connection_bytes_max
        self.chains: OrderedDict[ActiveBranch, _Chain] = OrderedDict()
        self.size = 0

    def open(self) -> LocalContexts:
        """The memory of a new connection."""
        return LocalContexts(self)

    def erase(self, project: str, gone: frozenset[tuple[str, int]]) -> None:
        """Forget the chains that hold erased items of stored runs."""
        for branch, chain in list(self.chains.items()):
            if branch.project == project and branch.derived and _holds(branch, gone):
                chain.owner.drop(chain)

    def shrink(self) -> None:
        """Keep to the bound."""
        while self.size > self.bytes_max:
            oldest = next((chain for branch, chain in self.chains.items() if not branch.busy), None)
            if oldest is None:
                return
            oldest.owner.drop(oldest)


class LocalContexts:
    """The unstored runs of one connection that can be continued."""

    __slots__ = ("_chains", "_closed", "_memory", "_runs", "size")

    def __init__(self, memory: LocalMemory) -> None:
        self._memory = memory
        self._runs: dict[str, _Chain] = {}
        self._chains: OrderedDict[ActiveBranch, _Chain] = OrderedDict()
        self._closed = False
        self.size = 0

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def take(self, project: str, run_id: str) -> ActiveBranch | None:
        """A branch that stands at the end of the run, taken by the caller; None when the run is not kept."""
        chain = self._runs.get(run_id)
        if chain is None or chain.branch.project != project:
            return None
        branch, count = chain.branch, chain.runs[run_id]
        if branch.stale:
            self.drop(chain)
            return None
        self._chains.move_to_end(branch)
        self._memory.chains.move_to_end(branch)
        if count == len(branch.state.items) and branch.try_take():
            # Its earlier runs were forgotten by the journal in memory: it begins there anew, with what it holds.
            branch.state.head = -1
            branch.parent = Branch(branch.branch, project)
            return branch
        return detached(project, branch.state.first(count), derived=branch.derived)

    def keep(self, run_id: str, branch: ActiveBranch, run: RunState) -> None:
        """Remember a run that has ended at the end of its branch."""
        ended = run.ended is not None and run.ended.status in ("completed", "incomplete")
        if self._closed or branch.stale or not ended:
            return
        chain = self._chains.get(branch)
        if chain is None:
            chain = self._chains[branch] = self._memory.chains[branch] = _Chain(branch, self)
        chain.runs[run_id] = len(branch.state.items)
        self._runs[run_id] = chain
        self._count(chain, branch.size + RUN_BYTES * len(chain.runs))
        self._shrink()
        self._memory.shrink()

    def evict(self, run_id: str) -> bool:
        """Forget a run; False when it was not kept."""
        chain = self._runs.pop(run_id, None)
        if chain is None:
            return False
        del chain.runs[run_id]
        if not chain.runs:
            self.drop(chain)
        return True

    def drop(self, chain: _Chain) -> None:
        """Forget all runs of a chain. One that is being continued just now is not kept either."""
        chain.branch.stale = True
        self._count(chain, 0)
        for run_id in chain.runs:
            self._runs.pop(run_id, None)
        chain.runs.clear()
        self._chains.pop(chain.branch, None)
        self._memory.chains.pop(chain.branch, None)

    def close(self) -> None:
        """The connection is gone: so is all that it kept."""
        self._closed = True
        for chain in list(self._chains.values()):
            self.drop(chain)

    def _shrink(self) -> None:
        while self.size > self._memory.connection_bytes_max:
            oldest = next((chain for branch, chain in self._chains.items() if not branch.busy), None)
            if oldest is None:
                return
            self.drop(oldest)

    def _count(self, chain: _Chain, size: int) -> None:
        self.size += size - chain.counted
        self._memory.size += size - chain.counted
        chain.counted = size


def _holds(branch: ActiveBranch, gone: frozenset[tuple[str, int]]) -> bool:
    return any((held.id, held.seq) in gone for held in branch.state.items)
