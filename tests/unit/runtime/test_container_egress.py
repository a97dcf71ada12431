"""What is kept of where a container wanted to go: with which commits, how much, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stateroom.app import Application
from stateroom.errors import NotFound
from stateroom.runtime.containers.egress import KEPT_MAX, ContainerEgress
from stateroom.runtime.containers.state import IDLE, Container, EgressNote, read_note
from stateroom.runtime.records import Held
from stateroom.settings import BackendSettings, Settings
from stateroom.wire.containers import Allowlist, NewContainer
from stateroom.workspaces.egress.decisions import DECISIONS_MAX

PROJECT = "default"


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    backends = (BackendSettings(url="http://127.0.0.1:9/v1", models=("none",)),)
    application = Application(Settings(data=str(tmp_path / "data"), backends=backends, shutdown_seconds=0))
    await application.start()
    yield application
    await application.stop()


@pytest.fixture
async def held(app: Application) -> Held[Container]:
    policy = Allowlist(("listed.example",))
    return await app.containers.create(PROJECT, NewContainer("c", network_policy=policy))


def decide(app: Application, held: Held[Container], domain: str) -> None:
    app.workspaces.decided.add(held.id, domain, 443, "allowed", "listed")


async def keep(app: Application, held: Held[Container]) -> None:
    async with app.containers.changing(held.id):
        await app.containers.keep(held, await app.containers.workspace(held), IDLE)


async def notes(app: Application, held: Held[Container]) -> list[EgressNote]:
    said = [read_note(raw) for raw in await app.containers.held.notes(PROJECT, held.id)]
    return [note for note in said if isinstance(note, EgressNote)]


async def test_decisions_are_noted_once_also_where_no_file_has_changed(app: Application, held: Held[Container]) -> None:
    egress = ContainerEgress(app.containers)
    decide(app, held, "one.example")
    before = await egress.all(PROJECT, held.id)
    assert await notes(app, held) == []
    await keep(app, held)
    await keep(app, held)
    [note] = await notes(app, held)
    assert list(note.decisions) == before == await egress.all(PROJECT, held.id)
    decide(app, held, "two.example")
    assert [each.domain for each in await egress.all(PROJECT, held.id)] == ["one.example", "two.example"]


async def test_what_was_not_written_is_written_the_next_time(app: Application, held: Held[Container]) -> None:
    decide(app, held, "one.example")
    missing = Held("cntr_missing", PROJECT, held.state, held.created_at)
    app.workspaces.decided.add(missing.id, "one.example", 443, "allowed", "listed")
    with pytest.raises(NotFound):
        await keep(app, missing)
    assert len(app.workspaces.decided.of(missing.id)) == 1
    await keep(app, held)
    assert len(await notes(app, held)) == 1


async def test_how_many_are_kept_of_a_container_is_bounded(app: Application, held: Held[Container]) -> None:
    egress = ContainerEgress(app.containers)
    rounds = KEPT_MAX // DECISIONS_MAX + 3
    for number in range(rounds):
        for each in range(DECISIONS_MAX):
            decide(app, held, f"{each}.of-{number}.example")
        await keep(app, held)
    shown = await egress.all(PROJECT, held.id)
    assert len(shown) == KEPT_MAX
    assert shown[-1].domain == f"{DECISIONS_MAX - 1}.of-{rounds - 1}.example"
    assert len(await notes(app, held)) == rounds
    await app.upkeep.sweep()
    assert len(await notes(app, held)) == KEPT_MAX // DECISIONS_MAX
    assert await egress.all(PROJECT, held.id) == shown
    await app.upkeep.sweep()
    assert await egress.all(PROJECT, held.id) == shown


async def test_with_a_container_its_decisions_go(app: Application, held: Held[Container]) -> None:
    decide(app, held, "one.example")
    await keep(app, held)
    decide(app, held, "two.example")
    await app.containers.delete(PROJECT, held.id)
    assert app.workspaces.decided.of(held.id) == ()
    with pytest.raises(NotFound):
        await ContainerEgress(app.containers).all(PROJECT, held.id)
