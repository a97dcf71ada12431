"""Puts up what a sandbox could reach outside, lets the attempts loose in one, and looks what became of the outside.

python stage.py DRIVER      as another user: prints what `assault` returns as JSON
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from stateroom.errors import SandboxFailed, StateroomError
from stateroom.settings import WorkspaceSettings
from stateroom.testing.driver_conformance import Bench, opened
from stateroom.workspaces.drivers import processes
from stateroom.workspaces.drivers.choice import make_driver
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import Driver

IMAGE: Final = os.environ.get("STATEROOM_TEST_IMAGE", "localhost/stateroom-test:latest")
ATTEMPTS: Final = Path(__file__).with_name("attempts.py")
_SECONDS: Final = 60.0
_KEEP_BYTES: Final = 1_000_000
_BOMB_SECONDS: Final = 3.0
_HOG: Final = "python3 -c \"x = ' ' * 90_000_000; import time; time.sleep(2)\""
_HIDE: Final = """python3 - <<'END'
import ctypes, os, socket, time
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
ours, theirs = socket.socketpair()
libc.prctl(4, 0, 0, 0, 0)
for number in range(10):
    fd = os.open("big%d" % number, os.O_RDWR | os.O_CREAT)
    for _ in range(4):
        os.write(fd, bytes(8388608))
    HIDE
    os.unlink("big%d" % number)
    os.close(fd)
    time.sleep(0.05)
time.sleep(1.5)
END
exit 0"""
"""Ten files of 32 MiB that have no name and are open nowhere."""
_HIDDEN_TRIES: Final = 3
"""What nobody can see is told by the room that the disk lost: others, who free as much at that moment, hide it."""
_TABLES: Final = """python3 - <<'END'
import mmap
size = 1 << 41
room = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ)
for at in range(0, size, 1 << 21):
    room[at]
