"""Starting the launcher: the descriptors that bubblewrap reads from, the channel, and the process that comes of it."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from stateroom.errors import SandboxFailed
from stateroom.workspaces.drivers import processes, profile

_LAUNCH: Final = str(Path(__file__).parent / "launch.py")
START_SECONDS: Final = 20.0
_SAID_BYTES: Final = 2_000
_BEGUN: Final = b"."
"""Told to who ends everything if the server dies during a start."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher is to do; see there."""

    program: str
    uid: int
    """0: stay who you are."""
    groups: list[str]
    stage: str
    shown: dict[str, str]
    limits: dict[str, int]
    command: list[str]


class Started:
    """The processes of a sandbox as seen from here: bubblewrap, and the first one inside."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, first: int) -> None:
        self._process = process
        self.channel = channel
        self.pid = process.pid
        self.first = first
        self.namespace = processes.namespace_of(first)
        self._handle = os.pidfd_open(first)
        if processes.parent_of(first) != process.pid:
            os.close(self._handle)
            raise SandboxFailed("the sandbox ended as soon as it began")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """The first process inside, and so all that are; bubblewrap ends once it has seen that."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Until all have ended. Raises SandboxFailed."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise SandboxFailed("the sandbox does not end: a process of it hangs in the kernel") from None

    def close(self) -> None:
        os.close(self._handle)
        self.channel.close()


def start_process(plan: Plan, options: Callable[[dict[str, int], int], list[str]], filter_: bytes) -> Started:
    """`options` gets the descriptors of our small files, and that of the filter. Raises SandboxFailed, OSError."""
    with contextlib.ExitStack() as stack:
        file = partial(memory_file, stack)
        data = {path: file(content) for path, content in profile.FILES.items()}
        filter_fd, said = file(filter_), file(b"")
        news, tell = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, news)
        life, hold_on = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, life)
        stack.callback(os.close, hold_on)
        words = options(data, filter_fd)
        arguments = file(b"".join(os.fsencode(word) + b"\0" for word in words))
        argv = [plan.program, "--info-fd", str(tell), "--args", str(arguments), "--", *plan.command]
        sent = {"argv": argv, **{name: getattr(plan, name) for name in ("uid", "groups", "stage", "shown", "limits")}}
        plan_fd = file(marshal.dumps(sent))
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                    [sys.executable, "-I", "-S", _LAUNCH, str(plan_fd), str(life)],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=said,
                    pass_fds=[plan_fd, life, arguments, tell, filter_fd, *data.values()],
                    env={"LANG": "C.UTF-8"},
                    start_new_session=True,
                )
            finally:
                os.close(tell)
        try:
            started = Started(process, ours, _first_process(news, process, said))
            await_agent(started, said)
            os.write(hold_on, _BEGUN)
            return started
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise


def memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    """To be read from its beginning, until the stack ends."""
    fd = os.memfd_create("stateroom", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def await_agent(started: Started, said: int) -> None:
    """Until the agent says its first word, which stays where it is. Most of what goes wrong does so before that.

    Raises SandboxFailed.
    """
    if select.select([started.channel], [], [], START_SECONDS)[0]:
        with contextlib.suppress(OSError):
            if started.channel.recv(1, socket.MSG_PEEK):
                return
    started.kill()
    started.wait(START_SECONDS)
    started.close()
    raise failure(said)


def _first_process(news: int, process: subprocess.Popen[bytes], said: int) -> int:
    """What bubblewrap says of it. Raises SandboxFailed."""
    deadline = time.monotonic() + START_SECONDS
    text = b""
    while time.monotonic() < deadline:
        if not select.select([news], [], [], deadline - time.monotonic())[0]:
            break
        part = os.read(news, 4_096)
        text += part
        if not part:
            break
        with contextlib.suppress(ValueError):
            return int(json.loads(text)["child-pid"])
    process.kill()
    process.wait()
    raise failure(said)


def failure(said: int) -> SandboxFailed:
    """With what was written to this descriptor."""
    reason = os.pread(said, _SAID_BYTES, 0).decode("utf-8", "replace").strip() or "its program said nothing"
    return SandboxFailed(f"the sandbox could not be started: {reason}")
