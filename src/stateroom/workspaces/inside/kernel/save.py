"""Saves what variables can be saved, in a child process: whatever saving them does, the kernel has not noticed.

A variable may hang, kill its process, print, or change others while it is pickled. The child has a copy of everything;
what it has written until it is stopped counts.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import io
import os
import pickle
import re
import select
import signal
import sys
import types
import warnings
from os import read as _read
from time import monotonic
from typing import Any, Callable

from . import frames, variables
from .cell import Cells

_RESERVE = 64 * 1024
"""Bytes kept for naming what is lost."""
_SUBMODULES = 1000
_INNER = re.compile(r"cannot pickle '([^']{1,80})' object")


def save(
    namespace: dict[str, Any],
    cells: Cells,
    cloudpickle: str,
    bytes_max: int,
    seconds_max: float,
    send: Callable[[bytes], None],
) -> dict[str, Any]:
    """`send` gets the state, piece by piece; the rest is told by what is returned."""
    began = monotonic()
    names = [n for n in list(namespace) if _is_users(n)][: variables.NAMES_MAX]
    types_of = {name: variables.type_name(namespace[name]) for name in names if name in namespace}
    lost = {name: variables.short(kind, "was not reached") for name, kind in types_of.items()}
    reserve = min(_RESERVE, bytes_max // 2)
    try:
        vault = variables.vault(cloudpickle)
        reader, writer = os.pipe()
        try:
            child = _forked()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
    except Exception as error:  # no cloudpickle, no room for another process: nothing is saved, and that is said
        return {"failed": f"{type(error).__name__}: {str(error)[:200]}", "lost": _first(lost)}
    if child == 0:
        _child(reader, writer, namespace, types_of, cells, vault, bytes_max - reserve, seconds_max)
    os.close(writer)
    send(variables.MAGIC)
    try:
        whole = _collect(reader, began + seconds_max + 0.25, lost, send)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    named = _first(lost)
    last = frames.encode(named)
    while len(last) + frames.HEADER_BYTES > reserve and named:
        named = dict(list(named.items())[: len(named) // 2])
        last = frames.encode(named)
    send(frames.header(variables.LOST, len(last)) + last)
    return {"lost": _first(lost), "kept": len(types_of) - len(lost), "whole": whole}


def _collect(reader: int, deadline: float, lost: dict[str, str], send: Callable[[bytes], None]) -> bool:
    """Whether the child came to its end."""
    parser = frames.Parser()
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        left = deadline - monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return False
        data = _read(reader, frames.STATE_BYTES)
        if not data:
            return False
        parser.feed(data)
        frame = parser.next()
        while frame is not None:
            kind, body = frame
            if kind == frames.STATE:
                send(body)
            elif kind == frames.NOTE:
                for name, why in frames.decode(body).items():
                    if why:
                        lost[name] = why
                    else:
                        lost.pop(name, None)
            elif kind == frames.DONE:
                return True
            frame = parser.next()


def _is_users(name: Any) -> bool:
    return type(name) is str and len(name) <= 200 and not (name.startswith("__") and name.endswith("__"))


def _first(lost: dict[str, str]) -> dict[str, str]:
    return dict(list(lost.items())[: variables.LOST_MAX])


def _forked() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: what they hold is found out by the clock
        return os.fork()


def _child(
    reader: int,
    writer: int,
    namespace: dict[str, Any],
    types_of: dict[str, str],
    cells: Cells,
    vault: Any,
    bytes_max: int,
    seconds_max: float,
) -> None:
    """Never returns."""
    try:
        gc.disable()  # a collection would copy the pages of everything
        os.close(reader)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.disable()
        quiet = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(quiet, fd)
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")  # where memory runs out, this child goes, not the kernel
        except OSError:
            pass
        Saver(writer, namespace, types_of, vault, bytes_max, seconds_max).save(cells)
    finally:
        os._exit(0)


class _TooLarge(Exception):
    pass


class _Held:
    """What is written of one variable, until it is whole."""

    def __init__(self) -> None:
        self.left = 0
        self.parts = io.BytesIO()

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            size = view.nbytes
        if size > self.left:
            raise _TooLarge
        self.left -= size
        return self.parts.write(data)

    def begin(self, left: int) -> None:
        self.left = left
        self.parts = io.BytesIO()


class Saver:
    def __init__(
        self, writer: int, namespace: dict[str, Any], types_of: dict[str, str], vault: Any, left: int, seconds: float
    ) -> None:
        self._writer = writer
        self._namespace = namespace
        self._types = types_of
        self._left = left
        self._seconds = seconds
        self._held = _Held()
        self._pickler = _pickler(vault, self._held, namespace)

    def save(self, cells: Cells) -> None:
        header = {
            "python": [sys.implementation.name, *sys.version_info[:2]],
            "directory": os.getcwd(),
            "path": [entry for entry in sys.path if type(entry) is str],
            "count": cells.count,
            "future": cells.future,
            "sources": cells.sources,
        }
        encoded = frames.encode(header)
        if len(encoded) > self._left // 4:
            encoded = frames.encode(dict(header, sources={}, path=[]))
        self._record(variables.HEADER, encoded)
        with variables.Clock(self._seconds) as clock:
            for name in sorted(self._types, key=self._rank):
                why = self._variable(name, clock)
                frames.send(self._writer, frames.NOTE, frames.encode({name: why}))
        frames.send(self._writer, frames.DONE)

    def _rank(self, name: str) -> int:
        """Modules, then functions and classes: what others may need already when they come back."""
        value = self._namespace[name]
        if type(value) is types.ModuleType:
            return 0
        return 1 if type(value) is types.FunctionType or issubclass(type(value), type) else 2

    def _variable(self, name: str, clock: variables.Clock) -> str:
        """Why it could not be saved, if so."""
        kind = self._types[name]
        if clock.left <= 0:
            return variables.short(kind, "no time was left for it")
        value = self._namespace[name]
        start = -1
        try:
            clock.arm()
            self._held.begin(self._left)
            start = self._mark()
            self._pickler.dump(value)
            clock.disarm()
        except BaseException as error:  # whatever it raises: it is not saved, and the others are
            clock.disarm()
            self._roll_back(start)
            return _why(kind, error)
        meta = frames.encode({"name": name, "type": kind, "start": start, "also": _submodules(value)})
        body = self._held.parts.getbuffer()
        if len(body) + len(meta) + 64 > self._left:
            self._roll_back(start)
            return variables.short(kind, "too large")
        self._record(variables.BEGIN_VARIABLE, meta)
        room = frames.STATE_BYTES - frames.HEADER_BYTES
        for at in range(0, len(body), room):
            self._record(variables.PART, body[at : at + room])
        self._record(variables.END_VARIABLE, b"")
        return ""

    def _record(self, kind: bytes, body: Any) -> None:
        self._left -= frames.HEADER_BYTES + len(body)
        frames.send(self._writer, frames.STATE, frames.header(kind, len(body)) + bytes(body))

    def _mark(self) -> int:
        """Where in the memo this variable begins: the pickler does not tell, but how it refers to a new object does."""
        probe: list[Any] = []
        self._pickler.dump(probe)
        written = self._held.parts.tell()
        self._pickler.dump(probe)
        reference = self._held.parts.getvalue()[written + 2 :]
        if reference[:1] == b"\x95":
            reference = reference[9:]
        self._held.parts.seek(written)
        self._held.parts.truncate()
        return reference[1] if reference[:1] == b"h" else int.from_bytes(reference[1:5], "little")

    def _roll_back(self, start: int) -> None:
        if start >= 0:
            memo = self._pickler.memo.copy()
            self._pickler.memo = {key: entry for key, entry in memo.items() if entry[0] < start}


def _submodules(value: Any) -> list[str]:
    """What else `import` has put into a package: `import a` does not bring back what `import a.b` had."""
    if type(value) is not types.ModuleType:
        return []
    prefix = value.__name__ + "."
    return [name for name in list(sys.modules) if type(name) is str and name.startswith(prefix)][:_SUBMODULES]


def _pickler(vault: Any, file: Any, namespace: dict[str, Any]) -> Any:
    class Pickler(vault.Pickler):  # type: ignore[misc]  # cloudpickle is found while this runs
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is io.TextIOWrapper and obj is not sys.stdout and obj is not sys.stderr:
                raise TypeError("cannot pickle '_io.TextIOWrapper' object")
            if type(obj) is functools._lru_cache_wrapper and obj.__module__ == "__main__":
                asked = obj.cache_parameters() if hasattr(obj, "cache_parameters") else {"typed": False}
                return variables.cached, (obj.__wrapped__, obj.cache_info().maxsize, asked["typed"])
            return super().reducer_override(obj)

        def _dynamic_function_reduce(self, func: Any) -> Any:
            reduced = super()._dynamic_function_reduce(func)
            if func.__globals__ is namespace:
                reduced[2][1]["__globals__"] = {}  # each of them is a variable of its own
            return reduced

    pickler = Pickler(file, protocol=5)
    pickler.globals_ref[id(namespace)] = namespace
    pickler.memo = {id(namespace): (0, namespace)}
    return pickler


def _why(kind: str, error: BaseException) -> str:
    if isinstance(error, _TooLarge):
        return variables.short(kind, "too large")
    if isinstance(error, variables.TooSlow):
        return variables.short(kind, "took too long")
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return variables.short(kind, "nested too deeply")
    if isinstance(error, MemoryError):
        return variables.short(kind, "too large for the memory there is")
    try:
        text = str(error)
    except BaseException:  # it may do anything
        text = ""
    inner = _INNER.search(text)
    if inner is not None:
        name = inner.group(1)
        return kind if kind.rpartition(".")[2] == name.rpartition(".")[2] else variables.short(kind, "holds a " + name)
    if isinstance(error, pickle.PicklingError) or not text:
        return variables.short(kind, text[:100] or type(error).__name__)
    return variables.short(kind, f"{type(error).__name__}: {text[:100]}")
