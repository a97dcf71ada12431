"""The driver over Docker or Podman: each sandbox a container of its own, without network, from an image of yours.

It speaks to the engine by its command line, and to the agent over the standard input and output of `run`. The image
needs a Python 3.8 and nothing of ours: the agent is bound into it. Nothing is ever fetched: an image that is not there
is an error. Whatever kills the server closes the agent's input, and with the agent the container ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.workspaces.drivers import oci_profile, processes
from stateroom.workspaces.drivers.isolating import IsolatedSandbox, IsolatingDriver
from stateroom.workspaces.drivers.oci_engine import Engine
from stateroom.workspaces.drivers.oci_memory import MemoryKills
from stateroom.workspaces.drivers.owners import Owner
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.workspace import Caps, SandboxSpec

log = logging.getLogger("stateroom.workspaces")

_STOP_SECONDS: Final = 10.0


class OciSandbox(IsolatedSandbox):
    """One container."""

    def __init__(
        self,
        spec: SandboxSpec,
        engine: Engine,
        name: str,
        process: subprocess.Popen[bytes],
        first_pid: int,
        owner: Owner | None,
        watch: Watch,
        forget: Callable[[Any], None],
    ) -> None:
        super().__init__(spec, first_pid, owner, watch, forget)
        self.name: Final = name
        self._engine = engine
        self._process = process
        self._namespace = processes.namespace_of(first_pid) if first_pid else ""
        self._memory_kills = MemoryKills(first_pid)

    @property
    def is_in_reach(self) -> bool:
        """Whether its processes can be seen and told to stand still from here."""
        return bool(self._namespace)

    def members(self) -> list[int]:
        """Its processes but for the agent, as far as they can be seen."""
        return [pid for pid in processes.in_namespace(self._namespace) if pid != self.first_pid]

    def activity(self) -> int:
        return super().activity() if self.is_in_reach else time.monotonic_ns()

    def _is_running(self) -> bool:
        return self._process.poll() is None

    def _memory_killed(self) -> bool:
        return bool(self._memory_kills.fresh())

    def _kill_members(self) -> None:
        """All of the container where they are out of reach."""
        if self.is_in_reach:
            super()._kill_members()
        else:
            self._engine.ask("kill", self.name)

    def _move(self, *, frozen: bool) -> None:
        """By signals where that can be done, in a tenth of the time that it takes the engine."""
        if not self.is_in_reach:
            if frozen != self._is_frozen:
                self._engine.ask("pause" if frozen else "unpause", self.name)
        elif frozen:
            self._stopper.freeze()
        else:
            self._stopper.thaw()

    def _end(self) -> None:
        """Raises SandboxFailed."""
        if self._is_frozen and not self.is_in_reach:
            with contextlib.suppress(SandboxFailed):
                self._engine.ask("unpause", self.name)
        if self.is_in_reach:
            for pid in (self.first_pid, *self.members()):  # with its first process a namespace ends
                processes.send_signal(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS if self.is_in_reach else 1.0)
        if self._process.poll() is None:
            with contextlib.suppress(SandboxFailed):
                self._engine.ask("rm", "--force", self.name)
            self._process.kill()
            self._process.wait()


class OciDriver(IsolatingDriver[OciSandbox]):
    """`python`: that of the image."""

    def __init__(
        self, data: Path | str, *, engine: Literal["docker", "podman"], image: str, python: str = "", program: str = ""
    ) -> None:
        super().__init__(data)
        self.name = engine
        self._image = oci_profile.Image(engine, image, python or "python3", self.tag)
        self._engine = Engine(program or engine)
        self._count = 0

    @property
    def caps(self) -> Caps:
        # Without root podman may not be able to bound memory; it is then looked at, as everywhere.
        by_kernel = self.name == "docker" or os.getuid() == 0
        return Caps(
            isolation="container", hides_processes=True, memory="cgroup" if by_kernel else "watched", egress=True
        )

    async def sweep(self) -> int:
        if shutil.which(self._engine.program) is None:
            return 0
        return await super().sweep()

    def _watches_memory(self) -> bool:
        return True

    async def _make_ready(self, spec: SandboxSpec) -> None:
        """Raises NoSandbox."""
        if not self._image.name:
            raise NoSandbox(f"the driver {self.name} needs a container image: set `workspaces.image`")
        if shutil.which(self._engine.program) is None:
            raise NoSandbox(f"{self._engine.program} was not found; install it, or choose another `workspaces.driver`")

    async def _started(self, spec: SandboxSpec, owner: Owner | None) -> OciSandbox:
        """Raises SandboxFailed, NoSandbox, OSError."""
        self._count += 1
        name = f"stateroom-{self.tag}-{os.getpid()}-{self._count}"
        try:
            words = oci_profile.options(self._image, spec, name, owner)
            process, channel = await asyncio.to_thread(self._engine.run, words)
            try:
                first = await asyncio.to_thread(self._first_pid, name)
                sandbox = OciSandbox(spec, self._engine, name, process, first, owner, self._watching(), self._forget)
                await sandbox.open(channel)
            except BaseException:
                channel.close()
                raise
        except BaseException:
            with contextlib.suppress(SandboxFailed):
                await asyncio.to_thread(self._engine.ask, "rm", "--force", name)
            raise
        return sandbox

    def _first_pid(self, name: str) -> int:
        """0: it is not a process of this machine that we may look into. Raises SandboxFailed."""
        said = self._engine.ask("inspect", "--format", "{{.State.Pid}}", name)
        pid = int(said) if said.isdigit() else 0
        wanted = f"tag={self.tag}".encode()
        own = processes.namespace_of(os.getpid())
        is_ours = wanted in processes.command_line(pid) and processes.namespace_of(pid) not in ("", own)
        return pid if is_ours and _may_signal(pid) else 0

    def _sweep(self) -> int:
        try:
            found = self._engine.ask(
                "ps", "--all", "--quiet", "--filter", f"label={oci_profile.LABEL}={self.tag}"
            ).split()
        except SandboxFailed as error:
            log.warning("workspaces.not_swept driver=%s because %s", self.name, error.message)
            return 0
        for container in found:
            with contextlib.suppress(SandboxFailed):  # it is on its way out already
                self._engine.ask("rm", "--force", container)
        return len(found)


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
