"""What sandboxes must not leave on the machine: processes, mounts, control groups, directories beyond their number."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

from stateroom.testing.sandboxes import members, mounted
from stateroom.workspaces.drivers import processes
from stateroom.workspaces.drivers.cgroups import find_cgroups
from stateroom.workspaces.layout import TRIALS

QUIET_SECONDS: Final = 5.0
TRIM_SECONDS: Final = 20.0
_STANDING: Final = "TtZXD"
_OURS: Final = ("files", "state.json", "state.json.new", "egress.sock")
"""What is in the directory of a workspace."""


async def until_quiet(data: Path) -> None:
    """Nothing of a dead server's sandboxes runs. Raises AssertionError.

    What was frozen stays as it is: the next server ends it.
    """
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        moving = await asyncio.to_thread(_moving, data)
        if not moving:
            return
        assert time.monotonic() < deadline, f"processes outlive their server: {moving}"
        await asyncio.sleep(0.01)


def _moving(data: Path) -> dict[int, str]:
    pids = {*(member.pid for member in members(data)), *mounted(data)}
    return {pid: _told(pid) for pid in pids if processes._state(pid) not in _STANDING}


def _told(pid: int) -> str:
    return b" ".join(processes.command_line(pid)).decode("utf-8", "replace")[:200]


async def check_remains(data: Path, server: int | None, directories: int) -> None:
    """Of sandboxes there is what this server started, and nothing else. Raises AssertionError.

    `server` None: none runs. `directories`: how many workspaces may be on the disk when nobody works.
    """
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        strangers = await asyncio.to_thread(_strangers, data, server)
        if not strangers:
            break
        assert time.monotonic() < deadline, f"processes of an earlier server are left: {strangers}"
        await asyncio.sleep(0.05)
    own = await asyncio.to_thread(mounted, data)
    assert os.getpid() not in own, f"mounts are left: {own[os.getpid()]}"
    _check_groups(data, server)
    _check_owners(data)
    await _check_directories(data, directories)


def _strangers(data: Path, server: int | None) -> dict[int, str]:
    pids = {*(member.pid for member in members(data)), *mounted(data)}
    return {pid: _told(pid) for pid in pids if not _descends(pid, server) and processes._state(pid) not in "ZX"}


def _descends(pid: int, server: int | None) -> bool:
    while pid > 1:
        if pid == server:
            return True
        pid = processes.parent_of(pid)
    return pid == 0  # it ended while it was looked at


def _check_groups(data: Path, server: int | None) -> None:
    prefix = f"stateroom.{processes.tag_of(data)}."
    places = [Path(directory) for directory in find_cgroups().directories]
    left = {entry.name for place in places for entry in place.iterdir() if entry.name.startswith(prefix)}
    strange = [name for name in left if server is None or name.split(".")[2] != str(server)]
    assert not strange, f"control groups of an earlier server are left: {strange}"


def _check_owners(data: Path) -> None:
    """Each living sandbox has a user of its own, to whom its files belong."""
    if os.getuid():
        return
    users: defaultdict[int, list[str]] = defaultdict(list)
    for member in members(data):
        if member.kind != "agent":
            continue
        sources = [path for path in mounted(data).get(member.pid, ()) if path.endswith("/files")]
        try:
            user = Path(f"/proc/{member.pid}").stat().st_uid
            owner = Path(sources[0]).stat().st_uid if sources else user
        except FileNotFoundError:
            continue  # it ended meanwhile
        assert owner == user, f"the files at {sources[0]} belong to {owner}, its sandbox is {user}"
        users[user].append(sources[0] if sources else "?")
    shared = {user: where for user, where in users.items() if len(where) > 1}
    assert not shared, f"sandboxes share a user: {shared}"


async def _check_directories(data: Path, most: int) -> None:
    deadline = time.monotonic() + TRIM_SECONDS
    live = data / "workspaces" / "live"
    while True:
        there = sorted(path.name for path in live.glob("*"))
        if len(there) <= most:
            break
        assert time.monotonic() < deadline, f"{len(there)} directories of workspaces are left, of {most}: {there}"
        await asyncio.sleep(0.1)
    odd = [
        str(path)
        for path in live.glob("*/*")
        if path.name not in ("files", "state.json", "state.json.new", "egress.sock")
    ]
    assert not odd, f"files of nobody are left: {odd}"
    beside = {path.name for path in (data / "workspaces").glob("*")} - {"live", "egress", "trials"}
    assert all(name.startswith("content.db") for name in beside), f"files of nobody are left: {beside}"
    trials = [path.name for path in (data / TRIALS).glob("*")]
    assert len(trials) <= 1, f"drivers were tried, and that is left: {trials}"
