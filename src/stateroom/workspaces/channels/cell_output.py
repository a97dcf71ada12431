"""What a kernel says about a cell and about its variables, checked and bounded. Nothing of it is believed."""

from __future__ import annotations

import codecs
import signal
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from stateroom.workspaces.inside.kernel import frames

_PNG = b"\x89PNG\r\n\x1a\n"
_ERROR_CHARS = 128 * 1024
_LOST_MAX = 500
_WHY_CHARS = 200
_T = TypeVar("_T")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a cell has ended."""

    error: str | None = None
    timed_out: bool = False
    died: bool = False

    def interrupted_after(self, seconds: float) -> Outcome:
        if self.died:
            return msgspec.structs.replace(self, timed_out=True)
        text = f"The cell was interrupted after {seconds:g} s, its time limit. Variables that it had set are kept."
        return Outcome(error=f"{self.error}\n{text}" if self.error else text, timed_out=True)

    @staticmethod
    def killed(seconds: float) -> Outcome:
        text = (
            f"The cell was stopped after {seconds:g} s, its time limit. It could not be interrupted, so that the "
            "interpreter was ended. Its variables are lost; the next cell begins with a new one."
        )
        return Outcome(error=text, timed_out=True, died=True)

    @staticmethod
    def ended(status: int) -> Outcome:
        if status == -signal.SIGKILL:
            how = "was killed, which most often means that it needed more memory than the workspace has"
        elif status < 0:
            how = f"crashed ({_signal(-status)})"
        else:
            how = f"ended itself with status {status}"
        text = f"The Python interpreter {how}. Its variables are lost; the next cell begins with a new one."
        return Outcome(error=text, died=True)

    @staticmethod
    def broke_off(why: str, said: str) -> Outcome:
        text = "The Python interpreter broke off. Its variables are lost; the next cell begins with a new one."
        details = said.strip() or why
        return Outcome(error=f"{text}\n{details}" if details else text, died=True)


class CellOutput:
    """What one cell prints and shows."""

    def __init__(self, bound: int, on_output: Callable[[str, str], None] | None) -> None:
        self.images: list[bytes] = []
        self._left = bound + 1024  # the relay adds words of its own
        self._on_output = on_output
        self._parts: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._has_skipped = False

    def say(self, line: str) -> None:
        """Before all that the cell prints."""
        self._put(f"[{line}]\n")

    def take(self, kind: bytes, body: bytes) -> Outcome | None:
        """Take a frame; the outcome, if it was the last. Raises Broken."""
        if kind == frames.OUTPUT:
            self._left -= len(body)
            if self._left < 0:
                raise frames.Broken("it printed more than was asked for")
            self._put(self._decoder.decode(body))
        elif kind == frames.SKIPPED:
            self._skip(body)
        elif kind == frames.IMAGE:
            if len(self.images) >= frames.IMAGES or not body.startswith(_PNG):
                raise frames.Broken("images that were not asked for")
            self.images.append(body)
        elif kind == frames.DONE:
            return Outcome(error=_decoded(body, _Done).error)
        elif kind == frames.DIED:
            return Outcome.ended(_decoded(body, _Died).status)
        else:
            raise frames.Broken(f"a frame {kind!r} in the middle of a cell")
        return None

    def logs(self) -> str:
        self._put(self._decoder.decode(b"", True))
        return "".join(self._parts)

    def _skip(self, body: bytes) -> None:
        if self._has_skipped:
            raise frames.Broken("it skipped twice")
        self._has_skipped = True
        self._put(self._decoder.decode(b"", True))
        self._decoder.reset()
        self._put(f"\n[... {_decoded(body, int)} bytes left out ...]\n")

    def _put(self, text: str) -> None:
        if text:
            self._parts.append(text)
            if self._on_output is not None:
                self._on_output("stdout", text)


class _Done(msgspec.Struct, frozen=True):
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None and len(self.error) > _ERROR_CHARS:
            raise ValueError("an error that is too long")


class _Died(msgspec.Struct, frozen=True):
    status: int


class SaveReport(msgspec.Struct, frozen=True):
    lost: dict[str, str] = {}
    failed: str = ""

    @staticmethod
    def of(body: bytes) -> SaveReport:
        report = _decoded(body, SaveReport)
        return msgspec.structs.replace(report, lost=_bounded(report.lost))


class RestoreReport(msgspec.Struct, frozen=True):
    lost: dict[str, str] = {}
    restored: int = 0
    failed: str = ""

    @staticmethod
    def of(body: bytes) -> RestoreReport:
        report = _decoded(body, RestoreReport)
        return msgspec.structs.replace(report, lost=_bounded(report.lost))


def named(lost: Mapping[str, str], most: int) -> str:
    """`x (generator), y (socket.socket), and 3 more`."""
    listed = [f"{name}: {kind}" for name, kind in list(lost.items())[:most]]
    more = len(lost) - len(listed)
    return ", ".join(listed) + (f", and {more} more" if more > 0 else "")


def _bounded(lost: dict[str, str]) -> dict[str, str]:
    kept = list(lost.items())[:_LOST_MAX]
    return {_line(name): _line(kind) for name, kind in kept}


def _line(text: str) -> str:
    """One line of printable text."""
    return "".join(char if char.isprintable() else "?" for char in text[:_WHY_CHARS])


def _decoded(body: bytes, type: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise frames.Broken(str(error)) from None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
