"""The driver over Landlock and seccomp, for machines where nobody may make namespaces: the fallback.

What it keeps in is less than what namespaces do, and docs/reference/isolation.md says what. A sandbox reads the system
and its own mounts, writes its workspace and a directory for what is temporary, and has no sockets at all. Where the
server is root each one runs as a user number of its own; else as the server's user, which takes a kernel that scopes
signals, and a holder for what Landlock does not know. There is no `/workspace` inside: the agent puts the real path in
its place where that is a word by itself, and a program finds it in `$WORKSPACE` and as its working directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import marshal
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.workspaces.drivers import processes, profile, seccomp
from stateroom.workspaces.drivers.bubblewrap import BubblewrapSandbox
from stateroom.workspaces.drivers.cgroups import Cgroups, Group, find_cgroups
from stateroom.workspaces.drivers.launcher import Started, await_agent
from stateroom.workspaces.drivers.owners import Owner, claim_owner, hand_over
from stateroom.workspaces.drivers.python_runtime import Runtime, find_runtime
from stateroom.workspaces.drivers.seccomp_bare import bare_program
from stateroom.workspaces.drivers.watch import Watch
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import WORKSPACE, Caps, Report, SandboxSpec

_HOLD: Final = str(Path(__file__).parent / "landlock_hold.py")
_AGENT: Final = str(inside_directory() / "agent.py")
_STAGES: Final = ("/mnt", "/media", "/srv", "/opt", "/home")
"""Directories that the holder may cover for the sandbox; with the first, `/mnt/data` is where it should be."""
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = (
    *("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "mime.types"),
    *("protocols", "services", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted", "fonts"),
    *("passwd", "group", "hosts", "host.conf", "resolv.conf", "inputrc", "bash.bashrc", "profile"),
)
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_LEAST_VERSION: Final = 6
"""Of Landlock, for sandboxes that run as the server's own user: the first that keeps signals in."""
_OPEN_FILES: Final = 4_096
_OWN_PROCESSES: Final = 1
_STOP_SECONDS: Final = 10.0
_START_SECONDS: Final = 20.0
_SAID_BYTES: Final = 2_000
_CREATE_RULESET: Final = 444
_CAP_SYS_ADMIN: Final = 21


class _Room(msgspec.Struct, frozen=True):
    """Where things are for one sandbox."""

    files: str
    temporary: str
    places: dict[str, str]
    """Names inside to paths on this machine, as the sandbox sees it."""
    stage: str
    shown: dict[str, str]


class LandlockSandbox(BubblewrapSandbox):
    """A sandbox of processes that a holder looks after; what is known of it from outside differs in who belongs."""

    temporary = ""
    on_touch: Callable[[], None]

    def touch(self) -> None:
        super().touch()
        self.on_touch()

    def members(self) -> list[int]:
        if self._group is not None:
            return super().members()
        outside = {self._started.pid, self._started.first}
        owner = self._owner
        own = processes.of_user(owner.number) if owner is not None else processes.below(self._started.pid)
        return sorted(set(own) - outside)

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            if self._owner is not None:  # whoever killed the holder did not make these ours
                for pid in processes.of_user(self._owner.number):
                    processes.send_signal(pid, signal.SIGKILL)
            shutil.rmtree(self.temporary, ignore_errors=True)


class _Temporary:
    """The directory for what is temporary, as something to be watched: its bounds are those of the workspace."""

    def __init__(self, sandbox: LandlockSandbox) -> None:
        self._sandbox = sandbox
        self.spec: Final = msgspec.structs.replace(sandbox.spec, files=sandbox.temporary)

    def members(self) -> list[int]:
        return self._sandbox.members()

    def activity(self) -> int:
        return self._sandbox.activity()

    def end_all(self, reason: str) -> None:
        self._sandbox.end_all(reason.replace("the workspace", "the directory for temporary files"))


