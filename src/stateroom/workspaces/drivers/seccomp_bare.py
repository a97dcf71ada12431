"""A second filter for sandboxes that have no namespaces: what a namespace would have kept apart is refused.

It stands in front of `seccomp.program`, which such sandboxes have as well. Where they run as the server's own user, the
calls that reach another process of that user, or change the attributes of its files by their path, are closed too:
Landlock knows neither. Those that change attributes are put to whoever holds the sandbox, see `attributes.py`.
"""

from __future__ import annotations

import errno
import platform
from typing import Final

import msgspec

from stateroom.workspaces.drivers import bpf

ATTRIBUTES: Final = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat"),
)
"""Calls that are put to the holder."""
_LABELS: Final = (
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr"),
    *("removexattrat", "file_setattr"),
)
_SHARED: Final = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469}
_X86_64: Final = {
    **_SHARED,
    **{"socket": 41, "kill": 62, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240},
    **{"prlimit64": 302, "setpriority": 141, "ioprio_set": 251, "sched_setaffinity": 203, "sched_setparam": 142},
    **{"sched_setscheduler": 144, "sched_setattr": 314, "inotify_add_watch": 254},
    **{"chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260},
    **{"utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280},
    **{"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198},
    **{"fremovexattr": 199},
}
_AARCH64: Final = {
    **_SHARED,
    **{"socket": 198, "kill": 129, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180},
    **{"prlimit64": 261, "setpriority": 140, "ioprio_set": 30, "sched_setaffinity": 122, "sched_setparam": 118},
    **{"sched_setscheduler": 119, "sched_setattr": 274, "inotify_add_watch": 27},
    **{"fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "utimensat": 88},
    **{"setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16},
}
_MACHINES: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}
_EVERYONE: Final = 0xFFFF_FFFF
_OF_OTHERS: Final = ("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr")
"""Their first argument is a process; 0 is the caller."""


class Bare(msgspec.Struct, frozen=True):
    """The filter, and what it puts to the holder."""

    code: bytes
    asked: dict[int, str]
    """Number of each call that is put to the holder, and its name."""


def bare_program(*, same_user: bool, machine: str | None = None) -> Bare | None:
    """The filter for `machine` (this one); None where there is no table for it."""
    calls = _MACHINES.get(platform.machine() if machine is None else machine)
    if calls is None:
        return None
    code = bpf.load(bpf.NUMBER_AT)
    code += bpf.deny(calls["socket"], errno.EAFNOSUPPORT)
    for name in ("shmget", "semget", "msgget", "mq_open"):
        code += bpf.deny(calls[name], errno.ENOSYS)
    # To everyone that may be reached: without a namespace the agent is among them.
    code += bpf.when(calls["kill"], bpf.argument(0) + bpf.jump(bpf.EQUAL, _EVERYONE, 0, 1) + bpf.refuse(errno.EPERM))
    # Landlock lets a directory be watched that it does not let be listed.
    code += bpf.deny(calls["inotify_add_watch"], errno.EPERM)
    asked: dict[int, str] = {}
    if same_user:
        code += _closed(calls)
        asked = {calls[name]: name for name in ATTRIBUTES if name in calls}
        for number in asked:
            code += bpf.jump(bpf.EQUAL, number, 0, 1) + bpf.give(bpf.ASK)
    return Bare(code + bpf.give(bpf.ALLOW), asked)


def _closed(calls: dict[str, int]) -> bytes:
    """Calls at other processes of the same user, and at files that Landlock does not keep from them."""
    code = b""
    for name in _LABELS:
        code += bpf.deny(calls[name], errno.EOPNOTSUPP)
    for name in _OF_OTHERS:
        own = bpf.argument(0) + bpf.jump(bpf.EQUAL, 0, 1, 0)
        code += bpf.when(calls[name], own + bpf.refuse(errno.EPERM))
    for name, kind in (("setpriority", 0), ("ioprio_set", 1)):
        own = bpf.argument(0) + bpf.jump(bpf.EQUAL, kind, 0, 2) + bpf.argument(1) + bpf.jump(bpf.EQUAL, 0, 1, 0)
        code += bpf.when(calls[name], own + bpf.refuse(errno.EPERM))
    return code
