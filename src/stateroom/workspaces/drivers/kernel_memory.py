"""Memory that the kernel holds for processes of a sandbox, which shows in the size of none: what is in their sockets
and pipes and was not read. Asked for where no control group bounds memory; estimated from above, and only for those who
have many of them, which programs without a network have not.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from stateroom.workspaces.drivers import processes

_FEW: Final = 256
"""Open files of all processes of a sandbox, up to which nothing is counted."""
_SOCKET_BYTES: Final = 416 * 1024
"""That a socket may hold by what systems allow, each way."""
_PIPE_BYTES: Final = 64 * 1024
_PROTOCOLS: Final = ("tcp", "tcp6", "udp", "udp6")


def kernel_memory(members: list[int]) -> int:
    """Bytes that these processes may have the kernel hold, beyond those of a few sockets and pipes."""
    if sum(map(_open_files, members)) <= _FEW:
        return 0
    sockets: set[int] = set()
    pipes: set[int] = set()
    more = 0
    for pid in members:
        try:
            more += _gather(pid, sockets, pipes)
        except PermissionError:  # a process can close itself to its own user
            more += _open_files(pid)
        except OSError:  # it has ended
            continue
    counted = max(0, len(sockets) + more - _FEW) * _SOCKET_BYTES + max(0, len(pipes) - _FEW) * _PIPE_BYTES
    return counted + (_queued(members[0]) if len(sockets) > 1 else 0)


def _open_files(pid: int) -> int:
    """How many there are at most."""
    with contextlib.suppress(OSError):
        if size := os.stat(f"/proc/{pid}/fd").st_size:  # noqa: PTH116  # several times a second
            return size
        for row in processes.read_file(f"/proc/{pid}/status").splitlines():
            if row.startswith(b"FDSize:"):
                return int(row.split()[1])
    return 0


def _gather(pid: int, sockets: set[int], pipes: set[int]) -> int:
    """Note what is open; how many descriptors are on their way through a socket. Raises OSError."""
    under_way = 0
    with os.scandir(f"/proc/{pid}/fd") as fds:
        for fd in fds:
            with contextlib.suppress(FileNotFoundError):
                state = fd.stat()
                if stat.S_ISFIFO(state.st_mode):
                    pipes.add(state.st_ino)
                elif stat.S_ISSOCK(state.st_mode) and state.st_ino not in sockets:
                    sockets.add(state.st_ino)
                    under_way += processes.descriptors_under_way(pid, fd.name)
    return under_way


def _queued(pid: int) -> int:
    """Bytes in the sockets of a network of its own, which may hold far more than others."""
    total = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):  # noqa: PTH115  # as above
            return 0
        for protocol in _PROTOCOLS:
            for row in processes.read_file(f"/proc/{pid}/net/{protocol}").splitlines()[1:]:
                total += sum(int(size, 16) for size in row.split()[4].split(b":"))
    return total