class LandlockDriver:
    """`data`: the server's data directory, by which its own sandboxes are known from those of others.

    `python` and `cgroups` are found where they are not given; `may_mount` False: as where that is not permitted.
    """

    name: Final = "landlock"

    def __init__(
        self, data: Path | str, *, python: str = "", cgroups: Cgroups | None = None, may_mount: bool | None = None
    ) -> None:
        self.tag: Final = hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:16]
        self._python = python
        self._runtime: Runtime | None = None
        self._cgroups = cgroups
        self._may_mount = may_mount
        self._watches: tuple[Watch, Watch] | None = None
        self._living: set[str] = set()
        self._temporary: dict[str, _Temporary] = {}
        self._count = 0

    @property
    def caps(self) -> Caps:
        memory: Literal["cgroup", "watched"] = "cgroup" if self._groups().bounds_memory else "watched"
        return Caps(isolation="landlock", hides_processes=False, memory=memory, egress=False, own_paths=False)

    async def probe(self) -> Report:
        from stateroom.workspaces.drivers.probe import (
            probe,  # it needs the drivers' client, and servers may never probe
        )

        return await probe(self)

    async def start(self, spec: SandboxSpec) -> LandlockSandbox:
        """Raises SandboxFailed, NoSandbox."""
        if spec.egress:
            raise NoSandbox("sandboxes behind Landlock have no network, not even to the domains of an allow-list")
        if spec.id in self._living:
            raise SandboxFailed("the workspace has a sandbox already")
        self._living.add(spec.id)
        owner = group = started = None
        temporary = f"{spec.files}.tmp"
        try:
            runtime = await asyncio.to_thread(self._find)
            if os.getuid() == 0:
                owner = claim_owner(spec.id, spec.files)
            await asyncio.to_thread(_make_room, spec.files, temporary, owner)
            group = await asyncio.to_thread(self._make_group, spec)
            started = await asyncio.to_thread(self._launch, spec, runtime, owner, group)
            sandbox = LandlockSandbox(spec, started, group, owner, self._watching()[0], self._forget)
            sandbox.temporary = temporary
            await sandbox.open()
        except BaseException as error:
            await asyncio.to_thread(_undo, started, group, temporary)
            if owner is not None:
                owner.release()
            self._living.discard(spec.id)
            if isinstance(error, OSError):
                raise SandboxFailed(f"the sandbox could not be started: {error}") from error
            raise
        self._watching()[0].add(sandbox)
        room = self._temporary[spec.id] = _Temporary(sandbox)
        self._watching()[1].add(room)
        sandbox.on_touch = lambda: self._watching()[1].touch(room)
        return sandbox

    async def sweep(self) -> int:
        return await asyncio.to_thread(self._sweep)

    def _forget(self, sandbox: BubblewrapSandbox) -> None:
        self._living.discard(sandbox.spec.id)
        self._watching()[0].remove(sandbox)
        temporary = self._temporary.pop(sandbox.spec.id, None)
        if temporary is not None:
            self._watching()[1].remove(temporary)

    def _watching(self) -> tuple[Watch, Watch]:
        if self._watches is None:
            self._watches = (Watch(memory=not self._groups().bounds_memory), Watch(memory=False))
        return self._watches

    def _groups(self) -> Cgroups:
        if self._cgroups is None:
            self._cgroups = find_cgroups()
        return self._cgroups

    def _find(self) -> Runtime:
        """Raises NoSandbox."""
        version = landlock_version()
        if version < 1:
            raise NoSandbox("this kernel has no Landlock, or it is not switched on (`lsm=landlock,...`)")
        if os.getuid() and version < _LEAST_VERSION:
            raise NoSandbox(
                f"Landlock of this kernel (version {version}) does not keep signals in; it takes Linux 6.12, or a"
                " server that is root and can give each sandbox a user of its own"
            )
        self._groups()
        if self._may_mount is None:
            self._may_mount = os.getuid() == 0 and has_capability(_CAP_SYS_ADMIN)
        if self._runtime is None:
            self._runtime = find_runtime(self._python)
        return self._runtime

    def _make_group(self, spec: SandboxSpec) -> Group | None:
        cgroups = self._groups()
        if not cgroups.directories:
            return None
        self._count += 1
        name = f"stateroom.{self.tag}.{os.getpid()}.l{self._count}"
        return cgroups.make(name, memory_bytes=spec.memory_bytes, processes=spec.processes + _OWN_PROCESSES)

    def _room(self, spec: SandboxSpec, runtime: Runtime) -> _Room:
        """Where everything is that a sandbox is to reach, and under which names it asks for it."""
        mounts = {mount.target: mount.source for mount in (*spec.mounts, *runtime.mounts)}
        moved = {name: source for name, source in mounts.items() if os.path.realpath(name) != os.path.realpath(source)}
        if not self._may_mount:
            return _Room(spec.files, f"{spec.files}.tmp", {profile.AGENT: _AGENT, **moved}, "", {})
        stage = next(place for place in _STAGES if Path(place).is_dir())
        places = {name: f"{stage}/{at}" for at, name in enumerate(moved)}
        files, temporary = f"{stage}/data", f"{stage}/temporary"
        shown = {files: spec.files, temporary: f"{spec.files}.tmp", f"{stage}/agent.py": _AGENT}
        shown |= {places[name]: source for name, source in moved.items()}
        return _Room(files, temporary, {profile.AGENT: f"{stage}/agent.py", **places}, stage, shown)

    def _launch(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None, group: Group | None) -> Started:
        """Raises SandboxFailed, NoSandbox, OSError."""
        room = self._room(spec, runtime)
        first = seccomp.program(counted_memory_only=not self._groups().bounds_memory)
        second = bare_program(same_user=owner is None)
        if first is None or second is None:
            raise NoSandbox("there is no list of system calls for this machine's architecture")
        kept = [mount.source for mount in (*spec.mounts, *runtime.mounts) if mount.target not in room.places]
        read = [*_SYSTEM, *room.places.values(), *map(os.path.realpath, kept)]
        rules = [(path, "read") for path in read] + [(f"/etc/{name}", "look") for name in _ETC] + [("/proc", "look")]
        rules += [(f"/dev/{name}", "device") for name in _DEVICES]
        rules += [(room.files, "write"), (room.temporary, "write")]
        plan = {
            "groups": group.memberships if group else [],
            "stage": room.stage,
            "shown": room.shown,
            "limits": _limits(spec, owner),
            "rules": rules,
            "uid": owner.number if owner else 0,
            "files": room.files,
            "filters": [first, second.code],
            "asked": second.asked,
            "roots": [room.files, room.temporary],
            "argv": self._command(runtime, room),
            "env": _environment(spec, runtime, room),
        }
        return _start(marshal.dumps(plan))

    def _command(self, runtime: Runtime, room: _Room) -> list[str]:
        words = [f"tag={self.tag}", f"files={room.files}", f"logs={room.temporary}/.jobs"]
        words += [f"place.{at}={name}:{path}" for at, (name, path) in enumerate(room.places.items())]
        return [_placed(runtime.program, room), "-I", "-S", room.places[profile.AGENT], *words]

    def _sweep(self) -> int:
        found = 0
        for group in self._groups().left_behind(f"stateroom.{self.tag}."):
            with contextlib.suppress(OSError):
                found += bool(group.members())
                group.kill()
                group.remove()
        tag = f"tag={self.tag}".encode()
        for pid in processes.all_pids():
            words = processes.command_line(pid)
            if tag in words and any(word.startswith(b"logs=") for word in words):
                for member in (*processes.below(pid), pid):
                    processes.send_signal(member, signal.SIGKILL)
                found += 1
        return found


