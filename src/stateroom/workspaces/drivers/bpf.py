"""The few instructions of classic BPF that filters of system calls need, as bytes. It knows no system call."""

from __future__ import annotations

import struct
from typing import Final

EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_RETURN: Final = 0x06  # BPF_RET | BPF_K

ALLOW: Final = 0x7FFF_0000
ASK: Final = 0x7FC0_0000
"""Whoever listens decides."""
_ERRNO: Final = 0x0005_0000

NUMBER_AT: Final = 0
_ARGUMENTS_AT: Final = 16


def load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def argument(index: int) -> bytes:
    """Load its lower half."""
    return load(_ARGUMENTS_AT + 8 * index)


def jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    """Skip so many instructions."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def give(value: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, value)


def refuse(error: int) -> bytes:
    return give(_ERRNO | error)


def deny(number: int, error: int) -> bytes:
    """One call, whatever its arguments."""
    return jump(EQUAL, number, 0, 1) + refuse(error)


def when(number: int, body: bytes) -> bytes:
    """`body` for one call alone; what it does not refuse is allowed, since it may have loaded something else."""
    body += give(ALLOW)
    return jump(EQUAL, number, 0, len(body) // 8) + body
