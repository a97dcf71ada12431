"""Changes of files' modes, owners and times, made on behalf of a sandbox that runs as the server's own user.

Landlock lets a process change those of any file of its user. So the calls are refused to the sandbox, and put to its
holder, who makes the change where the file is the sandbox's own: it looks the file up itself, once, and acts on what it
found, so that nothing that moves meanwhile changes what is acted on. Standard library only; run outside the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_RECEIVE, _SEND, _STILL_THERE = 0xC050_2100, 0xC018_2101, 0x4008_2102
_REQUEST = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_HERE = 0xFFFF_FF9C  # AT_FDCWD, as 32 bits
_NO_FOLLOW, _EMPTY_PATH = 0x100, 0x1000
_PATH_BYTES = 4_096
_MODE = 0o1777
"""What of a mode can be set: who runs a file is nobody else for it."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class Broker:
    """`asked`: number of each call that comes here, and its name. `roots`: the sandbox's own directories."""

    def __init__(self, listener: int, asked: dict[int, str], roots: list[str]) -> None:
        self._listener = listener
        self._asked = asked
        self._roots = [os.path.realpath(root) for root in roots]

    def answer(self) -> None:
        """The call that waits."""
        request = bytearray(_REQUEST.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, request)
        except OSError:
            return  # whoever made it has ended
        number, pid, _, call, _, _, *arguments = _REQUEST.unpack(request)
        try:
            self._carry_out(number, pid, self._asked.get(call, ""), arguments)
            error = 0
        except OSError as refused:
            error = refused.errno or errno.EPERM
        except (ValueError, struct.error):
            error = errno.EPERM
        try:
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(number, 0, -error, 0))
        except OSError:
            return  # as above

    def _carry_out(self, number: int, pid: int, call: str, arguments: list[int]) -> None:
        """Raises OSError, ValueError."""
        directory, path, follow, rest = _target(call, arguments)
        name = b"" if not path else _text(pid, path)
        if path and not name and call not in ("fchownat", "fchmodat2", "utimensat"):
            raise FileNotFoundError(errno.ENOENT, "")
        memory = _times(pid, call, rest[0]) if "utime" in call or call == "futimesat" else None
        fd = self._find(pid, directory, name, follow)
        try:
            fcntl.ioctl(self._listener, _STILL_THERE, struct.pack("=Q", number))  # else the number may be another's
            _act(call, fd, rest, memory)
        finally:
            os.close(fd)

    def _find(self, pid: int, directory: int, name: bytes, follow: bool) -> int:
        """A handle of the file, which is the sandbox's own. Raises OSError."""
        base = b"/proc/%d/cwd" % pid if directory == _HERE else b"/proc/%d/fd/%d" % (pid, directory)
        if name.startswith(b"/"):
            base = b""
        where = base + (b"/" if base and name else b"") + name
        flags = os.O_PATH | os.O_CLOEXEC | (0 if follow or not name else os.O_NOFOLLOW)
        fd = os.open(where, flags)
        try:
            real = os.readlink("/proc/self/fd/%d" % fd)  # noqa: PTH115, UP031  # as in the agent
            inside = any(real == root or real.startswith(root + "/") for root in self._roots)
            if not inside:
                raise PermissionError(errno.EPERM, "")
        except BaseException:
            os.close(fd)
            raise
        return fd


def _target(call: str, arguments: list[int]) -> tuple[int, int, bool, list[int]]:
    """Directory, address of the path (0: the directory's number is the file), whether a link at its end is followed,
    and the other arguments."""
    first = arguments[0] & 0xFFFF_FFFF
    if call in ("fchmod", "fchown"):
        return first, 0, True, arguments[1:]
    if call in ("chmod", "chown", "lchown", "utime", "utimes"):
        return _HERE, arguments[0], call != "lchown", arguments[1:]
    flags = {"fchmodat2": arguments[3], "fchownat": arguments[4], "utimensat": arguments[3]}.get(call, 0)
    if flags & ~(_NO_FOLLOW | _EMPTY_PATH) & 0xFFFF_FFFF:
        raise OSError(errno.EINVAL, "")
    return first, arguments[1], not flags & _NO_FOLLOW, arguments[2:]


def _act(call: str, fd: int, rest: list[int], memory: bytes | None) -> None:
    """Raises OSError."""
    path = b"/proc/self/fd/%d" % fd
    if "chmod" in call:
        os.chmod(path, rest[0] & _MODE)  # noqa: PTH101  # of what the handle names
    elif "chown" in call:
        owner, group = [_signed(value) for value in rest[:2]]
        os.chown(path, owner, group)
    elif _LIBC.utimensat(-100, path, memory, 0) < 0:
        raise OSError(ctypes.get_errno(), "")


def _times(pid: int, call: str, address: int) -> bytes | None:
    """As two `timespec`; None: now. Raises OSError, struct.error."""
    if not address:
        return None
    if call == "utimensat":
        return _memory(pid, address, 32, exactly=True)
    if call == "utime":
        seconds = struct.unpack("=qq", _memory(pid, address, 16, exactly=True))
        return struct.pack("=qqqq", seconds[0], 0, seconds[1], 0)
    words = struct.unpack("=qqqq", _memory(pid, address, 32, exactly=True))
    if not (0 <= words[1] < 1_000_000 and 0 <= words[3] < 1_000_000):
        raise OSError(errno.EINVAL, "")
    return struct.pack("=qqqq", words[0], words[1] * 1000, words[2], words[3] * 1000)


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF
    return -1 if value == 0xFFFF_FFFF else value


def _text(pid: int, address: int) -> bytes:
    """Up to a zero byte. Raises OSError."""
    data = b""
    while b"\0" not in data:
        if len(data) >= _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        at = address + len(data)
        data += _memory(pid, at, min(256, 4_096 - at % 4_096), exactly=False)  # the next page may not be there
    return data[: data.index(b"\0")]


def _memory(pid: int, address: int, count: int, *, exactly: bool) -> bytes:
    """Raises OSError."""
    fd = os.open("/proc/%d/mem" % pid, os.O_RDONLY | os.O_CLOEXEC)  # noqa: UP031  # as above
    try:
        data = os.pread(fd, count, address)
    finally:
        os.close(fd)
    if not data or (exactly and len(data) != count):
        raise OSError(errno.EFAULT, "")
    return data
