"""Compacting on request, statelessly: a context goes in, the user's messages and a compaction item come out.

Nothing of it is written down. It costs a model call, so it takes a place and is charged like a run.
"""

from __future__ import annotations

import msgspec

from stateroom import ids
from stateroom.access.rates import Rates
from stateroom.clock import Clock
from stateroom.journal.entries import ContextItem, Usage
from stateroom.runtime.compaction import Compactor
from stateroom.runtime.runs import RunRequest, Runs


class Compaction(msgspec.Struct, frozen=True):
    """What came of it."""

    id: str
    created_at: int
    """Milliseconds since the epoch."""
    output: list[ContextItem]
    """Packed: the user's messages, then the compaction item."""
    usage: Usage | None


class Compactions:
    """Compacts contexts that are nobody's branch."""

    def __init__(self, runs: Runs, compactor: Compactor, rates: Rates, clock: Clock) -> None:
        self._runs = runs
        self._compactor = compactor
        self._rates = rates
        self._clock = clock

    async def create(self, project: str, request: RunRequest) -> Compaction:
        """Compact what the request continues, and its input. Raises RequestError; never what the model does."""
        key = ids.new_key()
        usage: Usage | None = None
        with self._runs.dispatcher.admitted():
            self._rates.begin(project, request.key)
            try:
                branch, items = await self._runs.context_of(project, request, key=key)
                item_id = ids.item_id("cmp", key, ids.OUTPUT_BASE)
                output, usage = await self._compactor.standalone(
                    project, request.settings, [*branch.items, *items], item_id
                )
                shown = [await self._runs.shown(held) for held in output]
                return Compaction(f"cmpr_{key}", int(self._clock.now() * 1000), shown, usage)
            finally:
                self._rates.end(project, request.key, usage.input + usage.output if usage is not None else 0)
