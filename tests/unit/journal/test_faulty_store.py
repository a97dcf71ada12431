"""The store that fails on purpose fails as planned, and in no other way."""

from __future__ import annotations

import asyncio

import pytest

from stateroom.errors import StorageFull
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.store import Append
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan, StoreDied
from stateroom.testing.journal_stage import P, begin, note, texts


async def test_a_full_disk_keeps_nothing_and_later_writes_pass() -> None:
    inner = MemoryJournal()
    store = FaultyStore(inner, Plan({1: Fault.FULL}))
    await begin(store, "b", [note("0")])
    with pytest.raises(StorageFull):
        await store.append(Append(P, "b", 0, [note("lost")]))
    await store.append(Append(P, "b", 0, [note("1")]))
    assert await texts(store, "b") == await texts(inner, "b") == ["0", "1"]
    assert store.writes == 3


@pytest.mark.parametrize(("fault", "kept"), [(Fault.DIE_BEFORE, ["0"]), (Fault.DIE_AFTER, ["0", "last"])])
async def test_a_death_loses_the_answer_and_before_the_commit_the_append(fault: Fault, kept: list[str]) -> None:
    inner = MemoryJournal()
    deaths: list[str] = []
    store = FaultyStore(inner, Plan({1: fault}), on_death=lambda: deaths.append("dead"))
    await begin(store, "b", [note("0")])
    with pytest.raises(StoreDied):
        await store.append(Append(P, "b", 0, [note("last")]))
    assert deaths == ["dead"]
    for later in (store.append(Append(P, "b", None, [note("x")])), store.branch(P, "b"), store.rebuild()):
        with pytest.raises(StoreDied):
            await later
    await store.close()
    assert await texts(FaultyStore(inner, Plan()), "b") == kept


async def test_writes_under_way_at_the_death_are_not_answered() -> None:
    inner = MemoryJournal()
    store = FaultyStore(inner, Plan({1: Fault.DIE_BEFORE}))
    first = asyncio.ensure_future(begin(store, "b", [note("0")]))
    await asyncio.sleep(0)
    second = store.append(Append(P, "b", 0, [note("x")]))
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreDied, StoreDied]
    assert await texts(inner, "b") == ["0"]


def test_a_seeded_plan_is_the_same_every_time() -> None:
    plans = [Plan.seeded(seed, writes=50, full=0.1) for seed in range(40)]
    assert plans == [Plan.seeded(seed, writes=50, full=0.1) for seed in range(40)]
    deaths = [fault for plan in plans for fault in plan.faults.values() if fault is not Fault.FULL]
    assert len(deaths) == 40
    assert set(deaths) == {Fault.DIE_BEFORE, Fault.DIE_AFTER}
    assert not Plan.seeded(1, writes=50, death=False).faults
