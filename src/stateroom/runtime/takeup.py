"""Taking up runs that were left open: at a start, or when this process could not write them any further.

A run is taken up by folding its journal and driving it like any other; what is special is only what its stream had
begun when it was cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from stateroom.access.rates import Rates
from stateroom.agent.compaction import COMPACTION
from stateroom.agent.hosted import tool_of
from stateroom.agent.state import OPEN, RunState
from stateroom.errors import BackendUnavailable, RequestError, StateroomError
from stateroom.journal.entries import ItemAbandoned
from stateroom.journal.store import Index, Journal, RunRow
from stateroom.models.backend import Backend
from stateroom.models.router import Router
from stateroom.runtime.branches import ActiveBranch, Branches
from stateroom.runtime.dispatch import LocalDispatcher
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.live import LiveRun
from stateroom.runtime.reading import RunReader
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import NoTools, Surface, ToolPlan
from stateroom.telemetry.context import traced

log = logging.getLogger("stateroom.runtime")

RECOVERY_RETRY_SECONDS = 2.0
RECOVERY_RETRY_SECONDS_MAX = 60.0
RECOVERY_LOOK_SECONDS = 4.0
"""Between two looks for a model server that is not back. One look serves all runs that wait, and reads nothing."""
RECOVERY_LOOK_SECONDS_MAX = 30.0
RECOVERY_LOOKS_OFTEN_SECONDS = 600.0
"""How long it is looked for often."""
RECOVERY_FIND_SECONDS = 0.5
RECOVERY_PATIENCE_SECONDS = 60.0
"""How long a run that was taken up waits for a model server that is not back yet."""


class TakeUp:
    """Puts open runs of the journal to work again."""

    def __init__(
        self,
        reader: RunReader,
        *,
        journal: Journal,
        index: Index,
        branches: Branches,
        inputs: Inputs,
        router: Router,
        surfaces: Mapping[str, Surface],
        dispatcher: Callable[[], LocalDispatcher],
        rates: Rates,
    ) -> None:
        self._reader = reader
        self._journal = journal
        self._index = index
        self._branches = branches
        self._inputs = inputs
        self._router = router
        self._surfaces = surfaces
        self._dispatcher = dispatcher
        self._rates = rates

    async def recover(self) -> int:
        """Take up every open run of the journal; returns how many."""
        rows = await self._index.open_runs()
        await asyncio.gather(*(self._try_take_up(row) for row in rows))
        return len(rows)

    async def _try_take_up(self, row: RunRow, waited: float = 0.0, failed: StateroomError | None = None) -> None:
        """Take up one run; when that fails (its model's server is not up yet, say), again a little later.

        `waited` is how many seconds it has been tried, `failed` why it could not be done the last time.
        """
        try:
            if isinstance(failed, _NotBack):
                now = await self._index.run(row.project, row.id)
                if now is None or now.end >= 0:
                    return
                with suppress(RequestError):  # taken up, the run ends with it
                    await self._backend_of(failed.model, failed.served)
            await self._take_up(row)
        except StateroomError as error:
            if failed is None or failed.code != error.code:
                log.warning("run.not_recovered run_id=%s code=%s", row.id, error.code)
            pause = _pause(waited, error)
            self._dispatcher().at(pause, partial(self._try_take_up, row, waited + pause, error))
        except Exception:  # one run that cannot be taken up must not keep the others from it; the trace is logged
            log.exception("run.not_recovered run_id=%s", row.id)

    async def _take_up(self, row: RunRow, *, asks_model: bool = True) -> None:
        """Carry the run out from where its journal stands, unless somebody does already. Raises StateroomError."""
        branch = await self._branches.open(row.project, row.branch)
        state = branch.state.open
        if state is None or state.start != row.start or not branch.try_take():
            return
        try:
            run = await self._resume(row, branch, state, asks_model=asks_model)
        except BaseException:
            branch.stale = True
            self._branches.done(branch)
            raise
        self._reader.live[run.id] = run
        self._rates.resume(run.project, state.started.key)
        self._dispatcher().start(run)
        log.info("run.recovered run_id=%s", run.id)

    async def _resume(self, row: RunRow, branch: ActiveBranch, state: RunState, *, asks_model: bool) -> LiveRun:
        started = state.started
        surface = self._surfaces[started.surface]
        settings = await self._inputs.expand(started.settings)
        refusal: RequestError | None = None
        plan: ToolPlan = NoTools()
        can_prefill = False
        try:
            opened = self._inputs.opened(row.project, settings)
            plan = surface.plan(opened, branch.state.steering_of(state))
            if asks_model:
                backend = await self._backend_of(settings.model, settings.served)
                can_prefill = backend.can_prefill
        except RequestError as error:
            refusal = error  # it will never be better: the run ends with it
        writer = self._branches.writer(branch)
        writer.run = state.start
        writer.keeps_frames = not surface.one_off
        run = LiveRun(
            state=state, settings=settings, branch=branch, writer=writer, plan=plan, stored=True, surface=surface
        )
        run.failure = refusal
        run.trace, run.taken_up = traced(started.trace), True
        if started.frames:
            frames = await self._journal.frames(row.project, row.branch, row.start)
            writer.stream = LiveStream(frames)
            writer.renderer, left_open = surface.restore(run.view(), frames, obfuscate=started.obfuscate)
            for item in left_open:
                if _is_hosted(state, item.index):
                    continue
                if item.type == COMPACTION and item.index == state.next_index:
                    run.compacting_at = item.index
                    continue
                if item.type == "message" and can_prefill and item is left_open[-1]:
                    run.resumed = item
                    continue
                writer.renderer.item_abandoned(item.index)
                writer.add(ItemAbandoned(item.index))
            if not frames:
                writer.renderer.begin(run.view())
            if frames and b"event: response.in_progress\ndata:" in b"".join(frame.body for frame in frames):
                run.status = "in_progress"
        run.patience_seconds = RECOVERY_PATIENCE_SECONDS
        await writer.commit()
        return run

    async def _backend_of(self, model: str, served: str) -> Backend:
        """The backend for a name that was served by a model of name `served` before ('': of the same name).

        Raises NotFound, BackendUnavailable; what stands open must not wait long for it.
        """
        try:
            async with asyncio.timeout(RECOVERY_FIND_SECONDS):
                # Another backend's model stands in only when the one that began is sure not to come back.
                return await self._router.serving(served or model) or (await self._router.find(model))[0]
        except TimeoutError:
            raise _NotBack("No model server has answered yet.", model, served) from None
        except BackendUnavailable as error:
            raise _NotBack(error.message, model, served) from None

    async def to_cancel(self, project: str, run_id: str) -> LiveRun | None:
        """An open background run that could not be taken up yet (its model's server is not back, say)."""
        row = await self._index.run(project, run_id)
        if row is None or row.end >= 0 or not (await self._reader.fold(project, row)).started.background:
            return None
        await self._take_up(row, asks_model=False)
        return self._reader.find_live(project, run_id)

    async def left_open(self, project: str, run_id: str, branch: str) -> None:
        """A run that this process gave up still stands open at the end of a branch: it has to end first."""
        row = await self._index.run(project, run_id)
        if row is None or row.end >= 0 or row.branch != branch:
            self._branches.forget(project, branch)
        else:
            await self._take_up(row)

    def later(self, run: LiveRun) -> None:
        """The journal would not take any more of a run (the disk is full, say): try to go on with it in a while."""
        state = run.state
        row = RunRow(
            run.id, run.branch.branch, state.start, -1, OPEN, state.started.surface, state.created_at, run.project
        )
        self._dispatcher().at(RECOVERY_RETRY_SECONDS, partial(self._try_take_up, row))


class _NotBack(BackendUnavailable):
    """The server of a run's model is not back yet."""

    def __init__(self, message: str, model: str = "", served: str = "") -> None:
        super().__init__(message)
        self.model = model
        self.served = served


def _pause(waited: float, error: StateroomError) -> float:
    """How long to wait before the next try, after so many seconds of trying."""
    longest = RECOVERY_RETRY_SECONDS_MAX
    if isinstance(error, _NotBack):
        longest = RECOVERY_LOOK_SECONDS if waited < RECOVERY_LOOKS_OFTEN_SECONDS else RECOVERY_LOOK_SECONDS_MAX
    return min(max(RECOVERY_RETRY_SECONDS, waited), longest)


def _is_hosted(state: RunState, index: int) -> bool:
    """Whether it is a call that is carried out here: its item stays open until there is an outcome."""
    return any(held.index == index and tool_of(held.item) for held in state.output)
