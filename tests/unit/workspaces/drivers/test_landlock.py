"""What is Landlock's own: paths that are not moved, attributes of files, who it runs as, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from stateroom.errors import NoSandbox
from stateroom.testing import driver_conformance
from stateroom.testing.driver_conformance import Bench, opened, processes_with, until
from stateroom.testing.driver_isolation import ISOLATION
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.drivers import landlock
from stateroom.workspaces.drivers.cgroups import Cgroups
from stateroom.workspaces.drivers.landlock import LandlockDriver
from stateroom.workspaces.drivers.seccomp_bare import ATTRIBUTES, bare_program
from stateroom.workspaces.workspace import Mount, SandboxSpec
from tests.sandboxes import reason_against

ORDINARY_USER: Final = 1_234
SYSTEM_PYTHON: Final = "/usr/bin/python3"
ATTRIBUTES_INSIDE: Final = """
import os, tempfile
os.mkdir("d"); open("d/f", "w").close(); os.symlink("f", "d/l")
os.chmod("d/f", 0o4750); assert os.stat("d/f").st_mode & 0o7777 == 0o750
fd = os.open("d", os.O_RDONLY)
os.chmod("f", 0o600, dir_fd=fd); assert os.stat("d/f").st_mode & 0o777 == 0o600
os.fchmod(os.open("d/f", os.O_RDONLY), 0o640); assert os.stat("d/f").st_mode & 0o777 == 0o640
os.chmod("d/l", 0o644); assert os.stat("d/f").st_mode & 0o777 == 0o644
os.utime("d/f", (5, 7)); assert os.stat("d/f").st_mtime == 7
os.utime("d/f", ns=(5, 7), follow_symlinks=False); assert os.stat("d/f").st_mtime_ns == 7
os.utime("d/l", (9, 9), follow_symlinks=False); assert os.lstat("d/l").st_mtime == 9
os.utime("d/f"); assert os.stat("d/f").st_mtime > 1e9
os.utime(os.open("d/f", os.O_RDONLY), (3, 3)); assert os.stat("d/f").st_mtime == 3
os.chown("d/f", os.getuid(), -1)
os.chmod(tempfile.mkdtemp(), 0o755)
for path in ("d/none", "", "x" * 5000, "/usr/bin/env"):
    try: os.chmod(path, 0o777)
    except OSError: continue
    raise SystemExit("worked: " + path[:20])
