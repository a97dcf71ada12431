"""What the drivers that isolate have in common: a sandbox as seen by whoever has it, and one start for each workspace.

How something is started, who belongs to it and how it ends is each driver's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from stateroom.errors import SandboxFailed
from stateroom.workspaces.drivers import processes
from stateroom.workspaces.drivers.owners import Owner, claim_owner, hand_over
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.workspace import Caps, Report, SandboxSpec

_STREAM_BYTES: Final = 128 * 1024


class IsolatedSandbox(ABC):
    """A sandbox whose processes can be stopped and ended from here."""

    def __init__(
        self,
        spec: SandboxSpec,
        first_pid: int,
        owner: Owner | None,
        watch: Watch,
        forget: Callable[[Any], None],
    ) -> None:
        self.spec: Final = spec
        self.first_pid: Final = first_pid
        """Of the agent, on this machine; 0: it runs where this process cannot look."""
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
        return self._stopping is None and self._is_running()

    @property
    def owner(self) -> tuple[int, int] | None:
        return (self._owner.number, self._owner.number) if self._owner else None

    @abstractmethod
    def members(self) -> list[int]:
        """Its processes on this machine but for the agent. Raises OSError when it is gone."""

    def activity(self) -> int:
        """Grows when something runs. Raises OSError when it is gone."""
        return sum(map(processes.used_ticks, [*self.members(), self.first_pid]))

    def touch(self) -> None:
        self._watch.touch(self)

    def breach(self) -> str:
        if self._memory_killed():
            self._breach = self._breach or f"its processes needed more than {self.spec.memory_bytes} bytes of memory"
        said, self._breach = self._breach, ""
        return said

    def end_all(self, reason: str) -> None:
        """End its processes but for the agent. In any thread."""
        with self._moving, contextlib.suppress(SandboxFailed, OSError):
            if self._is_frozen:  # what stands still harms nobody, and is looked at again once it moves
                return
            self._breach = reason
            self._kill_members()

    async def freeze(self) -> None:
        """Raises SandboxFailed."""
        if not self.is_alive:
            raise SandboxFailed("the sandbox has ended")
        await asyncio.to_thread(self._set_frozen, frozen=True)

    async def thaw(self) -> None:
        """Raises SandboxFailed."""
        if self.is_alive:
            await asyncio.to_thread(self._set_frozen, frozen=False)

    async def stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    def _set_frozen(self, *, frozen: bool) -> None:
        """Raises SandboxFailed."""
        with self._moving:
            self._move(frozen=frozen)
            self._is_frozen = frozen

    def _kill_members(self) -> None:
        """Raises SandboxFailed, OSError."""
        processes.Stopper(self.members).freeze()
        for pid in self.members():
            processes.send_signal(pid, signal.SIGKILL)

    async def _stop(self) -> None:
        self._forget(self)
        if self._writer is not None:
            self._writer.close()
        try:
            await asyncio.to_thread(self._end)
        finally:
            if self._owner is not None:
                self._owner.release()

    @abstractmethod
    def _is_running(self) -> bool: ...

    @abstractmethod
    def _memory_killed(self) -> bool:
        """Whether the kernel has ended some of it for want of memory since this was last asked."""

    @abstractmethod
    def _move(self, *, frozen: bool) -> None:
        """Bring it to a standstill, or set it going. Raises SandboxFailed."""

    @abstractmethod
    def _end(self) -> None:
        """End all of it, and wait for that. Raises SandboxFailed."""


_Sandbox = TypeVar("_Sandbox", bound=IsolatedSandbox)


class IsolatingDriver(ABC, Generic[_Sandbox]):
    """`data`: the server's data directory, by which its own sandboxes are known from those of others."""

    name: str

    def __init__(self, data: Path | str) -> None:
        self.tag: Final = processes.tag_of(data)
        self._living: set[str] = set()
        self._watch: Watch | None = None

    @property
    @abstractmethod
    def caps(self) -> Caps: ...

    async def probe(self) -> Report:
        from stateroom.workspaces.drivers.probe import (
            probe,  # it needs the drivers' client, and servers may never probe
        )

        return await probe(self)

    async def start(self, spec: SandboxSpec) -> _Sandbox:
        """Raises SandboxFailed, NoSandbox."""
        if spec.id in self._living:
            raise SandboxFailed("the workspace has a sandbox already")
        self._living.add(spec.id)
        owner = None
        try:
            await self._make_ready(spec)
            if os.getuid() == 0:
                owner = claim_owner(spec.id, spec.files)
                await asyncio.to_thread(_hand_over_all, spec, owner.number)
            sandbox = await self._started(spec, owner)
        except BaseException as error:
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

    def _forget(self, sandbox: _Sandbox) -> None:
        self._living.discard(sandbox.spec.id)
        self._watching().remove(sandbox)

    def _watching(self) -> Watch:
        if self._watch is None:
            self._watch = Watch(memory=self._watches_memory())
        return self._watch

    @abstractmethod
    def _watches_memory(self) -> bool:
        """Whether nobody else bounds it."""

    @abstractmethod
    async def _make_ready(self, spec: SandboxSpec) -> None:
        """Find what every start needs. Raises NoSandbox."""

    @abstractmethod
    async def _started(self, spec: SandboxSpec, owner: Owner | None) -> _Sandbox:
        """Start one, or leave nothing behind. Raises SandboxFailed, NoSandbox, OSError."""

    @abstractmethod
    def _sweep(self) -> int: ...


def _hand_over_all(spec: SandboxSpec, number: int) -> None:
    """Raises SandboxFailed, OSError."""
    hand_over(spec.files, number)
    if spec.egress:
        os.chown(spec.egress, number, number, follow_symlinks=False)
