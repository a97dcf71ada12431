"""Starting the holder of a sandbox behind Landlock: the descriptors that it reads from, the channel, and its life.

The holder knows by a pipe that the server lives. What it is to do stands in landlock_profile.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from stateroom.workspaces.drivers.launcher import START_SECONDS, Started, await_agent, failure, memory_file

_HOLD: Final = str(Path(__file__).parent / "landlock_hold.py")
_STOP_SECONDS: Final = 10.0


def start_holder(plan: bytes) -> Started:
    """Raises SandboxFailed, OSError."""
    with contextlib.ExitStack() as stack:
        plan_fd, said = memory_file(stack, plan), memory_file(stack, b"")
        life, hold_on = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, life)
        alive = contextlib.ExitStack()
        alive.callback(os.close, hold_on)
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
            alive.close()
            raise
        try:
            started = _Held(process, ours, _first_process(news, said), alive)
            await_agent(started, said)
            return started
        except BaseException:
            ours.close()
            alive.close()  # and so the holder ends all
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            raise


class _Held(Started):
    """`alive`: lets go, once, of the end of a pipe by which the holder knows that the server lives."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, first: int, alive: contextlib.ExitStack
    ) -> None:
        super().__init__(process, channel, first)
        self._alive = alive

    def kill(self) -> None:
        super().kill()
        self._alive.close()

    def close(self) -> None:
        super().close()
        self._alive.close()


def _first_process(news: int, said: int) -> int:
    """What the holder says of it. Raises SandboxFailed."""
    text = os.read(news, 100) if select.select([news], [], [], START_SECONDS)[0] else b""
    if not text.strip().isdigit():
        raise failure(said)
    return int(text)