print("all")
"""


@functools.cache
def why_not() -> str:
    return reason_against(lambda folder: opened(LandlockDriver(folder), folder))


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"Landlock cannot be used on this machine: {why_not()}")


@contextlib.contextmanager
def passable() -> Iterator[Path]:
    """A directory through which everyone may pass."""
    with tempfile.TemporaryDirectory(prefix="stateroom-passable-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


async def python(bench: Bench, code: str) -> str:
    done = await bench.agent.run(["python3", "-c", code], timeout=30, keep_bytes=65_536)
    return (done.stdout + done.stderr).decode()


async def test_a_probe_finds_every_promise_held(tmp_path: Path) -> None:
    report = await LandlockDriver(tmp_path).probe()
    assert report.usable, report.reason
    assert {row.name: row.detail for row in report.promises if not row.held} == {}
    assert len(report.promises) >= 20


async def test_a_sandbox_never_runs_as_root(tmp_path: Path) -> None:
    async with opened(LandlockDriver(tmp_path), tmp_path) as bench:
        said = (await bench.shell("id -u; id -G; cat /proc/self/status | grep CapBnd")).stdout.decode().split()
        assert said[0] == str(bench.files.stat().st_uid)
        assert "0" not in said[:2]


async def test_the_workspace_is_where_the_working_directory_and_a_variable_say(tmp_path: Path) -> None:
    async with opened(LandlockDriver(tmp_path), tmp_path) as bench:
        (bench.files / "deep").mkdir()
        (bench.files / "deep" / "given").write_text("here")
        for directory in ("/workspace/deep", "/mnt/data/deep"):
            done = await bench.agent.run(["cat", "given"], cwd=directory, timeout=30, keep_bytes=100)
            assert done.stdout == b"here"
        done = await bench.agent.run(["cat", "/workspace/deep/given"], timeout=30, keep_bytes=100)
        assert done.stdout == b"here", "a word of a command by itself is translated"
        assert (await bench.shell("cat $WORKSPACE/deep/given")).stdout == b"here"
        assert (await bench.shell("echo x > $TMPDIR/t && cat $HOME/t")).stdout == b"x\n"
        assert b"/workspace/deep" in (await bench.shell("echo /workspace/deep")).stdout, "text is left alone"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
async def test_where_the_server_may_mount_the_files_are_at_mnt_data(tmp_path: Path) -> None:
    async with opened(LandlockDriver(tmp_path), tmp_path) as bench:
        (bench.files / "given").write_text("here")
        assert (await bench.shell("cat /mnt/data/given")).stdout == b"here"


async def test_without_mounts_or_control_groups_it_keeps_its_promises_too() -> None:
    with passable() as folder:
        driver = LandlockDriver(folder, cgroups=Cgroups(), may_mount=False)
        report = await driver.probe()
        if os.getuid() == 0 and "Permission denied" in report.reason:
            pytest.skip("our programs are where only root may go")
        for case in (*ISOLATION, driver_conformance.frozen_writers_stand_still):
            place = folder / case.__name__
            place.mkdir(mode=0o711)
            async with opened(driver, place) as bench:
                await case(bench)


async def test_mounts_are_read_under_their_names_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "file").write_text("shown")
    files = tmp_path / "files"
    files.mkdir()
    spec = driver_conformance.specification("mounts", files)
    fields = {name: getattr(spec, name) for name in ("id", "files", "memory_bytes", "processes", "disk_bytes")}
    variables = {"SHOWN": "/opt/shown/file"}
    mounts = (Mount(str(tmp_path / "shown"), "/opt/shown"),)
    sandbox = await LandlockDriver(tmp_path).start(SandboxSpec(**fields, mounts=mounts, environment=variables))
    try:
        agent = await Agent.connect(sandbox)
        done = await agent.run(["cat", "/opt/shown/file"], timeout=30, keep_bytes=100)
        assert done.stdout == b"shown"
        done = await agent.run(["/bin/sh", "-c", "cat $SHOWN; echo x > $SHOWN"], timeout=30, keep_bytes=100)
        assert done.stdout == b"shown"
        assert done.code != 0
        assert (tmp_path / "shown" / "file").read_text() == "shown"
        await agent.close()
    finally:
        await sandbox.stop()


async def test_it_gives_no_network_and_says_so(tmp_path: Path) -> None:
    spec = driver_conformance.specification("egress", tmp_path, egress=str(tmp_path / "socket"))
    with pytest.raises(NoSandbox, match="no network"):
        await LandlockDriver(tmp_path).start(spec)


async def test_a_holder_that_is_killed_takes_all_along(tmp_path: Path) -> None:
    driver = LandlockDriver(tmp_path)
    async with opened(driver, tmp_path) as bench:
        await bench.shell("setsid -f sleep 54341 >/dev/null 2>&1; sleep 54341 &")
        await until(lambda: len(processes_with("54341")) == 2, "they were not started")
        holder = bench.sandbox._started.pid  # type: ignore[attr-defined]  # nobody else has a use for it
        os.kill(holder, signal.SIGKILL)
        await until(lambda: not bench.sandbox.is_alive, "it says that it lives")
        await bench.sandbox.stop()
        assert not processes_with("54341") or os.getuid()
    await driver.sweep()
    assert not processes_with("54341") or os.getuid()


async def test_what_is_temporary_is_gone_at_the_next_start(tmp_path: Path) -> None:
    driver = LandlockDriver(tmp_path)
    for _ in range(2):
        async with opened(driver, tmp_path) as bench:
            assert (await bench.shell("ls -A $TMPDIR; echo x > $TMPDIR/left")).stdout == b""
    assert os.listdir(tmp_path) == ["one-files"]  # noqa: PTH208  # its object for paths may not be used here


async def test_modes_and_times_can_be_changed_in_the_workspace(tmp_path: Path) -> None:
    async with opened(LandlockDriver(tmp_path), tmp_path) as bench:
        code = ATTRIBUTES_INSIDE.replace("0o4750", "0o750")
        assert await python(bench, code) == "all\n"


def test_of_the_server_s_own_user_modes_and_times_are_changed_in_the_workspace_alone() -> None:
    if os.getuid():
        pytest.skip("only root can become another user")
    source = Path(driver_conformance.__file__).parents[2]
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from stateroom.testing.driver_conformance import opened\n"
        "from stateroom.workspaces.drivers.landlock import LandlockDriver\n"
        "async def main():\n"
        "    async with opened(LandlockDriver(sys.argv[1]), Path(sys.argv[1])) as bench:\n"
        "        outside = Path(sys.argv[1], 'outside'); outside.write_text('x'); outside.chmod(0o600)\n"
        "        done = await bench.agent.run(['python3', '-c', sys.argv[2]], timeout=30, keep_bytes=9999)\n"
        "        print(done.stdout.decode(), done.stderr.decode())\n"
        "        tools = 'touch a; chmod +x a; cp -p a b; tar cf t a b; rm a b; tar xf t; git init -q . ; ls a b'\n"
        "        print((await bench.shell(tools + '; chmod 777 ' + str(outside))).stderr.decode())\n"
        "        print(oct(outside.stat().st_mode))\n"
        "asyncio.run(main())\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(source), *libraries]), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(prefix="stateroom-user-") as folder:
        os.chown(folder, ORDINARY_USER, ORDINARY_USER)
        done = subprocess.run(
            [SYSTEM_PYTHON, "-c", code, folder, ATTRIBUTES_INSIDE],
            user=ORDINARY_USER,
            group=ORDINARY_USER,
            extra_groups=[],
            env=environment,
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
        )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("an ordinary user of this machine cannot read the libraries this runs with")
    assert "all\n" in done.stdout, done
    assert "Operation not permitted" in done.stdout
    assert "cannot" not in done.stdout.replace("cannot access", "") or done.stdout.count("chmod: ") == 1
    assert done.stdout.rstrip().endswith("0o100600")


def test_the_filter_knows_every_call_on_every_machine() -> None:
    for machine in ("x86_64", "aarch64"):
        own = bare_program(same_user=False, machine=machine)
        shared = bare_program(same_user=True, machine=machine)
        assert own is not None
        assert shared is not None
        assert not own.asked
        assert set(shared.asked.values()) <= set(ATTRIBUTES)
        assert {"fchmod", "fchmodat", "fchmodat2", "fchownat", "utimensat"} <= set(shared.asked.values())
        assert len(shared.code) > len(own.code)
    assert bare_program(same_user=True, machine="riscv64") is None


def test_an_older_kernel_is_refused_to_an_ordinary_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(landlock, "landlock_version", lambda: 0)
    report = asyncio.run(LandlockDriver(tmp_path).probe())
    assert not report.usable
    assert "no Landlock" in report.reason
    monkeypatch.setattr(landlock, "landlock_version", lambda: 5)
    monkeypatch.setattr(os, "getuid", lambda: ORDINARY_USER)
    assert "6.12" in asyncio.run(LandlockDriver(tmp_path).probe()).reason
