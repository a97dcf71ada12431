"""The driver over Docker or Podman: each sandbox a container of its own, without network, from an image of yours.

It speaks to the engine by its command line, and to the agent over the standard input and output of `run`. The image
needs a Python 3.8 and nothing of ours: the agent is bound into it. Nothing is ever fetched: an image that is not there
is an error. Whatever kills the server closes the agent's input, and with the agent the container ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.workspaces.drivers import processes, profile, seccomp
from stateroom.workspaces.drivers.oci_memory import MemoryKills
from stateroom.workspaces.drivers.owners import Owner, claim_owner, hand_over
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.layout import INSIDE, inside_directory
from stateroom.workspaces.workspace import WORKSPACE, Caps, Mount, Report, SandboxSpec

log = logging.getLogger("stateroom.workspaces")

_LABEL: Final = "stateroom.data"
_OPEN_FILES: Final = 4_096
_OWN_PROCESSES: Final = 1
_ROOTLESS_PROCESSES: Final = 4_096
"""Of all containers of a user; the agent bounds those of its own."""
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0
_ASK_SECONDS: Final = 30.0
_STREAM_BYTES: Final = 128 * 1024
_SAID_BYTES: Final = 2_000
_MIB: Final = 1024 * 1024
_PROGRAMS: Final = f"{INSIDE}/programs"


class Engine:
    """The command line of Docker or Podman. Everything here blocks."""

    def __init__(self, program: str) -> None:
        self.program = program

    def ask(self, *words: str) -> str:
        """What it prints. Raises SandboxFailed."""
        try:
            done = subprocess.run(  # noqa: S603  # the engine that the operator named
                [self.program, *words],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ASK_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxFailed(f"{self.program} does not answer: {error}") from error
        if done.returncode:
            raise SandboxFailed(f"`{self.program} {words[0]}` failed: {_last_line(done.stderr)}")
        return done.stdout.strip()

    def run(self, words: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A container, once its agent has said its first word. Raises SandboxFailed, OSError."""
        said = os.memfd_create("stateroom", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: S603  # as above
                    [self.program, "run", *words],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=said,
                    start_new_session=True,
                )
            if select.select([ours], [], [], _START_SECONDS)[0] and ours.recv(1, socket.MSG_PEEK):
                return process, ours
            ours.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            reason = _last_line(os.pread(said, _SAID_BYTES, 0).decode("utf-8", "replace"))
            raise SandboxFailed(f"the container could not be started: {reason}")
        except OSError:
            ours.close()
            raise
        finally:
            os.close(said)


class OciSandbox:
    """One container."""

    def __init__(
        self,
        spec: SandboxSpec,
        engine: Engine,
        name: str,
        process: subprocess.Popen[bytes],
        first: int,
        owner: Owner | None,
        driver: OciDriver,
    ) -> None:
        self.spec: Final = spec
        self.name: Final = name
        self._engine = engine
        self._process = process
        self.first_pid: Final = first
        """Of the agent on this machine; 0: the engine runs it where this process cannot look."""
        self._namespace = processes.namespace_of(first) if first else ""
        self._owner = owner
        self._driver = driver
        self._memory_kills = MemoryKills(first)
        self._stopper = processes.Stopper(self.members)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._breach = ""
        self._is_frozen = False
        self._moving = threading.Lock()
        self._stopping: asyncio.Task[None] | None = None

    async def open(self, channel: socket.socket) -> None:
        """Raises OSError."""
        self._reader, self._writer = await asyncio.open_connection(sock=channel, limit=_STREAM_BYTES)

    @property
    def reader(self) -> asyncio.StreamReader:
        assert self._reader is not None, "opened by the driver"
        return self._reader

    @property
    def writer(self) -> asyncio.StreamWriter:
        assert self._writer is not None, "opened by the driver"
        return self._writer

    @property
    def is_alive(self) -> bool:
        return self._stopping is None and self._process.poll() is None

    @property
    def owner(self) -> tuple[int, int] | None:
        return (self._owner.number, self._owner.number) if self._owner else None

    @property
    def is_in_reach(self) -> bool:
        """Whether its processes can be seen and told to stand still from here."""
        return bool(self._namespace)

    def members(self) -> list[int]:
        """Its processes but for the agent, as far as they can be seen."""
        return [pid for pid in processes.in_namespace(self._namespace) if pid != self.first_pid]

    def activity(self) -> int:
        if not self.is_in_reach:
            return time.monotonic_ns()
        return sum(map(processes.used_ticks, [*self.members(), self.first_pid]))

    def touch(self) -> None:
        self._driver.watching().touch(self)

    def breach(self) -> str:
        if self._memory_kills.fresh():
            self._breach = self._breach or f"its processes needed more than {self.spec.memory_bytes} bytes of memory"
        said, self._breach = self._breach, ""
        return said

    def end_all(self, reason: str) -> None:
        """End its processes but for the agent; all of the container where they are out of reach. In any thread."""
        with self._moving, contextlib.suppress(SandboxFailed, OSError):
            if self._is_frozen:
                return
            self._breach = reason
            if not self.is_in_reach:
                self._engine.ask("kill", self.name)
                return
            processes.Stopper(self.members).freeze()
            for pid in self.members():
                processes.send_signal(pid, signal.SIGKILL)

    async def freeze(self) -> None:
        """Raises SandboxFailed."""
        if not self.is_alive:
            raise SandboxFailed("the sandbox has ended")
        await asyncio.to_thread(self._set_frozen, frozen=True)

    async def thaw(self) -> None:
        """Raises SandboxFailed."""
        if self.is_alive:
            await asyncio.to_thread(self._set_frozen, frozen=False)

    def _set_frozen(self, *, frozen: bool) -> None:
        """By signals where that can be done, in a tenth of the time that it takes the engine. Raises SandboxFailed."""
        with self._moving:
            if not self.is_in_reach:
                if frozen != self._is_frozen:
                    self._engine.ask("pause" if frozen else "unpause", self.name)
            elif frozen:
                self._stopper.freeze()
            else:
                self._stopper.thaw()
            self._is_frozen = frozen

    async def stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._driver.forget(self)
        if self._writer is not None:
            self._writer.close()
        try:
            await asyncio.to_thread(self._end)
        finally:
            if self._owner is not None:
                self._owner.release()

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


