"""Users of this machine that are nobody but one sandbox's: where the server is root, each sandbox runs as another.

A number is a sandbox's for as long as that lives, across all servers of this machine: holding a socket's name in the
kernel says so, and dies with the server. The files of a workspace belong to the number it had last. If that one is free
it gets it again, else it gets another and its files are handed over.
"""

from __future__ import annotations

import os
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stateroom.errors import SandboxFailed

_FIRST: Final = 1_879_100_000
"""Above what distributions, containers and service managers hand out, below where numbers turn negative."""
_COUNT: Final = 65_536
_TRIES: Final = 4_096
_DEPTH: Final = 500


class Owner:
    """One number, held until it is released."""

    def __init__(self, number: int, claim: socket.socket) -> None:
        self.number = number
        self._claim = claim

    def release(self) -> None:
        self._claim.close()


def claim_owner(workspace: str, files: str) -> Owner:
    """A number for a workspace that no living sandbox has. Raises SandboxFailed."""
    first, count = _range()
    for number in _candidates(workspace, files, first, count):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0stateroom.owner.{number}")
        except OSError:
            claim.close()
            continue
        return Owner(number, claim)
    raise SandboxFailed("no user number is free for another sandbox")


def hand_over(files: str, number: int) -> int:
    """Make everything below `files` that is not the number's its own; how many that were. Raises SandboxFailed.

    No link is followed. Nothing else may be at work there.
    """
    fds: list[int] = []
    rows: list[os._ScandirIterator[str]] = []
    try:
        top = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fds.append(top)
        changed = _give(top, "", os.fstat(top), number)
        rows.append(os.scandir(top))
        while rows:
            entry = next(rows[-1], None)
            if entry is None:
                rows.pop().close()
                os.close(fds.pop())
                continue
            found = entry.stat(follow_symlinks=False)
            changed += _give(fds[-1], entry.name, found, number)
            if stat.S_ISDIR(found.st_mode):
                if len(fds) > _DEPTH:
                    raise OSError(f"directories are nested more than {_DEPTH} deep")
                fds.append(os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1]))
                rows.append(os.scandir(fds[-1]))
    except OSError as error:
        raise SandboxFailed(f"the files of the workspace could not be given to its user: {error}") from error
    finally:
        for row in rows:
            row.close()
        for fd in fds:
            os.close(fd)
    return changed


def _give(fd: int, name: str, found: os.stat_result, number: int) -> int:
    if found.st_uid == number and found.st_gid == number:
        return 0
    if name:
        os.chown(name, number, number, dir_fd=fd, follow_symlinks=False)
    else:
        os.fchown(fd, number, number)
    return 1


def _candidates(workspace: str, files: str, first: int, count: int) -> Iterator[int]:
    last = os.lstat(files).st_uid
    if first <= last < first + count:
        yield last
    begin = zlib.crc32(workspace.encode())
    for step in range(min(_TRIES, count)):
        yield first + (begin + step) % count


def _range() -> tuple[int, int]:
    """First number and how many; in a container there may be few that exist. Raises SandboxFailed."""
    known = []
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, length = map(int, line.split())
        if inside <= _FIRST and inside + length >= _FIRST + _COUNT:
            return _FIRST, _COUNT
        known.append((length, inside))
    length, inside = max(known, default=(0, 0))
    if length < 1_024:
        raise SandboxFailed("this container has too few user numbers to give sandboxes some of their own")
    return inside + length // 2, length // 2 - 1
