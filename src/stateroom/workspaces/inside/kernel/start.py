"""Splits the process in two, the relay and the kernel, and gives the kernel its ends."""

from __future__ import annotations

import fcntl
import os

from . import frames
from .relay import Ends, relay

_AWAY = 200
"""The kernel's own descriptors begin here, out of the way of cells that count on small numbers."""


def main(cloudpickle: str) -> None:
    requests, answers = _away(0), _away(1)
    printed, print_to = os.pipe()
    control, speak = os.pipe()
    may_begin, begun = os.pipe()
    for fd in (control, speak):
        try:
            fcntl.fcntl(fd, 1031, 1024 * 1024)  # F_SETPIPE_SZ, which Python has a name for since 3.10
        except OSError:
            pass  # the usual 64 KiB do as well
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    kernel = os.fork()
    if kernel:
        for fd in (requests, speak, print_to, may_begin):
            os.close(fd)
        relay(kernel, Ends(control, printed, begun, answers))
    for fd in (control, printed, begun, answers, nothing):
        os.close(fd)
    away = [_away(fd) for fd in (speak, print_to, may_begin)]
    for fd in (speak, print_to, may_begin):
        os.close(fd)
    try:
        from .serve import Kernel  # the relay has no use for it

        Kernel(requests, away[0], away[1], away[2], cloudpickle).serve()
    except EOFError:
        pass  # the server has closed the channel
    except BaseException as error:
        frames.write_all(2, (f"the interpreter failed: {error!r}\n").encode("utf-8", "replace"))
        os._exit(70)
    os._exit(0)


def _away(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _AWAY)
    except OSError:  # fewer may be open
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