class OciDriver:
    """`data`: the server's data directory, by which its own containers are known from those of others."""

    def __init__(
        self, data: Path | str, *, engine: Literal["docker", "podman"], image: str, python: str = "", program: str = ""
    ) -> None:
        self.name: Final = engine
        self.tag: Final = hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:16]
        self._image = image
        self._python = python or "python3"
        self._engine = Engine(program or engine)
        self._watch: Watch | None = None
        self._living: set[str] = set()
        self._count = 0

    @property
    def caps(self) -> Caps:
        # Without root podman may not be able to bound memory; it is then looked at, as everywhere.
        by_kernel = self.name == "docker" or os.getuid() == 0
        return Caps(
            isolation="container", hides_processes=True, memory="cgroup" if by_kernel else "watched", egress=True
        )

    async def probe(self) -> Report:
        from stateroom.workspaces.drivers.probe import (
            probe,  # it needs the drivers' client, and servers may never probe
        )

        return await probe(self)

    async def start(self, spec: SandboxSpec) -> OciSandbox:
        """Raises SandboxFailed, NoSandbox."""
        self._check()
        if spec.id in self._living:
            raise SandboxFailed("the workspace has a sandbox already")
        self._living.add(spec.id)
        self._count += 1
        name = f"stateroom-{self.tag}-{os.getpid()}-{self._count}"
        owner = None
        try:
            if os.getuid() == 0:
                owner = claim_owner(spec.id, spec.files)
                await asyncio.to_thread(_hand_over_all, spec, owner.number)
            sandbox = await self._started(spec, name, owner)
        except BaseException as error:
            with contextlib.suppress(SandboxFailed):
                await asyncio.to_thread(self._engine.ask, "rm", "--force", name)
            if owner is not None:
                owner.release()
            self._living.discard(spec.id)
            if isinstance(error, OSError):
                raise SandboxFailed(f"the container could not be started: {error}") from error
            raise
        self.watching().add(sandbox)
        return sandbox

    async def sweep(self) -> int:
        if shutil.which(self._engine.program) is None:
            return 0
        return await asyncio.to_thread(self._sweep)

    def watching(self) -> Watch:
        if self._watch is None:
            self._watch = Watch(memory=True)
        return self._watch

    def forget(self, sandbox: OciSandbox) -> None:
        self._living.discard(sandbox.spec.id)
        self.watching().remove(sandbox)

    def _check(self) -> None:
        """Raises NoSandbox."""
        if not self._image:
            raise NoSandbox(f"the driver {self.name} needs a container image: set `workspaces.image`")
        if shutil.which(self._engine.program) is None:
            raise NoSandbox(f"{self._engine.program} was not found; install it, or choose another `workspaces.driver`")

    async def _started(self, spec: SandboxSpec, name: str, owner: Owner | None) -> OciSandbox:
        """Raises SandboxFailed, NoSandbox, OSError."""
        process, channel = await asyncio.to_thread(self._engine.run, self._words(spec, name, owner))
        try:
            first = await asyncio.to_thread(self._first_pid, name)
            sandbox = OciSandbox(spec, self._engine, name, process, first, owner, self)
            await sandbox.open(channel)
            return sandbox
        except BaseException:
            channel.close()
            raise

    def _first_pid(self, name: str) -> int:
        """0: it is not a process of this machine that we may look into. Raises SandboxFailed."""
        said = self._engine.ask("inspect", "--format", "{{.State.Pid}}", name)
        pid = int(said) if said.isdigit() else 0
        wanted = f"tag={self.tag}".encode()
        own = processes.namespace_of(os.getpid())
        is_ours = wanted in processes.command_line(pid) and processes.namespace_of(pid) not in ("", own)
        return pid if is_ours and _may_signal(pid) else 0

    def _words(self, spec: SandboxSpec, name: str, owner: Owner | None) -> list[str]:
        """Options of `run`. Raises SandboxFailed, NoSandbox."""
        user = owner.number if owner else os.getuid()
        mounts = [Mount(str(inside_directory()), _PROGRAMS), *spec.mounts]
        return [
            *("--interactive", "--rm", "--pull", "never", "--name", name, "--label", f"{_LABEL}={self.tag}"),
            *("--network", "none", "--ipc", "private", "--hostname", "workspace", "--log-driver", "none"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only"),
            *(("--read-only-tmpfs=false", "--http-proxy=false") if self.name == "podman" else ()),
            *(("--userns", "keep-id") if self.name == "podman" and owner is None else ()),
            *("--user", f"{user}:{owner.number if owner else os.getgid()}"),
            *self._bounds(spec, owner),
            *("--workdir", WORKSPACE, *_bind(spec.files, WORKSPACE), *_bind(spec.files, "/mnt/data")),
            *(word for mount in mounts for word in _bind(mount.source, mount.target, read_only=True)),
            *(_bind(spec.egress, profile.EGRESS) if spec.egress else ()),
            *(word for pair in self._environment(spec).items() for word in ("--env", "=".join(pair))),
            *("--entrypoint", self._python, self._image),
            *self._command(spec, owner),
        ]

    def _bounds(self, spec: SandboxSpec, owner: Owner | None) -> list[str]:
        shm, room = min(64 * _MIB, spec.memory_bytes // 8), min(256 * _MIB, spec.memory_bytes // 4)
        hardest = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        # Named, since engines else ask for more than they may give on some machines.
        count = spec.processes + _OWN_PROCESSES if owner else _ROOTLESS_PROCESSES
        words = ["--memory", str(spec.memory_bytes), "--memory-swap", str(spec.memory_bytes)]
        words += ["--pids-limit", str(spec.processes + _OWN_PROCESSES), "--shm-size", str(shm)]
        words += ["--ulimit", f"nofile={_OPEN_FILES}:{_OPEN_FILES}", "--ulimit", "core=0:0"]
        words += ["--ulimit", f"fsize={spec.disk_bytes}:{spec.disk_bytes}"]
        if hardest != resource.RLIM_INFINITY:
            count = min(count, hardest)
        words += ["--ulimit", f"nproc={count}:{count}"]
        for place in ("/tmp", profile.HOME):  # noqa: S108  # those of the container
            words += ["--tmpfs", f"{place}:rw,nosuid,nodev,size={room},mode=1777"]
        return words

    def _environment(self, spec: SandboxSpec) -> dict[str, str]:
        own = {"HOME": profile.HOME, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh", "LANG": "C.UTF-8"}
        own |= {"TMPDIR": "/tmp", "TERM": "dumb"}  # noqa: S108  # as above
        return own | spec.environment

    def _command(self, spec: SandboxSpec, owner: Owner | None) -> list[str]:
        """Raises NoSandbox."""
        filter_ = seccomp.program()
        if filter_ is None:
            raise NoSandbox("there is no list of system calls for this machine's architecture")
        words = [f"tag={self.tag}", "out=1"]
        if self.name == "podman" and owner is None:
            words.append(f"limit.NPROC={spec.processes}")  # inside, the kernel counts those of this namespace alone
        if spec.egress:
            words += [f"egress={profile.EGRESS}", f"port={profile.EGRESS_PORT}"]
        confined = ["-I", "-S", f"{_PROGRAMS}/confine.py", base64.b64encode(filter_).decode()]
        return [*confined, "-I", "-S", f"{_PROGRAMS}/agent.py", *words]

    def _sweep(self) -> int:
        try:
            found = self._engine.ask("ps", "--all", "--quiet", "--filter", f"label={_LABEL}={self.tag}").split()
        except SandboxFailed as error:
            log.warning("workspaces.not_swept driver=%s because %s", self.name, error.message)
            return 0
        for container in found:
            with contextlib.suppress(SandboxFailed):  # it is on its way out already
                self._engine.ask("rm", "--force", container)
        return len(found)


def _bind(source: str, target: str, *, read_only: bool = False) -> tuple[str, str]:
    """Raises SandboxFailed."""
    if re.search(r'[,"\n]', source + target):
        raise SandboxFailed(f"no container engine can bind a path with a comma or a quote: {source}")
    return ("--mount", f"type=bind,source={source},target={target}" + (",readonly" if read_only else ""))


def _hand_over_all(spec: SandboxSpec, number: int) -> None:
    """Raises SandboxFailed, OSError."""
    hand_over(spec.files, number)
    if spec.egress:
        os.chown(spec.egress, number, number, follow_symlinks=False)


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
