"""The system call filter of the engine's process: what it may still ask the kernel for, which is next to nothing.

It can read and write what it has open (a pipe each way), take and give back memory, and end. There is no call among
these that opens, connects, starts, signals or makes memory executable. Everything else fails with EPERM.
Only the bytes of the filter are made here; the process installs it on itself.
"""

from __future__ import annotations

import platform
import struct
import sys

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_X32 = 0x40000000
_EXECUTABLE = 4

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MEMORY = {"x86_64": {"mmap": 9, "mprotect": 10}, "aarch64": {"mmap": 222, "mprotect": 226}}
"""Allowed unless the memory is to be executable."""
_OTHERS = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "munmap": 11,
        "brk": 12,
        "rt_sigaction": 13,
        "rt_sigprocmask": 14,
        "rt_sigreturn": 15,
        "mremap": 25,
        "madvise": 28,
        "getpid": 39,
        "exit": 60,
        "sigaltstack": 131,
        "futex": 202,
        "clock_gettime": 228,
        "exit_group": 231,
        "getrandom": 318,
    },
    "aarch64": {
        "read": 63,
        "write": 64,
        "exit": 93,
        "exit_group": 94,
        "futex": 98,
        "clock_gettime": 113,
        "sigaltstack": 132,
        "rt_sigaction": 134,
        "rt_sigprocmask": 135,
        "rt_sigreturn": 139,
        "getpid": 172,
        "brk": 214,
        "munmap": 215,
        "mremap": 216,
        "madvise": 233,
        "getrandom": 278,
    },
}


def filter_for(machine: str | None = None) -> bytes | None:
    """A BPF program for `machine` (this one by default); None where none is known."""
    machine = machine or (platform.machine() if sys.platform == "linux" else "")
    if machine not in _AUDIT:
        return None
    others, memory = sorted(_OTHERS[machine].values()), sorted(_MEMORY[machine].values())
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    # What follows the list: refuse; allow; look at the protection asked for; allow or refuse.
    left = len(others) + len(memory)
    for number in others:
        left -= 1
        lines.append((_EQUAL, left + 1, 0, number))
    for number in memory:
        left -= 1
        lines.append((_EQUAL, left + 2, 0, number))
    lines += [
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _THIRD_ARGUMENT),
        (_ANY_BIT, 0, 1, _EXECUTABLE),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
