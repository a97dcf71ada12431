"""What a project keeps for so long goes when its time has come, with everything that it said, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.sqlite import open_sqlite
from stateroom.runtime.live import LiveRun
from stateroom.runtime.retention import SWEEP_SECONDS, Retention, Swept
from stateroom.settings import RetentionSettings
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan
from tests.unit.journal.test_erasure import raw
from tests.unit.runtime.stage import MovedClock, Stage, says, text_of, until
from tests.unit.runtime.test_erasure import everything

DAY = 24 * 3_600


def retention(stage: Stage, journal: Any = None, **kept: Any) -> Retention:
    """Of project `p`; others keep everything. `own` has the settings of more projects."""
    own: dict[str, RetentionSettings] = kept.pop("own", {})
    settings = {"p": RetentionSettings(**kept), **own}
    return Retention(
        journal or stage.journal,
        journal or stage.journal,
        records=stage.all_records,
        erasure=stage.erasure,
        branches=stage.branches,
        clock=stage.clock,
        of_project=lambda project: settings.get(project, RetentionSettings()),
    )


def later(stage: Stage, days: float) -> None:
    assert isinstance(stage.clock, MovedClock)
    stage.clock.seconds += days * DAY


async def is_there(stage: Stage, run: LiveRun, surface: str = "responses") -> bool:
    with contextlib.suppress(NotFound):
        await stage.runs.view(run.project, run.id, surface=surface)
        return True
    return False


async def seen(stage: Stage, run: LiveRun) -> list[str]:
    return [text_of(held.item) for held in await stage.runs.input_items("p", run.id)]


async def test_a_response_goes_when_it_is_old_enough_and_leaves_nothing_behind() -> None:
    stage = Stage(says("secret answer"), says("younger"))
    old = await stage.ask("secret question", stream=True, instructions="secret " * 200)
    later(stage, 6)
    young = await stage.ask("younger")
    sweeping = retention(stage, responses_days=7)
    assert await sweeping.sweep() == Swept()
    later(stage, 2)
    assert await sweeping.sweep() == Swept(responses=1)
    assert b"secret" not in await everything(stage, old.branch.branch)
    assert not stage.blobs._kept
    assert [await is_there(stage, run) for run in (old, young)] == [False, True]
    assert await sweeping.sweep() == Swept()


async def test_without_a_setting_everything_is_kept_for_ever() -> None:
    stage = Stage()
    run = await stage.ask("hi", stream=True)
    later(stage, 10_000)
    assert await retention(stage).sweep() == Swept()
    assert await is_there(stage, run)
    assert await stage.frames(run)


async def test_each_project_has_a_retention_of_its_own() -> None:
    stage = Stage()
    runs = [await stage.ask("hi", project=project) for project in ("p", "q", "r")]
    later(stage, 5)
    await retention(stage, responses_days=4, own={"q": RetentionSettings(responses_days=6)}).sweep()
    assert [await is_there(stage, run) for run in runs] == [False, True, True]


async def test_a_chain_in_use_keeps_its_beginning() -> None:
    stage = Stage(*[says(f"answer {n}") for n in range(5)])
    chain = [await stage.ask("question 0")]
    for n in range(1, 4):
        later(stage, 3)
        chain.append(await stage.ask(f"question {n}", previous=chain[-1].id))
    sweeping = retention(stage, responses_days=4)
    assert await sweeping.sweep() == Swept()
    assert len(await seen(stage, chain[-1])) == 7
    later(stage, 4.5)
    assert await sweeping.sweep() == Swept(responses=4)
    assert [await is_there(stage, run) for run in chain] == [False] * 4


async def test_of_a_chain_goes_what_its_living_forks_do_not_need() -> None:
    stage = Stage(*[says(f"answer {n}") for n in range(8)])
    first = await stage.ask("question 0")
    second = await stage.ask("question 1", previous=first.id)
    third = await stage.ask("secret question", previous=second.id)
    dead_fork = await stage.ask("secret fork", previous=first.id)
    later(stage, 9)
    fork = await stage.ask("question 2", previous=second.id)
    sweeping = retention(stage, responses_days=8)
    assert await sweeping.sweep() == Swept(responses=2)
    assert [await is_there(stage, run) for run in (first, second, third, dead_fork, fork)] == [
        *(True, True),
        *(False, False),
        True,
    ]
    assert b"secret" not in await everything(stage, third.branch.branch, dead_fork.branch.branch)
    assert await seen(stage, fork) == ["question 0", "answer 0", "question 1", "answer 1", "question 2"]
    later(stage, 9)
    assert await sweeping.sweep() == Swept(responses=3)


async def test_what_conversations_hold_is_not_touched() -> None:
    stage = Stage(*[says(f"answer {n}") for n in range(4)])
    talk = await stage.conversations.create("p", metadata={}, items=[])
    said = await stage.ask("in it", conversation=talk.id)
    chained = await stage.ask("before it")
    forked = await stage.conversations.fork_chain("p", chained.id, {})
    beside = await stage.ask("beside it", previous=said.id)
    later(stage, 100)
    assert await retention(stage, responses_days=1).sweep() == Swept(responses=1)
    assert [await is_there(stage, run) for run in (said, chained, beside)] == [True, True, False]
    for conversation, count in ((talk, 2), (forked, 2)):
        assert len(await stage.conversations.items("p", conversation.id)) == count
    await stage.conversations.delete("p", forked.id)
    assert await retention(stage, responses_days=1).sweep() == Swept(responses=1)
    assert not await is_there(stage, chained)


async def test_stored_chat_completions_go_like_responses() -> None:
    stage = Stage(says("secret"))
    run = await stage.ask("secret", surface="chat")
    later(stage, 2)
    assert await retention(stage, responses_days=1).sweep() == Swept(responses=1)
    assert not await is_there(stage, run, "chat")
    assert b"secret" not in await everything(stage, run.branch.branch)


async def test_a_run_that_goes_on_keeps_what_it_continues() -> None:
    gate = asyncio.Event()
    stage = Stage(says("one"), [gate, *says("two")])
    first = await stage.ask("hi")
    going = await stage.start("go on", previous=first.id, background=True)
    later(stage, 50)
    sweeping = retention(stage, responses_days=1)
    assert await sweeping.sweep() == Swept()
    gate.set()
    await asyncio.wait_for(asyncio.shield(going.done), 5)
    assert await sweeping.sweep() == Swept()
    assert await seen(stage, going) == ["hi", "one", "go on"]


async def test_what_was_said_to_an_earlier_run_goes_with_the_run_that_took_it_in() -> None:
    gate = asyncio.Event()
    stage = Stage([*says("one")[:1], gate, *says("one")[1:]], says("two"), says("three"))
    first = await stage.start("hi", stream=True, background=True)
    await until(lambda: first.interruptible)
    await stage.runs.steering.steer(first, "steer_1", [{"role": "user", "content": "secret turn"}])
    gate.set()
    await until(lambda: not stage.runs.live)
    later(stage, 5)
    await stage.ask("fork", previous=first.id)
    await retention(stage, responses_days=4).sweep()
    assert await is_there(stage, first)
    rows = await stage.journal.runs("p", descending=False)
    assert b"secret turn" not in await everything(stage, *{row.branch for row in rows})


async def test_a_stream_goes_before_its_response() -> None:
    stage = Stage(says("one"), says("two"))
    run, other = await stage.ask("hi", stream=True), await stage.ask("hi", stream=True, project="q")
    talk = await stage.conversations.create("p", metadata={}, items=[])
    within = await stage.ask("hi", stream=True, conversation=talk.id)
    later(stage, 1)
    young = await stage.ask("hi", stream=True)
    sweeping = retention(stage, frames_hours=23)
    assert await sweeping.sweep() == Swept(streams=2)
    assert [bool(await stage.frames(each)) for each in (run, within, young, other)] == [False, False, True, True]
    assert (await stage.runs.view("p", run.id)).status == "completed"
    with pytest.raises(InvalidRequest) as refused:
        await stage.runs.follow("p", run.id, after=-1)
    assert refused.value.code == "stream_expired"
    assert await sweeping.sweep() == Swept()


async def test_files_go_by_their_age() -> None:
    stage = Stage()

    async def add(data: bytes, project: str = "p") -> str:
        async def chunks() -> Any:
            yield data

        added = await stage.files.add(project, filename="f", purpose="user_data", chunks=chunks())
        return added.id

    old = [await add(b"old %d" % n) for n in range(40)]
    other = await add(b"other", "q")
    later(stage, 3)
    young = await add(b"young")
    assert await retention(stage, files_days=2).sweep() == Swept(files=40)
    assert [file.id for file in await stage.files.page("p")] == [young]
    assert [file.id for file in await stage.files.page("q")] == [other]
    assert len(stage.blobs._kept) == 2
    with pytest.raises(NotFound):
        await stage.files.get("p", old[0])


async def test_many_things_go_in_one_sweep_with_rests_in_between() -> None:
    stage = Stage()
    kept = [await stage.conversations.create("p", metadata={}, items=[]) for _ in range(3)]
    for n in range(330):
        await stage.ask("hi", **({"conversation": kept[n % 3].id} if n % 11 == 0 else {}))
    later(stage, 3)
    before = stage.clock.monotonic()
    assert await retention(stage, responses_days=2).sweep() == Swept(responses=300)
    assert stage.clock.monotonic() > before
    assert len(await stage.journal.runs("p", limit=1_000)) == 30


@pytest.mark.parametrize("fault", [Fault.DIE_BEFORE, Fault.DIE_AFTER])
@pytest.mark.parametrize("at", range(8))
async def test_a_sweep_that_a_crash_cut_off_is_done_by_the_next(fault: Fault, at: int) -> None:
    stage = Stage(*[says(f"secret {n}") for n in range(6)])
    first = await stage.ask("secret", stream=True)
    second = await stage.ask("secret", previous=first.id, stream=True)
    fork = await stage.ask("secret", previous=first.id, stream=True)
    alone = await stage.ask("secret", stream=True, surface="chat")
    later(stage, 5)
    young = await stage.ask("hi", stream=True)
    faulty = FaultyStore(stage.journal, Plan({at: fault}))
    dying = Stage(journal=faulty, blobs=stage.blobs, clock=stage.clock)
    with contextlib.suppress(Exception):
        await retention(dying, responses_days=2, frames_hours=1).sweep()
    again = Stage(journal=stage.journal, blobs=stage.blobs, clock=stage.clock)
    await retention(again, responses_days=2, frames_hours=1).sweep()
    branches = {run.branch.branch for run in (first, second, fork, alone)}
    assert b"secret" not in await everything(again, *branches)
    assert [row.id for row in await again.journal.runs("p")] == [young.id]


@pytest.mark.parametrize("at", range(1, 9))
async def test_a_long_chain_whose_erasure_was_cut_off_goes_with_the_next_sweep(at: int) -> None:
    stage = Stage(*[says(f"secret {n}") for n in range(90)])
    last: LiveRun | None = None
    for n in range(90):
        last = await stage.ask(f"secret {n}", previous=last.id if last is not None else "")
    assert last is not None
    later(stage, 5)
    faulty = FaultyStore(stage.journal, Plan({at: Fault.DIE_AFTER}))
    with contextlib.suppress(Exception):
        await retention(Stage(journal=faulty, blobs=stage.blobs, clock=stage.clock), responses_days=2).sweep()
    assert await stage.journal.open_runs() == []
    again = Stage(journal=stage.journal, blobs=stage.blobs, clock=stage.clock)
    await retention(again, responses_days=2).sweep()
    assert b"secret" not in await everything(again, last.branch.branch)
    assert await again.journal.runs("p") == []


async def test_it_goes_on_by_itself_whatever_fails() -> None:
    stage = Stage()
    faulty = FaultyStore(stage.journal, Plan({0: Fault.FULL}))
    dropped = Stage(journal=faulty, blobs=stage.blobs, clock=stage.clock)
    await stage.ask("hi")
    later(stage, 3)
    going = asyncio.ensure_future(retention(dropped, responses_days=2).run())
    began = stage.clock.monotonic()
    async with asyncio.timeout(5):
        while await stage.journal.runs("p"):  # noqa: ASYNC110 - what is waited for says nothing of itself
            await asyncio.sleep(0)
    going.cancel()
    assert stage.clock.monotonic() - began >= SWEEP_SECONDS


async def test_on_disk_nothing_of_it_is_left(tmp_path: Path) -> None:
    clock = MovedClock()
    journal = open_sqlite(tmp_path / "journal.db", clock=clock)
    stage = Stage(*[says(f"planted-{n}") for n in range(3)], journal=journal, clock=clock)
    first = await stage.ask("planted", stream=True)
    await stage.ask("planted", previous=first.id, stream=True)
    await stage.ask("planted", surface="chat")
    later(stage, 5)
    await stage.ask("young", previous="")
    assert await retention(stage, responses_days=2, frames_hours=300).sweep() == Swept(responses=3)
    held = raw(tmp_path / "journal.db")
    assert b"planted" not in held
    assert b"young" in held
    assert await journal.check() == []
    await journal.close()


async def test_a_stream_that_was_dropped_on_disk_leaves_a_sound_journal(tmp_path: Path) -> None:
    clock = MovedClock()
    journal = open_sqlite(tmp_path / "journal.db", clock=clock)
    stage = Stage(journal=journal, clock=clock)
    runs = [await stage.ask(f"say {n}", stream=True) for n in range(20)]
    later(stage, 1)
    assert await retention(stage, frames_hours=2).sweep() == Swept(streams=20)
    assert [await stage.frames(run) for run in runs] == [[]] * 20
    assert [await is_there(stage, run) for run in runs] == [True] * 20
    assert await journal.check() == []
    await journal.close()
