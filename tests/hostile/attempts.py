"""Run inside a sandbox: tries to get out of it in every way that has a name here, and prints what came of each.

    python -I -S -c SOURCE OUTSIDE      OUTSIDE: JSON, what there is outside to be reached

An attempt ends in the error that refused it, or says what it got. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import stat
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
ATTEMPTS = {}
OUT = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
HERE = os.getcwd()


class Got(Exception):
    """What an attempt got hold of, which it should not have."""


def attempt(act):
    ATTEMPTS[act.__name__] = act
    return act


def each(targets, act):
    """An attempt that has many targets; none of them may be got."""
    got, refusals = [], set()
    for target in targets:
        try:
            result = act(target)
        except (OSError, subprocess.SubprocessError) as error:
            refusals.add(errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__))
        else:
            got.append("%s -> %r" % (target, result))
    if got:
        raise Got("; ".join(got))
    raise OSError(0, ", ".join(sorted(refusals)))


def call(number, *arguments):
    ctypes.set_errno(0)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def read(path, count=64):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, count)
    finally:
        os.close(fd)


def write(path, data=b"1", flags=os.O_WRONLY):
    fd = os.open(path, flags, 0o644)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def upward(path):
    return os.path.join(*[".."] * 12) + path


# Before anything else is opened


@attempt
def find_descriptors_that_were_left_open():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if int(name) > 2 and not target.startswith("/proc/"):
            found.append(target)
    if found:
        raise Got(str(found))
    raise OSError(0, "none")


@attempt
def find_the_agent_holding_something_of_the_machine():
    directory = "/proc/%d/fd" % os.getppid()
    kinds = ("socket:", "pipe:", "anon_inode:", "/dev/null", "/proc", "/dev/pts")
    found = [os.readlink(directory + "/" + name) for name in os.listdir(directory)]
    strange = [target for target in found if not target.startswith(kinds)]
    if strange:
        raise Got(str(strange))
    raise OSError(0, "nothing")


# Files


@attempt
def read_files_of_the_machine():
    each([OUT["secret"], OUT["journal"], "/etc/shadow", "/root/.bashrc", upward(OUT["secret"])], read)


@attempt
def find_out_about_files_of_the_machine():
    each([OUT["secret"], OUT["other"]], lambda path: os.stat(path).st_size)


@attempt
def list_directories_of_the_machine():
    each(["/root", "/home", OUT["folder"], os.path.dirname(OUT["folder"])], foreign_names)


def foreign_names(path):
    """An empty directory, or one of the sandbox's own, is nobody else's."""
    names = os.listdir(path)
    if not set(names) - {"agent", "data"} or os.path.realpath(path) == HERE:
        raise OSError(errno.ENOENT, "")
    return names[:5]


@attempt
def read_by_way_of_proc():
    ways = [
        "/proc/self/root",
        "/proc/1/root",
        "/proc/self/cwd/../../../../../../../..",
        "/proc/%d/root" % OUT["server"],
    ]
    each([way + OUT["secret"] for way in ways] + ["/proc/%d/cwd" % OUT["victim"] + OUT["secret"]], read)


@attempt
def read_through_links():
    os.symlink(OUT["secret"], "link")
    os.symlink("/", "top")
    os.symlink(upward(""), "up")
    each(["link", "top" + OUT["secret"], "up" + OUT["secret"]], read)


@attempt
def link_a_file_of_the_machine_here():
    each([OUT["secret"], OUT["journal"]], lambda path: os.link(path, "hard-" + os.path.basename(path)))


@attempt
def reopen_a_handle_of_a_file_of_the_machine():
    fd = os.open(OUT["secret"], os.O_PATH)
    read("/proc/self/fd/%d" % fd)
    raise Got("reopened")


@attempt
def change_files_of_the_machine():
    each([OUT["secret"], OUT["journal"], "/etc/passwd", "/usr/bin/env"], lambda path: write(path, b"x", os.O_WRONLY))


@attempt
def truncate_files_of_the_machine():
    each([OUT["secret"], OUT["journal"]], lambda path: os.truncate(path, 0))


@attempt
def remove_or_move_files_of_the_machine():
    each([OUT["secret"], OUT["journal"]], os.unlink)
    each([OUT["secret"], OUT["journal"]], lambda path: os.rename(path, "taken"))


@attempt
def change_modes_and_times_of_files_of_the_machine():
    each([OUT["secret"], OUT["journal"], OUT["folder"]], lambda path: os.chmod(path, 0o777))
    each([OUT["secret"], OUT["journal"]], lambda path: os.utime(path, (1, 1)))
    each([OUT["secret"], OUT["journal"]], lambda path: os.setxattr(path, "user.x", b"1"))
    each([OUT["secret"]], lambda path: os.chown(path, os.getuid(), os.getgid()))


@attempt
def change_them_by_a_link_or_a_handle():
    def by_link(path):
        os.symlink(path, "chmod-link")
        try:
            os.chmod("chmod-link", 0o777)
        finally:
            os.unlink("chmod-link")

    each([OUT["secret"], OUT["journal"], OUT["agent"]], by_link)
    each([OUT["agent"]], lambda path: os.fchmod(os.open(path, os.O_RDONLY), 0o777))
    each(
        [OUT["secret"]],
        lambda path: call(452, -100, b"/proc/self/fd/%d" % os.open(path, os.O_PATH), 0o777, 0),
    )


@attempt
def make_files_beside_the_workspace():
    each(["/x", "/usr/x", "/etc/x", "/var/x", "/opt/x", OUT["folder"] + "/x", "../x"], lambda path: os.mkdir(path))


@attempt
def reach_the_files_of_another_workspace():
    each([OUT["other"] + "/mine"], read)
    each([OUT["other"]], os.listdir)
    each([OUT["other"] + "/mine"], os.unlink)


@attempt
def watch_directories_of_the_machine():
    fd = LIBC.inotify_init1(0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "")
    ctypes.set_errno(0)
    if LIBC.inotify_add_watch(fd, OUT["folder"].encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "")
    raise Got("watching")


@attempt
def open_memory_shared_by_the_machine():
    each([OUT["shm"]], read)
    each([OUT["key"]], lambda key: call(194 if ARM else 29, key, 16, 0))


# Devices


@attempt
def make_device_nodes():
    each([stat.S_IFBLK, stat.S_IFCHR], lambda kind: os.mknod("node", kind | 0o600, os.makedev(1, 1)))


@attempt
def open_devices():
    names = ("mem", "kmsg", "kvm", "vda", "sda", "nvme0n1", "loop0", "fuse", "net/tun", "port", "vsock", "vhost-vsock")
    each(["/dev/" + name for name in names], lambda path: os.open(path, os.O_RDWR))


@attempt
def put_words_in_a_terminal_s_mouth():
    import fcntl

    each([0x5412, 0x541C], lambda command: fcntl.ioctl(0, command, b"x"))


# Processes


def outside():
    return [OUT["server"], OUT["victim"], OUT["neighbour"]]


@attempt
def signal_processes_outside():
    each(outside(), lambda pid: os.kill(pid, 0))
    each(outside(), lambda pid: os.kill(pid, 9))
    each(outside(), lambda pid: os.killpg(pid, 9))


@attempt
def look_into_processes_outside():
    names = ("environ", "mem", "maps", "fd", "root", "cwd", "exe", "auxv", "stack", "syscall")
    paths = ["/proc/%d/%s" % (pid, name) for pid in outside() for name in names]
    each(paths, lambda path: os.readlink(path + "/0") if path.endswith("/fd") else read(path))


@attempt
def trace_processes_outside():
    number = 117 if ARM else 101
    each(outside(), lambda pid: call(number, 16, pid, 0, 0))
    each(outside(), lambda pid: call(number, 0x4206, pid, 0, 0))


@attempt
def take_descriptors_of_processes_outside():
    each(outside(), lambda pid: call(438, call(434, pid, 0), 0, 0))
    each(outside(), lambda pid: call(270 if ARM else 310, pid, None, 0, None, 0, 0))


@attempt
def bound_or_slow_processes_outside():
    limit = struct.pack("QQ", 1, 1)
    each(outside(), lambda pid: call(261 if ARM else 302, pid, 0, limit, None))
    each(outside(), lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19))
    each(outside(), lambda pid: os.sched_setaffinity(pid, [0]))
    each(outside(), lambda pid: call(30 if ARM else 251, 1, pid, 3 << 13))


@attempt
def slow_everything_of_its_user():
    if OUT["reaches_its_user"]:
        each([0], lambda pid: os.setpriority(os.PRIO_USER, 0, 19))
    raise OSError(0, "there is nothing else that it could reach")


@attempt
def become_somebody_else():
    each([0, 1], os.setuid)
    each([0, 1], os.setgid)
    each([0], lambda gid: os.setgroups([gid]))


@attempt
def gain_privileges_by_a_program():
    state = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    if state["NoNewPrivs"] != "1" or int(state["CapEff"], 16) or int(state["CapPrm"], 16):
        raise Got(str(state))
    own = "setuid-copy"
    with open("/usr/bin/env", "rb") as source, open(own, "wb") as target:
        target.write(source.read())
    try:
        os.chmod(own, 0o4755)
    except OSError:
        os.chmod(own, 0o755)
    each(["/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "./" + own], becomes_root)


def becomes_root(program):
    if not os.path.exists(program):
        raise OSError(errno.ENOENT, "")
    process = subprocess.Popen([program, "sleep", "0.05"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open("/proc/%d/status" % process.pid) as status:
        users = next(line for line in status if line.startswith("Uid:")).split()[1:]
    process.wait()
    if set(users) != {str(os.getuid())}:
        return users
    raise OSError(errno.EPERM, "")


@attempt
def find_secrets_of_the_server():
    texts = [str(dict(os.environ))]
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                texts.append(read("/proc/%s/environ" % name, 65_536).decode("utf-8", "replace"))
            except OSError:
                continue
    if any(OUT["variable"] in text for text in texts):
        raise Got("the variable")
    raise OSError(0, "not there")


# Network


def connect(family, address, kind=socket.SOCK_STREAM, protocol=0):
    with socket.socket(family, kind, protocol) as connection:
        connection.settimeout(1)
        connection.connect(address)


@attempt
def connect_to_services_of_the_machine():
    each(OUT["addresses"], lambda address: connect(socket.AF_INET, (address, OUT["port"])))
    each(["::1", "::ffff:127.0.0.1"], lambda address: connect(socket.AF_INET6, (address, OUT["port"])))


@attempt
def connect_to_them_by_another_protocol():
    each([262], lambda protocol: connect(socket.AF_INET, ("127.0.0.1", OUT["port"]), protocol=protocol))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fast:
        fast.settimeout(1)
        fast.sendto(b"x", 0x20000000, ("127.0.0.1", OUT["port"]))
    raise Got("sent")


@attempt
def connect_to_sockets_of_the_machine():
    each(["\0" + OUT["abstract"], OUT["socket"]], lambda address: connect(socket.AF_UNIX, address))
    each(["/run/docker.sock", "/run/dbus/system_bus_socket"], lambda address: connect(socket.AF_UNIX, address))


@attempt
def open_sockets_of_rare_families():
    rows = [
        (17, 3),
        (17, 2),
        (40, 1),
        (38, 5),
        (16, 3, 9),
        (15, 3),
        (31, 3),
        (44, 3),
        (30, 5),
        (29, 3),
        (21, 5),
        (2, 3, 1),
    ]
    each(rows, lambda row: socket.socket(*row).close())


# The kernel


@attempt
def write_settings_of_the_kernel():
    sys_names = ("kernel/core_pattern", "kernel/hostname", "kernel/pid_max", "vm/overcommit_memory", "fs/file-max")
    paths = ["/proc/sys/" + name for name in sys_names] + [
        "/proc/sysrq-trigger",
        "/proc/%d/oom_score_adj" % OUT["server"],
    ]
    paths += ["/sys/kernel/uevent_helper", "/sys/power/state", "/sys/module/x", "/proc/self/attr/current"]
    each(paths, write)
    each(["/proc/self/oom_score_adj"], lambda path: write(path, b"-900"))


@attempt
def use_control_groups():
    tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"]
    each([top + "/release_agent" for top in tops], lambda path: write(path, b"/x"))
    each([top + "/cgroup.procs" for top in tops], lambda path: write(path, b"0"))
    each([top + "/stateroom-x" for top in tops], os.mkdir)


@attempt
def mount_and_unmount():
    rows = [(40, b"none", b"/tmp", b"tmpfs", 0, None), (39, b"/proc", 2), (41, b"/", b"/"), (51, b"/tmp")]
    if not ARM:
        rows = [(165,) + rows[0][1:], (166,) + rows[1][1:], (155,) + rows[2][1:], (161,) + rows[3][1:]]
    rows += [(428, -100, b"/", 1), (429, -1, b"", -100, b"/tmp", 4), (430, b"tmpfs", 0), (442, -100, b"/", 0, None, 0)]
    each(rows, lambda row: call(*row))


@attempt
def make_or_enter_namespaces():
    kinds = (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000)
    each(kinds, lambda kind: call(97 if ARM else 272, kind))
    each(kinds, lambda kind: forked(220 if ARM else 56, kind | 17, 0, 0, 0, 0))
    each([OUT["server"], 1], lambda pid: call(268 if ARM else 308, os.open("/proc/%d/ns/mnt" % pid, os.O_RDONLY), 0))
    each([0x10000000], lambda kind: forked(435, struct.pack("8Q", kind, 0, 0, 0, 17, 0, 0, 0), 64))


def forked(*words):
    pid = call(*words)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@attempt
def use_dangerous_system_calls():
    rows = {
        "keyctl": (219 if ARM else 250, 0, -3, 0),
        "add_key": (217 if ARM else 248, b"user", b"x", b"y", 1, -3),
        "request_key": (218 if ARM else 249, b"user", b"x", None, -3),
        "bpf": (280 if ARM else 321, 0, b"\0" * 64, 64),
        "userfaultfd": (282 if ARM else 323, 1),
        "io_uring_setup": (425, 1, b"\0" * 120),
        "perf_event_open": (241 if ARM else 298, b"\0" * 120, 0, -1, -1, 0),
        "kexec_load": (104 if ARM else 246, 0, 0, None, 0),
        "init_module": (105 if ARM else 175, b"", 0, b""),
        "open_by_handle_at": (265 if ARM else 304, -100, b"\0" * 16, 0),
        "name_to_handle_at": (264 if ARM else 303, -100, b"/", b"\0" * 200, b"\0" * 8, 0),
        "fanotify_init": (262 if ARM else 300, 0, 0),
        "quotactl": (60 if ARM else 179, 0x800007 << 8, None, 0, None),
        "reboot": (142, 0xFEE1DEAD, 672274793, 0, None) if ARM else (169, 0xFEE1DEAD, 672274793, 0, None),
        "swapoff": (225 if ARM else 168, b"/x"),
        "acct": (89 if ARM else 163, b"/x"),
        "settimeofday": (170 if ARM else 164, b"\0" * 16, None),
        "clock_settime": (112 if ARM else 227, 0, b"\0" * 16),
        "sethostname": (161 if ARM else 170, b"x", 1),
        "syslog": (116 if ARM else 103, 3, b"\0" * 64, 64),
        "personality": (92 if ARM else 135, 0x0040000),
        "vhangup": (58 if ARM else 153,),
    }
    wrong = (errno.EPERM, errno.ENOSYS)

    def one(name):
        try:
            return call(*rows[name])
        except OSError as error:
            if error.errno not in wrong:
                return errno.errorcode.get(error.errno or 0)
            raise

    each(list(rows), one)


@attempt
def call_the_kernel_in_another_tongue():
    if ARM:
        raise OSError(errno.ENOSYS, "")
    each([0x40000000 + 39, 0x40000000 + 165], call)


@attempt
def undo_the_filter():
    each([(38, 0), (22, 0)], lambda row: prctl(*row))


def prctl(*words):
    if LIBC.prctl(*words, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
    return words


@attempt
def see_the_processes_of_the_machine():
    words = b""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words += read("/proc/%s/cmdline" % name, 4_096)
            except OSError:
                continue
    if OUT["marker"].encode() in words:
        raise Got("command lines")
    raise OSError(0, "only its own")


def main():
    rows = {}
    for name, act in ATTEMPTS.items():
        try:
            act()
            rows[name] = "GOT: it went through"
        except Got as got:
            rows[name] = "GOT: " + str(got)[:300]
        except OSError as error:
            rows[name] = "refused: " + (errno.errorcode.get(error.errno or 0, "") or str(error.strerror))
        except Exception as error:
            rows[name] = "BROKEN: %s: %s" % (type(error).__name__, error)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
