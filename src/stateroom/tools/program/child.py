"""The process that one program runs in: loads the engine, locks itself in, runs, and ends.

Run as a script by `tools.program.process`, with one line of JSON on its standard input that says what to do. It imports
nothing of Stateroom. After each step it writes one line: what the program called and put out, and whether it goes on;
each line that it then reads is the answer to one call. It ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_NOBODY = 65534
_AFTER = 0.5
"""Seconds of processor time that are left to tell how it ended, when the program has used up its own."""


def main() -> None:
    """Run one program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent ends us
    lines = sys.stdin.buffer
    told = json.loads(lines.readline())
    _die_with(told["parent"])
    os.closerange(3, 65536)
    engine = _load(told["library"])
    context = engine.Context()
    bridge = context.eval(told["prelude"])
    _confine(told)
    context.set_memory_limit(told["memory_bytes"])
    context.set_max_stack_size(told["stack_bytes"])
    step = _Steps(engine, context, bridge, told["cpu_seconds"])
    _write(step.take("start", json.dumps(told["program"])))
    while line := lines.readline():
        _write(step.take("settle", line.decode()))
    os._exit(0)


def _load(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("_quickjs", path)
    spec = importlib.util.spec_from_file_location("_quickjs", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class _Steps:
    """Runs the program from one quiet point to the next."""

    def __init__(self, engine: Any, context: Any, bridge: Any, seconds: float) -> None:
        self._exception = engine.JSException
        self._context = context
        self._bridge = bridge
        self._until = time.process_time() + seconds

    def take(self, what: str, line: str) -> str:
        """Hand it over, let the program do what it can, and say what came of it."""
        try:
            self._bounded(self._bridge, what, line)
            while self._bounded(self._context.execute_pending_job) or self._bounded(self._bridge, "tick", ""):
                pass
            self._context.set_time_limit(_AFTER)
            said: str = self._bridge("report", "")
        except MemoryError:
            return json.dumps({"state": "memory"})
        except self._exception as error:
            if time.process_time() >= self._until or "interrupted" in str(error):
                return json.dumps({"state": "time"})
            return json.dumps({"state": "memory" if "out of memory" in str(error) else "failed", "error": str(error)})
        return said

    def _bounded(self, function: Any, *arguments: str) -> Any:
        left = self._until - time.process_time()
        if left <= 0:
            raise self._exception("interrupted")
        self._context.set_time_limit(left)
        return function(*arguments)


def _write(line: str) -> None:
    rest = memoryview(line.encode() + b"\n")
    while rest:
        rest = rest[os.write(1, rest) :]


def _die_with(parent: int) -> None:
    """Be killed when the parent dies, whatever we are doing then."""
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _control(*arguments: Any) -> bool:
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(*[ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]) == 0)


def _confine(told: dict[str, Any]) -> None:
    """Give away all that is not needed to compute: files, processes, memory beyond the bound, rights, system calls."""
    time.tzset()
    cpu = int(told["cpu_seconds"] + _AFTER) + 2
    bounds = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, told["memory_bytes"] * 2 + 128 * 2**20),
    ]
    for what, most in bounds:
        with contextlib.suppress(OSError, ValueError):  # a stricter bound that is there already stays
            resource.setrlimit(what, (most, most))
    _drop_rights()
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # To the millisecond, where the bound on processor time counts in seconds. Nothing that runs can put it off.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, told["cpu_seconds"] + 2 * _AFTER)
    _control(_PR_SET_DUMPABLE, 0)
    _die_with(told["parent"])  # again: changing the user takes it back
    if told["filter"]:
        _filter_calls(bytes.fromhex(told["filter"]))


def _drop_rights() -> None:
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
        with contextlib.suppress(OSError):  # where that cannot be done, there is nothing of root's about it
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)


def _filter_calls(program: bytes) -> None:
    """Install the filter, or end: the parent takes that for what it is."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    told = Program(len(program) // 8, ctypes.addressof(code))
    none = 0
    if not (
        _control(_PR_SET_NO_NEW_PRIVS, 1, none, none, none)
        and _control(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(told), none, none)
    ):
        os._exit(77)


if __name__ == "__main__":
    main()
