"""Run in a sandbox by the probe: tries what must not work, and prints what came of each as JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import sys

TYPE_CHECKING = False  # as in the agent
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
CALLS: dict[str, tuple[int, tuple[int | bytes | None, ...]]] = {
    "unshare": (97 if ARM else 272, (0x10000000,)),
    "setns": (268 if ARM else 308, (0, 0)),
    "mount": (40 if ARM else 165, (b"none", b"/tmp", b"tmpfs", 0, None)),
    "open_tree": (428, (-100, b"/", 1)),
    "pivot_root": (41 if ARM else 155, (b"/", b"/")),
    "chroot": (51 if ARM else 161, (b"/tmp",)),
    "keyctl": (219 if ARM else 250, (0, -3, 0)),
    "add_key": (217 if ARM else 248, (b"user", b"x", b"y", 1, -3)),
    "bpf": (280 if ARM else 321, (0, None, 0)),
    "userfaultfd": (282 if ARM else 323, (0,)),
    "io_uring_setup": (425, (1, None)),
    "perf_event_open": (241 if ARM else 298, (None, 0, -1, -1, 0)),
    "personality": (92 if ARM else 135, (0x0040000,)),
    "ptrace of the machine": (117 if ARM else 101, (16, 2**22, 0, 0)),
    "process_vm_readv": (270 if ARM else 310, (1, None, 0, None, 0, 0)),
    "open_by_handle_at": (265 if ARM else 304, (-100, None, 0)),
    "kexec_load": (104 if ARM else 246, (0, 0, None, 0)),
}
ROWS: list[tuple[str, bool, str]] = []


def tell(name: str, held: object, detail: object = "") -> None:
    ROWS.append((name, bool(held), str(detail)))


def refused(name: str, act: Callable[[], object]) -> None:
    """The promise holds if this raises an OSError."""
    try:
        result = act()
    except OSError as error:
        tell(name, True, errno.errorcode.get(error.errno or 0, str(error)))
        return
    tell(name, False, "it worked" if result is None else "it worked: %r" % (result,))


def read(path: str) -> int:
    with open(path, "rb") as file:
        return len(file.read(100))


def write(path: str, data: bytes = b"1") -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def connect(family: int, address: tuple[str, int] | str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(3)
        connection.connect(address)


def make_socket(family: int, kind: int = socket.SOCK_STREAM) -> None:
    socket.socket(family, kind).close()


def call(name: str) -> None:
    number, arguments = CALLS[name]
    ctypes.set_errno(0)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    if LIBC.syscall(ctypes.c_long(number), *words) == -1:
        raise OSError(ctypes.get_errno(), name)


def status() -> dict[str, str]:
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def calls() -> None:
    allowed = []
    for name in CALLS:
        try:
            call(name)
            allowed.append(name)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ESRCH):
                allowed.append("%s (%s)" % (name, errno.errorcode.get(error.errno or 0)))
    tell("dangerous system calls are refused", not allowed, ", ".join(allowed))


def files(outside: dict[str, Any]) -> None:
    refused("files of this machine cannot be read", lambda: read(outside["secret"]))
    refused("/etc/shadow cannot be read", lambda: read("/etc/shadow"))
    refused("the system is read-only", lambda: os.mkdir("/usr/stateroom-probe"))
    refused("nothing can be put beside the workspace", lambda: os.mkdir("/stateroom-probe"))
    refused("device nodes cannot be made", lambda: os.mknod("/tmp/stateroom-probe", 0o060600, os.makedev(254, 0)))
    tunables = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger")
    written = []
    for path in (*tunables, "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs"):
        try:
            write(path)
            written.append(path)
        except OSError:
            pass
    tell("the kernel's settings cannot be written", not written, ", ".join(written))


def network(outside: dict[str, Any]) -> None:
    refused(
        "services of this machine cannot be reached", lambda: connect(socket.AF_INET, ("127.0.0.1", outside["port"]))
    )
    refused("the network cannot be reached", lambda: connect(socket.AF_INET, ("192.0.2.1", 80)))
    refused("abstract sockets cannot be reached", lambda: connect(socket.AF_UNIX, "\0" + outside["abstract"]))
    refused("virtual machine sockets are refused", lambda: make_socket(40))
    refused("packet sockets are refused", lambda: make_socket(17, socket.SOCK_RAW))


def identity(outside: dict[str, Any]) -> None:
    state = status()
    # What bounds them cannot be lowered by who has none, and then need not be: nothing can be gained.
    bounded = int(state["CapBnd"], 16) == 0 or state.get("NoNewPrivs") == "1"
    tell("there are no privileges", int(state["CapEff"], 16) == 0 and bounded, state["CapEff"])
    tell("programs cannot gain any", state.get("NoNewPrivs") == "1", "NoNewPrivs " + state.get("NoNewPrivs", "?"))
    tell("system calls are filtered", state.get("Seccomp") == "2", "Seccomp " + state.get("Seccomp", "?"))
    refused("it cannot become root", lambda: os.setuid(0))
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    tell("other processes cannot be seen", 1 in pids and len(pids) < 10, "%d processes" % len(pids))
    refused("other processes cannot be signalled", lambda: os.kill(outside["pid"], 0))
    known = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "TERM", "PWD", "LC_CTYPE"}
    known |= {"STATEROOM_PROBE", "STATEROOM_JOB", "STATEROOM_SANDBOX", "WORKSPACE"}
    strange = set(os.environ) - known
    tell("the environment is clean", not strange, ", ".join(sorted(strange)))
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if int(name) > 2 and not target.startswith("/proc/"):
            fds.append(target)
    tell("no descriptor is left open", not fds, ", ".join(fds))


def main() -> None:
    outside = json.loads(sys.argv[1])
    files(outside)
    network(outside)
    identity(outside)
    calls()
    print(json.dumps(ROWS))


main()
