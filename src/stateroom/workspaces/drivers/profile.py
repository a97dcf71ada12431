"""What bubblewrap is told: the whole file system, identity and environment of a sandbox, as its options.

Everything in it was tried from inside; `probe` tries it again on each machine. Sources may have been moved to where the
sandbox's user can reach them; `place` says where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from stateroom.workspaces.drivers.python_runtime import Runtime
from stateroom.workspaces.workspace import WORKSPACE, SandboxSpec

AGENT: Final = "/run/stateroom/agent.py"
EGRESS: Final = "/run/egress.sock"
EGRESS_PORT: Final = 3128
USER: Final = 1000
NAME: Final = "agent"
HOME: Final = f"/home/{NAME}"
OPEN_FILES: Final = 4_096

_STAGES: Final = ("/mnt", "/media", "/srv", "/opt", "/home")
"""Directories that may be covered for a sandbox; with the first, `/mnt/data` is where it should be."""
_MIB: Final = 1024 * 1024
_TOP: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC: Final = (
    *("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "mime.types"),
    *("protocols", "services", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted", "fonts"),
)
FILES: Final[Mapping[str, bytes]] = {
    "/etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{NAME}:x:{USER}:{USER}:{NAME}:{HOME}:/bin/bash\n".encode()
    + b"nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "/etc/group": f"root:x:0:\n{NAME}:x:{USER}:\nnogroup:x:65534:\n".encode(),
    "/etc/hosts": b"127.0.0.1 localhost workspace\n::1 localhost\n",
    "/etc/hostname": b"workspace\n",
    "/etc/resolv.conf": b"",
}
"""Small files of our own making."""


def stage() -> str:
    """A directory of this machine under which a sandbox is shown what it might not reach by its path."""
    return next(place for place in _STAGES if Path(place).is_dir())


def limits(spec: SandboxSpec) -> dict[str, int]:
    """Of each process, but for how many there may be."""
    # Memory below the bound of all together, so that a single one that asks for too much is told so and not killed.
    return {"CORE": 0, "NOFILE": OPEN_FILES, "FSIZE": spec.disk_bytes, "DATA": spec.memory_bytes * 7 // 8}


def sources(spec: SandboxSpec, runtime: Runtime, agent: str) -> list[str]:
    """What of this machine is shown besides the system, by its path here."""
    mounts = [mount.source for mount in (*spec.mounts, *runtime.mounts)]
    return [spec.files, agent, *mounts, *([spec.egress] if spec.egress else [])]


def options(
    spec: SandboxSpec,
    runtime: Runtime,
    agent: str,
    *,
    place: Callable[[str], str],
    data: Mapping[str, int],
    seccomp: int,
) -> list[str]:
    """`data`: files of ours to the descriptors they are read from. `seccomp`: that of the program; -1: none."""
    return [
        *_namespaces(),
        *_environment(spec, runtime),
        *_system(),
        *(word for path, fd in data.items() for word in ("--perms", "0444", "--ro-bind-data", str(fd), path)),
        *_kernel(),
        *_rooms(spec.memory_bytes),
        *("--bind", place(spec.files), WORKSPACE),
        *("--perms", "0755", "--dir", "/mnt", "--symlink", WORKSPACE, "/mnt/data"),
        *_shown(spec, runtime, agent, place),
        *("--remount-ro", "/dev", "--remount-ro", "/run", "--remount-ro", "/", "--chdir", WORKSPACE),
        *(("--seccomp", str(seccomp)) if seccomp >= 0 else ()),
    ]


def _namespaces() -> list[str]:
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--uid", str(USER), "--gid", str(USER), "--hostname", "workspace"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"),
        *("--disable-userns", "--assert-userns-disabled"),
    ]


def _environment(spec: SandboxSpec, runtime: Runtime) -> list[str]:
    path = "/usr/local/bin:/usr/bin:/bin"
    if runtime.first_in_path:
        path = f"{runtime.first_in_path}:{path}"
    own = {"PATH": path, "HOME": HOME, "USER": NAME, "LOGNAME": NAME, "SHELL": "/bin/bash"}
    own |= {"LANG": "C.UTF-8", "TMPDIR": "/tmp", "TERM": "dumb"}  # noqa: S108  # that of the sandbox
    words = [word for name, value in (own | spec.environment).items() for word in ("--setenv", name, value)]
    return ["--clearenv", *words]


def _system() -> list[str]:
    """/usr and of /etc what programs cannot do without. Nothing else of this machine has a name inside."""
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _TOP:
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    words += ["--perms", "0755", "--dir", "/etc"]
    for name in _ETC:
        for parent in reversed(Path(name).parents[:-1]):
            words += ["--perms", "0755", "--dir", f"/etc/{parent}"]
        source = os.path.realpath(f"/etc/{name}")
        if Path(source).exists():
            words += ["--ro-bind-try", source, f"/etc/{name}"]
    return words


def _kernel() -> list[str]:
    return ["--proc", "/proc", "--ro-bind-try", "/proc/sys", "/proc/sys", "--dev", "/dev"]


def _rooms(memory_bytes: int) -> list[str]:
    """Places in memory, each with its bound: by themselves they would be half of the machine's."""
    shm, tmp = min(64 * _MIB, memory_bytes // 8), min(256 * _MIB, memory_bytes // 4)
    return [
        *("--size", str(shm), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108  # those of the sandbox
        *("--size", str(tmp), "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108
        *("--size", str(tmp), "--perms", "0755", "--tmpfs", HOME),
        *("--size", str(_MIB), "--perms", "0755", "--tmpfs", "/run"),
    ]


def _shown(spec: SandboxSpec, runtime: Runtime, agent: str, place: Callable[[str], str]) -> list[str]:
    words = ["--ro-bind", place(agent), AGENT]
    for mount in (*runtime.mounts, *spec.mounts):
        words += ["--ro-bind", place(mount.source), mount.target]
    if spec.egress:
        words += ["--ro-bind", place(spec.egress), EGRESS]
    return words
