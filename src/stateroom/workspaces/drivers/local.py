"""What the drivers have in common that start processes of this machine themselves: control groups, Python, their end.

Bounds come from control groups where some can be made, and else from limits of the user and a look every so often.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from stateroom.workspaces.drivers import processes
from stateroom.workspaces.drivers.cgroups import Cgroups, Group, find_cgroups
from stateroom.workspaces.drivers.isolating import IsolatedSandbox, IsolatingDriver
from stateroom.workspaces.drivers.launcher import Started
from stateroom.workspaces.drivers.owners import Owner
from stateroom.workspaces.drivers.python_runtime import Runtime
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.workspace import SandboxSpec

_STOP_SECONDS: Final = 10.0


class LocalSandbox(IsolatedSandbox):
    """A sandbox of processes that the server has started."""

    def __init__(
        self,
        spec: SandboxSpec,
        started: Started,
        group: Group | None,
        owner: Owner | None,
        watch: Watch,
        forget: Callable[[Any], None],
    ) -> None:
        super().__init__(spec, started.first, owner, watch, forget)
        self._started = started
        self._group = group

    def members(self) -> list[int]:
        if self._group is not None:
            outside = {self._started.pid, self._started.first}
            return [pid for pid in self._group.members() if pid not in outside]
        return [pid for pid in processes.in_namespace(self._started.namespace) if pid != self._started.first]

    def _is_running(self) -> bool:
        return self._started.is_running

    def _memory_killed(self) -> bool:
        return self._group is not None and bool(self._group.memory_kills())

    def _move(self, *, frozen: bool) -> None:
        by_group = self._group is not None and self._group.can_freeze
        holder = self._group if self._group is not None and by_group else self._stopper
        if frozen:
            holder.freeze()
        else:
            holder.thaw()

    def _end(self) -> None:
        end(self._started, self._group)

    async def _stop(self) -> None:
        try:
            await super()._stop()
        finally:
            self._started.close()


_Sandbox = TypeVar("_Sandbox", bound=LocalSandbox)


class LocalDriver(IsolatingDriver[_Sandbox]):
    """`cgroups` are found where they are not given."""

    own_processes: int
    """Of a sandbox's group, beside those of its workspace."""
    mark = ""
    """Tells the groups of one driver from those of another."""

    def __init__(self, data: Path | str, *, cgroups: Cgroups | None) -> None:
        super().__init__(data)
        self._cgroups = cgroups
        self._count = 0

    async def _make_ready(self, spec: SandboxSpec) -> None:
        await asyncio.to_thread(self._find)

    async def _started(self, spec: SandboxSpec, owner: Owner | None) -> _Sandbox:
        group = started = None
        try:
            group = await asyncio.to_thread(self._make_group, spec)
            started = await asyncio.to_thread(self._launch, spec, self._find(), owner, group)
            sandbox = self._sandbox(spec, started, group, owner)
            await sandbox.open(started.channel)
        except BaseException:
            await asyncio.to_thread(_undo, started, group)
            raise
        return sandbox

    def _watches_memory(self) -> bool:
        return not self._groups().bounds_memory

    def _groups(self) -> Cgroups:
        if self._cgroups is None:
            self._cgroups = find_cgroups()
        return self._cgroups

    def _make_group(self, spec: SandboxSpec) -> Group | None:
        """Raises SandboxFailed."""
        cgroups = self._groups()
        if not cgroups.directories:
            return None
        self._count += 1
        name = f"stateroom.{self.tag}.{os.getpid()}.{self.mark}{self._count}"
        return cgroups.make(name, memory_bytes=spec.memory_bytes, processes=spec.processes + self.own_processes)

    def _sweep(self) -> int:
        found = 0
        groups = self._groups().left_behind(f"stateroom.{self.tag}.")
        for group in groups:
            with contextlib.suppress(OSError):
                found += bool(group.members())
            group.kill()
        found += self._end_left_behind(f"tag={self.tag}".encode())
        for group in groups:  # one that was just starting may have gone into it only now
            group.kill()
            with contextlib.suppress(OSError):
                group.remove()
        self._groups().remove_deserted()
        return found

    @abstractmethod
    def _find(self) -> Runtime:
        """What every start needs; the second time it costs nothing. Raises NoSandbox."""

    @abstractmethod
    def _launch(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None, group: Group | None) -> Started:
        """Raises SandboxFailed, NoSandbox, OSError."""

    @abstractmethod
    def _sandbox(self, spec: SandboxSpec, started: Started, group: Group | None, owner: Owner | None) -> _Sandbox: ...

    @abstractmethod
    def _end_left_behind(self, tag: bytes) -> int:
        """End what an earlier process left, known by a word of its command line; how many sandboxes."""


def end(started: Started, group: Group | None) -> None:
    """All of it, and wait for that. Raises SandboxFailed."""
    if group is not None:
        group.kill()
    started.kill()
    started.wait(_STOP_SECONDS)
    if group is not None:
        group.kill()
        group.remove()


def _undo(started: Started | None, group: Group | None) -> None:
    """Raises SandboxFailed."""
    if started is not None:
        try:
            end(started, group)
        finally:
            started.close()
    elif group is not None:
        group.kill()
        group.remove()
