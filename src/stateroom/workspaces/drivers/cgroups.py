"""Control groups of sandboxes, where this process may make some: memory and number of processes bounded by the kernel.

Version 2 and version 1, and a mixture of both. Nothing is moved but the processes of sandboxes, and on version 2 only
groups that were given to this process are touched: its own, or the one above if that was delegated to it.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from stateroom.clock import SystemClock
from stateroom.errors import SandboxFailed
from stateroom.workspaces.drivers.processes import read_file

_FREEZE_SECONDS: Final = 5.0
_REMOVE_SECONDS: Final = 5.0
_DESERTED_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.001


class Cgroups(msgspec.Struct, frozen=True):
    """Where groups can be made. An empty path: that cannot be had."""

    unified: str = ""
    """Version 2."""
    unified_controls: frozenset[str] = frozenset()
    memory: str = ""
    """Version 1, like the others below."""
    pids: str = ""
    freezer: str = ""

    @property
    def bounds_memory(self) -> bool:
        return "memory" in self.unified_controls or bool(self.memory)

    @property
    def directories(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.unified, self.memory, self.pids, self.freezer)))

    def make(self, name: str, *, memory_bytes: int, processes: int) -> Group:
        """Raises SandboxFailed."""
        group = Group(self, name)
        try:
            group.create(memory_bytes, processes)
        except OSError as error:
            group.remove()
            raise SandboxFailed(f"no control group could be made for the sandbox: {error}") from error
        return group

    def left_behind(self, prefix: str) -> list[Group]:
        """Groups whose names begin so."""
        names = set()
        for directory in self.directories:
            names |= {entry.name for entry in Path(directory).iterdir() if entry.name.startswith(prefix)}
        return [Group(self, name) for name in sorted(names)]

    def remove_deserted(self) -> None:
        """Empty groups of servers that are no more, whichever they were: one that is killed cannot tidy up."""
        for directory in self.directories:
            for entry in Path(directory).glob("stateroom.*.*.*"):
                server = entry.name.split(".")[2]
                with contextlib.suppress(OSError):  # it is not empty, or somebody else was quicker
                    is_old = SystemClock().now() - entry.stat().st_mtime > _DESERTED_SECONDS
                    if is_old and server.isdigit() and not Path(f"/proc/{server}").exists():
                        entry.rmdir()


class Group:
    """The control group of one sandbox, in every hierarchy that is of use."""

    def __init__(self, cgroups: Cgroups, name: str) -> None:
        self._cgroups = cgroups
        self._name = name
        self._kills = 0

    @property
    def memberships(self) -> list[str]:
        """Files that a process writes itself into, to be in it."""
        return [str(directory / "cgroup.procs") for directory in self._directories()]

    def create(self, memory_bytes: int, processes: int) -> None:
        """Raises OSError."""
        for directory in self._directories():
            directory.mkdir(exist_ok=True)
        controls = self._cgroups.unified_controls
        if "memory" in controls:
            self._write(self._cgroups.unified, "memory.max", memory_bytes)
            self._write(self._cgroups.unified, "memory.swap.max", 0, must=False)
        elif self._cgroups.memory:
            self._write(self._cgroups.memory, "memory.limit_in_bytes", memory_bytes)
            self._write(self._cgroups.memory, "memory.memsw.limit_in_bytes", memory_bytes, must=False)
        if "pids" in controls:
            self._write(self._cgroups.unified, "pids.max", processes)
        elif self._cgroups.pids:
            self._write(self._cgroups.pids, "pids.max", processes)

    def members(self) -> list[int]:
        """Processes in it. Raises OSError when it is gone."""
        for directory in self._cgroups.directories:
            return [int(word) for word in read_file(f"{directory}/{self._name}/cgroup.procs").split()]
        return []

    @property
    def can_freeze(self) -> bool:
        return bool(self._cgroups.unified or self._cgroups.freezer)

    def freeze(self) -> None:
        """Raises SandboxFailed."""
        self._switch(frozen=True)

    def thaw(self) -> None:
        """Raises SandboxFailed."""
        self._switch(frozen=False)

    def memory_kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory since this was last asked."""
        if "memory" in self._cgroups.unified_controls:
            text = self._read(self._cgroups.unified, "memory.events")
        elif self._cgroups.memory:
            text = self._read(self._cgroups.memory, "memory.oom_control")
        else:
            return 0
        kills = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
        fresh, self._kills = kills - self._kills, kills
        return fresh

    def kill(self) -> None:
        """Kill all of it, frozen or not."""
        with contextlib.suppress(OSError, SandboxFailed):
            self.thaw()
        if self._cgroups.unified:
            with contextlib.suppress(OSError):
                self._write(self._cgroups.unified, "cgroup.kill", 1)
        with contextlib.suppress(OSError):
            for pid in self.members():
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)

    def remove(self) -> bool:
        """Once nobody is in it. Whether it is gone."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for directory in self._directories():
            while directory.exists():
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(_POLL_SECONDS)
        return True

    def _switch(self, *, frozen: bool) -> None:
        deadline = time.monotonic() + _FREEZE_SECONDS
        try:
            if self._cgroups.unified:
                self._write(self._cgroups.unified, "cgroup.freeze", int(frozen))
                file, wanted = "cgroup.events", f"frozen {int(frozen)}"
                directory = self._cgroups.unified
            else:
                wanted = "FROZEN" if frozen else "THAWED"
                self._write(self._cgroups.freezer, "freezer.state", wanted)
                file, directory = "freezer.state", self._cgroups.freezer
            while wanted.encode() not in read_file(f"{directory}/{self._name}/{file}"):
                if time.monotonic() > deadline:
                    raise SandboxFailed("the sandbox could not be brought to a standstill")
                time.sleep(_POLL_SECONDS)
        except OSError as error:
            raise SandboxFailed(f"the sandbox could not be frozen or thawed: {error}") from error

    def _directories(self) -> list[Path]:
        return [Path(directory) / self._name for directory in self._cgroups.directories]

    def _write(self, directory: str, file: str, value: int | str, *, must: bool = True) -> None:
        try:
            (Path(directory) / self._name / file).write_text(str(value))
        except OSError:
            if must:
                raise

    def _read(self, directory: str, file: str) -> str:
        try:
            return read_file(f"{directory}/{self._name}/{file}").decode("ascii", "replace")
        except OSError:
            return ""


def find_cgroups() -> Cgroups:
    """What this process may use. It makes and removes a group in each place to know."""
    try:
        return _found(_own_groups(), Path("/proc/self/mountinfo").read_text().splitlines())
    except (OSError, ValueError):  # no Linux, or none that tells
        return Cgroups()


def _found(own: dict[str, str], mounts: list[str]) -> Cgroups:
    unified, controls = "", frozenset[str]()
    mounted: dict[str, str] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(maxsplit=2)
        root, point = before.split()[3:5]
        if kind == "cgroup2":
            unified, controls = _usable_unified(point, _below(own.get("", ""), root))
        elif kind == "cgroup":
            for controller in {"memory", "pids", "freezer"} & set(options.split(",")):
                mounted[controller] = _usable(f"{point}{_below(own.get(controller, ''), root)}")
    memory = "" if "memory" in controls else mounted.get("memory", "")
    pids = "" if "pids" in controls else mounted.get("pids", "")
    freezer = "" if unified else mounted.get("freezer", "")
    return Cgroups(unified, controls, memory, pids, freezer)


def _own_groups() -> dict[str, str]:
    """Controller (none: version 2) to the group that this process is in."""
    groups: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def _below(path: str, root: str) -> str:
    """The part of a group's path below what is mounted."""
    rest = path.removeprefix(root) if root != "/" else path
    return rest.rstrip("/")


def _usable_unified(point: str, path: str) -> tuple[str, frozenset[str]]:
    best: tuple[str, frozenset[str]] = ("", frozenset())
    for directory in _given(Path(f"{point}{path}"), Path(point)):
        if not _usable(str(directory)):
            continue
        with contextlib.suppress(OSError):  # refused where processes sit in the group itself: then there are none
            (directory / "cgroup.subtree_control").write_text("+memory +pids")
        controls = frozenset((directory / "cgroup.subtree_control").read_text().split()) & {"memory", "pids"}
        if not best[0] or len(controls) > len(best[1]):
            best = (str(directory), controls)
    return best


def _given(own: Path, top: Path) -> list[Path]:
    """Our own group, and the one above if a service manager has delegated it."""
    found = [own]
    if own != top:
        for attribute in ("trusted.delegate", "user.delegate"):
            with contextlib.suppress(OSError):
                if os.getxattr(own.parent, attribute) == b"1":
                    found.append(own.parent)
    return found


def _usable(directory: str) -> str:
    probe = Path(directory) / f"stateroom.probe.{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return ""
    return directory
