"""Runs from the outside: create, look up, follow, cancel, erase, take up again after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

import msgspec

from stateroom import ids
from stateroom.agent.context import Context
from stateroom.agent.state import OPEN, BranchState, RunState, configured, fold_run, identified
from stateroom.agent.steps import HOSTED_CALL
from stateroom.blobs.hold import BlobHold
from stateroom.errors import (
    BackendUnavailable,
    Fenced,
    InvalidRequest,
    NotFound,
    RequestError,
    StateroomError,
    StorageError,
)
from stateroom.journal.entries import (
    ContextItem,
    Item,
    ItemAbandoned,
    RunSettings,
    RunStarted,
    RunView,
)
from stateroom.journal.store import Branch, Index, Journal, RunRow
from stateroom.models.backend import Backend
from stateroom.models.router import Router
from stateroom.runtime.branches import ActiveBranch, Branches, items_before
from stateroom.runtime.checks import check_format
from stateroom.runtime.dispatch import LocalDispatcher
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.generate import Generator, build_call
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.live import LiveRun
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import NoTools, Surface, ToolPlan
from stateroom.settings import Limits

log = logging.getLogger("stateroom.runtime")


RECOVERY_RETRY_SECONDS = 2.0
RECOVERY_RETRY_SECONDS_MAX = 60.0
RECOVERY_FIND_SECONDS = 0.5
RECOVERY_PATIENCE_SECONDS = 60.0
"""How long a run that was taken up waits for a model server that is not back yet."""


class RunRequest(msgspec.Struct, frozen=True):
    """What a surface asks for."""

    settings: RunSettings
    input: list[Item]
    previous: str = ""
    conversation: str = ""
    background: bool = False
    stream: bool = False
    store: bool = True
    obfuscate: bool = False


class Runs:
    """All runs of this process and of the journal."""

    def __init__(
        self,
        *,
        journal: Journal,
        ephemeral: Journal,
        index: Index,
        branches: Branches,
        inputs: Inputs,
        erasure: Erasure,
        generator: Generator,
        router: Router,
        surfaces: Mapping[str, Surface],
        limits: Limits,
    ) -> None:
        self._journal = journal
        self._ephemeral = ephemeral
        self._index = index
        self._branches = branches
        self._inputs = inputs
        self._erasure = erasure
        self._generator = generator
        self._router = router
        self._surfaces = surfaces
        self._limits = limits
        self.dispatcher: LocalDispatcher  # set by app.py: the dispatcher reports back to `ended`
        self.live: dict[str, LiveRun] = {}

    async def create(self, project: str, request: RunRequest, *, surface: str) -> LiveRun:
        """Start a run; returns when its first entry is durable. Raises RequestError, StorageError."""
        with self.dispatcher.admitted():
            settings = request.settings
            _, served = await self._router.find(settings.model)
            if served != settings.model:
                settings = msgspec.structs.replace(settings, served=served)
            branch = await self._branch(project, request)
            try:
                with self._inputs.hold() as hold:
                    run = await self._begin(project, request, settings, branch, self._surfaces[surface], hold)
            except BaseException:
                # What was folded in and not committed must not be built upon.
                branch.stale = branch.stale or (branch.writer is not None and not branch.writer.is_settled)
                self._branches.done(branch)
                raise
            self.live[run.id] = run
            self.dispatcher.start(run)
            return run

    async def _begin(
        self,
        project: str,
        request: RunRequest,
        settings: RunSettings,
        branch: ActiveBranch,
        surface: Surface,
        hold: BlobHold,
    ) -> LiveRun:
        needs_present = any(item.get("type") == "item_reference" for item in request.input)
        present = frozenset(held.id for held in branch.state.items) if needs_present else frozenset()
        items = await self._inputs.resolve(
            project, request.input, present=present, hold=hold if request.store else None
        )
        if len(branch.state.items) + len(items) > self._limits.context_items:
            message = f"The context would have more than {self._limits.context_items} items (`limits.context_items`)."
            raise InvalidRequest(message, code="too_many_items", param="input")
        steering = [*branch.state.steering, *items]
        settings = configured(settings, steering)
        check_format(settings)
        plan = surface.plan(settings, steering)
        frames = request.stream or request.background
        started = RunStarted(
            id=ids.new_id("resp"),
            settings=await self._inputs.compact(settings, hold) if request.store else settings,
            input=items,
            surface=surface.name,
            previous=request.previous,
            conversation=request.conversation,
            background=request.background,
            frames=frames,
            obfuscate=request.obfuscate,
        )
        writer = self._branches.writer(branch, journal=self._journal if request.store else self._ephemeral)
        writer.add(started)
        state = branch.state.open
        assert state is not None, "a run was just started on this branch"
        run = LiveRun(state=state, settings=settings, branch=branch, writer=writer, plan=plan, stored=request.store)
        if frames:
            writer.stream = LiveStream()
            writer.renderer = surface.renderer(run.view(), obfuscate=request.obfuscate)
            writer.renderer.begin(run.view())
        await writer.commit()
        return run

    async def count_input(self, project: str, request: RunRequest, *, surface: str) -> tuple[int, bool]:
        """Input tokens that such a run would have, and whether the count is exact. Nothing is written."""
        backend, model = await self._router.find(request.settings.model)
        branch = await self._source(project, request)
        present = frozenset(held.id for held in branch.items)
        items = await self._inputs.resolve(project, request.input, present=present, hold=None)
        plan = self._surfaces[surface].plan(request.settings, [*branch.steering, *items])
        context = Context()
        await self._generator.extend(context, [*branch.items, *identified(ids.new_key(), items, branch.head + 1)])
        return await backend.count_tokens(build_call(request.settings, plan, model, context, stream=False))

    async def _source(self, project: str, request: RunRequest) -> BranchState:
        """What such a run would continue, without taking it."""
        if request.conversation:
            row = await self._index.conversation(project, request.conversation)
            if row is None:
                raise conversation_not_found(request.conversation)
            return (await self._branches.open(project, row.branch)).state
        if request.previous:
            parent = await self._parent(project, request.previous)
            return (await self._branches.open(project, parent.branch)).state.fork(parent.end)
        return BranchState()

    async def _branch(self, project: str, request: RunRequest) -> ActiveBranch:
        """The branch that the run is to extend, taken: the named one, a fork of it, or a new one."""
        if request.conversation and not request.store:
            raise InvalidRequest(
                "`store: false` cannot be used with `conversation`: a conversation keeps its items. Leave one out.",
                code="unsupported_parameter",
                param="store",
            )
        if request.conversation:
            return await self.take_conversation(project, request.conversation)
        if not request.previous:
            return self._branches.new(project) if request.store else _detached(project, BranchState())
        row = await self._parent(project, request.previous)
        source = await self._branches.open(project, row.branch)
        if not request.store:
            return _detached(project, source.state.fork(row.end))
        at_head = source.state.head == row.end and not source.state.conversation
        if at_head and not source.stale and source.try_take():
            return source
        return self._branches.fork(source, row.end)

    async def _parent(self, project: str, run_id: str) -> RunRow:
        live = self.live.get(run_id)
        if live is not None and live.project == project and live.stored:
            if live.state.ended is None:
                raise _in_progress(run_id)
            await asyncio.shield(live.done)  # its last event may have gone out already
        row = await self._index.run(project, run_id)
        if row is None:
            raise InvalidRequest(
                f"Previous response with id '{run_id}' not found.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        if row.end < 0:
            raise _in_progress(run_id)
        return row

    async def take_conversation(self, project: str, conversation_id: str) -> ActiveBranch:
        """The branch of a conversation, taken in turn. Raises NotFound, InvalidRequest `conversation_locked`."""
        while True:
            row = await self._index.conversation(project, conversation_id)
            if row is None:
                raise conversation_not_found(conversation_id)
            active = await self._branches.open(project, row.branch)
            await active.take(
                queue_max=self._limits.conversation_queue, wait_seconds=self._limits.conversation_wait_seconds
            )
            left = active.state.open
            if not active.stale and not active.state.deleted and left is None:
                return active
            self._branches.done(active)
            if left is not None and not active.stale:
                await self._take_up_left(project, left.started.id, active.branch)

    def ended(self, run: LiveRun) -> None:
        """Called by the dispatcher when it is through with a run."""
        self.live.pop(run.id, None)
        if run.failure is not None and isinstance(run.failure, StorageError):
            run.branch.stale = True
        if run.stored:
            self._branches.done(run.branch)
            if run.writer.failure is not None and not isinstance(run.writer.failure, Fenced):
                self._take_up_later(run)
        else:
            forget = getattr(self._ephemeral, "forget", None)
            if forget is not None:
                forget(run.branch.branch)

    def _take_up_later(self, run: LiveRun) -> None:
        """The journal would not take any more of a run (the disk is full, say): try to go on with it in a while."""
        state = run.state
        row = RunRow(
            run.id, run.branch.branch, state.start, -1, OPEN, state.started.surface, state.created_at, run.project
        )
        self.dispatcher.at(RECOVERY_RETRY_SECONDS, partial(self._try_take_up, row))

    def find_live(self, project: str, run_id: str) -> LiveRun | None:
        """The run, if it goes on in this process and may be looked up."""
        run = self.live.get(run_id)
        return run if run is not None and run.project == project and run.stored else None

    async def view(self, project: str, run_id: str) -> RunView:
        """How a run stands; nothing in it is not durable. Raises NotFound."""
        run = self.find_live(project, run_id)
        if run is not None and run.writer.failure is None:
            await run.writer.settled()
            if run.state.ended is None:
                return run.view()
            await asyncio.shield(run.done)
        row = await self._row(project, run_id)
        state = await self._fold(project, row)
        return state.view(settings=await self._inputs.expand(state.started.settings))

    async def page(self, project: str, *, after: str, limit: int, descending: bool) -> list[RunView]:
        """Views of runs by age, one more than `limit` when there are more."""
        views = []
        for row in await self._index.runs(project, after=after, limit=limit + 1, descending=descending):
            state = await self._fold(project, row)
            views.append(state.view(settings=await self._inputs.expand(state.started.settings)))
        return views

    async def input_items(self, project: str, run_id: str) -> list[ContextItem]:
        """All items that the run was given, oldest first: those of its branch before it, then its own input."""
        row = await self._row(project, run_id)
        branch = await self._branches.open(project, row.branch)
        state = await self._fold(project, row)
        return [*items_before(branch.state, row.start), *state.input_items(row.start)]

    async def shown(self, held: ContextItem) -> ContextItem:
        """The item with its images in place."""
        return ContextItem(held.id, await self._inputs.shown(held.item), held.seq)

    async def follow(self, project: str, run_id: str, *, after: int) -> LiveStream:
        """The stream of a run, with the frames beyond `after` at least. Raises NotFound, InvalidRequest."""
        run = self.find_live(project, run_id)
        if run is not None and run.stream is not None:
            return run.stream
        if run is not None:
            raise _not_streamed(run_id)
        row = await self._row(project, run_id)
        state = await self._fold(project, row)
        if not state.started.frames:
            raise _not_streamed(run_id)
        frames = await self._journal.frames(project, row.branch, row.start, after=after)
        if not frames and not await self._journal.frames(project, row.branch, row.start):
            message = f"The stream of response '{run_id}' is no longer kept. Retrieve the response without `stream`."
            raise InvalidRequest(message, code="stream_expired", param="stream")
        stored = LiveStream(frames)
        stored.end(cut=row.end < 0)
        return stored

    async def cancel(self, project: str, run_id: str) -> RunView:
        """Cancel a background run; the answer comes when that is durable. Idempotent."""
        run = self.find_live(project, run_id) or await self._take_up_to_cancel(project, run_id)
        if run is not None and run.state.started.background:
            await self.dispatcher.cancel(run)
        view = await self.view(project, run_id)
        if not view.background:
            raise InvalidRequest(
                "Cannot cancel a synchronous response. Only one created with `background: true` can be cancelled.",
                code="response_not_cancellable",
                param="response_id",
            )
        return view

    async def delete(self, project: str, run_id: str) -> None:
        """Erase a run: its content is gone from every table, blob and index when this returns. Raises NotFound."""
        run = self.find_live(project, run_id)
        if run is not None:
            await self.dispatcher.cancel(run)
        row = await self._row(project, run_id)
        await self._erasure.erase_run(project, row)
        if row.end < 0:
            self._branches.forget(project, row.branch)

    async def recover(self) -> int:
        """Take up every open run of the journal; returns how many."""
        rows = await self._index.open_runs()
        await asyncio.gather(*(self._try_take_up(row) for row in rows))
        return len(rows)

    async def _try_take_up(self, row: RunRow, retry_seconds: float = RECOVERY_RETRY_SECONDS) -> None:
        """Take up one run; when that fails (its model's server is not up yet, say), again a little later."""
        try:
            await self._take_up(row)
        except StateroomError as error:
            log.warning("run.not_recovered run_id=%s code=%s", row.id, error.code)
            again = partial(self._try_take_up, row, min(2 * retry_seconds, RECOVERY_RETRY_SECONDS_MAX))
            self.dispatcher.at(retry_seconds, again)
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
        self.live[run.id] = run
        self.dispatcher.start(run)
        log.info("run.recovered run_id=%s", run.id)

    async def _resume(self, row: RunRow, branch: ActiveBranch, state: RunState, *, asks_model: bool) -> LiveRun:
        started = state.started
        surface = self._surfaces[started.surface]
        settings = await self._inputs.expand(started.settings)
        refusal: RequestError | None = None
        plan: ToolPlan = NoTools()
        can_prefill = False
        try:
            plan = surface.plan(settings, [*branch.state.steering, *started.input])
            if asks_model:
                backend = await self._backend_of(settings.model)
                can_prefill = backend.can_prefill
        except RequestError as error:
            refusal = error  # it will never be better: the run ends with it
        writer = self._branches.writer(branch)
        writer.run = state.start
        run = LiveRun(state=state, settings=settings, branch=branch, writer=writer, plan=plan, stored=True)
        run.failure = refusal
        if started.frames:
            frames = await self._journal.frames(row.project, row.branch, row.start)
            writer.stream = LiveStream(frames)
            writer.renderer, left_open = surface.restore(run.view(), frames, obfuscate=started.obfuscate)
            for item in left_open:
                if _is_hosted(state, item.index):
                    continue
                if item.type == "message" and can_prefill and item is left_open[-1]:
                    run.resumed = item
                    continue
                writer.renderer.item_abandoned(item.index)
                writer.add(ItemAbandoned(item.index))
            if frames and b"event: response.in_progress\ndata:" in b"".join(frame.body for frame in frames):
                run.status = "in_progress"
        run.patience_seconds = RECOVERY_PATIENCE_SECONDS
        await writer.commit()
        return run

    async def _backend_of(self, model: str) -> Backend:
        """The backend for a name. Raises NotFound, BackendUnavailable; what stands open must not wait long for it."""
        try:
            return (await asyncio.wait_for(self._router.find(model), RECOVERY_FIND_SECONDS))[0]
        except TimeoutError:
            raise BackendUnavailable("No model server has answered yet.") from None

    async def _take_up_to_cancel(self, project: str, run_id: str) -> LiveRun | None:
        """An open background run that could not be taken up yet (its model's server is not back, say)."""
        row = await self._index.run(project, run_id)
        if row is None or row.end >= 0 or not (await self._fold(project, row)).started.background:
            return None
        await self._take_up(row, asks_model=False)
        return self.find_live(project, run_id)

    async def _take_up_left(self, project: str, run_id: str, branch: str) -> None:
        """A run that this process gave up still stands open at the end of a branch: it has to end first."""
        row = await self._index.run(project, run_id)
        if row is None or row.end >= 0 or row.branch != branch:
            self._branches.forget(project, branch)
        else:
            await self._take_up(row)

    async def _row(self, project: str, run_id: str) -> RunRow:
        row = await self._index.run(project, run_id)
        if row is None:
            raise response_not_found(run_id)
        return row

    async def _fold(self, project: str, row: RunRow) -> RunState:
        state = fold_run(await self._journal.read(project, row.branch, run=row.start))
        if state is None:
            raise response_not_found(row.id)
        return state


def response_not_found(run_id: str) -> NotFound:
    """Missing, deleted and foreign look the same."""
    return NotFound(f"Response with id '{run_id}' not found.", code="response_not_found", param="response_id")


def conversation_not_found(conversation_id: str) -> NotFound:
    """Missing, deleted and foreign look the same."""
    return NotFound(
        f"Conversation with id '{conversation_id}' not found.", code="conversation_not_found", param="conversation_id"
    )


def _in_progress(run_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Response '{run_id}' is still in progress. Wait for it to end, or cancel it, before continuing it.",
        code="previous_response_in_progress",
        param="previous_response_id",
    )


def _detached(project: str, state: BranchState) -> ActiveBranch:
    """A branch that lives in memory alone: it begins with the state's items and has no parent to be read from."""
    state.head = -1
    active = ActiveBranch(project, ids.new_id("br"), state)
    active.parent = Branch(active.branch, project)
    active.busy = True
    return active


def _is_hosted(state: RunState, index: int) -> bool:
    return any(held.index == index and held.item.get("type") == HOSTED_CALL for held in state.output)


def _not_streamed(run_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Response '{run_id}' has no stream: it was created with neither `stream` nor `background`. "
        "Retrieve it without `stream`.",
        code="response_not_streamed",
        param="stream",
    )