END"""
"""Four gigabytes of tables, which lead to the one page of zeros."""
_FILL: Final = "i=0; while head -c 8388608 /dev/zero > {}/big$i; do i=$((i+1)); done; exit 1"


def driver_of(name: str, data: Path) -> Driver:
    return make_driver(name, WorkspaceSettings(image=IMAGE), data)


def assault(name: str) -> dict[str, str]:
    """What came of every attempt with one driver, and in which state it left what is outside."""
    folder = Path(tempfile.mkdtemp(prefix="stateroom-hostile-"))
    folder.chmod(0o755)
    try:
        return asyncio.run(_assault(driver_of(name, folder), folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _assault(driver: Driver, folder: Path) -> dict[str, str]:
    with ExitStack() as stack:
        async with opened(driver, folder, name="neighbour") as other:
            (other.files / "mine").write_text("of another workspace")
            sleep = ["/bin/sleep", f"61616.{uuid.uuid4().int}"]  # others may be on this stage at the same time
            neighbour = await other.agent.spawn(sleep)
            outside = _outside(stack, folder, other, _number_of(sleep))
            async with opened(driver, folder, name="hostile") as bench:
                before = _state(folder, outside)
                found = await _attempt(bench, outside)
                found |= await _floods(bench, other)
                found |= _looked_at_from_outside(bench.files, outside)
            async with opened(driver, folder, name="hostile"):  # files are handed to its user again, links among them
                after = _state(folder, outside)
            found["the outside is as it was"] = "ok" if before == after else f"{before} became {after}"
            beside = await other.shell("cat mine")
            found["the other workspace is unharmed"] = (
                "ok" if beside.stdout == b"of another workspace" else repr(beside)
            )
            found["no connection came"] = "ok" if not _connected(outside) else "one came"
            neighbour.kill()
        return found


def _looked_at_from_outside(files: Path, outside: dict[str, Any]) -> dict[str, str]:
    """The server reads the workspace, in which links point out of it."""
    (files / "server-link").symlink_to(outside["secret"])
    secret, folder = outside["secret"], Folder(files)
    got = []
    for path in ("server-link", "link", f"top{secret}", f"../{Path(secret).name}", secret, f"..{secret}", "top"):
        try:
            got.append(folder.read(path, bytes_max=1_000))
        except (StateroomError, OSError):
            continue
    return {"the server follows no link": "ok" if not got else repr(got)}


async def _attempt(bench: Bench, outside: dict[str, Any]) -> dict[str, str]:
    given = {name: value for name, value in outside.items() if not name.startswith("_")}
    source = ATTEMPTS.read_text()
    done = await bench.agent.run(
        ["python3", "-I", "-S", "-c", source, json.dumps(given)], timeout=_SECONDS, keep_bytes=_KEEP_BYTES
    )
    if done.code:
        raise AssertionError(done.stderr.decode("utf-8", "replace")[-2_000:])
    rows: dict[str, str] = json.loads(done.stdout)
    return rows


def _outside(stack: ExitStack, folder: Path, other: Bench, neighbour: int) -> dict[str, Any]:
    secret, journal = folder / "secret", folder / "journal.db"
    secret.write_text("of this machine")
    secret.chmod(0o644)
    journal.write_text("of the server")
    journal.chmod(0o600)
    marker = uuid.uuid4().hex
    victim = subprocess.Popen(["/bin/sleep", "61617"], env={"VICTIM": marker})
    stack.callback(victim.wait)
    stack.callback(victim.kill)
    listener = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
    listener.setblocking(False)
    abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
    abstract.bind(f"\0hostile-{marker}")
    abstract.listen()
    abstract.setblocking(False)
    named = stack.enter_context(socket.socket(socket.AF_UNIX))
    named.bind(str(folder / "open.sock"))
    (folder / "open.sock").chmod(0o777)
    named.listen()
    named.setblocking(False)
    shm = Path(f"/dev/shm/hostile-{marker}")
    shm.write_text("shared")
    shm.chmod(0o666)
    stack.callback(shm.unlink)
    key = int(marker[:7], 16)
    segment = ctypes.CDLL(None).shmget(key, 16, 0o1666)
    stack.callback(ctypes.CDLL(None).shmctl, segment, 0, None)
    os.environ["STATEROOM_HOSTILE_SECRET"] = marker
    stack.callback(os.environ.pop, "STATEROOM_HOSTILE_SECRET", None)
    return {
        "secret": str(secret),
        "journal": str(journal),
        "folder": str(folder),
        "other": str(other.files),
        "agent": str(inside_directory() / "agent.py"),
        "server": os.getpid(),
        "victim": victim.pid,
        "neighbour": neighbour,
        "port": listener.getsockname()[1],
        "addresses": sorted({"127.0.0.1", "0.0.0.0", "127.1.2.3", *_own_addresses()}),
        "abstract": f"hostile-{marker}",
        "socket": str(folder / "open.sock"),
        "shm": str(shm),
        "key": key,
        "variable": marker,
        "marker": "61617",
        "reaches_its_user": os.getuid() != 0 and not other.driver.caps.hides_processes,
        "_victim": victim,
        "_listeners": (listener, abstract, named),
    }


def _number_of(words: list[str]) -> int:
    """Of the process with this command line, on this machine."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for pid in processes.all_pids():
            if processes.command_line(pid)[:-1] == [word.encode() for word in words]:
                return pid
    raise AssertionError("the other workspace's process is not there")


