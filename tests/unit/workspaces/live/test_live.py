"""Live workspaces over real drivers: whose files they are, what their limits are, and what is told when one is hit."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stateroom.clock import SystemClock
from stateroom.errors import NoSandbox, SandboxDied, SandboxFailed
from stateroom.settings import WorkspaceSettings
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.drivers.isolating import IsolatedSandbox
from stateroom.workspaces.drivers.landlock import LandlockDriver
from stateroom.workspaces.drivers.unsafe import UnsafeDriver, UnsafeSandbox
from stateroom.workspaces.egress.policy import NetworkPolicy
from stateroom.workspaces.egress.proxy import EgressProxy
from stateroom.workspaces.layout import kernel_files
from stateroom.workspaces.live.workspaces import Workspace, Workspaces, WorkspaceSpec
from stateroom.workspaces.workspace import Driver, Sandbox, SandboxSpec

MIB = 1024 * 1024
DRIVERS: dict[str, type[BubblewrapDriver | LandlockDriver | UnsafeDriver]] = {
    "bubblewrap": BubblewrapDriver,
    "landlock": LandlockDriver,
    "unsafe": UnsafeDriver,
}


@asynccontextmanager
async def opened(
    folder: Path, driver: Driver, settings: WorkspaceSettings | None = None, network: NetworkPolicy | None = None
) -> AsyncIterator[Workspace]:
    """A workspace, which is gone afterwards with all of its processes."""
    content = ContentStore(folder / "content.db")
    live = Workspaces(
        folder / "live",
        content,
        driver,
        settings or WorkspaceSettings(),
        SystemClock(),
        egress=EgressProxy(folder / "egress"),
        mounts=kernel_files(),
    )
    await live.begin()
    spec = WorkspaceSpec(id="cntr_one", project="default", memory_bytes=256 * MIB, idle_seconds=600, network=network)
    try:
        yield live.open(spec, None)
    finally:
        await live.close()
        await content.close()


async def said(workspace: Workspace, command: str) -> str:
    done = await workspace.execute(command, timeout=30, output_bytes=10_000)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", DRIVERS)
async def test_what_is_put_there_while_it_lives_can_be_changed_by_its_commands(tmp_path: Path, name: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"from outside\n"

    async with opened(tmp_path, DRIVERS[name](tmp_path)) as workspace:
        assert await said(workspace, "id -u > mine") == ""
        await workspace.write("folder/given.txt", pieces())
        folder = await workspace.prepare()
        folder.write("patched", b"patched\n")
        assert await said(workspace, "echo more >> folder/given.txt; echo x > folder/new; cat folder/given.txt") == (
            "from outside\nmore\n"
        )
        assert await said(workspace, "echo again > patched; rm folder/new; mv folder other; cat patched") == "again\n"
        owners = {path.lstat().st_uid for path in folder.path.rglob("*")}
        assert len(owners) == 1, "the sandbox's files and ours are one user's"
        assert (owners == {os.geteuid()}) is (name == "unsafe" or os.geteuid() != 0)


@pytest.mark.parametrize("name", DRIVERS)
async def test_python_runs_and_keeps_its_variables_on_every_driver(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path, DRIVERS[name](tmp_path)) as workspace:
        first = await workspace.run_code("x = 20; open('made', 'w').write('made')", timeout=30, output_bytes=1000)
        assert first.error is None
        assert "41" in (await workspace.run_code("print(2 * x + 1)", timeout=30, output_bytes=1000)).logs
        assert await said(workspace, "cat made") == "made"
        commit = await workspace.commit()
        assert commit is not None
        assert commit.interpreter
        await workspace.kept(commit)
        await workspace.stop()
        assert "20" in (await workspace.run_code("print(x)", timeout=30, output_bytes=1000)).logs
        assert workspace.interpreter_state == "live"


async def test_too_many_files_end_what_writes_them_and_it_is_told(tmp_path: Path) -> None:
    settings = WorkspaceSettings(files=200)
    async with opened(tmp_path, BubblewrapDriver(tmp_path), settings) as workspace:
        done = await workspace.execute(
            "i=0; while true; do i=$((i+1)); echo x > f$i || exit; done", timeout=60, output_bytes=1000
        )
        assert done.exit_code != 0
        assert "files; 200 are allowed" in done.breach


async def test_a_cell_that_takes_too_much_memory_is_told_of_the_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, BubblewrapDriver(tmp_path)) as workspace:
        hold = "import os, time; held = [os.urandom(1 << 20) for _ in range(100)]; time.sleep(4)"
        start = f"subprocess.Popen(['python3', '-c', {hold!r}])"
        code = f"import subprocess\nfor each in [{start} for _ in range(5)]: each.wait()"
        done = await workspace.run_code(code, timeout=60, output_bytes=1000)
        assert done.error is not None
        assert "[processes of this environment were ended: its processes " in done.error
        assert "bytes of memory" in done.error
        assert (await workspace.run_code("print('on')", timeout=30, output_bytes=1000)).logs.endswith("on\n")


@pytest.mark.parametrize("name", ["landlock", "unsafe"])
async def test_a_driver_without_a_way_out_refuses_a_network_policy(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path, DRIVERS[name](tmp_path), network=NetworkPolicy(("example.com",))) as workspace:
        with pytest.raises(NoSandbox):
            await workspace.execute("true", timeout=30, output_bytes=1000)
        assert not workspace.is_live


class StuckSandbox(UnsafeSandbox):
    """One that stands still for ever once it was brought to a standstill."""

    async def thaw(self) -> None:
        raise SandboxFailed("it cannot be set going")


class StuckDriver(UnsafeDriver):
    async def start(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await super().start(spec)
        sandbox.__class__ = StuckSandbox
        return sandbox


async def test_files_are_kept_of_a_sandbox_that_cannot_be_set_going_again(tmp_path: Path) -> None:
    async with opened(tmp_path, StuckDriver(tmp_path)) as workspace:
        assert await said(workspace, "echo kept > f") == ""
        commit = await workspace.commit()
        assert commit is not None
        assert commit.files == 1
        assert not workspace.is_live
        assert await said(workspace, "cat f") == "kept\n"


@pytest.mark.parametrize("name", ["bubblewrap", "landlock"])
async def test_the_outcome_of_what_a_dead_sandbox_was_doing_is_unknown(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path, DRIVERS[name](tmp_path)) as workspace:
        begun = asyncio.Event()

        def told(stream: str, text: str) -> None:
            begun.set()

        code = "print('begun', flush=True)\nimport time; time.sleep(300)"
        for doing in (
            workspace.execute("echo begun; sleep 300", timeout=300, output_bytes=1000, on_output=told),
            workspace.run_code(code, timeout=300, output_bytes=1000, on_output=told),
        ):
            begun.clear()
            under_way: asyncio.Future[object] = asyncio.ensure_future(doing)
            await begun.wait()
            assert isinstance(workspace._processes.sandbox, IsolatedSandbox)
            os.kill(workspace._processes.sandbox.first_pid, signal.SIGKILL)
            with pytest.raises(SandboxDied, match="outcome of this call is unknown"):
                await under_way
        assert (await workspace.run_code("print('on')", timeout=30, output_bytes=1000)).logs.endswith("on\n")


async def test_what_is_printed_byte_by_byte_is_told_in_pieces(tmp_path: Path) -> None:
    code = "import os, time\nfor at in range(3000):\n    os.write(1 + at % 2, b'oe'[at % 2:][:1]); time.sleep(0.0001)"
    told: list[tuple[str, str]] = []
    async with opened(tmp_path, UnsafeDriver(tmp_path)) as workspace:
        done = await workspace.execute(
            f'python3 -c "{code}"', timeout=30, output_bytes=10_000, on_output=lambda *piece: told.append(piece)
        )
    for stream, text in (("stdout", "o" * 1_500), ("stderr", "e" * 1_500)):
        assert "".join(piece for name, piece in told if name == stream) == text
    assert (done.stdout, done.stderr) == ("o" * 1_500, "e" * 1_500)
    assert 2 <= len(told) < 600
