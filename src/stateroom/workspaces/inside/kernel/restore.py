"""Brings saved variables back, each of them or not at all, and names those that did not come.

Only ever in a sandbox: to restore is to run what somebody has written.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import io
import os
import pickle
import sys
from typing import Any, Iterator

from . import frames, variables
from .cell import Cells
from .salvage import GONE, Salvage, is_plain

_PORTABLE = ("subimport", "dynamic_subimport", "_make_dict_keys", "_make_dict_values", "_make_dict_items")
"""What of cloudpickle means the same in every Python: the rest makes code, which does not."""


def restore(state: bytes, namespace: dict[str, Any], cells: Cells, cloudpickle: str, seconds: float) -> dict[str, Any]:
    """What came of it: `restored` counts, `lost` names."""
    try:
        records = list(_records(state))
        header = frames.decode(records[0][1])
        assert records[0][0] == variables.HEADER
        assert isinstance(header, dict)
        variables.vault(cloudpickle)
    except Exception as error:  # written by another version, or not by us at all
        return {"failed": f"{type(error).__name__}: {str(error)[:200]}", "restored": 0, "lost": {}}
    _surroundings(header, cells)
    code = header.get("python") == [sys.implementation.name, *sys.version_info[:2]]
    lost: dict[str, str] = {}
    restored = 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        with variables.Clock(seconds) as clock:
            loader = _Loader(code, namespace)
            for meta, body in _variables(records, lost):
                why = loader.load(meta, body, clock)
                restored += not why
                if why:
                    lost[meta["name"]] = why
    finally:
        namespace["__builtins__"] = builtins
        if collecting:
            gc.enable()
    return {"restored": restored, "lost": dict(list(lost.items())[: variables.LOST_MAX])}


def _records(state: bytes) -> Iterator[tuple[bytes, memoryview]]:
    if not state.startswith(variables.MAGIC):
        raise ValueError("variables in a format that is not known here")
    view = memoryview(state)
    at = len(variables.MAGIC)
    while at + frames.HEADER_BYTES <= len(view):
        kind, size = frames.parse_header(view, at)
        at += frames.HEADER_BYTES
        if at + size > len(view):
            return
        yield kind, view[at : at + size]
        at += size


def _variables(records: list[tuple[bytes, memoryview]], lost: dict[str, str]) -> Iterator[tuple[dict[str, Any], bytes]]:
    meta: dict[str, Any] | None = None
    parts: list[memoryview] = []
    for kind, body in records:
        if kind == variables.BEGIN_VARIABLE:
            meta, parts = frames.decode(body), []
        elif kind == variables.PART:
            parts.append(body)
        elif kind == variables.END_VARIABLE and meta is not None:
            yield meta, b"".join(parts)
            meta, parts = None, []
        elif kind == variables.LOST:
            lost.update(frames.decode(body))


def _surroundings(header: dict[str, Any], cells: Cells) -> None:
    """The directory, the path and the sources of the cells that were."""
    try:
        os.chdir(header["directory"])
    except (OSError, KeyError, TypeError, ValueError):
        pass  # it is not there any more
    sys.path += [entry for entry in header.get("path", []) if isinstance(entry, str) and entry not in sys.path]
    cells.count = max(cells.count, int(header.get("count", 0)))
    cells.future |= int(header.get("future", 0))
    for filename, code in header.get("sources", {}).items():
        cells.remember(str(filename), str(code))


def _imported(name: str) -> None:
    try:
        if name not in sys.modules:
            importlib.import_module(name)
    except Exception:  # one that only its package can load, or that went away: the package itself is there
        return


class _Memo(dict):  # type: ignore[type-arg]  # of objects by number
    """A memo with gaps, where variables were lost; whoever refers to one is lost as well."""

    next = 0

    def __len__(self) -> int:
        return self.next

    def __setitem__(self, key: int, value: Any) -> None:
        dict.__setitem__(self, key, value)
        self.next = key + 1


class _OpenMemo(_Memo):
    """Where what is lost is referred to nevertheless."""

    def __missing__(self, key: int) -> Any:
        return GONE


class _Stream:
    """One variable after the other, for one unpickler."""

    def __init__(self) -> None:
        self._held = io.BytesIO(variables.NAMESPACE)

    def begin(self, data: bytes) -> None:
        self._held = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._held.read(size)

    def readline(self) -> bytes:
        return self._held.readline()

    def readinto(self, into: Any) -> int:
        return self._held.readinto(into)


class _Foreign(Exception):
    pass


class _Loader:
    """The quick unpickler until the first variable is lost; from then on one that can leave gaps."""

    def __init__(self, code: bool, namespace: dict[str, Any]) -> None:
        self._code = code
        self._namespace = namespace
        self._stream = _Stream()
        self._quick: Any = _unpickler(pickle.Unpickler, self._stream, code)
        self._quick.load()
        self._memo = _Memo()

    def load(self, meta: dict[str, Any], body: bytes, clock: variables.Clock) -> str:
        """Why it could not be restored, if so."""
        kind, start = str(meta["type"]), int(meta["start"])
        if clock.left <= 0:
            self._lose(start)
            return variables.short(kind, "no time was left to restore it")
        try:
            clock.arm()
            self._stream.begin(body)
            unpickler = self._quick or self._careful(start)
            unpickler.load()
            value = unpickler.load()
            for name in meta["also"]:
                _imported(name)
            clock.disarm()
        except BaseException as error:  # whatever it raises: it is lost, and the others are not
            clock.disarm()
            self._lose(start)
            if not isinstance(error, variables.TooSlow):
                self._salvage(start, body, clock)
            return _why(kind, error)
        self._namespace[meta["name"]] = value
        return ""

    def _careful(self, start: int) -> Any:
        unpickler = _unpickler(pickle._Unpickler, self._stream, self._code)
        self._memo.next = start
        unpickler.memo = self._memo
        return unpickler

    def _lose(self, start: int) -> None:
        there = self._quick.memo.copy() if self._quick is not None else dict(self._memo.items())
        self._quick = None
        self._memo = _Memo()
        for key, value in there.items():
            if key < start:
                self._memo[key] = value

    def _salvage(self, start: int, body: bytes, clock: variables.Clock) -> None:
        """Keep in the memo what later variables may share with the lost one."""
        self._stream.begin(body)
        memo = _OpenMemo(self._memo)
        memo.next = start
        find = _unpickler(pickle.Unpickler, self._stream, self._code).find_class
        salvage = Salvage(self._stream, find, self._namespace, memo)
        try:
            clock.arm()
            salvage.load()
            salvage.load()
            kept = {key: value for key, value in memo.items() if key >= start and not salvage.holds_gone(value)}
            clock.disarm()
        except BaseException:  # it did not come to its end: what cannot be half made counts
            clock.disarm()
            kept = {key: value for key, value in memo.items() if key >= start and is_plain(value)}
        for key, value in kept.items():
            self._memo[key] = value


def _unpickler(base: Any, stream: _Stream, code: bool) -> Any:
    class Unpickler(base):  # type: ignore[misc]  # one of two
        def find_class(self, module: str, name: str) -> Any:
            if not code and module == variables.VAULT and name not in _PORTABLE:
                raise _Foreign
            return super().find_class(module, name)

    return Unpickler(stream)


def _why(kind: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return variables.short(kind, f"needs the module {error.name}")
    if isinstance(error, variables.TooSlow):
        return variables.short(kind, "took too long to restore")
    if isinstance(error, _Foreign):
        return variables.short(kind, "has code of another Python")
    if isinstance(error, (KeyError, pickle.UnpicklingError)):
        return variables.short(kind, "refers to what is lost")
    try:
        text = str(error)[:100]
    except BaseException:  # it may do anything
        text = ""
    return variables.short(kind, f"{type(error).__name__}: {text}")