def _own_addresses() -> list[str]:
    text = Path("/proc/net/fib_trie").read_text()
    return [address for address in re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", text) if address != "127.0.0.1"][:3]


def _state(folder: Path, outside: dict[str, Any]) -> dict[str, Any]:
    """What an escape would have changed."""
    pids = (os.getpid(), outside["victim"], outside["neighbour"])
    files = [folder / "secret", folder / "journal.db", folder, Path(outside["agent"])]
    return {
        "lives": [outside["_victim"].poll(), processes.parent_of(outside["neighbour"])],
        "files": [(path.stat().st_mode, path.stat().st_uid, path.stat().st_mtime_ns) for path in files[:2]],
        "modes": [path.stat().st_mode for path in files],
        "texts": [path.read_text() for path in files[:2]],
        "core_pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
        "pid_max": Path("/proc/sys/kernel/pid_max").read_text(),
        "hostname": socket.gethostname(),
        "mounts": len([row for row in Path("/proc/self/mounts").read_text().splitlines() if "stateroom-x" in row]),
        "limits": [Path(f"/proc/{pid}/limits").read_text() for pid in pids],
        "nice": [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids],
        "cpus": [sorted(os.sched_getaffinity(pid)) for pid in pids],
        "names": sorted(path.name for path in folder.iterdir() if not path.name.endswith(".tmp")),
        "segment": Path(outside["shm"]).read_text(),
    }


def _connected(outside: dict[str, Any]) -> bool:
    for listener in outside["_listeners"]:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            continue
        return True
    return False


async def _floods(bench: Bench, other: Bench) -> dict[str, str]:
    """Bombs, one after the other; each has to leave the other workspace and the server at work."""
    bombs = {
        "a fork bomb": "b() { b | b & b; }; b",
        "a memory bomb": "python3 -c \"x = []\nwhile True: x.append(' ' * 10_000_000)\"",
        "tables without pages": _TABLES,
        "many hogs": f"for i in 1 2 3 4 5 6 7 8 9; do {_HOG} || touch bad$i & done; wait; set -- bad*; test ! -e $1",
        "a full disk": "i=0; while :; do head -c 8388608 /dev/zero > big$i || exit 1; i=$((i+1)); done",
        "a closed directory": f"mkdir closed && chmod 300 closed && {_FILL.format('closed')}",
        "files that are mapped": _HIDE.replace("HIDE", "libc.mmap(None, 4096, 1, 1, fd, 0)"),
        "files under way in a socket": _HIDE.replace("HIDE", "socket.send_fds(ours, [b'x'], [fd])"),
        "a full temporary directory": f"cd $TMPDIR; {_FILL.format('.')}",
        "a full shared memory": _FILL.format("/dev/shm"),
        "many small files": "i=0; while :; do : > f$i || exit 1; i=$((i+1)); done",
        "a sparse giant": "python3 -c \"open('giant', 'wb').truncate(1 << 45)\"",
        "endless output": "yes | head -c 200000000; exit 1",
    }
    found = {}
    for name, command in bombs.items():
        tries = _HIDDEN_TRIES if command.endswith(_HIDE[-20:]) else 1
        while tries and found.get(name) != "ok":
            found[name] = await _flood(bench, other, command)
            await _come_to_itself(bench)
            tries -= 1
    try:
        await bench.agent.spawn(["/bin/true"], env={f"V{number}": "x" * 100_000 for number in range(90)})
        found["a huge environment"] = "it was taken"
    except OSError:
        found["a huge environment"] = "ok"
    return found


async def _flood(bench: Bench, other: Bench, command: str) -> str:
    began = time.monotonic()
    bomb = asyncio.create_task(bench.shell(command, timeout=_BOMB_SECONDS))
    beside = await other.shell("echo at work", timeout=20)
    took = time.monotonic() - began
    if beside.stdout != b"at work\n" or took > 10:
        return f"the other workspace was held up: {beside} after {took:.1f} s"
    try:
        done = await bomb
    except OSError:
        return "ok"  # not even the shell could be started
    except SandboxFailed as error:
        return f"its own sandbox ended: {error}"
    return "ok" if done.code != 0 else f"it went through: {done}"


async def _come_to_itself(bench: Bench) -> None:
    deadline = time.monotonic() + _SECONDS
    clean = "chmod -f 700 closed; rm -rf closed; "
    clean += "find . /dev/shm ${TMPDIR:-/tmp} -mindepth 1 -maxdepth 1 -name '[bfg]*' -delete 2>/dev/null; echo clean"
    while time.monotonic() < deadline:
        try:
            if b"clean" in (await bench.shell(clean, timeout=10)).stdout:
                bench.sandbox.breach()
                return
        except OSError:
            pass
        for job in await bench.agent.jobs():
            await bench.agent.kill_job(job.number)
    raise AssertionError("the sandbox does not come to itself")


@asynccontextmanager
async def started(name: str, folder: Path) -> AsyncIterator[Bench]:
    """A sandbox of a driver; for finding out whether there is such a thing here."""
    async with opened(driver_of(name, folder), folder) as bench:
        yield bench


def main() -> None:
    print(json.dumps(assault(sys.argv[1])))


if __name__ == "__main__":
    main()
