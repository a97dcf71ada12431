"""Looking at processes from outside: who is in a sandbox, how much memory they hold, and making them stand still."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from stateroom.errors import SandboxFailed

_FREEZE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.001
_TABLES: Final = "VmPTE:"
_STANDING: Final = "TtZX"
_CAP_SYS_ADMIN: Final = 21


def all_pids() -> list[int]:
    names = os.listdir("/proc")  # noqa: PTH208  # several times a second: objects for paths would double its cost
    return [int(name) for name in names if name.isdigit()]


def read_file(path: str) -> bytes:
    """A file that the kernel makes up as it is read. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a file object, let alone a path's, would double its cost
    try:
        pieces = []
        while piece := os.read(descriptor, 65_536):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def namespace_of(pid: int) -> str:
    """Of its process ids; empty when that is not for us to see, or it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115  # as above
    except OSError:
        return ""


def in_namespace(namespace: str) -> list[int]:
    """Processes in a namespace of process ids."""
    return [pid for pid in all_pids() if namespace_of(pid) == namespace] if namespace else []


def tag_of(data: Path | str) -> str:
    """By which the sandboxes of a data directory are known: a word of their command lines says `tag=` and this."""
    return hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:16]


def command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def environment(pid: int) -> list[bytes]:
    """As it was started with."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """0 when it has ended."""
    row = _stat(pid)
    return int(row[1]) if row else 0


def is_running(pid: int) -> bool:
    """Whether it is there, and not merely waited for."""
    return _state(pid) not in "ZX"


def below(pid: int) -> list[int]:
    """What descends from it, as far as nobody in between has ended."""
    parents = {each: parent_of(each) for each in all_pids()}
    found, size = {pid}, 0
    while size != len(found):
        size = len(found)
        found |= {each for each, parent in parents.items() if parent in found}
    return sorted(found - {pid})


def of_user(number: int) -> list[int]:
    """What runs as a user."""
    return [pid for pid in all_pids() if (_words(pid, "Uid:") or [-1])[0] == number]


def threads_of_user(number: int) -> int:
    """How many there are, as the kernel counts them for a limit of the user."""
    return sum((_words(pid, "Threads:") or [0])[0] for pid in of_user(number))


def used_ticks(pid: int) -> int:
    """Time that it and those it has waited for have run, in ticks. 0 when it has ended."""
    row = _stat(pid)
    return sum(map(int, row[11:15])) if row else 0


def held_memory(pid: int) -> int:
    """Bytes that only it accounts for, or that it shares with others by its own doing, and the tables that lead to
    its pages, of which there can be many without a page. 0 when it has ended."""
    return sum(_fields(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:", _TABLES)))


def shared_out_memory(pid: int) -> int:
    """Like `held_memory`, with what several hold divided among them: dearer to ask."""
    fields = _fields(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
    return sum(fields + _fields(f"/proc/{pid}/status", (_TABLES,))) if fields else held_memory(pid)


def descriptors_under_way(pid: int, socket: str) -> int:
    """How many descriptors were sent through an open socket and not received yet. Raises OSError."""
    rows = read_file(f"/proc/{pid}/fdinfo/{socket}").splitlines()
    return next((int(row.split()[1]) for row in rows if row.startswith(b"scm_fds:")), 0)


def send_signal(pid: int, number: int) -> None:
    """To a process that may have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def may_mount() -> bool:
    """Whether this very process may."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


class Stopper:
    """Makes processes stand still with signals, where there is no control group to freeze."""

    def __init__(self, members: Callable[[], Iterable[int]]) -> None:
        self._members = members
        self._stopped: set[int] = set()

    def freeze(self) -> None:
        """Until a look at all of them finds none that moves and none that is new. Raises SandboxFailed.

        Who stands already is left alone, and will not be set going again.
        """
        deadline = time.monotonic() + _FREEZE_SECONDS
        while True:
            moving = [pid for pid in self._members() if _state(pid) not in _STANDING]
            if not moving:
                return
            if time.monotonic() > deadline:
                self.thaw()
                raise SandboxFailed("the sandbox could not be brought to a standstill")
            for pid in moving:
                if pid not in self._stopped:
                    self._stopped.add(pid)
                    send_signal(pid, signal.SIGSTOP)
            time.sleep(_POLL_SECONDS)

    def thaw(self) -> None:
        for pid in self._stopped & set(self._members()):
            send_signal(pid, signal.SIGCONT)
        self._stopped.clear()


def _words(pid: int, name: str) -> list[int]:
    """The numbers of a line of its status."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return []
    line = next((line for line in text.splitlines() if line.startswith(name)), "")
    return [int(word) for word in line.split()[1:]]


def _state(pid: int) -> str:
    row = _stat(pid)
    return row[0] if row else "X"


def _stat(pid: int) -> list[str]:
    try:
        text = read_file(f"/proc/{pid}/stat")
    except OSError:
        return []
    return text.rpartition(b")")[2].decode("ascii", "replace").split()


def _fields(path: str, names: tuple[str, ...]) -> list[int]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith(names)]
