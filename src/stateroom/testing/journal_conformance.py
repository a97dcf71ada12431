"""What every journal must do, whatever it stands on. Each case raises AssertionError when a promise is broken.

A test runs them all over its store, each on a fresh one:

    @pytest.mark.parametrize("case", journal_conformance.CASES)
    async def test_it_conforms(case, tmp_path):
        async with opened(lambda clock: open_sqlite(tmp_path / "journal.db", clock=clock)) as stage:
            await case(stage)

The cases on leases, frames with erasure, the index and records are in leases_, frames_, index_ and
records_conformance.py.
"""

from __future__ import annotations

import asyncio
from typing import Final

from stateroom.errors import HeadMoved, StorageError
from stateroom.journal.entries import Fact, Frame, ItemFinished, Kind, RunEnded
from stateroom.journal.store import THIS, Append, Appended, Branch, Draft, Lease
from stateroom.testing import frames_conformance, index_conformance, leases_conformance, records_conformance
from stateroom.testing.journal_stage import (
    OTHER,
    Case,
    P,
    Stage,
    begin,
    draft,
    note,
    refused,
    started,
    texts,
    turn,
)


async def entries_come_back_as_they_went_in(stage: Stage) -> None:
    drafts = turn("resp_1", "žluťoučký \x00 \u2028 😀", at=77)
    answer = await begin(stage.store, "b", drafts)
    assert answer == Appended(2, None)
    read = await stage.store.read(P, "b")
    assert [(entry.kind, entry.body, entry.at) for entry in read] == [(d.kind, d.body, d.at) for d in drafts]
    assert [entry.seq for entry in read] == [0, 1, 2]
    assert [entry.run for entry in read] == [0, 0, 0]
    assert await stage.store.branch(P, "b") == Branch("b", P, head=2)


async def this_names_the_run_that_the_append_starts(stage: Stage) -> None:
    await begin(stage.store, "b", [note("before")])
    drafts = [note("first"), *turn("resp_1")]
    await stage.store.append(Append(P, "b", 0, drafts, frames_run=THIS, frames=[Frame(0, 3, b"events")]))
    assert [entry.run for entry in await stage.store.read(P, "b")] == [-1, -1, 2, 2, 2]
    assert await stage.store.frames(P, "b", 2) == [Frame(0, 3, b"events")]
    assert [entry.seq for entry in await stage.store.read(P, "b", run=2)] == [2, 3, 4]


async def a_later_entry_names_its_run_by_seq(stage: Stage) -> None:
    await begin(stage.store, "b", [note("before"), started("resp_1")])
    await stage.store.append(Append(P, "b", 1, [draft(RunEnded("failed"), run=1)]))
    assert [entry.run for entry in await stage.store.read(P, "b")] == [-1, 1, 1]
    row = await stage.store.run(P, "resp_1")
    assert row is not None
    assert (row.start, row.end, row.status) == (1, 2, "failed")


async def an_append_that_expects_another_head_changes_nothing(stage: Stage) -> None:
    await begin(stage.store, "b", [note("one")])
    for wrong in (-1, 1, 7):
        frames = [Frame(0, 1, b"x")]
        change = Append(P, "b", wrong, turn("resp_1"), acquire="me", frames_run=THIS, frames=frames)
        await refused(HeadMoved, stage.store.append(change))
    assert await texts(stage.store, "b") == ["one"]
    assert await stage.store.run(P, "resp_1") is None
    assert await stage.store.frames(P, "b", 1) == []
    assert await stage.store.append(Append(P, "b", 0, [note("two")])) == Appended(1, None)


async def a_refused_append_leaves_those_beside_it_alone(stage: Stage) -> None:
    await begin(stage.store, "odd")
    waiting = []
    for number in range(40):
        good = Append(P, f"b{number}", -1, turn(f"resp_{number}"), create=Branch(f"b{number}", P))
        bad = Append(P, "odd", 5, turn(f"resp_bad_{number}"))
        waiting += [stage.store.append(good), stage.store.append(bad)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, Appended) for outcome in outcomes[::2])
    assert all(isinstance(outcome, HeadMoved) for outcome in outcomes[1::2])
    assert len(await stage.store.runs(P, limit=1_000)) == 40
    assert await stage.store.read(P, "odd") == []


