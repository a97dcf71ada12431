"""The system calls that processes of a sandbox may not make, as a BPF program in plain Python.

A list of what is denied, not of what is allowed: programs keep working with new kernels, and everything on the list is
either of no use without privileges or a door to much kernel code. It stands behind the namespaces, not instead of them.
Nothing here installs a filter: the program is handed to whoever starts a sandbox.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Final

import msgspec

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF_0000
_KILL: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000

_NUMBER_AT: Final = 0
_ARCH_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_X32: Final = 0x4000_0000

_NAMESPACES: Final = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_FAMILIES: Final = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""
_NETLINK: Final = 16
_TERMINAL_TRICKS: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX put words in a terminal's mouth."""
_ASK_PERSONALITY: Final = 0xFFFF_FFFF

_SHARED: Final = {
    **{"pidfd_getfd": 438, "quotactl_fd": 443, "mount_setattr": 442, "open_tree_attr": 467},
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
    **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433},
}
_DENIED_X86_64: Final = {
    **_SHARED,
    **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308},
    **{"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
    **{"kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163},
    **{"create_module": 174, "init_module": 175, "finit_module": 313, "delete_module": 176},
    **{"get_kernel_syms": 177, "query_module": 178, "quotactl": 179, "nfsservctl": 180, "vhangup": 153},
    **{"process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
    **{"name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300, "fanotify_mark": 301},
    **{"syslog": 103, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "modify_ldt": 154},
    **{"settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "uselib": 134, "sysfs": 139, "_sysctl": 156},
    **{"lookup_dcookie": 212, "migrate_pages": 256, "move_pages": 279},
}
_DENIED_AARCH64: Final = {
    **_SHARED,
    **{"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268},
    **{"add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282},
    **{"kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89},
    **{"init_module": 105, "finit_module": 273, "delete_module": 106},
    **{"quotactl": 60, "nfsservctl": 42, "vhangup": 58},
    **{"process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272},
    **{"name_to_handle_at": 264, "open_by_handle_at": 265, "fanotify_init": 262, "fanotify_mark": 263},
    **{"syslog": 116, "sethostname": 161, "setdomainname": 162},
    **{"settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266},
    **{"lookup_dcookie": 18, "migrate_pages": 238, "move_pages": 239},
}


class _Machine(msgspec.Struct, frozen=True):
    audit: int
    """How the kernel names the architecture."""
    denied: dict[str, int]
    clone: int
    clone3: int
    socket: int
    socketpair: int
    ioctl: int
    personality: int
    uncounted: tuple[int, ...]
    """memfd_create, memfd_secret, shmget: memory that no process's size shows."""
    has_x32: bool


_MACHINES: Final = {
    "x86_64": _Machine(0xC000_003E, _DENIED_X86_64, 56, 435, 41, 53, 16, 135, (319, 447, 29), True),
    "aarch64": _Machine(0xC000_00B7, _DENIED_AARCH64, 220, 435, 198, 199, 29, 92, (279, 447, 194), False),
}


def program(*, counted_memory_only: bool = False, machine: str | None = None) -> bytes | None:
    """The filter for `machine` (this one), as `struct sock_filter[]`; None where there is no table for it.

    With `counted_memory_only` there is none but what shows in the size of a process: where no cgroup bounds memory,
    anything else could grow unseen.
    """
    calls = _MACHINES.get(platform.machine() if machine is None else machine)
    if calls is None:
        return None
    code = _only_for(calls)
    for number in sorted(calls.denied.values()):
        code += _deny(number, errno.EPERM)
    # Its flags lie in memory, where a filter cannot look; told that it does not exist, C libraries fall back to clone.
    code += _deny(calls.clone3, errno.ENOSYS)
    if counted_memory_only:
        for number in calls.uncounted:
            code += _deny(number, errno.ENOSYS)
    code += _when(calls.clone, _argument(0) + _jump(_ANY_BIT, _NAMESPACES, 0, 1) + _refuse(errno.EPERM))
    code += _when(calls.socket, _families())
    code += _when(calls.socketpair, _argument(0) + _jump(_EQUAL, 1, 1, 0) + _refuse(errno.EAFNOSUPPORT))
    code += _when(calls.ioctl, _argument(1) + b"".join(map(_terminal_trick, _TERMINAL_TRICKS)))
    code += _when(calls.personality, _argument(0) + _jump(_EQUAL, _ASK_PERSONALITY, 1, 0) + _refuse(errno.EPERM))
    return code + _return(_ALLOW)


def denied(machine: str | None = None) -> dict[str, int]:
    """System calls that are refused whatever their arguments, by name."""
    calls = _MACHINES.get(platform.machine() if machine is None else machine)
    return dict(calls.denied) if calls else {}


def _only_for(calls: _Machine) -> bytes:
    """Numbers mean something else on another architecture, and on x32."""
    code = _load(_ARCH_AT) + _jump(_EQUAL, calls.audit, 1, 0) + _return(_KILL) + _load(_NUMBER_AT)
    if calls.has_x32:
        code += _jump(_AT_LEAST, _X32, 0, 1) + _refuse(errno.ENOSYS)
    return code


def _families() -> bytes:
    """Sockets of the families that every program knows; netlink to ask for addresses and routes, nothing else."""
    allowed = b"".join(_jump(_EQUAL, family, 0, 1) + _return(_ALLOW) for family in _FAMILIES)
    netlink = _jump(_EQUAL, _NETLINK, 0, 2) + _argument(2) + _jump(_EQUAL, 0, 1, 0)
    return _argument(0) + allowed + netlink + _refuse(errno.EAFNOSUPPORT)


def _terminal_trick(command: int) -> bytes:
    return _jump(_EQUAL, command, 0, 1) + _refuse(errno.EPERM)


def _deny(number: int, error: int) -> bytes:
    return _jump(_EQUAL, number, 0, 1) + _refuse(error)


def _when(number: int, body: bytes) -> bytes:
    """`body` for one call alone; what it does not refuse is allowed, since it may have loaded something else."""
    body += _return(_ALLOW)
    return _jump(_EQUAL, number, 0, len(body) // 8) + body


def _argument(index: int) -> bytes:
    """The lower half: all of these are ints to the kernel."""
    return _load(_ARGUMENTS_AT + 8 * index)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _return(value: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, value)


def _refuse(error: int) -> bytes:
    return _return(_ERRNO | error)
