"""What a container engine is told of one sandbox: everything that it may have, as options of `run`."""

from __future__ import annotations

import base64
import os
import re
import resource
from typing import Final

import msgspec

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.workspaces.drivers import profile, seccomp
from stateroom.workspaces.drivers.owners import Owner
from stateroom.workspaces.layout import INSIDE, inside_directory
from stateroom.workspaces.workspace import WORKSPACE, Mount, SandboxSpec

LABEL: Final = "stateroom.data"
_OWN_PROCESSES: Final = 1
_ROOTLESS_PROCESSES: Final = 4_096
"""Of all containers of a user; the agent bounds those of its own."""
_MIB: Final = 1024 * 1024
_PROGRAMS: Final = f"{INSIDE}/programs"


class Image(msgspec.Struct, frozen=True):
    """What the containers of a driver have in common."""

    engine: str
    name: str
    python: str
    tag: str


def options(image: Image, spec: SandboxSpec, name: str, owner: Owner | None) -> list[str]:
    """Raises SandboxFailed, NoSandbox."""
    user = owner.number if owner else os.getuid()
    mounts = [Mount(str(inside_directory()), _PROGRAMS), *spec.mounts]
    return [
        *("--interactive", "--rm", "--pull", "never", "--name", name, "--label", f"{LABEL}={image.tag}"),
        *("--network", "none", "--ipc", "private", "--hostname", "workspace", "--log-driver", "none"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only"),
        *(("--read-only-tmpfs=false", "--http-proxy=false") if image.engine == "podman" else ()),
        *(("--userns", "keep-id") if image.engine == "podman" and owner is None else ()),
        *("--user", f"{user}:{owner.number if owner else os.getgid()}"),
        *_bounds(spec, owner),
        *("--workdir", WORKSPACE, *_bind(spec.files, WORKSPACE), *_bind(spec.files, "/mnt/data")),
        *(word for mount in mounts for word in _bind(mount.source, mount.target, read_only=True)),
        *(_bind(spec.egress, profile.EGRESS) if spec.egress else ()),
        *(word for pair in _environment(spec).items() for word in ("--env", "=".join(pair))),
        *("--entrypoint", image.python, image.name),
        *_command(image, spec, owner),
    ]


def _bounds(spec: SandboxSpec, owner: Owner | None) -> list[str]:
    shm, room = min(64 * _MIB, spec.memory_bytes // 8), min(256 * _MIB, spec.memory_bytes // 4)
    hardest = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    # Named, since engines else ask for more than they may give on some machines.
    count = spec.processes + _OWN_PROCESSES if owner else _ROOTLESS_PROCESSES
    words = ["--memory", str(spec.memory_bytes), "--memory-swap", str(spec.memory_bytes)]
    words += ["--pids-limit", str(spec.processes + _OWN_PROCESSES), "--shm-size", str(shm)]
    words += ["--ulimit", f"nofile={profile.OPEN_FILES}:{profile.OPEN_FILES}", "--ulimit", "core=0:0"]
    words += ["--ulimit", f"fsize={spec.disk_bytes}:{spec.disk_bytes}"]
    if hardest != resource.RLIM_INFINITY:
        count = min(count, hardest)
    words += ["--ulimit", f"nproc={count}:{count}"]
    for place in ("/tmp", profile.HOME):  # noqa: S108  # those of the container
        words += ["--tmpfs", f"{place}:rw,nosuid,nodev,size={room},mode=1777"]
    return words


def _environment(spec: SandboxSpec) -> dict[str, str]:
    own = {"HOME": profile.HOME, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh", "LANG": "C.UTF-8"}
    own |= {"TMPDIR": "/tmp", "TERM": "dumb"}  # noqa: S108  # as above
    return own | spec.environment


def _command(image: Image, spec: SandboxSpec, owner: Owner | None) -> list[str]:
    """Raises NoSandbox."""
    filter_ = seccomp.program()
    if filter_ is None:
        raise NoSandbox("there is no list of system calls for this machine's architecture")
    words = [f"tag={image.tag}", "out=1"]
    if image.engine == "podman" and owner is None:
        words.append(f"limit.NPROC={spec.processes}")  # inside, the kernel counts those of this namespace alone
    if spec.egress:
        words += [f"egress={profile.EGRESS}", f"port={profile.EGRESS_PORT}"]
    confined = ["-I", "-S", f"{_PROGRAMS}/confine.py", base64.b64encode(filter_).decode()]
    return [*confined, "-I", "-S", f"{_PROGRAMS}/agent.py", *words]


def _bind(source: str, target: str, *, read_only: bool = False) -> tuple[str, str]:
    """Raises SandboxFailed."""
    if re.search(r'[,"\n]', source + target):
        raise SandboxFailed(f"no container engine can bind a path with a comma or a quote: {source}")
    return ("--mount", f"type=bind,source={source},target={target}" + (",readonly" if read_only else ""))
