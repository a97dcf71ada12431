"""Who runs when: places, the line before them, admission, and the end of the process."""

from __future__ import annotations

import asyncio

import pytest

from stateroom.errors import InvalidRequest, StateroomError, TooMany
from stateroom.journal.entries import RunEnded
from stateroom.models.backend import TextDelta
from stateroom.settings import Limits
from tests.unit.runtime.stage import GatedBlobs, Stage, picture, says, until


def gated(gate: asyncio.Event) -> list[object]:
    return [[TextDelta("a")], gate, *says("b")]


async def test_so_many_runs_go_on_at_a_time_and_the_others_follow() -> None:
    gate = asyncio.Event()
    stage = Stage(gated(gate), gated(gate), says("c"), limits=Limits(runs=2))  # type: ignore[arg-type]  # plays
    runs = [await stage.start(background=True) for _ in range(3)]
    await until(lambda: len(stage.backend.asked) == 2)
    assert (await stage.runs.view("p", runs[2].id)).status == "queued"
    gate.set()
    await asyncio.wait_for(asyncio.gather(*[asyncio.shield(run.done) for run in runs]), 5)
    assert [run.state.ended.status for run in runs if run.state.ended] == ["completed"] * 3


async def test_a_run_can_be_cancelled_while_it_waits_for_a_place() -> None:
    gate = asyncio.Event()
    stage = Stage(gated(gate), limits=Limits(runs=1))  # type: ignore[arg-type]  # plays
    first = await stage.start(background=True)
    second = await stage.start(background=True)
    third = await stage.start(background=True)
    await until(lambda: len(stage.backend.asked) == 1)
    assert (await asyncio.wait_for(stage.runs.cancel("p", second.id), 5)).status == "cancelled"
    gate.set()
    await asyncio.wait_for(asyncio.shield(third.done), 5)
    assert first.state.ended is not None
    assert len(stage.backend.asked) == 2


async def test_too_many_runs_are_refused_and_a_refused_request_takes_no_place() -> None:
    gate = asyncio.Event()
    stage = Stage(gated(gate), limits=Limits(runs=1, waiting_runs=1))  # type: ignore[arg-type]  # plays
    for _ in range(5):
        with pytest.raises(InvalidRequest):
            await stage.start(previous="resp_nobody")
    runs = [await stage.start(background=True) for _ in range(2)]
    with pytest.raises(TooMany) as refused:
        await stage.start()
    assert refused.value.headers() == {"retry-after": "2"}
    gate.set()
    await asyncio.wait_for(asyncio.gather(*[asyncio.shield(run.done) for run in runs]), 5)
    await stage.ask()


async def test_runs_whose_input_is_still_being_made_whole_count() -> None:
    blobs = GatedBlobs()
    stage = Stage(limits=Limits(runs=1, waiting_runs=1), blobs=blobs)
    coming = [asyncio.ensure_future(stage.start([picture()])) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooMany):
        await stage.start()
    blobs.gate.set()
    runs = await asyncio.gather(*coming)
    await asyncio.wait_for(asyncio.gather(*[asyncio.shield(run.done) for run in runs]), 5)


async def test_closing_waits_no_longer_than_somebody_wants_it_to() -> None:
    gate, enough = asyncio.Event(), asyncio.Event()
    stage = Stage(gated(gate))  # type: ignore[arg-type]  # plays
    slow = await stage.start(background=True)
    await until(lambda: slow.assembler is not None)
    closing = asyncio.ensure_future(stage.dispatcher.close(3_600.0, enough))
    await asyncio.sleep(0.01)
    assert not closing.done()
    enough.set()
    assert await asyncio.wait_for(closing, 5) == 1
    assert (await stage.runs.view("p", slow.id)).status == "in_progress"


async def test_closing_lets_runs_finish_and_parks_the_rest_without_an_end() -> None:
    gate = asyncio.Event()
    stage = Stage(says("quick"), gated(gate))  # type: ignore[arg-type]  # plays
    quick, slow = await stage.start(), await stage.start(background=True)
    await until(lambda: quick.state.ended is not None and slow.assembler is not None)
    assert await stage.dispatcher.close(0.01) == 1
    await asyncio.wait_for(asyncio.shield(slow.done), 5)
    assert slow.stream is not None
    assert slow.stream.ended
    assert slow.stream.cut
    assert not any(isinstance(record, RunEnded) for record in await stage.records(slow))
    assert stage.dispatcher.count == 0

    later = stage.after_crash(says("anew"))
    await later.recover()
    assert (await later.runs.view("p", slow.id)).status == "completed"


async def test_a_server_that_stops_takes_nothing_new() -> None:
    stage = Stage()
    await stage.dispatcher.close(0.0)
    with pytest.raises(StateroomError) as refused:
        await stage.start()
    assert (refused.value.status, refused.value.code) == (503, "server_stopping")


async def test_a_run_that_comes_in_while_the_server_stops_is_parked() -> None:
    blobs = GatedBlobs()
    stage = Stage(blobs=blobs)
    coming = asyncio.ensure_future(stage.start([picture()]))
    await asyncio.sleep(0)
    await stage.dispatcher.close(0.0)
    blobs.gate.set()
    run = await coming
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert run.state.ended is None
    later = stage.after_crash(says("yes"))
    await later.recover()
    assert (await later.runs.view("p", run.id)).status == "completed"


async def test_a_timer_wakes_once_and_not_after_the_end() -> None:
    stage = Stage()
    woken: list[int] = []

    async def wake() -> None:
        woken.append(1)

    stage.dispatcher.at(0.0, wake)
    await until(lambda: woken == [1])
    stage.dispatcher.at(60.0, wake)
    await stage.dispatcher.close(0.0)
    stage.dispatcher.at(0.0, wake)
    for _ in range(10):
        await asyncio.sleep(0)
    assert woken == [1]
    await until(lambda: not stage.dispatcher._timers)


async def test_many_runs_that_come_and_go_leave_nothing_behind() -> None:
    stage = Stage(limits=Limits(runs=4))
    runs = await asyncio.gather(*[stage.start(store=number % 2 == 0, stream=number % 3 == 0) for number in range(40)])
    for number, run in enumerate(runs):
        if number % 5 == 0:
            stage.dispatcher.abandon(run)
    await asyncio.wait_for(asyncio.gather(*[asyncio.shield(run.done) for run in runs]), 10)
    assert stage.dispatcher.count == 0
    assert stage.dispatcher._coming == 0
    assert stage.runs.live == {}
    assert not any(active.busy for active in stage.branches._active.values())
    assert stage.ephemeral._lines == {}
    assert not stage.held._held
