"""Commits are found by their ids and listed without reading all that was noted of a container."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from stateroom import ids
from stateroom.app import Application
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.errors import InvalidRequest, NotFound
from stateroom.runtime.containers.commits import ContainerCommits
from stateroom.runtime.containers.history import Commits
from stateroom.runtime.containers.state import COLLECTION, CommitNote, Container, ExecNote
from stateroom.runtime.records import Records
from stateroom.settings import BackendSettings, Settings
from stateroom.testing.journal_stage import P, SetClock
from stateroom.wire.containers import NewContainer
from tests.unit.runtime.journals import CountedJournal

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def commit_id(at: float) -> str:
    """An id that was made at this time."""
    left, text = int(at * 1000), ""
    for _ in range(10):
        left, digit = divmod(left, 32)
        text = ALPHABET[digit] + text
    return f"wsc_{text}{ids.new_key()[10:]}"


class Scene:
    """A container whose commits are noted at chosen times."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.journal = CountedJournal(clock=self.clock)
        blobs = MemoryBlobs()
        self.records = Records(self.journal, self.journal, blobs, HeldBlobs(blobs), self.clock)
        self.containers = self.records.collection(COLLECTION, Container)
        self.made: list[str] = []

    async def begin(self) -> None:
        self.held = await self.containers.create(P, "cntr_1", Container("c"))

    async def commit(self, *, took: float = 0.0, identifier: str = "") -> str:
        """Note a commit; its id was made `took` seconds before."""
        made = identifier or commit_id(self.clock.time - took)
        assert await self.containers.note(P, "cntr_1", CommitNote(made, "ab" * 32, self.records.now(), "exec"))
        self.made.append(made)
        return made

    async def command(self) -> None:
        assert await self.containers.note(P, "cntr_1", ExecNote("x", "true", self.records.now()))

    async def find(self, identifier: str) -> CommitNote | None:
        found = await Commits(self.containers, self.held).find(identifier)
        if found is None:
            return None
        mark, note = found
        [row] = await self.journal.record_notes(P, COLLECTION, "cntr_1", after=mark - 1, before=mark + 1)
        assert note.id.encode() in bytes(row.note)
        return note


@pytest.fixture
async def scene() -> Scene:
    scene = Scene()
    scene.clock.time = 1_790_000_000.0
    await scene.begin()
    return scene


async def test_a_commit_is_found_by_looking_at_few_of_many_notes(scene: Scene) -> None:
    chance = random.Random(1)
    for _ in range(1_500):
        scene.clock.time += chance.expovariate(1 / 30)
        await scene.command()
        scene.clock.time += chance.random()
        await scene.commit(took=chance.random() / 2)
    for place in (-1, 0, 1, 750, *chance.sample(range(1_500), 40)):
        scene.journal.notes = 0
        assert await scene.find(scene.made[place]) is not None
        assert scene.journal.notes <= (3 if place == -1 else 300)


async def test_a_container_begins_with_a_commit_that_is_older_than_itself(scene: Scene) -> None:
    before = await scene.commit(identifier=commit_id(scene.clock.time - 1e6))
    for _ in range(200):
        scene.clock.time += 1
        await scene.commit()
    scene.journal.notes = 0
    assert await scene.find(before) is not None
    assert scene.journal.notes < 50


async def test_commits_are_found_though_the_clock_was_set_back(scene: Scene) -> None:
    chance = random.Random(2)
    for _ in range(150):
        scene.clock.time += chance.uniform(-300, 300)
        await scene.commit(took=chance.uniform(0, 400))
    for identifier in scene.made:
        note = await scene.find(identifier)
        assert note is not None
        assert note.id == identifier


async def test_what_was_noted_while_a_commit_was_made_does_not_hide_it(scene: Scene) -> None:
    for _ in range(20):
        scene.clock.time += 10
        await scene.commit()
    began = scene.clock.time + 1
    for _ in range(60):
        scene.clock.time += 1
        await scene.command()
    slow = await scene.commit(identifier=commit_id(began))
    for _ in range(50):
        scene.clock.time += 10
        await scene.commit()
    assert await scene.find(slow) is not None


@pytest.mark.parametrize(
    "identifier",
    ["", "wsc_", "wsc_nothing", commit_id(5.0), commit_id(1_790_000_005.0), "x" * 5000],
    ids=["empty", "bare", "no id", "long ago", "lately", "long"],
)
async def test_an_id_of_nothing_is_of_no_commit(scene: Scene, identifier: str) -> None:
    assert await scene.find(identifier) is None
    for _ in range(100):
        scene.clock.time += 1
        await scene.commit()
    assert await scene.find(identifier) is None


async def test_going_through_them_costs_what_is_taken(scene: Scene) -> None:
    for _ in range(300):
        await scene.commit()
    scene.journal.notes = 0
    async with aclosing(Commits(scene.containers, scene.held).each()) as commits:
        async for note in commits:
            assert note.id == scene.made[-1]
            break
    assert scene.journal.notes <= 2
    upwards = [note.id async for note in Commits(scene.containers, scene.held).each(newest_first=False)]
    assert upwards == scene.made
    assert [note.id async for note in Commits(scene.containers, scene.held).each()] == scene.made[::-1]


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    backends = (BackendSettings(url="http://127.0.0.1:9/v1", models=("none",)),)
    application = Application(Settings(data=str(tmp_path / "data"), backends=backends, shutdown_seconds=0))
    await application.start()
    try:
        yield application
    finally:
        await application.stop()


async def test_pages_of_commits_are_slices_of_all_of_them(app: Application) -> None:
    made = await app.containers.create(P, NewContainer("c"))
    notes = [CommitNote(f"wsc_{ids.new_key()}", "ab" * 32, number, "exec") for number in range(60)]
    for note in notes:
        await app.containers.held.note(P, made.id, ExecNote("x", "true", 0))
        await app.containers.held.note(P, made.id, note)
    commits = ContainerCommits(app.containers)
    for descending in (True, False):
        ordered = notes[::-1] if descending else notes
        for first, last, limit in (
            (-1, 60, 20),
            (-1, 60, 100),
            (10, 60, 3),
            (-1, 50, 100),
            (10, 20, 5),
            (10, 20, 50),
            (20, 10, 5),
        ):
            after = ordered[first].id if first >= 0 else ""
            before = ordered[last].id if last < 60 else ""
            page = await commits.page(P, made.id, after=after, before=before, limit=limit, descending=descending)
            assert page == ordered[first + 1 : last][: limit + 1]
        for named in ({"after": "wsc_no"}, {"before": "wsc_no"}, {"after": notes[3].id, "before": "no"}):
            with pytest.raises(InvalidRequest) as refused:
                await commits.page(P, made.id, limit=5, descending=descending, **named)
            assert (refused.value.code, refused.value.param) == ("invalid_value", [*named][-1])
    held = await app.containers.get(P, made.id)
    with pytest.raises(NotFound) as missing:
        await app.containers.commit(held, "wsc_no", "from")
    assert (missing.value.code, missing.value.param) == ("commit_not_found", "from")
