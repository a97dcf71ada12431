"""Bounds that the kernel does not hold for us: disk used by a workspace's files, and memory where no cgroup bounds it.

While something runs in a sandbox it is looked at several times a second, else once in a while, which costs next to
nothing. What passes its bound is brought to a standstill and killed, all of it but the agent, and the sandbox lives on.
Between two looks a bound can be passed by what a machine writes in that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from typing import Final, Protocol

from stateroom.workspaces.drivers import processes
from stateroom.workspaces.workspace import SandboxSpec

_BUSY_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 2.0
_CALM_SECONDS: Final = 2.0
_SCAN_SHARE: Final = 20
"""Looking at the files of all sandboxes together may take a twentieth of a processor."""
_THREADS: Final = 4
_DEPTH: Final = 500
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
        if sum(map(processes.held_memory, members)) <= allowed:
            return
        held = sum(map(processes.shared_out_memory, members))
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
        used = disk_use(spec.files, sandbox.members())
        looks.scan_at = time.monotonic() + max(_SCAN_SHARE * together * (time.thread_time() - begin), _BUSY_SECONDS)
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
    """Whether anything has run there lately, or much was written where its files are."""
    with contextlib.suppress(OSError):  # it is being stopped
        activity, before = sandbox.activity(), looks.activity
        looks.activity = activity
        if activity != before or looks.room - _room(sandbox.spec.files) > _NOTICED_BYTES:
            looks.moved_at = time.monotonic()
        return time.monotonic() - looks.moved_at < _CALM_SECONDS
    return False


def disk_use(files: str, members: list[int]) -> tuple[int, int]:
    """Bytes on disk and number of entries, with files that have no name any more but are open in `members`.

    Whoever works there meanwhile may shift things about: no link is followed, and what vanishes is not counted. What is
    nested too deep to be looked at counts as more than anything.
    """
    top = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fds, rows, total, count = [top], [os.scandir(top)], 0, 0
    several: set[int] = set()
    device = os.fstat(top).st_dev
    try:
        while rows:
            entry = next(rows[-1], None)
            if entry is None:
                rows.pop().close()
                os.close(fds.pop())
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                count += 1
                if stat.S_ISDIR(found.st_mode):
                    if len(fds) > _DEPTH:
                        return (1 << 62, 1 << 62)
                    fd = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1])
                    fds.append(fd)
                    rows.append(os.scandir(fd))
                elif found.st_nlink > 1:
                    if found.st_ino in several:
                        continue
                    several.add(found.st_ino)
                total += found.st_blocks * 512
    finally:
        for fd in fds:
            os.close(fd)
    return total + sum(_nameless(members, device).values()), count


def _nameless(members: list[int], device: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for pid in members:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as fds:
            for fd in fds:
                with contextlib.suppress(OSError):
                    state = fd.stat()
                    if state.st_dev == device and not state.st_nlink and stat.S_ISREG(state.st_mode):
                        found[state.st_ino] = state.st_blocks * 512
    return found


def _room(files: str) -> int:
    state = os.statvfs(files)
    return state.f_bavail * state.f_frsize
