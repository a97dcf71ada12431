"""Whatever keeps the sandboxes of a data directory alive, seen from outside: who is there, and killing some of them.

Reads /proc only. What is known of a server's sandboxes is that their command lines hold the tag of its data directory.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple

from stateroom.workspaces.drivers import processes
from stateroom.workspaces.layout import TRIALS

_KERNEL = b"interpreter.py"


class Member(NamedTuple):
    """A process of a sandbox."""

    pid: int
    kind: str
    """One of `stateroom.testing.kill_points.VICTIMS`."""


def members(data: Path) -> list[Member]:
    """The processes of all sandboxes of a data directory."""
    word, own = f"tag={processes.tag_of(data)}".encode(), processes.namespace_of(os.getpid())
    others: list[tuple[int, str]] = []
    found: list[Member] = []
    inside: set[str] = set()
    for pid in processes.all_pids():
        namespace = processes.namespace_of(pid)
        if word in processes.command_line(pid):
            found.append(Member(pid, "bwrap" if namespace == own else "agent"))
            inside.add(namespace)
        elif namespace:
            others.append((pid, namespace))
    for pid, namespace in others:
        if namespace != own and namespace in inside:
            is_kernel = any(word.endswith(_KERNEL) for word in processes.command_line(pid))
            found.append(Member(pid, "interpreter" if is_kernel else "command"))
    return found


def at_work(data: Path) -> list[Member]:
    """Those that have files of a workspace, and are not of a sandbox with which a driver is only tried."""
    ours = mounted(data).keys() - mounted(data / TRIALS).keys()
    return [each for each in members(data) if each.pid in ours]


def strike(data: Path, kind: str) -> int:
    """SIGKILL to every process of a kind that is at work; how many there were."""
    struck = [each.pid for each in at_work(data) if each.kind == kind]
    for pid in struck:
        processes.send_signal(pid, signal.SIGKILL)
    return len(struck)


def mounted(data: Path) -> dict[int, list[str]]:
    """Processes that have something of a data directory mounted, with what that is: nobody but sandboxes has."""
    root = os.path.realpath(data)
    device = Path(root)
    while not device.is_mount():
        device = device.parent
    within = root if str(device) == "/" else root.removeprefix(str(device))
    found: dict[int, list[str]] = {}
    for pid in processes.all_pids():
        try:
            lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines()
        except OSError:
            continue
        sources = [line.split()[3] for line in lines if len(line.split()) > 4]
        # A host directory is a mount's root inside; a mount made here would have the directory for its place.
        places = [line.split()[4] for line in lines if len(line.split()) > 4]
        ours = [path for path in (*sources, *places) if path == within or path.startswith((f"{within}/", f"{root}/"))]
        if ours:
            found[pid] = ours
    return found
