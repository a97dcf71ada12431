"""What the holder is told: the files that a sandbox behind Landlock may reach, its limits, filters and environment.

Where the server may mount, everything is shown under one directory of this machine that the sandbox's user can reach;
else it stays at its own path. What the holder does with it stands in landlock_hold.py.
"""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec

from stateroom.errors import NoSandbox
from stateroom.workspaces.drivers import processes, profile, seccomp
from stateroom.workspaces.drivers.cgroups import Group
from stateroom.workspaces.drivers.owners import Owner
from stateroom.workspaces.drivers.python_runtime import Runtime
from stateroom.workspaces.drivers.seccomp_bare import bare_program
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import WORKSPACE, SandboxSpec

OWN_PROCESSES: Final = 1
_AGENT: Final = str(inside_directory() / "agent.py")
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = (
    *("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "mime.types"),
    *("protocols", "services", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted", "fonts"),
    *("passwd", "group", "hosts", "host.conf", "resolv.conf", "inputrc", "bash.bashrc", "profile"),
)
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")


class Room(msgspec.Struct, frozen=True):
    """Where everything is that a sandbox is to reach, and under which names it asks for it."""

    files: str
    temporary: str
    places: dict[str, str]
    """Names inside to paths on this machine, as the sandbox sees it."""
    stage: str
    shown: dict[str, str]


def temporary_of(spec: SandboxSpec) -> str:
    """The directory for what is temporary."""
    return f"{spec.files}.tmp"


def make_room(spec: SandboxSpec, runtime: Runtime, *, may_mount: bool) -> Room:
    mounts = {mount.target: mount.source for mount in (*spec.mounts, *runtime.mounts)}
    moved = {name: source for name, source in mounts.items() if os.path.realpath(name) != os.path.realpath(source)}
    if not may_mount:
        return Room(spec.files, temporary_of(spec), {profile.AGENT: _AGENT, **moved}, "", {})
    stage = profile.stage()
    places = {name: f"{stage}/{at}" for at, name in enumerate(moved)}
    files, temporary = f"{stage}/data", f"{stage}/temporary"
    shown = {files: spec.files, temporary: temporary_of(spec), f"{stage}/agent.py": _AGENT}
    shown |= {places[name]: source for name, source in moved.items()}
    return Room(files, temporary, {profile.AGENT: f"{stage}/agent.py", **places}, stage, shown)


def plan(
    spec: SandboxSpec,
    runtime: Runtime,
    room: Room,
    *,
    owner: Owner | None,
    group: Group | None,
    tag: str,
    counted_memory_only: bool,
) -> dict[str, Any]:
    """Raises NoSandbox."""
    first = seccomp.program(counted_memory_only=counted_memory_only)
    second = bare_program(same_user=owner is None)
    if first is None or second is None:
        raise NoSandbox("there is no list of system calls for this machine's architecture")
    return {
        "groups": group.memberships if group else [],
        "stage": room.stage,
        "shown": room.shown,
        "limits": _limits(spec, owner),
        "rules": _rules(spec, runtime, room),
        "uid": owner.number if owner else 0,
        "files": room.files,
        "filters": [first, second.code],
        "asked": second.asked,
        "roots": [room.files, room.temporary],
        "argv": _command(runtime, room, tag),
        "env": _environment(spec, runtime, room),
    }


def _rules(spec: SandboxSpec, runtime: Runtime, room: Room) -> list[tuple[str, str]]:
    """Paths, and what may be done there."""
    kept = [mount.source for mount in (*spec.mounts, *runtime.mounts) if mount.target not in room.places]
    read = [*_SYSTEM, *room.places.values(), *map(os.path.realpath, kept)]
    rules = [(path, "read") for path in read] + [(f"/etc/{name}", "look") for name in _ETC] + [("/proc", "look")]
    rules += [(f"/dev/{name}", "device") for name in _DEVICES]
    return [*rules, (room.files, "write"), (room.temporary, "write")]


def _command(runtime: Runtime, room: Room, tag: str) -> list[str]:
    words = [f"tag={tag}", f"files={room.files}", f"logs={room.temporary}/.jobs"]
    words += [f"place.{at}={name}:{path}" for at, (name, path) in enumerate(room.places.items())]
    return [_placed(runtime.program, room), "-I", "-S", room.places[profile.AGENT], *words]


def _limits(spec: SandboxSpec, owner: Owner | None) -> dict[str, int]:
    # Of the server's own user the kernel counts what else that runs, too.
    others = 0 if owner else processes.threads_of_user(os.getuid())
    return {**profile.limits(spec), "NPROC": spec.processes + OWN_PROCESSES + others}


def _environment(spec: SandboxSpec, runtime: Runtime, room: Room) -> dict[str, str]:
    path = "/usr/local/bin:/usr/bin:/bin"
    if runtime.first_in_path:
        path = f"{_placed(runtime.first_in_path, room)}:{path}"
    own = {"PATH": path, "HOME": room.temporary, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/bash"}
    own |= {"LANG": "C.UTF-8", "TMPDIR": room.temporary, "TERM": "dumb", "WORKSPACE": room.files}
    return own | {name: _placed(value, room) for name, value in spec.environment.items()}


def _placed(value: str, room: Room) -> str:
    for name, path in {**room.places, WORKSPACE: room.files}.items():
        if f"{value}/".startswith(f"{name}/"):
            return path + value[len(name) :]
    return value
