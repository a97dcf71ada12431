"""What every journal must do about the right to write a branch. Part of journal_conformance."""

from __future__ import annotations

from typing import Final

from stateroom.errors import Fenced, HeadMoved
from stateroom.journal.entries import Frame
from stateroom.journal.store import Append, Appended, Lease
from stateroom.testing.journal_stage import Case, P, Stage, begin, note, refused, started, texts


async def a_lease_keeps_others_out(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [note("0")], acquire="me")
    assert mine.lease == Lease("b", 1)
    await refused(HeadMoved, stage.store.append(Append(P, "b", 0, [note("x")], acquire="you")))
    await refused(HeadMoved, stage.store.append(Append(P, "b", 0, [note("x")])))
    answer = await stage.store.append(Append(P, "b", 0, [note("1")], lease=mine.lease))
    assert answer == Appended(1, mine.lease)
    assert await texts(stage.store, "b") == ["0", "1"]


async def a_released_lease_is_free_and_void(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [note("0")], acquire="me")
    assert await stage.store.append(Append(P, "b", 0, [note("1")], lease=mine.lease, release=True)) == Appended(1, None)
    await refused(Fenced, stage.store.append(Append(P, "b", 1, [note("x")], lease=mine.lease)))
    yours = await stage.store.append(Append(P, "b", 1, acquire="you"))
    assert yours == Appended(1, Lease("b", 2))
    assert await texts(stage.store, "b") == ["0", "1"]


async def a_lease_taken_and_released_at_once_leaves_the_branch_free(stage: Stage) -> None:
    assert (await begin(stage.store, "b", [note("0")], acquire="me", release=True)).lease is None
    assert (await stage.store.append(Append(P, "b", 0, [note("1")], acquire="you", release=True))).lease is None
    assert (await stage.store.append(Append(P, "b", 1, [note("2")]))).head == 2


async def an_expired_lease_can_be_taken_and_fences_its_holder(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [started("resp_1")], acquire="me", lease_seconds=10)
    stage.clock.time += 9.9
    await refused(HeadMoved, stage.store.append(Append(P, "b", 0, acquire="you")))
    stage.clock.time += 0.2
    yours = await stage.store.append(Append(P, "b", 0, acquire="you"))
    assert yours.lease == Lease("b", 2)
    frames = [Frame(0, 2, b"late")]
    await refused(Fenced, stage.store.append(Append(P, "b", 0, [note("late")], lease=mine.lease)))
    await refused(Fenced, stage.store.append(Append(P, "b", None, lease=mine.lease, frames_run=0, frames=frames)))
    await refused(Fenced, stage.store.append(Append(P, "b", 0, lease=mine.lease, release=True)))
    assert await stage.store.renew([Lease("b", 1)], 10) == []
    assert len(await stage.store.read(P, "b")) == 1
    assert await stage.store.frames(P, "b", 0) == []
    assert (await stage.store.append(Append(P, "b", 0, [note("1")], lease=yours.lease))).head == 1


async def an_expired_lease_that_nobody_took_still_writes(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [note("0")], acquire="me", lease_seconds=1)
    stage.clock.time += 60
    assert (await stage.store.append(Append(P, "b", 0, [note("1")], lease=mine.lease, lease_seconds=10))).head == 1
    await refused(HeadMoved, stage.store.append(Append(P, "b", 1, acquire="you")))


async def a_holder_may_take_its_lease_anew(stage: Stage) -> None:
    first = await begin(stage.store, "b", [note("0")], acquire="me")
    second = await stage.store.append(Append(P, "b", 0, acquire="me"))
    assert second.lease == Lease("b", 2)
    await refused(Fenced, stage.store.append(Append(P, "b", 0, [note("x")], lease=first.lease)))


async def renewal_extends_what_is_still_held(stage: Stage) -> None:
    leases = []
    for name in ("b", "c", "d"):
        answer = await begin(stage.store, name, [note("0")], acquire="me", lease_seconds=5)
        assert answer.lease is not None
        leases.append(answer.lease)
    await stage.store.append(Append(P, "c", 0, lease=leases[1], release=True))
    kept = await stage.store.renew([*leases, Lease("nowhere", 1), Lease("d", 7)], 60)
    assert list(kept) == [leases[0], leases[2]]
    stage.clock.time += 30
    await refused(HeadMoved, stage.store.append(Append(P, "b", 0, acquire="you")))
    stage.clock.time += 31
    assert (await stage.store.append(Append(P, "b", 0, acquire="you"))).lease == Lease("b", 2)


async def a_holder_that_expects_the_wrong_head_is_told_so(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [note("0")], acquire="me")
    await refused(HeadMoved, stage.store.append(Append(P, "b", 3, [note("x")], lease=mine.lease)))
    await refused(HeadMoved, stage.store.append(Append(P, "b", 3, lease=mine.lease, release=True)))
    frames = [Frame(0, 1, b"x")]
    await refused(HeadMoved, stage.store.append(Append(P, "b", 3, lease=mine.lease, frames_run=0, frames=frames)))
    assert (await stage.store.append(Append(P, "b", 0, [note("1")], lease=mine.lease))).head == 1


CASES: Final[tuple[Case, ...]] = (
    a_lease_keeps_others_out,
    a_released_lease_is_free_and_void,
    a_lease_taken_and_released_at_once_leaves_the_branch_free,
    an_expired_lease_can_be_taken_and_fences_its_holder,
    an_expired_lease_that_nobody_took_still_writes,
    a_holder_may_take_its_lease_anew,
    renewal_extends_what_is_still_held,
    a_holder_that_expects_the_wrong_head_is_told_so,
)
