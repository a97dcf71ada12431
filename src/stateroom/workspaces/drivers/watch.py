"""Bounds that the kernel does not hold for us: disk used by a workspace's files, and memory where no cgroup bounds it.

While something runs in a sandbox it is looked at several times a second, else once in a while, which costs next to
nothing. What passes its bound is brought to a standstill and killed, all of it but the agent, and the sandbox lives on.
Between two looks a bound can be passed by what a machine writes in that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Final, Protocol

from stateroom.workspaces.drivers import processes
from stateroom.workspaces.drivers.disk import DiskUse, disk_use
from stateroom.workspaces.drivers.kernel_memory import kernel_memory
from stateroom.workspaces.workspace import SandboxSpec

_BUSY_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 2.0
_CALM_SECONDS: Final = 2.0
_SCAN_SHARE: Final = 20
"""Looking at the files of all sandboxes together may take a twentieth of a processor."""
_THREADS: Final = 4
_GROWTH_SHARE: Final = 8
_NOTICED_BYTES: Final = 16 * 1024 * 1024


class Watched(Protocol):
    """The part of a sandbox that is watched. Its methods may be called in any thread."""

    @property
    def spec(self) -> SandboxSpec: ...

    def members(self) -> list[int]:
        """Its processes but for the agent."""
        ...

    def activity(self) -> int:
        """Something that grows when they do anything."""
        ...

    def end_all(self, reason: str) -> None:
        """End its processes but for the agent."""
        ...


class _Looks:
    """What the last looks at one sandbox found."""

    def __init__(self) -> None:
        self.activity = -1
        self.moved_at = 0.0
        self.scan_at = 0.0
        self.room = 0
        self.used = (0, 0)
        self.tolerated = (0, 0)
        """What it had when it was last stopped: less than that is no breach, so that files can be removed."""
        self.clear: tuple[int, int] | None = None
        """Room on the disk and bytes used, when it last held no file whose size nobody can tell."""


class Watch:
    """Looks after the sandboxes of one driver, while there are any."""

    def __init__(self, *, memory: bool) -> None:
        self._memory = memory
        self._watched: dict[Watched, _Looks] = {}
        self._task: asyncio.Task[None] | None = None
        self._touched = asyncio.Event()

    def add(self, sandbox: Watched) -> None:
        self._watched[sandbox] = _Looks()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def touch(self, sandbox: Watched) -> None:
        """Something begins there: look often, until nothing has moved for a while."""
        if looks := self._watched.get(sandbox):
            looks.moved_at = time.monotonic()
            self._touched.set()

    def remove(self, sandbox: Watched) -> None:
        self._watched.pop(sandbox, None)
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while self._watched:
            self._touched.clear()
            pairs = list(self._watched.items())
            busy = await asyncio.to_thread(_moved, pairs)
            # A thread for each would cost more than what it looks at; with one for all, all would wait for a long look.
            shares = [busy[first::_THREADS] for first in range(min(_THREADS, len(busy)))]
            await asyncio.gather(*[asyncio.to_thread(self._look_at_each, share, len(busy)) for share in shares])
            if busy:
                await asyncio.sleep(_BUSY_SECONDS)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._touched.wait()

    def _look_at_each(self, pairs: list[tuple[Watched, _Looks]], together: int) -> None:
        for pair in pairs:
            self._look(*pair, together)

    def _look(self, sandbox: Watched, looks: _Looks, together: int) -> None:
        with contextlib.suppress(OSError):  # it is being stopped
            if self._memory:
                self._look_at_memory(sandbox)
            self._look_at_files(sandbox, looks, together)

    def _look_at_memory(self, sandbox: Watched) -> None:
        allowed, members = sandbox.spec.memory_bytes, sandbox.members()
        beside = kernel_memory(members)
        if sum(map(processes.held_memory, members)) + beside <= allowed:
            return
        held = sum(map(processes.shared_out_memory, members)) + beside
        if held > allowed:
            sandbox.end_all(f"its processes held {held} bytes of memory; {allowed} are allowed")

    def _look_at_files(self, sandbox: Watched, looks: _Looks, together: int) -> None:
        spec = sandbox.spec
        room = _room(spec.files)
        headroom = max(0, spec.disk_bytes - looks.used[0])
        has_grown = looks.room - room > max(headroom // _GROWTH_SHARE, 1024 * 1024)
        if not has_grown and time.monotonic() < looks.scan_at:
            return
        begin = time.thread_time()
        used = _with_hidden(disk_use(spec.files, sandbox.members()), room, looks)
        looks.scan_at = time.monotonic() + max(_SCAN_SHARE * together * (time.thread_time() - begin), _BUSY_SECONDS)
        if used[0] > looks.used[0]:
            looks.moved_at = time.monotonic()
        looks.used, looks.room = used, room
        allowed = (spec.disk_bytes, spec.disk_files)
        over = [at for at in (0, 1) if used[at] > max(allowed[at], looks.tolerated[at])]
        looks.tolerated = (min(used[0], looks.tolerated[0]), min(used[1], looks.tolerated[1]))
        if over:
            looks.tolerated = used
            what = ("bytes", "files")[over[0]]
            sandbox.end_all(f"the workspace holds {used[over[0]]} {what}; {allowed[over[0]]} are allowed")


def _moved(pairs: list[tuple[Watched, _Looks]]) -> list[tuple[Watched, _Looks]]:
    return [pair for pair in pairs if _has_moved(*pair)]


def _has_moved(sandbox: Watched, looks: _Looks) -> bool:
    """Whether anything has run there lately, or much was written on the disk where its files are."""
    with contextlib.suppress(OSError):  # it is being stopped
        activity, before = sandbox.activity(), looks.activity
        looks.activity = activity
        if activity != before:
            looks.moved_at = time.monotonic()
        # Others may have written it: whether it was here shows at one look, which is what it is worth.
        is_noticed = looks.room - _room(sandbox.spec.files) > _NOTICED_BYTES
        return is_noticed or time.monotonic() - looks.moved_at < _CALM_SECONDS
    return False


def _with_hidden(found: DiskUse, room: int, looks: _Looks) -> tuple[int, int]:
    """Bytes and entries. While there are files whose size nobody can tell, what the disk lost besides counts as theirs:
    it may be others' doing, but who keeps such files has no claim to the difference."""
    if not found.unseen or looks.clear is None:
        looks.clear = (room, found.bytes)
        return found.bytes, found.entries
    room_before, used_before = looks.clear
    return found.bytes + max(0, room_before - room - max(0, found.bytes - used_before)), found.entries


def _room(files: str) -> int:
    state = os.statvfs(files)
    return state.f_bavail * state.f_frsize
