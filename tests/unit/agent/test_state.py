"""Folding: the same state whether entries come at once or one by one, and what is visible when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stateroom import ids
from stateroom.agent.state import BranchState, fold_run
from stateroom.journal.entries import (
    Entry,
    Fact,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunSettings,
    RunStarted,
    encode,
    kind_of,
)


def entries_of(records: list[Fact]) -> list[Entry]:
    run, entries = -1, []
    for seq, record in enumerate(records):
        if isinstance(record, RunStarted):
            run = seq
        entries.append(Entry(seq, kind_of(record), run, seq, encode(record)))
    return entries


def turn(text: str, status: str = "completed") -> list[Fact]:
    return [
        RunStarted(ids.new_id("resp"), RunSettings(model="m"), [{"role": "user", "content": text}]),
        ItemFinished(0, {"role": "assistant", "content": text.upper()}, "stop"),
        RunEnded(status),
    ]


def texts(state: BranchState) -> list[str]:
    return [held.item["content"] for held in state.items]


def folded(records: list[Fact]) -> BranchState:
    state = BranchState()
    for entry in entries_of(records):
        state.apply(entry)
    return state


def test_a_runs_items_become_visible_together_at_its_end() -> None:
    records = turn("a")
    assert texts(folded(records[:2])) == []
    assert texts(folded(records)) == ["a", "A"]


def test_a_failed_run_leaves_nothing_in_the_branch() -> None:
    assert texts(folded([*turn("a", "failed"), *turn("b")])) == ["b", "B"]


def test_a_cancelled_or_incomplete_run_leaves_what_it_had() -> None:
    assert texts(folded([*turn("a", "cancelled"), *turn("b", "incomplete")])) == ["a", "A", "b", "B"]


def test_erased_items_are_gone_but_their_neighbours_keep_their_ids() -> None:
    key = ids.new_key()
    before = folded([ItemsAdded(key, [{"role": "user", "content": c} for c in "abc"])])
    after = folded(
        [ItemsAdded(key, [{"role": "user", "content": "a"}, {"type": "erased"}, {"role": "user", "content": "c"}])]
    )
    assert texts(after) == ["a", "c"]
    assert [held.id for held in after.items] == [before.items[0].id, before.items[2].id]


@given(st.lists(st.sampled_from(["completed", "failed", "cancelled", "incomplete"]), max_size=8), st.data())
def test_a_fork_sees_what_was_visible_at_its_point(ends: list[str], data: st.DataObject) -> None:
    records = [record for number, end in enumerate(ends) for record in turn(str(number), end)]
    cut = data.draw(st.integers(min_value=0, max_value=len(ends)))
    forked = folded(records).fork(3 * cut - 1)
    assert [held.id for held in forked.items] == [held.id for held in folded(records[: 3 * cut]).items]


@given(st.lists(st.sampled_from(["completed", "failed", "cancelled"]), max_size=6))
def test_a_run_folds_alike_alone_and_within_its_branch(ends: list[str]) -> None:
    records = [record for number, end in enumerate(ends) for record in turn(str(number), end)]
    records += turn("last")[:2]
    whole = folded(records)
    alone = fold_run([entry for entry in entries_of(records) if entry.run == len(records) - 2])
    assert whole.open is not None
    assert alone is not None
    assert alone.view() == whole.open.view()
