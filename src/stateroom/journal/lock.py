"""One server a data directory: an advisory lock that the kernel drops when its process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from stateroom.errors import DirectoryInUse

NAME = "server.lock"


class DirectoryLock:
    """Held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the next server in."""
        os.close(self._descriptor)


def lock_directory(directory: Path) -> DirectoryLock:
    """Take the directory, creating it (mode 0700). Raises DirectoryInUse when a server has it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise DirectoryInUse(
            f"The data directory {directory} is in use by another server (process {holder})."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return DirectoryLock(descriptor)
