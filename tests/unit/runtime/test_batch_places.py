"""Places go round: fair between projects, bounded, and behind those who wait for an answer."""

from __future__ import annotations

import asyncio
import random

import pytest

from stateroom.runtime.batches.places import Places


class Room:
    """Places, and who has them."""

    def __init__(self, count: int) -> None:
        self.others = 0
        self.runs = 0
        self.has: list[tuple[str, str]] = []
        self.places = Places(count, lambda: self.others + self.runs)

    def ask(self, project: str, batch: str = "b", *, most: int = 0) -> asyncio.Task[None]:
        return asyncio.ensure_future(self._take(project, batch, most))

    def give(self, project: str, batch: str = "b") -> None:
        self.has.remove((project, batch))
        self.runs -= 1
        self.places.give(project, batch, run=True)

    async def until(self, count: int) -> None:
        """Wait until so many have a place."""
        async with asyncio.timeout(5):
            while len(self.has) < count:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.001)
        assert len(self.has) == count

    async def _take(self, project: str, batch: str, most: int) -> None:
        await self.places.take(project, batch, most=most, run=True)
        self.runs += 1
        self.has.append((project, batch))


async def turn() -> None:
    """Let everything happen that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def drop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_no_more_than_there_are_have_a_place() -> None:
    room = Room(2)
    tasks = [room.ask("p") for _ in range(5)]
    await turn()
    assert len(room.has) == 2
    room.give("p")
    await turn()
    assert len(room.has) == 2
    await drop(*tasks)


async def test_a_free_place_goes_to_the_project_that_has_the_fewest() -> None:
    room = Room(3)
    many = [room.ask("many", f"b{number % 2}") for number in range(9)]
    await turn()
    few = room.ask("few")
    await turn()
    assert not few.done()
    room.give(*room.has[0])
    await turn()
    assert ("few", "b") in room.has
    await drop(*many, few)


async def test_within_a_project_it_goes_to_the_batch_that_has_the_fewest() -> None:
    room = Room(3)
    first = [room.ask("p", "first") for _ in range(6)]
    await turn()
    second = [room.ask("p", "second") for _ in range(6)]
    await turn()
    room.give("p", "first")
    await turn()
    assert sorted(room.has) == [("p", "first"), ("p", "first"), ("p", "second")]
    await drop(*first, *second)


async def test_a_project_has_no_more_than_it_may() -> None:
    room = Room(5)
    bound = [room.ask("bound", most=2) for _ in range(4)]
    free = [room.ask("free") for _ in range(2)]
    await turn()
    assert sorted(room.has) == [("bound", "b")] * 2 + [("free", "b")] * 2
    await drop(*bound, *free)


async def test_other_runs_take_the_places_away_but_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateroom.runtime.batches.places.LOOK_SECONDS", 0.001)
    room = Room(4)
    room.others = 100
    tasks = [room.ask("p") for _ in range(6)]
    await turn()
    assert len(room.has) == 1
    room.others = 2
    await room.until(2)
    room.others = 0
    await room.until(4)
    await drop(*tasks)


async def test_who_goes_away_leaves_the_place_to_the_next() -> None:
    room = Room(1)
    first, second, third = (room.ask(name) for name in ("first", "second", "third"))
    await turn()
    await drop(second)
    room.give("first")
    await turn()
    assert room.has == [("third", "b")]
    await drop(first, third)


async def test_a_place_that_is_granted_to_who_is_going_away_is_not_lost() -> None:
    room = Room(1)
    first, second, third = (room.ask(name) for name in ("first", "second", "third"))
    await turn()
    room.give("first")
    second.cancel()  # it was granted the place, and has not woken yet
    await turn()
    assert room.has == [("third", "b")]
    await drop(first, third)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_no_place_is_lost_or_given_twice(seed: int) -> None:
    chance = random.Random(seed)
    room = Room(3)
    tasks: list[asyncio.Task[None]] = []
    for _ in range(200):
        act = chance.randrange(4)
        if act < 2:
            tasks.append(room.ask(chance.choice("abc"), chance.choice("xy"), most=chance.choice((0, 2))))
        elif act == 2 and room.has:
            room.give(*chance.choice(room.has))
        elif tasks:
            tasks.pop(chance.randrange(len(tasks))).cancel()
        if chance.random() < 0.5:
            await turn()
        assert len(room.has) <= 3
    await drop(*tasks)
    while room.has:
        room.give(*room.has[0])
    last = [room.ask("z") for _ in range(3)]
    await turn()
    assert len(room.has) == 3
    await drop(*last)
