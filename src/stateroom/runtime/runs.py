"""Runs from the outside: create, look up, follow, cancel, erase, take up again after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

import msgspec

from stateroom import ids
from stateroom.access.rates import Rates
from stateroom.agent.compaction import visible_ids
from stateroom.agent.context import Context
from stateroom.agent.state import BranchState, configured, identified, named_once
from stateroom.blobs.hold import BlobHold
from stateroom.clock import SystemClock
from stateroom.errors import (
    Fenced,
    InvalidRequest,
    StorageError,
)
from stateroom.journal.entries import (
    ContextItem,
    Fact,
    Item,
    RunSettings,
    RunStarted,
    RunView,
)
from stateroom.journal.store import Index, Journal, RunRow
from stateroom.models.router import Router
from stateroom.runtime.approvals import check_approvals
from stateroom.runtime.branches import ActiveBranch, Branches
from stateroom.runtime.checks import check_format
from stateroom.runtime.dispatch import LocalDispatcher
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.generate import Generator, build_call
from stateroom.runtime.hosted_calls import HostedCalls
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.live import LiveRun
from stateroom.runtime.local import LocalContexts, detached
from stateroom.runtime.reading import RESPONSES, RunReader, conversation_not_found
from stateroom.runtime.steering import Steering
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import Surface
from stateroom.runtime.takeup import TakeUp
from stateroom.settings import Limits
from stateroom.telemetry.context import to_keep

log = logging.getLogger("stateroom.runtime")


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
    generate: bool = True
    """False: keep the input for runs that continue this one, and ask no model."""
    also: tuple[Fact, ...] = ()
    """What else is to be committed with the run's first entry, such as the idempotency key it was asked for with."""
    id: str = ""
    """The id it is to have, for who has to know it beforehand; made up when empty."""
    key: str = ""
    """Id of the access key that asks: its limits hold, and what the run uses is charged to it."""