async def an_append_that_breaks_off_takes_nobody_along(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"), frames_run=THIS, frames=[Frame(0, 4, b"kept")])
    broken = [
        Append(P, "b", 2, [Draft(Kind.RUN_STARTED, b"not json", 1, THIS)]),
        Append(P, "b", 2, [note("x")], frames_run=0, frames=[Frame(0, 9, b"twice")]),
    ]
    beside = [Append(P, f"c{n}", -1, [note("fine")], create=Branch(f"c{n}", P)) for n in range(4)]
    changes = [beside[0], broken[0], beside[1], beside[2], broken[1], beside[3]]
    outcomes = await asyncio.gather(*[stage.store.append(change) for change in changes], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        Appended,
        StorageError,
        Appended,
        Appended,
        StorageError,
        Appended,
    ]
    assert len(await stage.store.read(P, "b")) == 3
    assert await stage.store.frames(P, "b", 0) == [Frame(0, 4, b"kept")]
    assert [await texts(stage.store, f"c{n}") for n in range(4)] == [["fine"]] * 4


async def appends_of_one_branch_are_committed_in_call_order(stage: Stage) -> None:
    create = Append(P, "b", -1, [note("0")], create=Branch("b", P))
    changes = [create, *[Append(P, "b", number - 1, [note(str(number))]) for number in range(1, 300)]]
    answers = await asyncio.gather(*[stage.store.append(change) for change in changes])
    assert [answer.head for answer in answers] == list(range(300))
    assert await texts(stage.store, "b") == [str(number) for number in range(300)]


async def an_append_without_an_expected_head_goes_to_the_end(stage: Stage) -> None:
    await begin(stage.store, "b", [note("one")])
    assert (await stage.store.append(Append(P, "b", None, [note("two"), note("three")]))).head == 2
    assert await texts(stage.store, "b") == ["one", "two", "three"]


async def a_branch_is_created_once(stage: Stage) -> None:
    await begin(stage.store, "b", [note("mine")])
    await refused(HeadMoved, begin(stage.store, "b", [note("again")]))
    await refused(HeadMoved, begin(stage.store, "b", [note("theirs")], project=OTHER))
    assert await texts(stage.store, "b") == ["mine"]
    assert await stage.store.branch(OTHER, "b") is None


async def an_append_to_a_missing_branch_is_refused(stage: Stage) -> None:
    await refused(HeadMoved, stage.store.append(Append(P, "nowhere", -1, [note("x")])))
    await refused(HeadMoved, stage.store.append(Append(P, "nowhere", None, frames_run=0, frames=[Frame(0, 0, b"x")])))
    assert await stage.store.branch(P, "nowhere") is None
    assert await stage.store.read(P, "nowhere") == []


async def reads_are_bounded_by_after_and_upto(stage: Stage) -> None:
    await begin(stage.store, "b", [note(str(number)) for number in range(10)])
    assert await texts(stage.store, "b", after=6) == ["7", "8", "9"]
    assert await texts(stage.store, "b", upto=2) == ["0", "1", "2"]
    assert await texts(stage.store, "b", after=3, upto=5) == ["4", "5"]
    assert await texts(stage.store, "b", after=5, upto=5) == []
    assert await texts(stage.store, "b", after=8, upto=99) == ["9"]
    assert await texts(stage.store, "b", after=99) == []


async def a_long_branch_is_read_whole(stage: Stage) -> None:
    await begin(stage.store, "b", [started("resp_1"), *[draft(_outcome(n), run=THIS) for n in range(1_500)]])
    child = Branch("c", P, "b", 1_499)
    await stage.store.append(Append(P, "c", 1_499, [note("end")], create=child))
    assert [entry.seq for entry in await stage.store.read(P, "b")] == list(range(1_501))
    assert [entry.seq for entry in await stage.store.read(P, "b", run=0, after=3)] == list(range(4, 1_501))
    assert [entry.seq for entry in await stage.store.read(P, "c", after=100)] == list(range(101, 1_501))


async def large_bodies_come_back_whole(stage: Stage) -> None:
    sizes = [1, 900, 1_100, 4_000, 5_000, 70_000, 3_000_000]
    await begin(stage.store, "b", [note("x" * size) for size in sizes])
    assert [len(text) for text in await texts(stage.store, "b")] == sizes


async def a_fork_shares_its_parent_up_to_the_fork_point(stage: Stage) -> None:
    await begin(stage.store, "b", [note(str(number)) for number in range(4)])
    child = Branch("c", P, "b", 1)
    answer = await stage.store.append(Append(P, "c", 1, [note("c2"), note("c3")], create=child))
    assert answer.head == 3
    await stage.store.append(Append(P, "b", 3, [note("4")]))
    assert await texts(stage.store, "c") == ["0", "1", "c2", "c3"]
    assert await texts(stage.store, "b") == ["0", "1", "2", "3", "4"]
    assert [entry.seq for entry in await stage.store.read(P, "c", after=0, upto=2)] == [1, 2]
    assert await stage.store.branch(P, "c") == Branch("c", P, "b", 1, 3)


async def a_fork_may_stand_empty(stage: Stage) -> None:
    await begin(stage.store, "b", [note("0"), note("1")])
    assert (await stage.store.append(Append(P, "c", 0, create=Branch("c", P, "b", 0)))).head == 0
    assert (await stage.store.append(Append(P, "d", -1, create=Branch("d", P, "b", -1)))).head == -1
    assert await texts(stage.store, "c") == ["0"]
    assert await texts(stage.store, "d") == []
    await stage.store.append(Append(P, "d", -1, [note("d0")]))
    assert await texts(stage.store, "d") == ["d0"]


async def a_fork_of_a_fork_reads_through_all_ancestors(stage: Stage) -> None:
    await begin(stage.store, "a", [note(f"a{n}") for n in range(5)])
    await stage.store.append(Append(P, "b", 3, [note("b4"), note("b5")], create=Branch("b", P, "a", 3)))
    await stage.store.append(Append(P, "c", 4, [note("c5")], create=Branch("c", P, "b", 4)))
    # Forked where its parent itself still shares the grandparent's entries.
    await stage.store.append(Append(P, "d", 1, [note("d2")], create=Branch("d", P, "b", 1)))
    assert await texts(stage.store, "c") == ["a0", "a1", "a2", "a3", "b4", "c5"]
    assert await texts(stage.store, "d") == ["a0", "a1", "d2"]
    assert await texts(stage.store, "c", after=2, upto=4) == ["a3", "b4"]


async def a_fork_needs_a_parent_that_reaches_so_far(stage: Stage) -> None:
    await begin(stage.store, "b", [note("0")])
    await begin(stage.store, "foreign", [note("0")], project=OTHER)
    for parent, seq in (("b", 1), ("nowhere", 0), ("foreign", 0)):
        change = Append(P, "c", seq, [note("c")], create=Branch("c", P, parent, seq))
        await refused(HeadMoved, stage.store.append(change))
    assert await stage.store.branch(P, "c") is None


async def a_forks_runs_are_its_own(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"))
    await stage.store.append(Append(P, "c", 2, turn("resp_2"), create=Branch("c", P, "b", 2)))
    assert [entry.seq for entry in await stage.store.read(P, "c", run=3)] == [3, 4, 5]
    assert await stage.store.read(P, "c", run=0) == []
    assert [row.id for row in await stage.store.runs_on(P, "c")] == ["resp_2"]


async def another_project_sees_and_changes_nothing(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"), frames_run=THIS, frames=[Frame(0, 1, b"x")])
    assert await stage.store.branch(OTHER, "b") is None
    assert await stage.store.read(OTHER, "b") == []
    assert await stage.store.read(OTHER, "b", run=0) == []
    assert await stage.store.frames(OTHER, "b", 0) == []
    assert await stage.store.runs_on(OTHER, "b") == []
    await refused(HeadMoved, stage.store.append(Append(OTHER, "b", 2, [note("x")])))
    await refused(HeadMoved, stage.store.append(Append(OTHER, "b", None, frames_run=0, seal=True)))
    assert len(await stage.store.read(P, "b")) == 3
    assert await stage.store.frames(P, "b", 0) == [Frame(0, 1, b"x")]


async def a_malformed_append_is_refused_whole(stage: Stage) -> None:
    await begin(stage.store, "b", [note("0")])
    frame = Frame(0, 1, b"x")
    for change in (
        Append(P, "b", 0, [draft(RunEnded("completed"), run=THIS)]),
        Append(P, "b", 0, [note("x")], frames_run=THIS, frames=[frame]),
        Append(P, "b", 0, [note("x")], frames=[frame]),
        Append(P, "b", 0, [note("x")], seal=True),
        Append(P, "b", 0, [note("x")], frames_run=0, frames=[frame, Frame(2, 3, b"y")], seal=True),
        Append(P, "b", 0, [note("x")], lease=Lease("c", 1)),
        Append(P, "c", -1, [note("x")], create=Branch("d", P)),
        Append(P, "c", -1, [note("x")], create=Branch("c", OTHER)),
        Append(P, "c", -1, [note("x")], create=Branch("c", P), lease=Lease("c", 0)),
        Append(P, "c", 3, [note("x")], create=Branch("c", P, "", 3)),
        Append(P, "c", -2, [note("x")], create=Branch("c", P, "b", -2)),
    ):
        await refused(StorageError, stage.store.append(change))
    assert await texts(stage.store, "b") == ["0"]
    assert await stage.store.branch(P, "c") is None


async def strange_names_are_names(stage: Stage) -> None:
    for number, name in enumerate(("", "'; DROP TABLE entries; --", "\x00", "x" * 10_000, "b%_", "ž")):
        await begin(stage.store, f"b{name}", [note(name, key=f"k{name}"), *turn(f"r{name}")], project=f"p{name}")
        assert await texts(stage.store, f"b{name}", project=f"p{name}", upto=0) == [name]
        row = await stage.store.run(f"p{name}", f"r{name}")
        assert row is not None
        assert row.branch == f"b{name}"
        item = await stage.store.item(f"p{name}", f"k{name}")
        assert item is not None, f"name {number} has no item"


async def a_cancelled_wait_does_not_undo_an_append(stage: Stage) -> None:
    async def wait() -> Appended:
        return await stage.store.append(Append(P, "b", -1, [note("0")], create=Branch("b", P)))

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await stage.store.append(Append(P, "b", 0, [note("1")]))).head == 1
    assert await texts(stage.store, "b") == ["0", "1"]


async def closing_finishes_what_was_handed_in(stage: Stage) -> None:
    waiting = [asyncio.ensure_future(begin(stage.store, f"b{number}", turn(f"resp_{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    await stage.store.close()
    assert [answer.head for answer in await asyncio.gather(*waiting)] == [2] * 50
    await stage.store.close()


async def a_closed_store_refuses_everything(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"))
    await stage.store.close()
    await refused(StorageError, begin(stage.store, "c"))
    await refused(StorageError, stage.store.renew([Lease("b", 1)], 5))
    await refused(StorageError, stage.store.redact(P, "b", {0: None}, at=1))
    await refused(StorageError, stage.store.read(P, "b"))
    await refused(StorageError, stage.store.branch(P, "b"))
    await refused(StorageError, stage.store.frames(P, "b", 0))
    await refused(StorageError, stage.store.rebuild())
    await refused(StorageError, stage.store.run(P, "resp_1"))
    await refused(StorageError, stage.store.open_runs())
    await refused(StorageError, stage.store.blob_in_use("x"))
    await refused(StorageError, stage.store.record(P, "c", "r"))
    await refused(StorageError, stage.store.unerased_records())


def _outcome(number: int) -> Fact:
    return ItemFinished(number, {"role": "assistant", "content": str(number)})


CASES: Final[tuple[Case, ...]] = (
    entries_come_back_as_they_went_in,
    this_names_the_run_that_the_append_starts,
    a_later_entry_names_its_run_by_seq,
    an_append_that_expects_another_head_changes_nothing,
    a_refused_append_leaves_those_beside_it_alone,
    an_append_that_breaks_off_takes_nobody_along,
    appends_of_one_branch_are_committed_in_call_order,
    an_append_without_an_expected_head_goes_to_the_end,
    a_branch_is_created_once,
    an_append_to_a_missing_branch_is_refused,
    reads_are_bounded_by_after_and_upto,
    a_long_branch_is_read_whole,
    large_bodies_come_back_whole,
    a_fork_shares_its_parent_up_to_the_fork_point,
    a_fork_may_stand_empty,
    a_fork_of_a_fork_reads_through_all_ancestors,
    a_fork_needs_a_parent_that_reaches_so_far,
    a_forks_runs_are_its_own,
    another_project_sees_and_changes_nothing,
    a_malformed_append_is_refused_whole,
    strange_names_are_names,
    a_cancelled_wait_does_not_undo_an_append,
    closing_finishes_what_was_handed_in,
    a_closed_store_refuses_everything,
    *leases_conformance.CASES,
    *frames_conformance.CASES,
    *index_conformance.CASES,
    *records_conformance.CASES,
)
