"""The filter is run by a small interpreter of its own, and by the kernel in the drivers' conformance suite."""

from __future__ import annotations

import errno
import struct
from typing import Final

import pytest

from stateroom.workspaces.drivers import seccomp

ALLOW: Final = 0x7FFF_0000
KILL: Final = 0x8000_0000
AUDIT: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
SOCKET: Final = {"x86_64": 41, "aarch64": 198}
CLONE: Final = {"x86_64": 56, "aarch64": 220}
IOCTL: Final = {"x86_64": 16, "aarch64": 29}
READ: Final = {"x86_64": 0, "aarch64": 63}
MEMFD: Final = {"x86_64": 319, "aarch64": 279}
MACHINES: Final = ("x86_64", "aarch64")


def refused(error: int) -> int:
    return 0x0005_0000 | error


def judge(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """What the kernel would do with a system call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, audit, 0, *padded)
    at = loaded = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return value
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_on_the_list_is_refused_and_ordinary_calls_are_not(machine: str) -> None:
    program = seccomp.program(machine=machine)
    assert program is not None
    denied = seccomp.denied(machine)
    assert {"mount", "unshare", "setns", "keyctl", "bpf", "userfaultfd", "io_uring_setup", "pidfd_getfd"} <= set(denied)
    assert len(set(denied.values())) == len(denied)
    for name, number in denied.items():
        assert judge(program, AUDIT[machine], number) == refused(errno.EPERM), name
    for number in set(range(460)) - set(denied.values()) - {435, SOCKET[machine]}:
        arguments = (1, 0, 0) if number != {"x86_64": 135, "aarch64": 92}[machine] else (0xFFFF_FFFF,)
        assert judge(program, AUDIT[machine], number, *arguments) == ALLOW, number


@pytest.mark.parametrize("machine", MACHINES)
def test_processes_may_be_made_but_no_namespaces(machine: str) -> None:
    program = seccomp.program(machine=machine)
    assert program is not None
    audit, clone = AUDIT[machine], CLONE[machine]
    assert judge(program, audit, clone, 0x0000_0011) == ALLOW
    assert judge(program, audit, clone, 0x003D_0F00) == ALLOW, "a thread"
    for flag in (0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000):
        assert judge(program, audit, clone, 0x11 | flag) == refused(errno.EPERM)
    assert judge(program, audit, 435, 0) == refused(errno.ENOSYS), "clone3 hides its flags"


@pytest.mark.parametrize("machine", MACHINES)
def test_only_the_usual_sockets_can_be_made(machine: str) -> None:
    program = seccomp.program(machine=machine)
    assert program is not None
    for family in range(50):
        expected = ALLOW if family in (1, 2, 10, 16) else refused(errno.EAFNOSUPPORT)
        assert judge(program, AUDIT[machine], SOCKET[machine], family, 1, 0) == expected, family
    assert judge(program, AUDIT[machine], SOCKET[machine], 16, 3, 12) == refused(errno.EAFNOSUPPORT), "netfilter"
    assert judge(program, AUDIT[machine], SOCKET[machine] + (12 if machine == "x86_64" else 1), 1, 1, 0) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_a_terminal_cannot_be_typed_into(machine: str) -> None:
    program = seccomp.program(machine=machine)
    assert program is not None
    for command in (0x5412, 0x541C, 0xFFFF_FFFF_0000_5412):
        assert judge(program, AUDIT[machine], IOCTL[machine], 0, command) == refused(errno.EPERM)
    assert judge(program, AUDIT[machine], IOCTL[machine], 0, 0x5413) == ALLOW


def test_another_architecture_s_calls_end_the_process() -> None:
    program = seccomp.program(machine="x86_64")
    assert program is not None
    assert judge(program, 0x4000_0003, 0) == KILL
    assert judge(program, AUDIT["aarch64"], 63) == KILL
    assert judge(program, AUDIT["x86_64"], 0x4000_0000 | 41, 1) == refused(errno.ENOSYS), "x32"


@pytest.mark.parametrize("machine", MACHINES)
def test_memory_that_shows_nowhere_can_be_refused(machine: str) -> None:
    usual, strict = seccomp.program(machine=machine), seccomp.program(machine=machine, counted_memory_only=True)
    assert usual is not None
    assert strict is not None
    assert judge(usual, AUDIT[machine], MEMFD[machine]) == ALLOW
    assert judge(strict, AUDIT[machine], MEMFD[machine]) == refused(errno.ENOSYS)
    assert judge(strict, AUDIT[machine], READ[machine]) == ALLOW


def test_a_machine_without_a_table_has_no_filter() -> None:
    assert seccomp.program(machine="sparc64") is None
