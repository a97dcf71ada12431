"""What a connection keeps of its unstored runs."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.agent.state import BranchState, RunState
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import ContextItem, RunEnded, RunSettings, RunStarted
from stateroom.runtime.live import LiveRun
from stateroom.runtime.local import LocalContexts, LocalMemory, detached
from stateroom.runtime.runs import RunRequest
from tests.unit.runtime.stage import PROJECT, Stage, answer_of, says, user

MANY = 1 << 20


def memory(bytes_max: int = MANY, connection_bytes_max: int = MANY) -> LocalMemory:
    return LocalMemory(bytes_max=bytes_max, connection_bytes_max=connection_bytes_max)


async def ask(stage: Stage, local: LocalContexts, said: str, previous: str = "", *, store: bool = False) -> LiveRun:
    request = RunRequest(RunSettings(model="m"), [user(said)], previous, stream=True, store=store)
    run = await stage.runs.create(PROJECT, request, surface="responses", local=local)
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    return run


async def test_an_unstored_run_is_continued_on_its_connection_and_nowhere_else() -> None:
    stage, shared = Stage(says("one"), says("two")), memory()
    local, other = shared.open(), shared.open()
    first = await ask(stage, local, "a")
    second = await ask(stage, local, "b", first.id)
    assert stage.backend.asked[1].texts() == ["a", "one", "b"]
    assert second.branch is first.branch, "the chain goes on where it stands, without a copy"
    for elsewhere in (other, None):
        with pytest.raises(InvalidRequest) as refusal:
            await stage.runs.create(
                PROJECT,
                RunRequest(RunSettings(model="m"), [user("c")], second.id, stream=True, store=False),
                surface="responses",
                local=elsewhere,
            )
        assert refusal.value.code == "previous_response_not_found"


async def test_an_earlier_response_of_a_chain_is_forked() -> None:
    stage, local = Stage(says("one"), says("two"), says("three"), says("four")), memory().open()
    first = await ask(stage, local, "a")
    await ask(stage, local, "b", first.id)
    fork = await ask(stage, local, "c", first.id)
    assert stage.backend.asked[2].texts() == ["a", "one", "c"]
    await ask(stage, local, "d", fork.id)
    assert stage.backend.asked[3].texts() == ["a", "one", "c", "three", "d"]


async def test_an_unstored_run_continues_a_stored_one_and_is_kept_then() -> None:
    stage, local = Stage(says("one"), says("two"), says("three")), memory().open()
    stored = await stage.ask("a")
    first = await ask(stage, local, "b", stored.id)
    second = await ask(stage, local, "c", first.id)
    assert stage.backend.asked[2].texts() == ["a", "one", "b", "two", "c"]
    assert answer_of(second) == "three"
    assert [row.id for row in await stage.journal.runs(PROJECT)] == [stored.id]


async def test_a_stored_run_cannot_continue_an_unstored_one() -> None:
    stage, local = Stage(), memory().open()
    first = await ask(stage, local, "a")
    with pytest.raises(InvalidRequest) as refusal:
        await ask(stage, local, "b", first.id, store=True)
    assert refusal.value.code == "previous_response_not_found"
    assert "store" in refusal.value.message


async def test_a_run_that_goes_on_cannot_be_continued_yet() -> None:
    stage, local = Stage([asyncio.Event()]), memory().open()
    request = RunRequest(RunSettings(model="m"), [user("a")], stream=True, store=False)
    run = await stage.runs.create(PROJECT, request, surface="responses", local=local)
    with pytest.raises(InvalidRequest) as refusal:
        await ask(stage, local, "b", run.id)
    assert refusal.value.code == "previous_response_in_progress"
    await stage.dispatcher.cancel(run)


async def test_a_run_that_was_cancelled_is_not_kept() -> None:
    stage, local = Stage([asyncio.Event()]), memory().open()
    request = RunRequest(RunSettings(model="m"), [user("a")], stream=True, store=False)
    run = await stage.runs.create(PROJECT, request, surface="responses", local=local)
    await stage.dispatcher.cancel(run)
    assert run.id not in local
    assert stage.ephemeral._lines == {}


async def test_a_warm_up_asks_no_model_and_is_continued() -> None:
    stage, local = Stage(says("one")), memory().open()
    request = RunRequest(RunSettings(model="m"), [user("a")], stream=True, store=False, generate=False)
    run = await stage.runs.create(PROJECT, request, surface="responses", local=local)
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.state.output) == ("completed", [])
    assert stage.backend.asked == []
    await ask(stage, local, "b", run.id)
    assert stage.backend.asked[0].texts() == ["a", "b"]


async def test_a_stored_warm_up_outlives_a_crash_in_the_middle() -> None:
    stage = Stage()
    run = await stage.start("a", generate=False, stream=True)
    await stage.give_up(run)
    later = stage.after_crash(says("one"))
    await later.recover()
    assert later.backend.asked == []
    await later.ask("b", previous=run.id)
    assert later.backend.asked[0].texts() == ["a", "b"]


async def test_an_evicted_run_is_gone_and_the_others_of_its_chain_are_not() -> None:
    stage, local = Stage(), memory().open()
    first = await ask(stage, local, "a")
    second = await ask(stage, local, "b", first.id)
    assert local.evict(second.id)
    assert not local.evict(second.id)
    with pytest.raises(InvalidRequest):
        await ask(stage, local, "c", second.id)
    await ask(stage, local, "c", first.id)


async def test_what_was_not_used_for_longest_goes_when_a_connection_has_too_much() -> None:
    stage, shared = Stage(), memory(connection_bytes_max=15_000)
    local = shared.open()
    runs = [await ask(stage, local, f"{number} " + "x" * 300) for number in range(4)]
    assert [run.id in local for run in runs] == [False, False, True, True]
    assert 0 < local.size <= 15_000
    assert shared.size == local.size


async def test_what_was_not_used_for_longest_goes_when_all_have_too_much() -> None:
    stage, shared = Stage(), memory(bytes_max=15_000)
    locals_ = [shared.open() for _ in range(4)]
    runs = [await ask(stage, local, "x" * 300) for local in locals_]
    assert [run.id in local for run, local in zip(runs, locals_, strict=True)] == [False, False, True, True]
    assert shared.size <= 15_000


async def test_a_chain_that_is_too_large_by_itself_is_not_kept() -> None:
    stage, shared = Stage(), memory(connection_bytes_max=20_000)
    local = shared.open()
    run = await ask(stage, local, "x" * 20_000)
    assert run.id not in local
    assert (local.size, shared.size, len(shared.chains)) == (0, 0, 0)


async def test_nothing_is_left_of_a_connection_that_has_closed() -> None:
    stage, shared = Stage(), memory()
    local = shared.open()
    await ask(stage, local, "a")
    local.close()
    assert (shared.size, len(shared.chains)) == (0, 0)
    late = await ask(stage, local, "b")
    assert late.id not in local
    assert shared.size == 0


async def test_erasing_a_stored_response_erases_what_connections_took_of_it() -> None:
    stage, shared = Stage(), memory()
    stage.branches.on_erase.append(shared.erase)
    local = shared.open()
    stored = await stage.ask("the secret")
    derived = await ask(stage, local, "b", stored.id)
    unrelated = await ask(stage, local, "c")
    await stage.runs.delete(PROJECT, stored.id)
    assert derived.id not in local
    assert unrelated.id in local


ENDED = RunEnded("completed")


def finished(run_id: str) -> RunState:
    state = RunState(0, RunStarted(run_id, RunSettings(model="m"), []), 0)
    state.ended = ENDED
    return state


@given(
    st.lists(st.tuples(st.sampled_from(["new", "go on", "evict", "close"]), st.integers(0, 7), st.integers(1, 2_000)))
)
def test_the_count_is_right_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    shared = memory(bytes_max=40_000, connection_bytes_max=25_000)
    locals_ = [shared.open() for _ in range(2)]
    made: list[tuple[LocalContexts, str, list[str]]] = []
    for number, (what, which, size) in enumerate(steps):
        local = locals_[which % 2]
        if what == "close":
            local.close()
            locals_[which % 2] = shared.open()
            continue
        target = made[which % len(made)] if made else None
        if what == "evict" and target is not None:
            target[0].evict(target[1])
            continue
        branch, texts = detached(PROJECT, BranchState()), [str(number)]
        if what == "go on" and target is not None:
            taken = target[0].take(PROJECT, target[1])
            if taken is None:
                continue
            local, branch, texts = target[0], taken, [*target[2], str(number)]
            assert [held.id for held in branch.state.items] == target[2]
        branch.state.items.append(ContextItem(str(number), user("x")))
        branch.state.size += size
        branch.free()
        local.keep(f"resp_{number}", branch, finished(f"resp_{number}"))
        made.append((local, f"resp_{number}", texts))
    assert shared.size == sum(chain.counted for chain in shared.chains.values()) <= 40_000
    for local in locals_:
        assert local.size == sum(chain.counted for chain in shared.chains.values() if chain.owner is local) <= 25_000
