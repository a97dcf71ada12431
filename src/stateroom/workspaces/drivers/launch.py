"""Run by the driver for each sandbox, in a process of its own: what has to happen before bubblewrap starts.

It joins the control groups, shows what the sandbox's user could not reach by its path, lowers the limits, becomes that
user, and then becomes bubblewrap. A child that it leaves behind ends all of it if the server dies before the sandbox
has begun. A program and not a function, since a server with threads must not run Python between fork and exec. It
imports nothing but the standard library, and little of that.

    python -I -S launch.py PLAN_FD LIFE_FD
"""

from __future__ import annotations

import marshal
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # pathlib: a third of the start

from entering import LIBC, become, enter  # type: ignore[import-not-found, unused-ignore]  # a program, not of a package

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing it would be a tenth of the time that a sandbox takes to start
    from typing import Any, NoReturn

_SIGKILL = 9
"""The module with the names of signals takes as long."""
_NO_NEW_PRIVILEGES = 38


def main() -> None:
    life = int(sys.argv[2])
    if not os.fork():
        guard(life)
    os.close(life)
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        plan = marshal.loads(file.read())  # noqa: S302  # written by our own server a moment ago
    try:
        launch(plan)
    except OSError as error:
        sys.stderr.write(f"launch: {error.strerror}: {error.filename or plan['argv'][0]}\n")
        os._exit(126)


def guard(life: int) -> NoReturn:
    """Until the server says that the sandbox has begun, or is gone: then whatever has begun is ended.

    From then on whoever is inside sees for themselves that the server is gone. Before that bubblewrap's inner half
    would wait for a word of the outer one, which nobody tells it is gone. They are of this process group until then.
    """
    last = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208  # pathlib would be a third of the time this takes
    os.closerange(0, life)
    os.closerange(life + 1, last + 1)
    if not os.read(life, 1):
        os.killpg(0, _SIGKILL)
    os._exit(0)


def launch(plan: dict[str, Any]) -> None:
    """Does not return. Raises OSError."""
    enter(plan)
    if plan["uid"]:
        become(plan["uid"])
    LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.chdir("/")
    argv = plan["argv"]
    os.execve(argv[0], argv, {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})  # noqa: S606  # the point of all this


if __name__ == "__main__":
    main()
