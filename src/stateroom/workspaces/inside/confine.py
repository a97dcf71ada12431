"""Run in a container before the agent: closes what the container's own filter of system calls may have left open.

python -I -S confine.py FILTER ARGUMENTS...     FILTER: a BPF program in base64; the arguments: of the same Python
"""

from __future__ import annotations

import binascii
import ctypes
import os
import sys

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def main() -> None:
    code = binascii.a2b_base64(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(code) // 8, code)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        sys.exit("the filter of system calls was refused: " + os.strerror(ctypes.get_errno()))
    os.environ.pop("container", None)
    os.environ.pop("HOSTNAME", None)
    os.execv(sys.executable, [sys.executable] + sys.argv[2:])  # noqa: S606  # the point of all this


main()
