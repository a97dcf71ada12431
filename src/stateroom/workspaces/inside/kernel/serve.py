"""The kernel: carries out cells, one after the other, in one namespace, which is the module `__main__`."""

from __future__ import annotations

import builtins
import faulthandler
import io
import os
import signal
import sys
import types
from _thread import allocate_lock
from typing import Any

from . import frames, magics, restore, save, show
from .cell import Cell, Cells


class Kernel:
    """`requests`: from the server; `speak`: to the relay; `printed`: where the relay reads what is printed;
    `may_begin`: a byte from the relay when a cell may print."""

    def __init__(self, requests: int, speak: int, printed: int, may_begin: int, cloudpickle: str) -> None:
        self._requests = requests
        self._speak = speak
        self._printed = printed
        self._may_begin = may_begin
        self._cloudpickle = cloudpickle
        self._lock = allocate_lock()
        self._pid = os.getpid()
        self._interruptible = False
        self._writing = False
        self._interrupt_later = False
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = self.main
        sys.argv = [""]
        self.screen = show.Screen(self._image, self._text)
        self.cells = Cells(self.main.__dict__, self.screen)
        sys.meta_path.insert(0, show.Figures(self.screen))
        setattr(builtins, "display", self.screen.display)
        setattr(builtins, "input", _no_input)
        setattr(builtins, magics.HOOK, magics.magic)
        os.environ.setdefault("MPLBACKEND", "Agg")
        os.register_at_fork(after_in_child=self._forked)
        self._first = (sys.stdin, sys.stdout, sys.stderr)  # kept: the last reference to one closes its descriptor
        self._stdin, self._stdout, self._stderr = _nothing(), _stream(1), _stream(2)
        self._prepare()
        faulthandler.enable(file=self._printed, all_threads=False)

    def serve(self) -> None:
        """Until the server closes the channel (EOFError)."""
        self._send(frames.READY, frames.encode({"python": list(sys.version_info[:3])}))
        while True:
            kind, body = frames.receive(self._requests)
            if kind == frames.RUN:
                self._run(frames.decode(body))
            elif kind == frames.SAVE:
                self._save(frames.decode(body))
            elif kind == frames.RESTORE:
                self._restore(frames.decode(body))

    def _run(self, request: dict[str, Any]) -> None:
        self._prepare()
        self.screen.begin()
        self._send(frames.BEGIN, frames.encode(request["output_bytes"]))
        frames.read_exactly(self._may_begin, 1)
        error: str | None = None
        try:
            self._interrupt_later = False
            self._interruptible = True
            try:
                error = self._guarded(self.cells.next(request["code"]))
            finally:
                self._interruptible = False
        except BaseException as late:  # the interrupt came while an error was being described, or a flush failed
            error = f"{type(late).__name__}\n"
        if os.getpid() != self._pid:  # the cell has forked, and this is the child, which came to the end of it
            os._exit(1 if error else 0)
        self._send(frames.DONE, frames.encode_told({"error": error}))

    def _guarded(self, cell: Cell) -> str | None:
        error: str | None = None
        try:
            cell.run()
        except SystemExit as leaving:
            error = None if leaving.code in (None, 0) else f"SystemExit: {leaving.code}\n"
        except BaseException as raised:  # anything that a cell may raise ends the cell, and only that
            error = show.told(raised)
        try:
            self.screen.figures()
        except BaseException as raised:  # drawing runs code of the cell, too
            error = error or show.told(raised)
        self._flush()
        if error is not None and os.getpid() != self._pid:
            frames.write_all(2, error.encode("utf-8", "replace"))
        return error

    def _save(self, request: dict[str, Any]) -> None:
        report = save.save(
            self.main.__dict__,
            self.cells,
            self._cloudpickle,
            request["bytes_max"],
            request["seconds_max"],
            lambda data: self._send(frames.STATE, data),
        )
        self._send(frames.SAVED, frames.encode_told(report))

    def _restore(self, request: dict[str, Any]) -> None:
        parts, left = [], int(request["size"])
        while left > 0:
            kind, body = frames.receive(self._requests)
            if kind != frames.DATA or not body:
                raise frames.Broken("no state")
            parts.append(body)
            left -= len(body)
        quiet = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2):
            os.dup2(quiet, fd)
        os.close(quiet)
        report = restore.restore(b"".join(parts), self.main.__dict__, self.cells, self._cloudpickle, request["seconds"])
        self._flush()
        self._prepare()
        self._send(frames.RESTORED, frames.encode_told(report))

    def _prepare(self) -> None:
        """Whatever the last cell has done to them: descriptors 0 to 2, the streams over them, signals."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        if nothing != 0:
            os.dup2(nothing, 0)
            os.close(nothing)
        for fd in (1, 2):
            os.dup2(self._printed, fd)
        if self._stdin.closed:
            self._stdin = _nothing()
        if self._stdout.closed:
            self._stdout = _stream(1)
        if self._stderr.closed:
            self._stderr = _stream(2)
        for name, stream in (("stdin", self._stdin), ("stdout", self._stdout), ("stderr", self._stderr)):
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        signal.signal(signal.SIGINT, self._interrupted)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            try:
                stream.flush()
            except Exception:  # a cell may have put anything there, or closed what is below
                continue

    def _interrupted(self, number: int, frame: Any) -> None:
        if os.getpid() == self._pid:
            if not self._interruptible:
                return
            if self._writing:
                self._interrupt_later = True
                return
        raise KeyboardInterrupt

    def _forked(self) -> None:
        """In a child of the kernel: it must not speak for it."""
        for fd in (self._speak, self._requests):
            try:
                os.close(fd)
            except OSError:
                pass

    def _send(self, kind: bytes, body: bytes) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._writing = True
            try:
                frames.send(self._speak, kind, body)
            finally:
                self._writing = False
        if self._interrupt_later and self._interruptible:
            self._interrupt_later = False
            raise KeyboardInterrupt

    def _image(self, png: bytes) -> None:
        self._flush()
        self._send(frames.IMAGE, png)

    def _text(self, text: str) -> None:
        self._flush()
        frames.write_all(self._printed, text.encode("utf-8", "backslashreplace"))


def _stream(fd: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _nothing() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")


def _no_input(prompt: object = "") -> str:
    """There is nobody to answer."""
    raise RuntimeError("input() cannot be answered here: put the value into the code.")
