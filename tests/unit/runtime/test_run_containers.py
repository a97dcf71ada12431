"""The containers that runs work in: which one it is, what stays of it, and when it goes. With real sandboxes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stateroom import ids
from stateroom.app import Application
from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import WorkspaceAt
from stateroom.runtime.containers.commits import ContainerCommits
from stateroom.runtime.containers.files import ContainerFiles
from stateroom.settings import BackendSettings, ProjectSettings, RetentionSettings, Settings, WorkspaceSettings
from stateroom.testing.scripted import ScriptedServer
from stateroom.wire.containers import NewContainer
from stateroom.workspaces.live.workspaces import Workspace
from tests.unit.api.driver import call

AUTO: dict[str, Any] = {"type": "container_auto"}
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


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    async with started(tmp_path / "data") as application:
        yield application


class Chain:
    """Runs that continue each other, as far as their container goes."""

    def __init__(
        self, app: Application, base: WorkspaceAt | None = None, declared: dict[str, Any] | None = None
    ) -> None:
        self.app = app
        self.base = base
        self.declared = declared or AUTO

    async def run(self, command: str) -> str:
        """One run with one command; what that said."""
        runs, key = self.app.run_containers, ids.new_key()
        container_id = await runs.resolve(PROJECT, key, self.declared, self.base)
        workspace = await runs.open(PROJECT, container_id, key=key, declared=self.declared, base=self.base)
        said = await do(workspace, command)
        [self.base] = await runs.finish(PROJECT, [container_id], f"resp_{key}")
        return said

    def fork(self) -> Chain:
        return Chain(self.app, self.base, self.declared)

    @property
    def container_id(self) -> str:
        assert self.base is not None
        return self.base.container


async def do(workspace: Workspace, command: str) -> str:
    done = await workspace.execute(command, timeout=20, output_bytes=100_000)
    return done.stdout + done.stderr


async def test_a_chain_goes_on_in_its_container_with_its_files(app: Application) -> None:
    chain = Chain(app)
    await chain.run("echo one > a")
    first = chain.container_id
    assert await chain.run("cat a; echo two >> a") == "one\n"
    assert await chain.run("cat a") == "one\ntwo\n"
    assert chain.container_id == first
    assert chain.base is not None
    assert chain.base.auto


async def test_a_second_continuation_has_the_files_as_they_were(app: Application) -> None:
    chain = Chain(app)
    await chain.run("echo shared > a")
    other = chain.fork()
    await chain.run("echo mine > a")
    assert await other.run("cat a; echo its > a") == "shared\n"
    assert other.container_id != chain.container_id
    assert await chain.run("cat a") == "mine\n"
    assert await other.run("cat a") == "its\n"


async def test_a_run_that_changed_nothing_forks_nothing(app: Application) -> None:
    chain = Chain(app)
    await chain.run("echo x > a")
    before = chain.base
    await chain.run("cat a")
    assert chain.base == before


async def test_what_the_client_puts_there_between_two_runs_is_there_in_the_second(app: Application) -> None:
    chain = Chain(app)
    await chain.run("echo x > a")
    files = ContainerFiles(app.containers, app.files, app.blobs)
    async with files.incoming() as incoming:
        await incoming.write(b"from the client")
        await files.add(PROJECT, chain.container_id, incoming, "new.txt")
    before = chain.container_id
    assert await chain.run("cat a new.txt") == "x\nfrom the client"
    assert chain.container_id == before


async def test_a_run_that_is_taken_up_again_finds_what_it_has_done(tmp_path: Path) -> None:
    key = ids.new_key()
    async with started(tmp_path / "data") as app:
        runs = app.run_containers
        container_id = await runs.resolve(PROJECT, key, AUTO, None)
        workspace = await runs.open(PROJECT, container_id, key=key, declared=AUTO, base=None)
        await do(workspace, "echo done > a")
        app.workspaces.keep = None  # the server dies here: nothing of it is committed
        await workspace.stop()
    async with started(tmp_path / "data") as app:
        runs = app.run_containers
        assert await runs.resolve(PROJECT, key, AUTO, None) == container_id
        workspace = await runs.open(PROJECT, container_id, key=key, declared=AUTO, base=None)
        assert await do(workspace, "cat a") == "done\n"
        at = await runs.finish(PROJECT, [container_id], f"resp_{key}")
        assert at[0].commit


async def test_two_tools_of_a_run_share_its_container(app: Application) -> None:
    key, runs = ids.new_key(), app.run_containers
    shell = await runs.resolve(PROJECT, key, AUTO, None)
    assert await runs.resolve(PROJECT, key, {"type": "auto"}, None) == shell
    opened = await asyncio.gather(
        *[runs.open(PROJECT, shell, key=key, declared=declared, base=None) for declared in (AUTO, {"type": "auto"})]
    )
    assert opened[0] is opened[1]


async def test_a_named_container_is_used_by_whoever_names_it(app: Application) -> None:
    made = await app.containers.create(PROJECT, NewContainer("named"))
    reference = {"type": "container_reference", "container_id": made.id}
    first, second = Chain(app, declared=reference), Chain(app, declared=reference)
    await first.run("echo 1 > a")
    assert await second.run("cat a; echo 2 > a") == "1\n"
    assert await first.run("cat a") == "2\n"
    assert first.base is not None
    assert not first.base.auto
    runs = app.run_containers
    assert await runs.resolve(PROJECT, ids.new_key(), made.id, None) == made.id
    for declared, param in ((made.id, "tools[0].container"), (reference, "tools[0].container.container_id")):
        with pytest.raises(NotFound) as missing:
            await runs.resolve("other", ids.new_key(), declared, None, param="tools[0].container")
        assert (missing.value.code, missing.value.param) == ("container_not_found", param)


@pytest.mark.parametrize(
    ("declared", "param"),
    [
        ({"type": "nothing"}, "c.type"),
        ({"type": "container_reference"}, "c.container_id"),
        ({**AUTO, "memory_limit": "3g"}, "c.memory_limit"),
        ({**AUTO, "memory_limit": "64g"}, "c.memory_limit"),
        ({**AUTO, "file_ids": ["file-nobody"]}, "c.file_ids[0]"),
        ({**AUTO, "file_ids": "file"}, "c.file_ids"),
        (
            {**AUTO, "network_policy": {"type": "allowlist", "allowed_domains": ["*"]}},
            "c.network_policy.allowed_domains[0]",
        ),
    ],
)
async def test_what_cannot_be_declared_is_refused_and_nothing_is_made(
    app: Application, declared: dict[str, Any], param: str
) -> None:
    with pytest.raises((InvalidRequest, NotFound)) as refused:
        await app.run_containers.resolve(PROJECT, ids.new_key(), declared, None, param="c")
    assert refused.value.param == param
    assert await app.containers.page(PROJECT, name="") == []


async def test_files_that_a_later_turn_declares_are_copied_into_the_container(app: Application) -> None:
    file_ids = []
    for name in (b"one", b"two"):
        async with app.files.incoming() as incoming:
            await incoming.write(name)
            kept = await app.files.keep(PROJECT, incoming, filename=f"{name.decode()}.txt", purpose="user_data")
            file_ids.append(kept.id)
    chain = Chain(app, declared={**AUTO, "file_ids": file_ids[:1]})
    assert await chain.run("cat *.txt; rm one.txt") == "one"
    first = chain.container_id
    chain.declared = {**AUTO, "file_ids": file_ids}
    assert await chain.run("cat *.txt") == "two"
    assert chain.container_id == first


async def test_a_later_turn_changes_what_it_mentions_and_nothing_else(app: Application) -> None:
    chain = Chain(app, declared={**AUTO, "network_policy": {"type": "allowlist", "allowed_domains": ["a.example"]}})
    await chain.run("echo x > a")
    for declared, domains in (
        (AUTO, ("a.example",)),
        ({**AUTO, "network_policy": {"type": "allowlist", "allowed_domains": ["b.example"]}}, ("b.example",)),
        ({**AUTO, "network_policy": {"type": "disabled"}}, None),
    ):
        chain.declared = declared
        assert await chain.run('cat a; test -n "$http_proxy" && echo proxied') == ("x\nproxied\n" if domains else "x\n")
        network = (await app.containers.get(PROJECT, chain.container_id)).state.network
        assert (None if network is None else network.domains) == domains
    chain.base, fork = chain.base, chain.fork()
    await chain.run("echo y > a")
    fork.declared = AUTO
    assert await fork.run("cat a") == "x\n"
    assert (await app.containers.get(PROJECT, fork.container_id)).state.network is None


async def test_variables_come_back_after_a_fork_and_a_restart(tmp_path: Path) -> None:
    async with started(tmp_path / "data") as app:
        runs, key = app.run_containers, ids.new_key()
        container_id = await runs.resolve(PROJECT, key, AUTO, None)
        workspace = await runs.open(PROJECT, container_id, key=key, declared=AUTO, base=None)
        assert workspace.interpreter_state == "fresh"
        await workspace.run_code("x = 41", timeout=20, output_bytes=1000)
        [base] = await runs.finish(PROJECT, [container_id], f"resp_{key}")
        assert (await workspace.run_code("x + 1", timeout=20, output_bytes=1000)).logs.strip() == "42"
        await runs.finish(PROJECT, [container_id], f"resp_{ids.new_key()}")
    async with started(tmp_path / "data") as app:
        workspace = await app.run_containers.open(PROJECT, container_id, key=key, declared=AUTO, base=None)
        done = await workspace.run_code("print(x)", timeout=20, output_bytes=1000)
        assert "41" in done.logs
        held = await ContainerCommits(app.containers).fork(PROJECT, container_id, commit_id=base.commit)
        other = await app.containers.workspace(held)
        assert "41" in (await other.run_code("print(x); x = 0", timeout=20, output_bytes=1000)).logs
        assert "41" in (await workspace.run_code("print(x)", timeout=20, output_bytes=1000)).logs


async def test_a_sandbox_that_dies_is_started_anew_and_the_next_command_says_so(app: Application) -> None:
    made = await app.containers.create(PROJECT, NewContainer("dies"))
    workspace = await app.containers.workspace(made)
    await do(workspace, "echo kept > a")
    assert workspace._processes.sandbox is not None
    await workspace._processes.sandbox.stop()
    done = await workspace.execute("cat a", timeout=20, output_bytes=1000)
    assert (done.stdout, done.restarted) == ("kept\n", True)
    assert not (await workspace.execute("true", timeout=20, output_bytes=1000)).restarted


async def test_the_one_idle_for_longest_makes_room_and_loses_nothing(tmp_path: Path) -> None:
    async with started(tmp_path / "data", workspaces=WorkspaceSettings(live=2)) as app:
        spaces = []
        for number in range(4):
            made = await app.containers.create(PROJECT, NewContainer(f"c{number}"))
            workspace = await app.containers.workspace(made)
            await workspace.run_code(f"x = {number}", timeout=20, output_bytes=1000)
            await do(workspace, f"echo {number} > a")
            spaces.append(workspace)
            assert app.workspaces.count <= 2
        for number, workspace in enumerate(spaces):
            assert await do(workspace, "cat a") == f"{number}\n"
            assert str(number) in (await workspace.run_code("print(x)", timeout=20, output_bytes=1000)).logs
        assert app.workspaces.count == 2


async def test_commands_of_two_users_run_beside_each_other_and_both_are_committed(app: Application) -> None:
    made = await app.containers.create(PROJECT, NewContainer("shared"))
    declared = {"type": "container_reference", "container_id": made.id}
    chains = [Chain(app, declared=declared) for _ in range(6)]
    await asyncio.gather(
        *[chain.run(f"echo {n} > f{n}; sleep 0.05; echo {n} >> f{n}") for n, chain in enumerate(chains)]
    )
    files = ContainerFiles(app.containers, app.files, app.blobs)
    assert sorted(file.path for file in await files.all(PROJECT, made.id)) == [f"f{n}" for n in range(6)]
    assert all(file.bytes == 4 for file in await files.all(PROJECT, made.id))


async def test_a_container_goes_with_the_last_of_the_chain_that_it_was_made_for(app: Application) -> None:
    kept = await app.containers.create(PROJECT, NewContainer("kept"))
    chain = Chain(app)
    await chain.run("echo x > a")
    held = await app.containers.get(PROJECT, chain.container_id)
    assert held.expires_at > 0, "nobody stored its run"
    held = await app.containers.make(PROJECT, "cntr_orphan", _orphaned(held.state))
    swept = await app.upkeep.sweep()
    assert swept.containers == 1
    assert await app.containers.held.get(PROJECT, held.id) is None
    assert await app.containers.held.get(PROJECT, kept.id) is not None


def _orphaned(state: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(state, chain="branch_that_is_gone", head=None)


async def test_retention_drops_containers_that_nobody_has_used(tmp_path: Path) -> None:
    project = ProjectSettings(retention=RetentionSettings(containers_days=1e-9))
    async with started(tmp_path / "data", project=project) as app:
        made = await app.containers.create(PROJECT, NewContainer("old"))
        await asyncio.sleep(0.01)
        await app.upkeep.sweep()
        with pytest.raises(NotFound):
            await app.containers.get(PROJECT, made.id)


async def test_what_no_container_names_leaves_the_content_store(app: Application, monkeypatch: Any) -> None:
    monkeypatch.setattr("stateroom.runtime.containers.upkeep.UNNAMED_SECONDS", -1.0)
    gone, kept = [await app.containers.create(PROJECT, NewContainer(name)) for name in ("gone", "kept")]
    trees = []
    for held in (gone, kept):
        chain = Chain(app, declared={"type": "container_reference", "container_id": held.id})
        await chain.run(f"head -c 300000 /dev/urandom > {held.state.name}")
        state = (await app.containers.get(PROJECT, held.id)).state
        assert state.head is not None
        trees.append(state.head.tree)
    await app.containers.delete(PROJECT, gone.id)
    swept = await app.upkeep.sweep()
    assert swept.bytes > 290_000
    assert not app.content.database.exists(trees[0])
    assert app.content.database.exists(trees[1])
    assert not await asyncio.to_thread((app.workspaces.root / gone.id).exists)


async def test_a_container_keeps_so_many_commits_and_the_one_it_stands_at(tmp_path: Path) -> None:
    async with started(tmp_path / "data", workspaces=WorkspaceSettings(commits=3)) as app:
        made = await app.containers.create(PROJECT, NewContainer("thin"))
        chain = Chain(app, declared={"type": "container_reference", "container_id": made.id})
        for number in range(6):
            await chain.run(f"echo {number} > a")
        assert (await app.upkeep.sweep()).commits == 3
        commits = ContainerCommits(app.containers)
        left = await commits.page(PROJECT, made.id, limit=20, descending=True)
        assert len(left) == 3
        held = await app.containers.get(PROJECT, made.id)
        assert held.state.head is not None
        assert left[0].id == held.state.head.id
        await commits.restore(PROJECT, made.id, left[2].id)
        assert await chain.run("cat a") == "3\n"


async def test_directories_of_idle_workspaces_are_bounded_and_come_back(tmp_path: Path) -> None:
    async with started(tmp_path / "data", workspaces=WorkspaceSettings(folders=1)) as app:
        spaces = []
        for number in range(3):
            made = await app.containers.create(PROJECT, NewContainer(f"c{number}"))
            workspace = await app.containers.workspace(made)
            await do(workspace, f"echo {number} > a")
            await app.workspaces._retire(workspace)
            spaces.append(workspace)
        assert await app.workspaces.trim() == 2
        assert len(await app.workspaces.folders()) == 1
        assert [await do(workspace, "cat a") for workspace in spaces] == ["0\n", "1\n", "2\n"]


async def test_files_that_were_only_asked_for_go_back_to_rest(tmp_path: Path) -> None:
    async with started(tmp_path / "data", workspaces=WorkspaceSettings(folders=0)) as app:
        made = await app.containers.create(PROJECT, NewContainer("c"))
        workspace = await app.containers.workspace(made)
        await do(workspace, "echo 1 > a")
        await app.workspaces._retire(workspace)
        await workspace.prepare()
        await app.upkeep.sweep()
        assert await app.workspaces.folders() == []
        assert await do(workspace, "cat a") == "1\n"


async def test_a_container_goes_when_the_responses_that_it_was_made_for_are_deleted(tmp_path: Path) -> None:
    async with ScriptedServer() as model:
        backends = (BackendSettings(url=model.url),)
        app = Application(Settings(data=str(tmp_path / "data"), backends=backends, shutdown_seconds=0))
        await app.start()
        made: list[str] = []
        previous: dict[str, str] = {}
        for _ in range(2):
            body = {"model": "scripted", "input": "hello", **previous}
            made.append((await call(app.asgi, "POST", "/v1/responses", body)).json["id"])
            previous = {"previous_response_id": made[-1]}
        key, runs = ids.key_of(made[0]), app.run_containers
        container_id = await runs.resolve(PROJECT, key, AUTO, None)
        workspace = await runs.open(PROJECT, container_id, key=key, declared=AUTO, base=None)
        await do(workspace, "echo x > a")
        await runs.finish(PROJECT, [container_id], made[0])
        assert (await app.containers.get(PROJECT, container_id)).expires_at == 0
        await call(app.asgi, "DELETE", f"/v1/responses/{made[0]}")
        await app.upkeep.sweep()
        assert await app.containers.held.get(PROJECT, container_id) is not None, "the second response goes on from it"
        await call(app.asgi, "DELETE", f"/v1/responses/{made[1]}")
        while await app.containers.held.get(PROJECT, container_id) is not None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        while workspace.is_live:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        await app.stop()


async def test_a_fork_costs_one_record_and_a_commit_what_has_changed(app: Application) -> None:
    made = await app.containers.create(PROJECT, NewContainer("large"))
    chain = Chain(app, declared={"type": "container_reference", "container_id": made.id})
    await chain.run(
        "for n in $(seq 50); do mkdir d$n; for m in $(seq 40); do head -c 10000 /dev/urandom > d$n/$m; done; done"
    )
    await chain.run("for n in 1 2 3 4 5 6 7 8 9 10; do echo changed > d$n/$n; done")
    commits = ContainerCommits(app.containers)
    latest, first = await commits.page(PROJECT, made.id, limit=2, descending=True)
    assert first.files == 2000
    assert latest.new_bytes < 100_000
    rows = app.content.database._file
    with rows.read() as cursor:
        before = cursor.execute("SELECT count(*) FROM trees").fetchall()
    times = []
    for _ in range(30):
        began = time.perf_counter()
        await commits.fork(PROJECT, made.id)
        times.append(time.perf_counter() - began)
    assert sorted(times)[15] < 0.05, times
    with rows.read() as cursor:
        assert cursor.execute("SELECT count(*) FROM trees").fetchall() == before