def landlock_version() -> int:
    """Of this kernel; 0: it has none."""
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _make_room(files: str, temporary: str, owner: Owner | None) -> None:
    """Raises SandboxFailed, OSError."""
    shutil.rmtree(temporary, ignore_errors=True)
    Path(temporary).mkdir(mode=0o700, exist_ok=True)
    if owner is not None:
        hand_over(files, owner.number)
        hand_over(temporary, owner.number)


def _limits(spec: SandboxSpec, owner: Owner | None) -> dict[str, int]:
    limits = {"CORE": 0, "NOFILE": _OPEN_FILES, "FSIZE": spec.disk_bytes, "DATA": spec.memory_bytes * 7 // 8}
    # Of the server's own user the kernel counts what else that runs, too.
    others = 0 if owner else processes.threads_of_user(os.getuid())
    limits["NPROC"] = spec.processes + _OWN_PROCESSES + others
    return limits


def _environment(spec: SandboxSpec, runtime: Runtime, room: _Room) -> dict[str, str]:
    path = "/usr/local/bin:/usr/bin:/bin"
    if runtime.first_in_path:
        path = f"{_placed(runtime.first_in_path, room)}:{path}"
    own = {"PATH": path, "HOME": room.temporary, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/bash"}
    own |= {"LANG": "C.UTF-8", "TMPDIR": room.temporary, "TERM": "dumb", "WORKSPACE": room.files}
    return own | {name: _placed(value, room) for name, value in spec.environment.items()}


def _placed(value: str, room: _Room) -> str:
    for name, path in {**room.places, WORKSPACE: room.files}.items():
        if f"{value}/".startswith(f"{name}/"):
            return path + value[len(name) :]
    return value


def _start(plan: bytes) -> Started:
    """Raises SandboxFailed, OSError."""
    with contextlib.ExitStack() as stack:
        plan_fd, said = _memory_file(stack, plan), _memory_file(stack, b"")
        life, hold_on = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, life)
        news, tell = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, news)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                try:
                    process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                        [sys.executable, "-I", "-S", _HOLD, str(plan_fd), str(life)],
                        stdin=theirs.fileno(),
                        stdout=tell,
                        stderr=said,
                        pass_fds=[plan_fd, life],
                        env={"LANG": "C.UTF-8"},
                        start_new_session=True,
                    )
                finally:
                    os.close(tell)
        except BaseException:
            ours.close()
            os.close(hold_on)
            raise
        try:
            started = _Held(process, ours, _first_process(news, said), hold_on)
            await_agent(started, said)
            return started
        except BaseException:
            ours.close()
            with contextlib.suppress(OSError):
                os.close(hold_on)  # and so the holder ends all
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            raise


class _Held(Started):
    """With the end of a pipe by which the holder knows that the server lives."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, first: int, life: int) -> None:
        super().__init__(process, channel, first)
        self._life = life

    def kill(self) -> None:
        super().kill()
        self._let_go()

    def close(self) -> None:
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    fd = os.memfd_create("stateroom", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _first_process(news: int, said: int) -> int:
    """What the holder says of it. Raises SandboxFailed."""
    text = os.read(news, 100) if select.select([news], [], [], _START_SECONDS)[0] else b""
    if not text.strip().isdigit():
        reason = os.pread(said, _SAID_BYTES, 0).decode("utf-8", "replace").strip() or "its holder said nothing"
        raise SandboxFailed(f"the sandbox could not be started: {reason}")
    return int(text)


def _undo(started: Started | None, group: Group | None, temporary: str) -> None:
    if group is not None:
        group.kill()
    if started is not None:
        started.kill()
        started.wait(_STOP_SECONDS)
        started.close()
    if group is not None:
        group.remove()
    shutil.rmtree(temporary, ignore_errors=True)
