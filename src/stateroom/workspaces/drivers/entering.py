"""What the programs that start a sandbox do first: join its groups, show it what it may not reach, lower its limits.

Not of a package: launch.py and landlock_hold.py import it from beside them, and it nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing it would be a tenth of the time that a sandbox takes to start
    from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _BIND, _RECURSIVE, _PRIVATE = 0x2_0000, 0x1000, 0x4000, 0x4_0000


def enter(plan: dict[str, Any]) -> None:
    """Raises OSError."""
    for path in plan["groups"]:
        with open(path, "w") as file:  # noqa: PTH123  # pathlib would be a third of the time this takes
            file.write("0")
    if plan["shown"]:
        _show(plan["stage"], plan["shown"])
    for name, value in plan["limits"].items():
        number = getattr(resource, "RLIMIT_" + name)
        hardest = resource.getrlimit(number)[1]
        if hardest != resource.RLIM_INFINITY:
            value = min(value, hardest)
        resource.setrlimit(number, (value, value))
    os.umask(0o022)


def become(uid: int) -> None:
    """Another user, who can become nobody else."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def check(result: int, what: str) -> None:
    """Of a call into the C library. Raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _show(stage: str, shown: dict[str, str]) -> None:
    """Mount what is wanted where everyone may go, since the way to it may be closed to the sandbox's user."""
    check(LIBC.unshare(_NEW_MOUNTS), "mount namespace")
    check(LIBC.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None), "/")
    # Opened in the new namespace, the only one that its mounts may come from, and before anything is covered.
    fds = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in shown.values()}
    # It covers a directory of this machine, for this process and what becomes of it alone.
    check(LIBC.mount(b"tmpfs", stage.encode(), b"tmpfs", 0, b"mode=0755,size=1m"), stage)
    for target, path in shown.items():
        source = f"/proc/self/fd/{fds[path]}"
        if os.path.isdir(source):  # noqa: PTH112  # as above
            os.mkdir(target)  # noqa: PTH102  # as above
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        check(LIBC.mount(source.encode(), target.encode(), None, _BIND | _RECURSIVE, None), path)
    for fd in fds.values():
        os.close(fd)
