"""Holding a driver to its word: one sandbox is really started, and each promise tried from inside.

Nothing is concluded from versions, files or settings of the machine. Something secret, a port, an abstract socket and a
process are put up outside, and a program inside tries to reach them, and to do what it must not.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from stateroom import ids
from stateroom.errors import StateroomError
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import Driver, Promise, Report, Sandbox, SandboxSpec

_MEMORY_BYTES: Final = 256 * 1024 * 1024
_DISK_BYTES: Final = 32 * 1024 * 1024
_PROCESSES: Final = 48
_SECONDS: Final = 30.0
_OUTPUT_BYTES: Final = 65_536
_INSIDE: Final = inside_directory() / "tries.py"
_LIMITS: Final = frozenset({"processes are bounded", "memory is bounded", "disk is bounded"})
"""Without these a sandbox is weaker, and still one."""


async def probe(driver: Driver) -> Report:
    """Raises nothing: what fails is in the report."""
    folder = tempfile.mkdtemp(prefix="stateroom-probe-")
    # A sandbox may run as another user, who has to pass through it.
    os.chmod(folder, 0o711)  # noqa: PTH101, S103  # to pass, not to list
    try:
        return await _probe(driver, Path(folder))
    except (StateroomError, OSError, ValueError) as error:
        return Report(driver.name, usable=False, reason=str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _probe(driver: Driver, folder: Path) -> Report:
    """Raises SandboxFailed, NoSandbox, OSError, ValueError."""
    files = folder / "files"
    files.mkdir()
    spec = SandboxSpec(
        id=ids.new_id("probe"),
        files=str(files),
        memory_bytes=_MEMORY_BYTES,
        processes=_PROCESSES,
        disk_bytes=_DISK_BYTES,
        environment={"STATEROOM_PROBE": "1"},
    )
    sandbox = await driver.start(spec)
    try:
        agent = await Agent.connect(sandbox)
        promises = await _tried(driver, agent, folder)
        promises += await _bounded(agent, sandbox)
        await agent.close()
    finally:
        await sandbox.stop()
    broken = [promise.name for promise in promises if not promise.held and promise.name not in _LIMITS]
    reason = f"not held: {', '.join(broken)}" if broken else ""
    return Report(driver.name, usable=not broken, reason=reason, promises=tuple(promises))


async def _tried(driver: Driver, agent: Agent, folder: Path) -> list[Promise]:
    """Raises SandboxFailed, OSError, ValueError."""
    secret = folder / "secret"
    secret.write_text("of this machine")
    secret.chmod(0o644)
    name = ids.new_id("probe")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        outside = {"secret": str(secret), "port": listener.getsockname()[1], "abstract": name, "pid": os.getpid()}
        source = await asyncio.to_thread(_INSIDE.read_text)
        done = await agent.run(
            ["python3", "-I", "-S", "-c", source, json.dumps(outside)], timeout=_SECONDS, keep_bytes=_OUTPUT_BYTES
        )
    if done.code:
        raise ValueError(f"the probe itself failed inside: {done.stderr.decode('utf-8', 'replace')[-500:]}")
    found = msgspec.json.decode(done.stdout, type=list[tuple[str, bool, str]])
    rows = [Promise(name, held, detail[:200]) for name, held, detail in found]
    if driver.caps.isolation == "container":  # an image has variables of its own
        rows = [row for row in rows if row.name != "the environment is clean"]
    if not driver.caps.hides_processes:
        rows = [row for row in rows if row.name != "other processes cannot be seen"]
    return rows


async def _bounded(agent: Agent, sandbox: Sandbox) -> list[Promise]:
    """Raises SandboxFailed, OSError."""
    count = "import os, sys, time\nn = 0\nwhile n < 200:\n"
    count += "    try:\n        pid = os.fork()\n    except OSError:\n        break\n"
    count += "    if not pid:\n        time.sleep(60)\n        os._exit(0)\n    n += 1\n"
    count += "print(n, flush=True)\nos.killpg(0, 9)"
    done = await agent.run(["python3", "-I", "-S", "-c", count], timeout=_SECONDS, keep_bytes=_OUTPUT_BYTES)
    forked = int(done.stdout or b"0")
    rows = [Promise("processes are bounded", 0 < forked <= _PROCESSES, f"{forked} of {_PROCESSES} allowed")]
    hold = f"x = [' ' * 50_000_000 for _ in range({_MEMORY_BYTES // 50_000_000 + 2})]\nimport time\ntime.sleep(2)"
    done = await agent.run(["python3", "-I", "-S", "-c", hold], timeout=_SECONDS, keep_bytes=_OUTPUT_BYTES)
    rows.append(Promise("memory is bounded", done.code != 0, f"exit code {done.code}"))
    sandbox.breach()
    fill = "i=0; while [ $i -lt 64 ]; do head -c 4194304 /dev/zero > fill$i || exit 1; sleep 0.02; i=$((i+1)); done"
    done = await agent.run(["/bin/sh", "-c", fill], timeout=_SECONDS, keep_bytes=_OUTPUT_BYTES)
    rows.append(Promise("disk is bounded", done.code != 0, sandbox.breach() or f"exit code {done.code}"))
    return rows
