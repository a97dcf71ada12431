"""Steering: what a user says while a run goes on, and the run that takes it in.

What was said is an entry of the run, so it outlives a crash. `agent.steps` ends the run where it can end; the run that
follows is committed together with that end, on the same branch, with the settings of the one before. A run that ends
with calls of its client has no such successor: whoever brings the results continues it, and what was said comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from stateroom import ids
from stateroom.access.rates import Rates
from stateroom.errors import InvalidRequest, RequestError, StateroomError, StorageError
from stateroom.journal.entries import Item, RunStarted, RunSteered
from stateroom.runtime.branches import Branches
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.live import LiveRun
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import NoTools, Surface, ToolPlan
from stateroom.settings import Limits

STEERS_MAX: Final = 16
"""What may be said to one run before it ends."""


class Steering:
    """Takes in what users say, and begins the runs that follow."""

    def __init__(
        self,
        live: dict[str, LiveRun],
        *,
        branches: Branches,
        inputs: Inputs,
        surfaces: Mapping[str, Surface],
        start: Callable[[LiveRun], None],
        rates: Rates,
        limits: Limits,
    ) -> None:
        self._live = live
        self._branches = branches
        self._inputs = inputs
        self._surfaces = surfaces
        self._start = start
        self._rates = rates
        self._limits = limits

    async def steer(self, run: LiveRun, steer_id: str, items: Sequence[Item]) -> None:
        """Have the run end where it can and go on with these messages; returns when that is durable.

        The run goes on as before until `LiveRun.interrupt_if_steered` is called or it comes to such a place by itself.
        Raises InvalidRequest, and TooMany when there are no tokens for what would follow.
        """
        _check_open(run)
        self._rates.check(run.project, run.state.started.key)
        with self._inputs.hold() as hold:
            try:
                resolved = await self._inputs.resolve(
                    run.project, items, present=frozenset(), hold=hold if run.stored else None
                )
            except RequestError as error:
                raise InvalidRequest(error.message, code="invalid_input", param=error.param) from None
            _check_open(run)  # it may have ended meanwhile
            run.writer.add(RunSteered(steer_id, resolved))
            try:
                await run.writer.commit()
            except StorageError:
                message = f"The message could not be kept: response '{run.id}' is being given up by this server."
                raise InvalidRequest(message, code="response_not_active", param="previous_response_id") from None

    def successor(self, run: LiveRun) -> RunStarted | None:
        """The run that is to follow one that ends now, if its user said something meanwhile and nothing else is due."""
        state, ended = run.state, run.state.ended
        if not state.steers or ended is None or ended.status not in ("completed", "incomplete"):
            return None
        if awaits_client(run):
            return None
        items = [item for steer in state.steers for item in steer.input]
        if len(run.branch.state.items) + len(items) > self._limits.context_items:
            return None
        started = state.started
        return RunStarted(
            id=ids.new_id("resp"),
            settings=started.settings,
            input=items,
            surface=started.surface,
            previous=run.id,
            frames=started.frames,
            obfuscate=started.obfuscate,
            key=started.key,
            trace=started.trace,
        )

    def begin(self, run: LiveRun) -> None:
        """Carry out the run that was committed with the end of this one."""
        branch, state = run.branch, run.branch.state.open
        assert state is not None, "the successor was just started on this branch"
        surface = self._surfaces[state.started.surface]
        plan: ToolPlan = NoTools()
        refusal: StateroomError | None = None
        try:
            opened = self._inputs.opened(run.project, run.settings)
            plan = surface.plan(opened, branch.state.steering_of(state))
        except RequestError as error:
            refusal = error
        writer = self._branches.writer(branch, journal=run.writer.journal)
        writer.lease = run.writer.lease
        writer.run = state.start
        writer.keeps_frames = run.writer.keeps_frames
        new = LiveRun(
            state=state,
            settings=run.settings,
            branch=branch,
            writer=writer,
            plan=plan,
            stored=run.stored,
            surface=surface,
        )
        new.failure = refusal
        new.local = run.local
        if state.started.frames:
            writer.stream = LiveStream()
            writer.renderer = surface.renderer(new.view(), obfuscate=state.started.obfuscate)
            writer.renderer.begin(new.view())
            writer.touch()
        run.successor = new
        self._live[new.id] = new
        self._rates.resume(new.project, state.started.key)
        self._start(new)


def awaits_client(run: LiveRun) -> bool:
    """Whether the run ended with calls that its client has to answer."""
    state = run.state
    if state.ended is None or state.ended.status != "completed":
        return False
    return state.awaits_client


def _check_open(run: LiveRun) -> None:
    """Refuse to say anything to a run that cannot take it in. Raises InvalidRequest."""
    state = run.state
    if state.ended is not None and state.ended.status == "completed":
        raise refused(run.id, "response_already_completed", "has completed")
    if state.ended is not None or run.cancelling or run.failure is not None or run.writer.failure is not None:
        raise refused(run.id, "response_not_active", "does not go on any more")
    settings = state.started.settings
    if state.started.conversation:
        raise refused(run.id, "steering_not_supported", "belongs to a conversation; add a message to that instead")
    if settings.compact_now or settings.compact_from:
        raise refused(run.id, "steering_not_supported", "compacts its context by itself (`context_management`)")
    if not state.started.generate:
        raise refused(run.id, "steering_not_supported", "asks no model (`generate: false`)")
    if len(state.steers) >= STEERS_MAX:
        raise refused(run.id, "too_many_pending_steers", f"has been steered {STEERS_MAX} times already")


def refused(run_id: str, code: str, why: str) -> InvalidRequest:
    """Why a response cannot be steered."""
    return InvalidRequest(f"Response '{run_id}' {why}.", code=code, param="previous_response_id")
