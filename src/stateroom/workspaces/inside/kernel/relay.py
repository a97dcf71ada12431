"""The process between the server and the kernel: it passes on what the kernel says, and what its cells print.

It is a process of its own so that printing goes on whatever the kernel is busy with, and so that the end of the kernel
can be told. What a cell prints is streamed up to half of its bound; of the rest the end is kept and told afterwards.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
from typing import NamedTuple

from . import frames

LATE_BYTES = 16 * 1024
"""What is kept of what threads and processes print while no cell runs."""


class Output:
    """What is printed, bounded."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._cell = False
        self._head = 0
        self._tail_max = LATE_BYTES
        self._tail = bytearray()
        self._skipped = 0

    def begin(self, bound: int) -> None:
        late, skipped = bytes(self._tail), self._skipped
        self._cell, self._head, self._tail_max = True, bound // 2, max(bound - bound // 2, 0)
        self._tail.clear()
        self._skipped = 0
        if late:
            self.take(b"[printed since the last cell]\n")
            if skipped:
                self.take(b"[... %d bytes left out ...]\n" % skipped)
            self.take(late if late.endswith(b"\n") else late + b"\n")

    def take(self, data: bytes) -> None:
        if self._cell and self._head:
            now = data[: self._head]
            self._head -= len(now)
            data = data[len(now) :]
            self._send(now)
        if data:
            self._tail += data
            over = len(self._tail) - self._tail_max
            if over > 0:
                self._skipped += over
                del self._tail[:over]

    def end(self) -> None:
        if not self._cell:
            return
        if self._skipped:
            frames.send(self._answers, frames.SKIPPED, frames.encode(self._skipped))
        self._send(bytes(self._tail))
        self._cell, self._head, self._tail_max, self._skipped = False, 0, LATE_BYTES, 0
        self._tail.clear()

    def _send(self, data: bytes) -> None:
        for start in range(0, len(data), frames.OUTPUT_BYTES):
            frames.send(self._answers, frames.OUTPUT, data[start : start + frames.OUTPUT_BYTES])


class Ends(NamedTuple):
    """The relay's descriptors."""

    control: int
    """The kernel's frames."""
    printed: int
    """What goes to its stdout and stderr."""
    begun: int
    """Where it waits for a byte before a cell begins: what was printed until then belongs to no cell."""
    answers: int
    """To the server."""


class Relay:
    def __init__(self, kernel: int, ends: Ends) -> None:
        self._kernel = kernel
        self._control = ends.control
        self._printed = ends.printed
        self._begun = ends.begun
        self._answers = ends.answers
        self._output = Output(ends.answers)
        self._parser = frames.Parser()
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def run(self) -> int:
        """Until the kernel has ended; its status, as `subprocess` counts it."""
        poll = select.poll()
        for fd in (self._control, self._printed, self._woken):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._printed in ready:
                self._output.take(os.read(self._printed, 64 * 1024))
            if self._control in ready:
                data = os.read(self._control, frames.STATE_BYTES)
                if not data:  # it has ended, or closed what it speaks through and cannot go on
                    os.kill(self._kernel, signal.SIGKILL)
                    return self._last(os.waitpid(self._kernel, 0)[1])
                self._parser.feed(data)
                self._pass_on()
            if self._woken in ready:
                os.read(self._woken, 4096)
                ended, status = os.waitpid(self._kernel, os.WNOHANG)
                if ended:
                    return self._last(status)

    def _pass_on(self) -> None:
        frame = self._parser.next()
        while frame is not None:
            kind, body = frame
            self._drain()
            if kind == frames.BEGIN:
                self._output.begin(int(frames.decode(body)))
                frames.write_all(self._begun, b".")
            else:
                if kind == frames.DONE:
                    self._output.end()
                frames.send(self._answers, kind, body)
            frame = self._parser.next()

    def _drain(self) -> None:
        """What has been printed until now, and no more: others may go on printing for ever."""
        waiting = self._waiting(self._printed)
        while waiting > 0:
            data = os.read(self._printed, min(waiting, 64 * 1024))
            self._output.take(data)
            waiting -= len(data)

    def _last(self, status: int) -> int:
        left = self._waiting(self._control)
        while left > 0:
            data = os.read(self._control, left)
            self._parser.feed(data)
            left -= len(data)
        self._pass_on()
        self._drain()
        self._output.end()
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        frames.send(self._answers, frames.DIED, frames.encode({"status": code}))
        return code

    @staticmethod
    def _waiting(fd: int) -> int:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def relay(kernel: int, ends: Ends) -> None:
    """Never returns."""
    status = -int(signal.SIGKILL)
    try:
        status = Relay(kernel, ends).run()
    except BaseException:  # whatever it was, it must not go on as a second kernel
        os.kill(kernel, signal.SIGKILL)
    finally:
        os._exit(status if status >= 0 else 128 - status)
