"""What commands left running: what is told of it when it has ended, to whom, how often, and what outlives a process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stateroom.clock import SystemClock
from stateroom.settings import WorkspaceSettings
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.drivers.unsafe import UnsafeDriver
from stateroom.workspaces.layout import kernel_files
from stateroom.workspaces.live.folder import LiveFolder
from stateroom.workspaces.live.jobs import JOBS_MAX, MORE, WORDS_MAX, Jobs, told_of
from stateroom.workspaces.live.workspaces import Commit, Workspace, Workspaces, WorkspaceSpec
from stateroom.workspaces.workspace import Driver

MIB = 1024 * 1024
SPEC = WorkspaceSpec(id="cntr_one", project="default", memory_bytes=256 * MIB, idle_seconds=600)
SERVER = "sleep 300 & echo $! > pid"


def test_one_that_ended_by_itself_is_nothing_to_be_told() -> None:
    jobs = Jobs()
    jobs.began(1, "one &")
    jobs.began(2, "two &")
    jobs.look([2], breach=False)
    assert (jobs.running, jobs.ended) == (("two &",), ())
    jobs.stopped()
    assert jobs.take() == ("two &",)
    assert jobs.take() == ()


def test_one_that_ended_for_a_limit_is_told() -> None:
    jobs = Jobs()
    jobs.began(1, "hungry &")
    jobs.began(2, "other &")
    jobs.look([1], breach=True)
    assert jobs.take() == ("other &",)
    jobs.began(3, "later &")
    jobs.look([], breach=False)
    assert jobs.take() == ("hungry &",), "it had been killed, and took a while to go"


def test_one_whose_sandbox_ended_before_it_was_known_is_told_and_is_no_other() -> None:
    jobs = Jobs()
    jobs.began(1, "of the new sandbox &")
    jobs.began(1, "of the old one &", is_gone=True)
    assert (jobs.running, jobs.take()) == (("of the new sandbox &",), ("of the old one &",))


def test_what_was_told_is_kept_until_a_commit_says_so() -> None:
    jobs = Jobs()
    jobs.load(["one &"])
    jobs.began(1, "two &")
    assert jobs.left == ("one &", "two &")
    assert jobs.take() == ("one &",)
    assert jobs.left == ("one &", "two &")
    jobs.settle()
    assert jobs.left == ("two &",)


def test_how_many_and_how_long_they_are_is_bounded() -> None:
    jobs = Jobs()
    for number in range(JOBS_MAX):
        jobs.began(number, f"command {number} &")
    assert MORE not in jobs.left
    jobs.began(JOBS_MAX, f"a \n\t long   {'x' * WORDS_MAX}")
    assert len(jobs.left) == JOBS_MAX + 1
    assert jobs.left[0] == MORE
    assert jobs.left[-1].startswith("a long xxx")
    assert len(jobs.left[-1]) == WORDS_MAX + 1
    jobs.load([*jobs.left, "another &"])
    assert jobs.left[0] == MORE
    assert len(jobs.left) == JOBS_MAX + 1
    assert f": {MORE}; `command 2 &`; " in told_of(jobs.take())
    assert told_of(jobs.take()) == ""


class House:
    """What is on the disk, through several lives of a server."""

    def __init__(self, folder: Path, driver: Callable[[Path], Driver]) -> None:
        self._folder = folder
        self._driver = driver

    @asynccontextmanager
    async def life(self, at: Commit | None = None, spec: WorkspaceSpec = SPEC) -> AsyncIterator[Workspace]:
        content = ContentStore(self._folder / "content.db")
        live = Workspaces(
            self._folder / "live",
            content,
            self._driver(self._folder),
            WorkspaceSettings(),
            SystemClock(),
            mounts=kernel_files(),
        )
        await live.begin()
        try:
            yield live.open(spec, at)
        finally:
            await live.close()
            await content.close()


@pytest.fixture(params=[UnsafeDriver, BubblewrapDriver])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> House:
    return House(tmp_path, request.param)


async def run(workspace: Workspace, command: str) -> str:
    done = await workspace.execute(command, timeout=30, output_bytes=10_000)
    return done.stdout + done.stderr


async def test_it_is_known_on_the_disk_before_the_command_is_answered(house: House, tmp_path: Path) -> None:
    async with house.life() as workspace:
        await run(workspace, SERVER)
        said = LiveFolder(tmp_path / "live", SPEC.id, SPEC.project).standing()
        assert said is not None
        assert said.left == (SERVER,)
        assert workspace.jobs == ((SERVER,), ())
        await run(workspace, "kill $(cat pid); while kill -0 $(cat pid) 2> /dev/null; do :; done")
        said = LiveFolder(tmp_path / "live", SPEC.id, SPEC.project).standing()
        assert said is not None
        assert said.left == ()


async def test_a_stop_is_told_once(house: House) -> None:
    async with house.life() as workspace:
        await run(workspace, SERVER)
        await workspace.stop()
        assert workspace.jobs == ((), (SERVER,))
        await run(workspace, "true")
        assert workspace.take_ended() == (SERVER,)
        await workspace.stop()
        await run(workspace, "true")
        assert workspace.take_ended() == ()


async def test_the_next_life_knows_without_a_commit(house: House) -> None:
    async with house.life() as workspace:
        await run(workspace, SERVER)
    async with house.life() as workspace:
        await run(workspace, "true")
        assert workspace.take_ended() == (SERVER,)
    async with house.life() as workspace:  # nothing was committed: to be told twice is better than never
        await run(workspace, "true")
        assert workspace.take_ended() == (SERVER,)
        await run(workspace, "rm pid")
        assert await workspace.commit() is None
    async with house.life() as workspace:
        await run(workspace, "true")
        assert workspace.take_ended() == ()


async def test_a_commit_has_what_runs_and_nothing_changes_until_that_does(house: House) -> None:
    async with house.life() as workspace:
        assert await workspace.commit() is None
        await run(workspace, SERVER)
        first = await workspace.commit()
        assert first is not None
        assert first.left == (SERVER,)
        assert first.files == 1
        await workspace.kept(first)
        assert await workspace.commit() is None
        await workspace.stop()
        assert await workspace.commit() is None
        await run(workspace, "true")
        assert workspace.take_ended() == (SERVER,)
        second = await workspace.commit()
        assert second is not None
        assert (second.left, second.tree) == ((), first.tree)


async def test_what_begins_from_a_commit_elsewhere_is_told_what_did_not_come_along(house: House) -> None:
    async with house.life() as workspace:
        await run(workspace, f"echo 1 > f; {SERVER}")
        commit = await workspace.commit()
        assert commit is not None
        await workspace.kept(commit)
    other = WorkspaceSpec(id="cntr_two", project="default", memory_bytes=256 * MIB, idle_seconds=600)
    async with house.life(commit, other) as fork:
        assert fork.jobs == ((), commit.left)
        assert await run(fork, "cat f") == "1\n"
        assert fork.take_ended() == commit.left


async def test_the_death_of_a_sandbox_is_told(tmp_path: Path) -> None:
    async with House(tmp_path, BubblewrapDriver).life() as workspace:
        await run(workspace, SERVER)
        sandbox = workspace._processes.sandbox
        assert sandbox is not None
        await sandbox.stop()
        assert workspace.jobs == ((), (SERVER,))
        done = await workspace.execute("true", timeout=30, output_bytes=1000)
        assert done.restarted
        assert workspace.take_ended() == (SERVER,)


HOLD = "python3 -c 'import time; held = b\"x\" * (100 << 20); time.sleep(300)'"
HUNGRY = f"(for i in 1 2 3 4 5; do {HOLD} & done; wait -n; kill -9 0) &"


async def test_what_a_limit_ended_is_told(tmp_path: Path) -> None:
    async with House(tmp_path, BubblewrapDriver).life() as workspace:
        deadline = time.monotonic() + 30
        command, breach = HUNGRY, ""
        ended: tuple[str, ...] = ()
        while not ended:
            assert time.monotonic() < deadline, "nothing was ended"
            breach += (await workspace.execute(command, timeout=30, output_bytes=1000)).breach
            command, ended = "sleep 0.1", workspace.take_ended()
        assert "memory" in breach
        assert ended == (HUNGRY,)
