"""The first note from a moment on is found among any, and with few looks."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.journal.store import MARK_MAX, NoteRow
from stateroom.runtime.note_search import AT_ONCE, first_since

pairs = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 5_000)), max_size=120)


class Notes:
    """Notes with these marks and times."""

    def __init__(self, notes: list[tuple[int, int]]) -> None:
        self.rows = [NoteRow(mark, at, msgspec.Raw(b"0")) for mark, at in notes]
        self.looks = 0

    async def read(self, *, after: int = -1, limit: int, newest_first: bool = False) -> list[NoteRow]:
        self.looks += 1
        assert 0 < limit <= AT_ONCE
        assert -1 <= after <= MARK_MAX
        rows = [row for row in self.rows if row.mark > after]
        return (rows[::-1] if newest_first else rows)[:limit]


def summed(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    mark = at = 0
    found = []
    for further, later in steps:
        mark, at = mark + further, at + later
        found.append((mark, at))
    return found


@given(pairs, st.integers(-10, 620_000))
async def test_it_is_the_one_that_a_look_at_all_of_them_finds(steps: list[tuple[int, int]], since: int) -> None:
    notes = Notes(summed(steps))
    expected = [row for row in notes.rows if row.at >= since]
    found = await first_since(notes.read, since)
    assert found == expected[: len(found)]
    assert bool(found) == bool(expected)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 50)), max_size=60), st.integers(0, 60))
async def test_it_comes_to_an_end_whatever_the_clock_did(notes: list[tuple[int, int]], since: int) -> None:
    marks = summed([(further, 0) for further, _ in notes])
    shaken = Notes([(mark, at) for (mark, _), (_, at) in zip(marks, notes, strict=True)])
    found = await first_since(shaken.read, since)
    assert all(row in shaken.rows for row in found)
    assert shaken.looks <= 100


@pytest.mark.parametrize("pace", ["steady", "bursts", "ever slower"])
async def test_few_looks_are_enough_among_many(pace: str) -> None:
    chance = random.Random(3)
    steps = []
    for number in range(5_000):
        later = {"steady": 1_000, "bursts": 10 if number % 100 else 3_600_000, "ever slower": number * number // 50}[
            pace
        ]
        steps.append((chance.randrange(1, 300), chance.randrange(1, later + 2)))
    notes = Notes(summed(steps))
    looks = []
    for row in chance.sample(notes.rows, 200):
        notes.looks = 0
        assert (await first_since(notes.read, row.at))[0] == row
        looks.append(notes.looks)
    assert max(looks) <= 2 + 3 * 20
    assert sorted(looks)[100] <= (6 if pace == "steady" else 20), looks
