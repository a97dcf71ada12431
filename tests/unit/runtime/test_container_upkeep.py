"""Sweeps of containers: what is referred to stays whatever goes on meanwhile, and erasures cause few looks."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stateroom.app import Application
from stateroom.clock import Clock
from stateroom.errors import NotFound
from stateroom.runtime.containers import upkeep
from stateroom.runtime.containers.commits import ContainerCommits
from stateroom.runtime.containers.files import ContainerFiles
from stateroom.runtime.containers.state import Container
from stateroom.runtime.containers.upkeep import GATHER_SECONDS, SWEEP_SECONDS, ContainerUpkeep, Swept
from stateroom.runtime.records import Held
from stateroom.settings import BackendSettings, RetentionSettings, Settings, WorkspaceSettings
from stateroom.wire.containers import NewContainer
from tests.unit.runtime.stage import MovedClock

PROJECT = "default"


@asynccontextmanager
async def started(data: Path, **more: Any) -> AsyncIterator[Application]:
    backends = (BackendSettings(url="http://127.0.0.1:9/v1", models=("none",)),)
    application = Application(Settings(data=str(data), backends=backends, shutdown_seconds=0, **more))
    await application.start()
    try:
        yield application
    finally:
        await application.stop()


class Actors:
    """Clients that change, fork, restore and delete containers as it comes."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.files = ContainerFiles(app.containers, app.files, app.blobs)
        self.commits = ContainerCommits(app.containers)
        self.containers: list[str] = []
        self.done = 0

    async def act(self, chance: random.Random) -> None:
        container = chance.choice(self.containers)
        what = chance.randrange(12)
        if what < 6:
            await self.add(container, f"{chance.randrange(4)}.txt", b"content %d" % chance.randrange(5))
        elif what < 8:
            found = await self.commits.page(PROJECT, container, limit=50, descending=True)
            self.containers.append(
                (await self.commits.fork(PROJECT, container, commit_id=chance.choice(found).id if found else "")).id
            )
        elif what < 11:
            found = await self.commits.page(PROJECT, container, limit=50, descending=True)
            if found:
                await self.commits.restore(PROJECT, container, chance.choice(found).id)
        elif len(self.containers) > 3:
            self.containers.remove(container)
            await self.app.containers.delete(PROJECT, container)
        self.done += 1

    async def add(self, container: str, name: str, data: bytes) -> None:
        async with self.files.incoming() as incoming:
            await incoming.write(data)
            await self.files.add(PROJECT, container, incoming, name)

    async def check(self) -> int:
        """All that every commit names is there; how many commits there are."""
        content, seen = self.app.content, 0
        for container in self.containers:
            held = await self.app.containers.get(PROJECT, container)
            async with aclosing(self.app.containers.commits(held).each()) as commits:
                async for note in commits:
                    seen += 1
                    for entry in await content.entries(note.tree):
                        pieces = [piece async for piece in content.read(entry.digest)]
                        assert len(b"".join(pieces)) == entry.size
        assert await content.verify() == []
        return seen


@pytest.mark.parametrize("commits", [0, 4])
async def test_what_a_commit_names_is_never_swept_whatever_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    monkeypatch.setattr(upkeep, "UNNAMED_SECONDS", 1.0)
    async with started(tmp_path / "data", workspaces=WorkspaceSettings(commits=commits)) as app:
        actors, swept = Actors(app), Swept()
        for number in range(4):
            actors.containers.append((await app.containers.create(PROJECT, NewContainer(f"c{number}"))).id)
        ending = asyncio.get_running_loop().time() + 4

        async def work(seed: int) -> None:
            chance = random.Random(seed)
            while asyncio.get_running_loop().time() < ending:
                # Another has deleted the container, or its commits were thinned out.
                with suppress(NotFound):
                    await actors.act(chance)

        async def sweep() -> None:
            nonlocal swept
            while asyncio.get_running_loop().time() < ending:
                latest = await app.upkeep.sweep()
                swept = Swept(*[before + now for before, now in zip(swept, latest, strict=True)])

        await asyncio.gather(sweep(), *[work(seed) for seed in range(3)])
        assert actors.done > 30
        assert await actors.check() > 20
        assert swept.bytes > 0
        assert bool(swept.commits) == bool(commits)
        await app.upkeep.sweep()
        assert await actors.check() > 20


class CountedUpkeep(ContainerUpkeep):
    """Knows when it looked for what."""

    def __init__(self, app: Application, clock: Clock) -> None:
        kept = RetentionSettings()
        super().__init__(app.containers, app.journal, app.journal, clock, of_project=lambda _: kept)
        self.counted = clock
        self.looks: list[float] = []
        self.sweeps: list[float] = []

    async def drop_orphans(self) -> int:
        self.looks.append(self.counted.monotonic())
        return await super().drop_orphans()

    async def sweep(self) -> Swept:
        self.sweeps.append(self.counted.monotonic())
        return Swept()


async def test_erasures_are_gathered_and_cause_no_sweep_of_content(tmp_path: Path) -> None:
    clock = MovedClock()
    async with started(tmp_path / "data") as app:
        looked_after = CountedUpkeep(app, clock)
        began = clock.monotonic()
        going = asyncio.ensure_future(looked_after.run())
        async with asyncio.timeout(30):
            while len(looked_after.looks) < 40:
                looked_after.erased()
                await asyncio.sleep(0)
            while clock.monotonic() < began + SWEEP_SECONDS:
                looked_after.erased()
                await asyncio.sleep(0)
            looks = len(looked_after.looks)
            while len(looked_after.sweeps) < 2:
                looked_after.erased()
                await asyncio.sleep(0)
        going.cancel()
        pauses = [after - before for before, after in itertools.pairwise(looked_after.looks[:looks])]
        assert min(pauses) >= GATHER_SECONDS
        assert looked_after.sweeps[0] == began
        assert looked_after.sweeps[1] - began >= SWEEP_SECONDS


async def test_an_erasure_during_a_sweep_is_seen_to_after_it(tmp_path: Path) -> None:
    clock = MovedClock()
    async with started(tmp_path / "data") as app:
        looked_after = CountedUpkeep(app, clock)

        async def sweep() -> Swept:
            looked_after.erased()
            return Swept()

        looked_after.sweep = sweep  # type: ignore[method-assign]  # something is erased in the midst of it
        going = asyncio.ensure_future(looked_after.run())
        async with asyncio.timeout(30):
            while not looked_after.looks:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
        going.cancel()


async def test_only_containers_of_chains_that_are_gone_go_with_an_erasure(tmp_path: Path) -> None:
    async with started(tmp_path / "data") as app:
        kept = await app.containers.create(PROJECT, NewContainer("kept"))
        orphan = await app.containers.create(PROJECT, NewContainer("orphan"))
        actors = Actors(app)
        for number in range(20):
            await actors.add(orphan.id, "a", b"%d" % number)

        def of_a_chain(now: Held[Container]) -> Container:
            return msgspec.structs.replace(now.state, chain="branch_that_is_gone")

        await app.containers.held.update(PROJECT, orphan.id, of_a_chain)
        assert await app.upkeep.drop_orphans() == 1
        assert await app.upkeep.drop_orphans() == 0
        assert await app.containers.held.get(PROJECT, orphan.id) is None
        assert await app.containers.held.get(PROJECT, kept.id) is not None
