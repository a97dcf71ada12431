"""Run by the driver for each sandbox, in a process of its own: what has to happen before bubblewrap starts.

It joins the control groups, shows what the sandbox's user could not reach by its path, lowers the limits, becomes that
user, and then becomes bubblewrap. A program and not a function, since a server with threads must not run Python between
fork and exec. It imports nothing but the standard library, and little of that.

    python -I -S launch.py PLAN_FD
"""

from __future__ import annotations

import marshal
import os
import resource
import sys
from typing import Any

_NEW_MOUNTS = 0x0002_0000
_BIND = 0x1000
_RECURSIVE = 0x4000
_PRIVATE = 0x4_0000
_NO_NEW_PRIVILEGES = 38


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        plan = marshal.loads(file.read())  # noqa: S302  # written by our own server a moment ago
    try:
        launch(plan)
    except OSError as error:
        sys.stderr.write(f"launch: {error.strerror}: {error.filename or plan['argv'][0]}\n")
        os._exit(126)


def launch(plan: dict[str, Any]) -> None:
    """Does not return. Raises OSError."""
    for path in plan["groups"]:
        with open(path, "w") as file:  # noqa: PTH123  # pathlib would be a third of the time this takes
            file.write("0")
    argv = plan["argv"]
    if plan["shown"]:
        _show(plan["stage"], plan["shown"])
    for name, value in plan["limits"].items():
        number = getattr(resource, f"RLIMIT_{name}")
        hardest = resource.getrlimit(number)[1]
        if hardest != resource.RLIM_INFINITY:
            value = min(value, hardest)
        resource.setrlimit(number, (value, value))
    if plan["uid"]:
        os.setgroups([])
        os.setresgid(plan["uid"], plan["uid"], plan["uid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    _libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.umask(0o022)
    os.chdir("/")
    os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})  # noqa: S606  # the point of all this


def _libc() -> Any:
    import ctypes  # 4 ms, after everything that may fail

    return ctypes.CDLL(None, use_errno=True)


def _show(stage: str, shown: dict[str, str]) -> None:
    """Mount what is wanted where everyone may go, since the way to it may be closed to the sandbox's user."""
    libc = _libc()
    _check(libc, libc.unshare(_NEW_MOUNTS), "mount namespace")
    _check(libc, libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None), "/")
    # Opened in the new namespace, the only one that its mounts may come from, and before anything is covered.
    fds = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in shown.values()}
    # It covers a directory of this machine, for this process and what becomes of it alone.
    _check(libc, libc.mount(b"tmpfs", stage.encode(), b"tmpfs", 0, b"mode=0755,size=1m"), stage)
    for target, path in shown.items():
        source = f"/proc/self/fd/{fds[path]}"
        if os.path.isdir(source):  # noqa: PTH112  # as above
            os.mkdir(target)  # noqa: PTH102  # as above
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _check(libc, libc.mount(source.encode(), target.encode(), None, _BIND | _RECURSIVE, None), path)


def _check(libc: Any, result: int, what: str) -> None:
    if result:
        import ctypes  # as above

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    main()
