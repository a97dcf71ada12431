"""The driver over Landlock and seccomp, for machines where nobody may make namespaces: the fallback.

What it keeps in is less than what namespaces do, and docs/reference/isolation.md says what. A sandbox reads the system
and its own mounts, writes its workspace and a directory for what is temporary, and has no sockets at all. Where the
server is root each one runs as a user number of its own; else as the server's user, which takes a kernel that scopes
signals, and a holder for what Landlock does not know. There is no `/workspace` inside: the agent puts the real path in
its place where that is a word by itself, and a program finds it in `$WORKSPACE` and as its working directory.
"""

from __future__ import annotations

import asyncio
import ctypes
import marshal
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from stateroom.errors import NoSandbox
from stateroom.workspaces.drivers import landlock_profile, processes
from stateroom.workspaces.drivers.cgroups import Cgroups, Group
from stateroom.workspaces.drivers.landlock_launcher import start_holder
from stateroom.workspaces.drivers.landlock_profile import make_room, temporary_of
from stateroom.workspaces.drivers.launcher import Started
from stateroom.workspaces.drivers.local import LocalDriver, LocalSandbox
from stateroom.workspaces.drivers.owners import Owner, hand_over
from stateroom.workspaces.drivers.python_runtime import Runtime, find_runtime
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.workspace import Caps, SandboxSpec

_LEAST_VERSION: Final = 6
"""Of Landlock, for sandboxes that run as the server's own user: the first that keeps signals in."""
_CREATE_RULESET: Final = 444


class LandlockSandbox(LocalSandbox):
    """A sandbox of processes that a holder looks after; what is known of it from outside differs in who belongs."""

    on_touch: Callable[[], None] | None = None

    def touch(self) -> None:
        super().touch()
        if self.on_touch is not None:
            self.on_touch()

    def members(self) -> list[int]:
        if self._group is not None:
            return super().members()
        outside = {self._started.pid, self._started.first}
        owner = self._owner
        own = processes.of_user(owner.number) if owner is not None else processes.below(self._started.pid)
        return sorted(set(own) - outside)

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            if self._owner is not None:  # whoever killed the holder did not make these ours
                for pid in processes.of_user(self._owner.number):
                    processes.send_signal(pid, signal.SIGKILL)
            shutil.rmtree(temporary_of(self.spec), ignore_errors=True)


class _Temporary:
    """The directory for what is temporary, as something to be watched: its bounds are those of the workspace."""

    def __init__(self, sandbox: LandlockSandbox) -> None:
        self._sandbox = sandbox
        self.spec: Final = msgspec.structs.replace(sandbox.spec, files=temporary_of(sandbox.spec))

    def members(self) -> list[int]:
        return self._sandbox.members()

    def activity(self) -> int:
        return self._sandbox.activity()

    def end_all(self, reason: str) -> None:
        self._sandbox.end_all(reason.replace("the workspace", "the directory for temporary files"))


class LandlockDriver(LocalDriver[LandlockSandbox]):
    """`python` and `cgroups` are found where they are not given; `may_mount` False: as where that is not permitted."""

    name = "landlock"
    own_processes = landlock_profile.OWN_PROCESSES
    mark = "l"

    def __init__(
        self, data: Path | str, *, python: str = "", cgroups: Cgroups | None = None, may_mount: bool | None = None
    ) -> None:
        super().__init__(data, cgroups=cgroups)
        self._python = python
        self._runtime: Runtime | None = None
        self._may_mount = may_mount
        self._temporary: dict[str, _Temporary] = {}
        self._temporary_watch = Watch(memory=False)

    @property
    def caps(self) -> Caps:
        memory: Literal["cgroup", "watched"] = "watched" if self._watches_memory() else "cgroup"
        return Caps(isolation="landlock", hides_processes=False, memory=memory, egress=False, own_paths=False)

    async def start(self, spec: SandboxSpec) -> LandlockSandbox:
        """Raises SandboxFailed, NoSandbox."""
        sandbox = await super().start(spec)
        room = self._temporary[spec.id] = _Temporary(sandbox)
        self._temporary_watch.add(room)
        sandbox.on_touch = lambda: self._temporary_watch.touch(room)
        return sandbox

    def _forget(self, sandbox: LandlockSandbox) -> None:
        super()._forget(sandbox)
        temporary = self._temporary.pop(sandbox.spec.id, None)
        if temporary is not None:
            self._temporary_watch.remove(temporary)

    async def _make_ready(self, spec: SandboxSpec) -> None:
        if spec.egress:
            raise NoSandbox("sandboxes behind Landlock have no network, not even to the domains of an allow-list")
        await super()._make_ready(spec)

    async def _started(self, spec: SandboxSpec, owner: Owner | None) -> LandlockSandbox:
        try:
            await asyncio.to_thread(_make_temporary, temporary_of(spec), owner)
            return await super()._started(spec, owner)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, temporary_of(spec), ignore_errors=True)
            raise

    def _find(self) -> Runtime:
        """Raises NoSandbox."""
        version = landlock_version()
        if version < 1:
            raise NoSandbox("this kernel has no Landlock, or it is not switched on (`lsm=landlock,...`)")
        if os.getuid() and version < _LEAST_VERSION:
            raise NoSandbox(
                f"Landlock of this kernel (version {version}) does not keep signals in; it takes Linux 6.12, or a"
                " server that is root and can give each sandbox a user of its own"
            )
        self._groups()
        if self._may_mount is None:
            self._may_mount = os.getuid() == 0 and processes.may_mount()
        if self._runtime is None:
            self._runtime = find_runtime(self._python)
        return self._runtime

    def _launch(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None, group: Group | None) -> Started:
        room = make_room(spec, runtime, may_mount=bool(self._may_mount))
        plan = landlock_profile.plan(
            spec,
            runtime,
            room,
            owner=owner,
            group=group,
            tag=self.tag,
            counted_memory_only=self._watches_memory(),
        )
        return start_holder(marshal.dumps(plan))

    def _sandbox(
        self, spec: SandboxSpec, started: Started, group: Group | None, owner: Owner | None
    ) -> LandlockSandbox:
        return LandlockSandbox(spec, started, group, owner, self._watching(), self._forget)

    def _end_left_behind(self, tag: bytes) -> int:
        found = 0
        for pid in processes.all_pids():
            words = processes.command_line(pid)
            if tag in words and any(word.startswith(b"logs=") for word in words):
                for member in (*processes.below(pid), pid):
                    processes.send_signal(member, signal.SIGKILL)
                found += 1
        return found


def landlock_version() -> int:
    """Of this kernel; 0: it has none."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def _make_temporary(temporary: str, owner: Owner | None) -> None:
    """Raises SandboxFailed, OSError."""
    shutil.rmtree(temporary, ignore_errors=True)
    Path(temporary).mkdir(mode=0o700, exist_ok=True)
    if owner is not None:
        hand_over(temporary, owner.number)
