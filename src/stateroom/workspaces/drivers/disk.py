"""How much of the disk a workspace uses, looked at from outside while whoever works there tries to hide some of it.

Counted is what has a name, and what has none any more and is open, or mapped, in one of its processes. Descriptors that
are on their way through a socket cannot be asked for their files; nor can, by a server that is not root, what is mapped
and no longer open. Where there are such, that is told.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from stateroom.workspaces.drivers import processes

_DEPTH: Final = 500
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ALONE: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TO_LOOK: Final = 0o500
"""What it takes to see what is in a directory."""
_DELETED: Final = b" (deleted)"
_IN_MEMORY: Final = (b"/memfd:", b"/SYSV", b"/dev/shm/", b"/dev/zero", b"/tmp/")  # those of a sandbox


class DiskUse(NamedTuple):
    """What was found."""

    bytes: int
    entries: int
    unseen: bool = False
    """There are files whose size nobody can tell."""


def disk_use(files: str, members: list[int]) -> DiskUse:
    """Bytes on disk and number of entries, with files that have no name any more but are held by `members`.

    Whoever works there meanwhile may shift things about: no link is followed, and what vanishes is not counted. What is
    nested too deep to be looked at counts as more than anything.
    """
    walk = _Walk(files)
    total = count = 0
    several: set[int] = set()
    try:
        for entry in walk.entries():
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                count += 1
                if stat.S_ISDIR(found.st_mode):
                    if walk.depth > _DEPTH:
                        return DiskUse(1 << 62, 1 << 62)
                    walk.enter(entry.name)
                elif found.st_nlink > 1:
                    if found.st_ino in several:
                        continue
                    several.add(found.st_ino)
                total += found.st_blocks * 512
    finally:
        walk.close()
    nameless, unseen = _nameless(members, walk.device)
    return DiskUse(total + sum(nameless.values()), count, unseen)


class _Walk:
    """The directories that are open, each below the one before it.

    One that its owner closed to itself, and so to a server that is the same user, is opened while it is looked at.
    """

    def __init__(self, files: str) -> None:
        top = os.open(files, _FOLDER)
        self.device = os.fstat(top).st_dev
        self._open = [(top, _lend(top))]
        self._rows = [os.scandir(top)]

    @property
    def depth(self) -> int:
        return len(self._open)

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """Of the directory that was entered last, then of that above it."""
        while self._rows:
            entry = next(self._rows[-1], None)
            if entry is not None:
                yield entry
                continue
            self._rows.pop().close()
            self._leave()

    def enter(self, name: str) -> None:
        """Raises OSError."""
        above = self._open[-1][0]
        lent = -1
        try:
            fd = os.open(name, _FOLDER, dir_fd=above)
        except PermissionError:
            alone = os.open(name, _ALONE, dir_fd=above)
            try:
                lent = _lend(alone)
                fd = os.open(".", _FOLDER, dir_fd=alone)
            finally:
                os.close(alone)
        self._open.append((fd, lent if lent >= 0 else _lend(fd)))
        self._rows.append(os.scandir(fd))

    def close(self) -> None:
        while self._rows:
            self._rows.pop().close()
        while self._open:
            self._leave()

    def _leave(self) -> None:
        fd, lent = self._open.pop()
        if lent >= 0:
            with contextlib.suppress(OSError):  # it was deleted meanwhile
                if os.fstat(fd).st_mode & 0o777 == lent | _TO_LOOK:  # else its owner has changed it since
                    _set_mode(fd, lent)
        os.close(fd)


def _lend(fd: int) -> int:
    """Give ourselves what it takes to look into a directory; the mode to give back, -1: nothing was missing."""
    found, me = os.fstat(fd), os.geteuid()
    mode = found.st_mode & 0o777
    if not me or found.st_uid != me or mode & _TO_LOOK == _TO_LOOK:
        return -1
    with contextlib.suppress(OSError):  # then nobody can
        _set_mode(fd, mode | _TO_LOOK)
        return mode
    return -1


def _set_mode(fd: int, mode: int) -> None:
    """Also of what is open by O_PATH only."""
    os.chmod(f"/proc/self/fd/{fd}", mode)  # noqa: PTH101  # of what the handle names


def _nameless(members: list[int], device: int) -> tuple[dict[int, int], bool]:
    """Bytes of each file without a name that somebody holds, and whether there are some that cannot be asked."""
    found: dict[int, int] = {}
    unseen = False
    for pid in members:
        try:
            unseen |= _opened(pid, device, found)
            unseen |= _mapped(pid, device, found)
        except PermissionError:  # a process can close itself to its own user, who then cannot look
            unseen |= _is_ours(pid)
        except OSError:  # it has ended
            continue
    return found, unseen


def _opened(pid: int, device: int, found: dict[int, int]) -> bool:
    """Note what is open; whether descriptors are under way in a socket. Raises OSError."""
    unseen = False
    with os.scandir(f"/proc/{pid}/fd") as fds:
        for fd in fds:
            with contextlib.suppress(OSError):
                state = fd.stat()
                _note(state, device, found)
                if stat.S_ISSOCK(state.st_mode):
                    unseen |= processes.descriptors_under_way(pid, fd.name) > 0
    return unseen


def _mapped(pid: int, device: int, found: dict[int, int]) -> bool:
    """Note what is mapped; whether some of it cannot be asked. Raises OSError."""
    unseen = False
    said = processes.read_file(f"/proc/{pid}/maps")
    if _DELETED not in said:
        return False
    for row in said.splitlines():
        fields = row.split(None, 5)
        if len(fields) < 6 or not fields[5].endswith(_DELETED):
            continue
        try:
            _note(os.stat(f"/proc/{pid}/map_files/{fields[0].decode()}"), device, found)  # noqa: PTH116  # many a second
        except PermissionError:
            major, minor = (int(number, 16) for number in fields[3].split(b":"))
            # Where a file system is made up of several devices it has other numbers here.
            elsewhere = os.major(device) or fields[5].startswith(_IN_MEMORY)
            unseen |= os.makedev(major, minor) == device or not elsewhere
        except OSError:  # it is mapped no more
            continue
    return unseen


def _note(state: os.stat_result, device: int, found: dict[int, int]) -> None:
    if state.st_dev == device and not state.st_nlink and stat.S_ISREG(state.st_mode):
        found[state.st_ino] = state.st_blocks * 512


def _is_ours(pid: int) -> bool:
    """Whether it runs as our user, and so would be for us to look at."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        rows = processes.read_file(f"/proc/{pid}/status").splitlines()
        return int(next(row for row in rows if row.startswith(b"Uid:")).split()[1]) == os.geteuid()
    return False