class Runs(RunReader):
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
        rates: Rates | None = None,
        hosted: HostedCalls | None = None,
    ) -> None:
        super().__init__(journal, index, branches, inputs)
        self._ephemeral = ephemeral
        self._erasure = erasure
        self._generator = generator
        self._router = router
        self._surfaces = surfaces
        self._limits = limits
        self._rates = rates or Rates(SystemClock())
        self.dispatcher: LocalDispatcher  # set by app.py: the dispatcher reports back to `ended`
        self.hosted = hosted or HostedCalls({})
        self._taking_up = TakeUp(
            self,
            journal=journal,
            index=index,
            branches=branches,
            inputs=inputs,
            router=router,
            surfaces=surfaces,
            dispatcher=lambda: self.dispatcher,
            rates=self._rates,
        )
        self.steering = Steering(
            self.live,
            branches=branches,
            inputs=inputs,
            surfaces=surfaces,
            start=lambda run: self.dispatcher.start(run),
            rates=self._rates,
            limits=limits,
        )

    async def create(
        self, project: str, request: RunRequest, *, surface: str, local: LocalContexts | None = None
    ) -> LiveRun:
        """Start a run; returns when its first entry is durable. Raises RequestError, StorageError.

        `local` is what the caller's connection keeps of unstored runs: they can be continued, and this one is kept.
        """
        with self.dispatcher.admitted(), self._rates.begun(project, request.key):
            settings = request.settings
            _, served = await self._router.find(settings.model)
            if served != settings.model:
                settings = msgspec.structs.replace(settings, served=served)
            if settings.temperature is None and (usual := self._router.temperature(settings.model)) is not None:
                settings = msgspec.structs.replace(settings, temperature=usual)
            branch = await self._branch(project, request, local)
            try:
                with self._inputs.hold() as hold:
                    run = await self._begin(project, request, settings, branch, self._surfaces[surface], hold)
            except BaseException:
                # What was folded in and not committed must not be built upon.
                branch.stale = branch.stale or (branch.writer is not None and not branch.writer.is_settled)
                self._branches.done(branch)
                raise
            run.local = local
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
        present = visible_ids(branch.state.items) if needs_present else frozenset()
        items = await self._inputs.resolve(
            project, request.input, present=present, hold=hold if request.store else None
        )
        items = [*(item for steer in branch.state.steers for item in steer.input), *items]
        if len(branch.state.items) - branch.state.compacted_at + len(items) > self._limits.context_items:
            message = f"The context would have more than {self._limits.context_items} items (`limits.context_items`)."
            raise InvalidRequest(message, code="too_many_items", param="input")
        steering = [*branch.state.steering, *items]
        settings = configured(settings, steering)
        check_format(settings)
        plan = surface.plan(settings, steering)
        run_id = request.id or ids.new_id("resp")
        if plan.environments or plan.servers:
            base = await self.hosted.places.base(project, branch.state, items)
            await self.hosted.check(project, ids.key_of(run_id), plan, base, branch=branch.branch)
        settings = self._inputs.sealed(project, settings)
        check_approvals(items, branch.state.items)
        self.hosted.programs.check(
            project,
            branch.state,
            ids.key_of(run_id),
            items,
            plan,
            goes_on=request.generate and not settings.compact_now,
        )
        frames = request.stream or request.background
        started = RunStarted(
            id=run_id,
            settings=await self._inputs.compact(settings, hold) if request.store else settings,
            input=named_once(items, branch.state.items),
            surface=surface.name,
            previous=request.previous,
            conversation=request.conversation,
            background=request.background,
            frames=frames,
            obfuscate=request.obfuscate,
            key=request.key,
            generate=request.generate,
            trace=to_keep(),
        )
        writer = self._branches.writer(branch, journal=self._journal if request.store else self._ephemeral)
        writer.add(started)
        for record in request.also:
            writer.add(record)
        state = branch.state.open
        assert state is not None, "a run was just started on this branch"
        run = LiveRun(
            state=state,
            settings=settings,
            branch=branch,
            writer=writer,
            plan=plan,
            stored=request.store,
            surface=surface,
        )
        writer.keeps_frames = not surface.one_off
        if frames:
            writer.stream = LiveStream()
            writer.renderer = surface.renderer(run.view(), obfuscate=request.obfuscate)
            writer.renderer.begin(run.view())
        await writer.commit()
        return run

    async def count_input(self, project: str, request: RunRequest, *, surface: str) -> tuple[int, bool]:
        """Input tokens that such a run would have, and whether the count is exact. Nothing is written."""
        backend, model = await self._router.find(request.settings.model)
        branch, items = await self.context_of(project, request, key=ids.new_key())
        plan = self._surfaces[surface].plan(request.settings, [*branch.steering, *(held.item for held in items)])
        context = Context()
        await self._generator.extend(context, [*branch.items, *items])
        return await backend.count_tokens(build_call(request.settings, plan, model, context, stream=False))

    async def context_of(self, project: str, request: RunRequest, *, key: str) -> tuple[BranchState, list[ContextItem]]:
        """What such a run would continue, and its input, whose ids belong to `key`. Nothing is written."""
        branch = await self._source(project, request)
        items = await self._inputs.resolve(project, request.input, present=visible_ids(branch.items), hold=None)
        return branch, identified(key, items, branch.head + 1)

    async def _source(self, project: str, request: RunRequest) -> BranchState:
        """What such a run would continue, without taking it."""
        if request.conversation:
            row = await self._index.conversation(project, request.conversation)
            if row is None:
                raise conversation_not_found(request.conversation, "conversation")
            return (await self._branches.open(project, row.branch)).state
        if request.previous:
            parent = await self._parent(project, request.previous)
            return (await self._branches.open(project, parent.branch)).state.fork(parent.end)
        return BranchState()

    async def _branch(self, project: str, request: RunRequest, local: LocalContexts | None = None) -> ActiveBranch:
        """The branch that the run is to extend, taken: the named one, a fork of it, or a new one."""
        if request.conversation and not request.store:
            raise InvalidRequest(
                "`store: false` cannot be used with `conversation`: a conversation keeps its items. Leave one out.",
                code="unsupported_parameter",
                param="store",
            )
        if request.conversation:
            return await self.take_conversation(project, request.conversation, param="conversation")
        if not request.previous:
            return self._branches.new(project) if request.store else detached(project, BranchState())
        if local is not None and (kept := await self._local(project, request, local)) is not None:
            return kept
        row = await self._parent(project, request.previous)
        source = await self._branches.open(project, row.branch)
        if not request.store:
            return detached(project, source.state.fork(row.end), derived=True)
        at_head = source.state.head == row.end and not source.state.conversation
        if at_head and not source.stale and source.try_take():
            return source
        return self._branches.fork(source, row.end)

    async def _local(self, project: str, request: RunRequest, local: LocalContexts) -> ActiveBranch | None:
        """The same for an unstored run of the caller's connection; None when that has no such run."""
        live = self.live.get(request.previous)
        if live is not None and not live.stored and live.local is local:
            if live.state.ended is None:
                raise _in_progress(request.previous)
            await asyncio.shield(live.done)
        if request.store and request.previous in local:
            raise InvalidRequest(
                f"Previous response with id '{request.previous}' was not stored, so that one with `store: true` cannot "
                "continue it. Send `store: false`, or the whole input.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return local.take(project, request.previous)

    async def _parent(self, project: str, run_id: str) -> RunRow:
        live = self.find_live(project, run_id)
        if live is not None:
            if live.state.ended is None:
                raise _in_progress(run_id)
            await asyncio.shield(live.done)  # its last event may have gone out already
        row = self._branches.find_ended(project, run_id) or await self._index.run(project, run_id)
        if row is None or row.surface != RESPONSES:
            raise InvalidRequest(
                f"Previous response with id '{run_id}' not found. Responses are not kept with `store: false`, or when "
                "they are deleted: send the whole input instead.",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        if row.end < 0:
            raise _in_progress(run_id)
        return row

    async def take_conversation(
        self, project: str, conversation_id: str, *, param: str = "conversation_id"
    ) -> ActiveBranch:
        """The branch of a conversation, taken in turn. Raises NotFound, InvalidRequest `conversation_locked`."""
        while True:
            row = await self._index.conversation(project, conversation_id)
            if row is None:
                raise conversation_not_found(conversation_id, param)
            active = await self._branches.open(project, row.branch)
            await active.take(
                queue_max=self._limits.conversation_queue, wait_seconds=self._limits.conversation_wait_seconds
            )
            left = active.state.open
            if not active.stale and not active.state.deleted and left is None:
                return active
            self._branches.done(active)
            if left is not None and not active.stale:
                await self._taking_up.left_open(project, left.started.id, active.branch)

    def ended(self, run: LiveRun) -> None:
        """Called by the dispatcher when it is through with a run."""
        self.live.pop(run.id, None)
        ended = run.state.ended
        used = (ended.usage or run.state.usage) if ended is not None else None
        self._rates.end(run.project, run.state.started.key, used.input + used.output if used is not None else 0)
        if run.failure is not None and isinstance(run.failure, StorageError):
            run.branch.stale = True
        if run.stored:
            if self._surfaces[run.state.started.surface].one_off:
                self._let_go(run)
            if run.successor is None:
                if ended is not None and run.failure is None:
                    self._branches.note_ended(run.branch, _row_of(run))
                self._branches.done(run.branch)
            if _is_left_open(run):
                self._taking_up.later(run)
            return
        if run.successor is None:
            forget = getattr(self._ephemeral, "forget", None)
            if forget is not None:
                forget(run.branch.branch)
            run.branch.free()
        if run.local is not None:
            run.local.keep(run.id, run.branch, run.state)

    def _let_go(self, run: LiveRun) -> None:
        """Nothing will be built upon a run that stands alone, and of one that failed nobody knows."""
        run.branch.stale = True
        if run.state.ended is not None and run.state.ended.status == "failed":
            self.dispatcher.at(0.0, partial(self._erase, run.project, run.id))

    async def _erase(self, project: str, run_id: str) -> None:
        row = await self._index.run(project, run_id)
        if row is not None:
            try:
                await self._erasure.erase_run(project, row)
            except StorageError as error:
                log.warning("run.not_erased run_id=%s code=%s", run_id, error.code)

    async def recover(self) -> int:
        """Take up every open run of the journal; returns how many."""
        return await self._taking_up.recover()

    async def cancel(self, project: str, run_id: str) -> RunView:
        """Cancel a background run; the answer comes when that is durable. Idempotent."""
        run = self.find_live(project, run_id) or await self._taking_up.to_cancel(project, run_id)
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

    async def delete(self, project: str, run_id: str, *, surface: str = RESPONSES) -> None:
        """Erase a run: its content is gone from every table, blob and index when this returns. Raises NotFound."""
        run = self.find_live(project, run_id, surface=surface)
        if run is not None:
            await self.dispatcher.cancel(run)
        row = await self.row_of(project, run_id, surface=surface)
        await self._erasure.erase_run(project, row)
        if row.end < 0:
            self._branches.forget(project, row.branch)


def _row_of(run: LiveRun) -> RunRow:
    """What the index says of a run that has ended, and is the last thing on its branch."""
    state, ended = run.state, run.state.ended
    status = ended.status if ended is not None else ""
    end = run.branch.state.head
    return RunRow(
        run.id, run.branch.branch, state.start, end, status, state.started.surface, state.created_at, run.project
    )


def _is_left_open(run: LiveRun) -> bool:
    """Whether it could not be written down to its end, or what it leaves could not be kept, and that may get better."""
    failure = run.writer.failure
    if failure is None and run.state.ended is None and isinstance(run.failure, StorageError):
        failure = run.failure
    return failure is not None and not isinstance(failure, Fenced)


def _in_progress(run_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Response '{run_id}' is still in progress. Wait for it to end, or cancel it, before continuing it.",
        code="previous_response_in_progress",
        param="previous_response_id",
    )
