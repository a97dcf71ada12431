"""The driver that keeps nothing in: the agent runs as a process like any other, and so does all that it starts.

For machines where nothing isolates and whose operator wrote `unsafe = true`. What runs here can read and do whatever
the server can. It is the same agent, so that commands, background and interpreters work as everywhere; each process is
bounded, all of them together are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.workspaces.drivers import processes
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import Caps, Report, SandboxSpec

_AGENT: Final = str(inside_directory() / "agent.py")
_STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.005
_STREAM_BYTES: Final = 128 * 1024


class UnsafeSandbox:
    """Processes with nothing around them."""

    def __init__(
        self,
        spec: SandboxSpec,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tag: str,
    ) -> None:
        self.spec: Final = spec
        self.reader: Final = reader
        self.writer: Final = writer
        self.owner: Final[tuple[int, int] | None] = None
        self._process = process
        self._tag = tag
        self._stopper = processes.Stopper(self.members)
        self._stopping = False

    @property
    def is_alive(self) -> bool:
        return not self._stopping and self._process.poll() is None

    def members(self) -> list[int]:
        """What the agent started, and what that started: by its descent, or by the mark that it carries."""
        mark = f"STATEROOM_SANDBOX={self._tag}".encode()
        parents = {pid: processes.parent_of(pid) for pid in processes.all_pids()}
        found = {self._process.pid}
        size = 0
        while size != len(found):
            size = len(found)
            found |= {pid for pid, parent in parents.items() if parent in found}
        found |= {pid for pid in parents if mark in processes.environment(pid)}
        return sorted(found - {self._process.pid})

    def touch(self) -> None:
        """Nothing bounds it."""

    def breach(self) -> str:
        return ""

    async def freeze(self) -> None:
        """Raises SandboxFailed."""
        if not self.is_alive:
            raise SandboxFailed("the sandbox has ended")
        await asyncio.to_thread(self._stopper.freeze)

    async def thaw(self) -> None:
        await asyncio.to_thread(self._stopper.thaw)

    async def stop(self) -> None:
        self._stopping = True
        self.writer.close()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        members = self.members()
        self._process.kill()
        with contextlib.suppress(SandboxFailed):
            self._stopper.freeze()
        deadline = time.monotonic() + _STOP_SECONDS
        while members and time.monotonic() < deadline:
            for pid in members:
                processes.send_signal(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
            members = [pid for pid in {*members, *self.members()} if processes.is_running(pid)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)


class UnsafeDriver:
    """`data`: the server's data directory, by which its own processes are known."""

    name: Final = "unsafe"
    caps: Final = Caps(isolation="none", hides_processes=False, memory="rlimit", egress=False, own_paths=False)

    def __init__(self, data: Path | str, *, python: str = "") -> None:
        self._tag = processes.tag_of(data)
        self._python = python or sys.executable

    async def probe(self) -> Report:
        return Report(self.name, usable=True, reason="nothing isolates: whatever runs here can do what the server can")

    async def start(self, spec: SandboxSpec) -> UnsafeSandbox:
        """Raises SandboxFailed, NoSandbox."""
        if spec.egress:
            raise NoSandbox("where nothing isolates, no allow-list of domains can be kept")
        tag = f"{self._tag}.{spec.id}"
        try:
            process, channel = await asyncio.to_thread(self._launch, spec, tag)
        except OSError as error:
            raise SandboxFailed(f"the workspace's processes could not be started: {error}") from error
        reader, writer = await asyncio.open_connection(sock=channel, limit=_STREAM_BYTES)
        return UnsafeSandbox(spec, process, reader, writer, tag)

    def _launch(self, spec: SandboxSpec, tag: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Raises OSError."""
        own = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": spec.files, "LANG": "C.UTF-8"}
        bounds = ["limit.CORE=0", f"limit.DATA={spec.memory_bytes}", f"limit.FSIZE={spec.disk_bytes}"]
        # Nothing can be mounted: the agent puts the paths of this machine in place of names that stand alone.
        places = [f"place.{at}={mount.target}:{mount.source}" for at, mount in enumerate(spec.mounts)]
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603  # our own agent
                    [self._python, "-I", "-S", _AGENT, f"files={spec.files}", f"tag={self._tag}", *bounds, *places],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=spec.files,
                    env={**own, "WORKSPACE": spec.files, **spec.environment, "STATEROOM_SANDBOX": tag},
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return process, ours

    async def sweep(self) -> int:
        mark = f"STATEROOM_SANDBOX={self._tag}.".encode()
        found = 0
        for pid in processes.all_pids():
            if any(word.startswith(mark) for word in processes.environment(pid)):
                processes.send_signal(pid, signal.SIGKILL)
                found += 1
        return found
