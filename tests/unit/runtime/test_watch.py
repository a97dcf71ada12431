"""What is counted of a run, however it ends; and what its answers say of who made them."""

from __future__ import annotations

import asyncio

from stateroom.errors import BackendFailed, StorageError
from stateroom.journal.entries import Answered, ItemFinished
from stateroom.models.backend import Finished, TextDelta
from stateroom.runtime.live import LiveRun
from stateroom.runtime.watch import RunWatch
from stateroom.telemetry.context import Asked, TraceContext, current_request, current_trace
from stateroom.telemetry.instruments import Instruments
from tests.unit.runtime.stage import USAGE, MovedClock, PlayedBackend, Stage, says


def watched(run: LiveRun, instruments: Instruments, clock: MovedClock, seconds: float = 2.0) -> None:
    watch = RunWatch(instruments, clock)
    watch.began(run)
    clock.seconds += seconds
    watch.placed(run)
    clock.seconds += seconds
    watch.ended(run)


async def test_a_run_is_counted_by_how_it_ended() -> None:
    clock, instruments = MovedClock(), Instruments()
    stage = Stage(says("yes"), [BackendFailed("no")], clock=clock)
    watched(await stage.ask(), instruments, clock)
    watched(await stage.ask(), instruments, clock)
    assert instruments.runs.values == {("responses", "completed"): 1, ("responses", "failed"): 1}
    assert instruments.errors.values == {("run", "backend_failed"): 1}
    assert instruments.run_seconds.values[("responses",)].sum == 8.0
    assert instruments.run_wait_seconds.sum == 4.0


async def test_a_run_without_an_end_was_parked_or_given_up() -> None:
    clock, instruments = MovedClock(), Instruments()
    run = await Stage(says("yes"), clock=clock).ask()
    run.state.ended = None
    watched(run, instruments, clock)
    run.failure = StorageError("no", code="storage_full")
    watched(run, instruments, clock)
    assert instruments.runs.values == {("responses", "parked"): 1, ("responses", "given_up"): 1}
    assert instruments.errors.values == {("run", "storage_full"): 1}


async def test_a_request_is_told_which_run_it_began_but_not_which_was_taken_up_meanwhile() -> None:
    stage, asked = Stage(says("yes")), Asked()
    run = await stage.ask()
    token = current_request.set(asked)
    try:
        run.taken_up = True
        RunWatch().began(run)
        assert asked.run_id == ""
        run.taken_up = False
        RunWatch().began(run)
        assert asked.run_id == run.id
    finally:
        current_request.reset(token)


async def test_a_run_belongs_to_the_trace_in_which_it_was_asked_for_also_after_a_crash() -> None:
    trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    stage = Stage([[TextDelta("a")], (gate := asyncio.Event())])
    token = current_trace.set(trace)
    try:
        run = await stage.start()
    finally:
        current_trace.reset(token)
    assert run.trace is trace
    assert run.state.started.trace == trace.header()
    await stage.give_up(run)
    gate.set()
    later = stage.after_crash(says("done"))
    await later.router.refresh()
    await later.runs.recover()
    (again,) = later.runs.live.values()
    assert again.taken_up
    assert again.trace is not None
    assert again.trace.header() == trace.header()
    await again.done


async def test_an_answer_says_who_made_it_and_how_long_that_took() -> None:
    class Slow(PlayedBackend):
        clock: MovedClock

        async def generate(self, call):  # type: ignore[no-untyped-def]  # as the class above has it
            self.clock.seconds += 0.25
            yield [TextDelta("yes")]
            self.clock.seconds += 0.5
            yield [Finished("stop", USAGE)]

    backend, clock = Slow(), MovedClock()
    backend.clock = clock
    stage = Stage(backend=backend, clock=clock)
    run = await stage.ask()
    (made,) = [record for record in await stage.records(run) if isinstance(record, ItemFinished)]
    assert made.by == Answered("played", 750, 250)
    assert run.first_at == clock.seconds - 0.5
