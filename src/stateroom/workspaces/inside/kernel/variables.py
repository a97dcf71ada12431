"""What saving and restoring variables have in common: the format, cloudpickle, and a clock that interrupts.

A state is a row of frames: HEADER, then for each variable BEGIN_VARIABLE, PARTs and END_VARIABLE, then LOST. The
pickles of all variables are one stream with one memo, so that two names for one object are two names for one object
again. The memo begins with the namespace itself: functions refer to it instead of carrying a copy.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
from time import monotonic
from types import TracebackType
from typing import Any

MAGIC = b"stateroom variables 1\n"
HEADER = b"H"
BEGIN_VARIABLE = b"V"
PART = b"P"
END_VARIABLE = b"E"
LOST = b"X"

NAMESPACE = b"\x80\x05c__main__\n__dict__\n\x94."
"""A pickle of the namespace, by name: the first thing in the memo."""

NAMES_MAX = 10_000
LOST_MAX = 500
"""How many variables are named as lost."""
VAULT = "_stateroom_cloudpickle"
"""The name that cloudpickle has here, so that a cell may have another version of it."""


def vault(directory: str) -> Any:
    """cloudpickle."""
    there = sys.modules.get(VAULT)
    if there is not None:
        return there
    spec = importlib.util.spec_from_file_location(VAULT, os.path.join(directory, "cloudpickle.py"))
    if spec is None or spec.loader is None:
        raise ImportError("there is no cloudpickle in " + directory)
    module = importlib.util.module_from_spec(spec)
    sys.modules[VAULT] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[VAULT]
        raise
    return module


def type_name(value: Any) -> str:
    """Of its type, asking nothing that the type could answer itself."""
    kind = type(value)
    try:
        name = type.__dict__["__qualname__"].__get__(kind)
        module = type.__getattribute__(kind, "__module__")
    except Exception:  # metaclasses may hide anything
        return "object"
    if type(module) is not str or module in ("builtins", "__main__"):
        return str(name)[:100]
    return (f"{module}.{name}")[:100]


def short(name: str, reason: str) -> str:
    return (f"{name} ({reason})")[:200]


def cached(function: Any, size: int | None, typed: bool) -> Any:
    """What `functools.lru_cache` makes of it, which pickle can only refer to by name."""
    return functools.lru_cache(size, typed)(function)


class TooSlow(BaseException):
    """Raised by the clock. Not an Exception: what is being saved or restored should not swallow it."""


class Clock:
    """Gives each of many tasks a share of the seconds that are left: half of them, so that no single one takes all."""

    def __init__(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds
        self._armed = False
        self._before: Any = None

    def __enter__(self) -> Clock:
        self._before = signal.signal(signal.SIGALRM, self._rang)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disarm()
        signal.signal(signal.SIGALRM, self._before or signal.SIG_DFL)

    @property
    def left(self) -> float:
        return self._deadline - monotonic()

    def arm(self) -> None:
        """From now on TooSlow may be raised, again and again until `disarm`."""
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, max(self.left / 2, 0.005), 0.05)

    def disarm(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _rang(self, number: int, frame: Any) -> None:
        if self._armed:
            raise TooSlow
