"""Run by the driver for each sandbox without namespaces: starts the agent behind Landlock, and outlives it to clean up.

It forks. The child gives up everything that it has and becomes the agent. The parent stays outside, where nothing of
the sandbox can reach it: whatever is orphaned inside becomes its child, and once the agent or the server has ended, it
ends all of it. It also carries out changes of files' attributes that the sandbox may make (attributes.py).

    python -I -S landlock_hold.py PLAN_FD LIFE_FD
"""

from __future__ import annotations

import ctypes
import marshal
import os
import select
import signal
import socket
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # pathlib: a third of the start

import attributes  # type: ignore[import-not-found, unused-ignore]  # a program, not of a package
import entering  # type: ignore[import-not-found, unused-ignore]  # as above
from entering import LIBC, check  # type: ignore[import-not-found, unused-ignore]  # as above

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
_LISTEN, _PATIENT = 8, 32
_LAST_CAPABILITY = 63
_END_SECONDS = 8.0

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_BLOCK, REFER, TRUNCATE, IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_ALL_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_TCP, _SCOPES = 3, 3


def main() -> None:
    plan_fd, life = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(life, False)
    with os.fdopen(plan_fd, "rb") as file:
        plan = marshal.loads(file.read())  # noqa: S302  # written by our own server a moment ago
    LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair()
    holder = os.getpid()
    child = os.fork()
    if not child:
        ours.close()
        try:
            enter(plan, holder, theirs)
        except OSError as error:
            sys.stderr.write("launch: %s: %s\n" % (error.strerror, error.filename or plan["argv"][0]))  # noqa: UP031  # as in the agent
            sys.stderr.flush()
        os._exit(126)
    theirs.close()
    os.write(1, b"%d\n" % child)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # the channel is the child's alone
        os.dup2(nothing, fd)
    try:
        hold(child, life, ours, plan)
    finally:
        end_all(plan["uid"])


# Inside


def enter(plan: dict[str, Any], holder: int, listener: socket.socket) -> None:
    """Give everything up, and become the agent. Raises OSError."""
    os.setsid()
    entering.enter(plan)
    rules = make_rules(plan["rules"])
    rank = os.open("/proc/self/oom_score_adj", os.O_RDWR)  # of the agent, which may write nothing below /proc
    drop(plan["uid"])
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != holder:
        raise OSError(3, "No such process", "the holder")
    os.chdir(plan["files"])
    check(LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(LIBC.syscall(_RESTRICT, rules, 0), "Landlock")
    os.close(rules)
    filters = plan["filters"]
    install(filters[0], 0)
    notify = install(filters[1], _LISTEN if plan["asked"] else 0)
    if plan["asked"]:
        socket.send_fds(listener, [b"n"], [notify])
    os.dup2(0, 1)
    os.dup2(rank, 3)
    os.set_inheritable(3, True)  # it may have been there all the time
    os.closerange(4, 4_096)
    os.execve(plan["argv"][0], [*plan["argv"], "rank=3"], plan["env"])  # noqa: S606  # the point of all this


def make_rules(rules: list[tuple[str, str]]) -> int:
    """A set of rules: everything that Landlock knows is handled, and allowed is what is listed. Raises OSError."""
    version = LIBC.syscall(_CREATE, None, 0, 1)
    check(version, "Landlock")
    rights = next(_ALL_FILE_RIGHTS[since] for since in sorted(_ALL_FILE_RIGHTS, reverse=True) if version >= since)
    handled = [rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    size = 8 * (3 if version >= 6 else 2 if version >= 4 else 1)
    ruleset = LIBC.syscall(_CREATE, (ctypes.c_uint64 * 3)(*handled), ctypes.c_size_t(size), 0)
    check(ruleset, "Landlock")
    for path, kind in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = {
            "read": EXECUTE | READ_FILE | READ_DIR,
            "look": READ_FILE | READ_DIR,
            "device": READ_FILE | WRITE_FILE | TRUNCATE,
            "write": rights & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV),
        }[kind]
        if not os.path.isdir("/proc/self/fd/%d" % fd):  # noqa: PTH112, UP031  # as above
            allowed &= _OF_FILES
        row = (allowed & rights).to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
        check(LIBC.syscall(_ADD, ruleset, 1, row, 0), path)
        os.close(fd)
    return int(ruleset)


def drop(uid: int) -> None:
    """Become nobody but the sandbox's user, who can become nobody else."""
    if not uid:
        return
    for number in range(_LAST_CAPABILITY + 1):
        LIBC.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    entering.become(uid)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def install(code: bytes, flags: int) -> int:
    """A filter of system calls; its listener, if there is to be one. Raises OSError."""
    program = _Program(len(code) // 8, code)
    number = _SECCOMP[os.uname().machine]
    result = -1
    if flags:
        result = LIBC.syscall(number, 1, flags | _PATIENT, ctypes.byref(program))
    if result < 0:
        result = LIBC.syscall(number, 1, flags, ctypes.byref(program))
    check(result, "system call filter")
    return int(result)


# Outside


def hold(child: int, life: int, listener: socket.socket, plan: dict[str, Any]) -> None:
    """Until the agent or the server has ended."""
    handle = os.pidfd_open(child)
    watched = select.poll()
    watched.register(handle, select.POLLIN)
    watched.register(life, select.POLLIN)
    broker = None
    if plan["asked"]:
        fds = socket.recv_fds(listener, 1, 1)[1]
        if not fds:
            return
        broker = attributes.Broker(fds[0], plan["asked"], plan["roots"])
        watched.register(fds[0], select.POLLIN)
    listener.close()
    while True:
        for fd, events in watched.poll():
            if fd in (handle, life):
                return
            if broker is not None and events & select.POLLIN:
                broker.answer()
            elif broker is not None:
                watched.unregister(fd)


def end_all(uid: int) -> None:
    """Kill everything of the sandbox. All are stopped first: what stands still starts nothing that would get away."""
    stopped: set[int] = set()
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        reap()
        alive = members(uid)
        if not alive:
            return
        fresh = alive - stopped
        for pid in fresh or alive:
            try:
                os.kill(pid, signal.SIGSTOP if fresh else signal.SIGKILL)
            except OSError:
                continue
        stopped |= fresh
        if not fresh:
            time.sleep(0.001)


def reap() -> None:
    while True:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return


def members(uid: int) -> set[int]:
    """What descends from here; and whatever runs as the sandbox's user, who has nothing else."""
    parents, found = {}, set()
    for name in os.listdir("/proc"):  # noqa: PTH208  # as above
        if name.isdigit():
            try:
                with open("/proc/%s/status" % name, "rb") as file:  # noqa: PTH123, UP031  # as above
                    fields = dict(line.split(b":\t", 1) for line in file.read().splitlines() if b":\t" in line)
            except OSError:
                continue
            if fields[b"State"][:1] not in b"ZX":
                parents[int(name)] = int(fields[b"PPid"])
                if uid and int(fields[b"Uid"].split()[0]) == uid:
                    found.add(int(name))
    below = {os.getpid()}
    size = 0
    while size != len(below):
        size = len(below)
        below |= {pid for pid, parent in parents.items() if parent in below}
    return (found | below) - {os.getpid()}


if __name__ == "__main__":
    main()
