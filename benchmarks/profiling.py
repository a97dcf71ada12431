"""Where the server's time goes: py-spy beside a load, told as the packages, functions and lines that cost most."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

HOW: Final = "py-spy is not installed: `pip install py-spy` into this environment, then run it again."
RATE: Final = 500
"""Samples a second."""

_LINE: Final = re.compile(r":\d+\)$")
_ROOT: Final = re.compile(r"^(Runner\.run \(|Thread\.run \(|thread \()")
"""Up to the last of these a stack says nothing."""


def find() -> str | None:
    """The py-spy of this environment, or any."""
    own = Path(sysconfig.get_path("scripts")) / "py-spy"
    return str(own) if own.exists() else shutil.which("py-spy")


class Recording:
    """Samples a process until it is ended."""

    def __init__(self, py_spy: str, pid: int, target: Path) -> None:
        self._target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        # Only who holds the interpreter's lock: a thread that waits for it, or for the core, would look busy.
        options = ["--pid", str(pid), "--rate", str(RATE), "--format", "raw", "--output", str(target), "--gil"]
        self._process = subprocess.Popen(
            [py_spy, "record", *options, "--nonblocking"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def end(self, turn_ms: float) -> str:
        """Stop sampling; the report as text, for turns that took so long."""
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=60)
        if not self._target.exists():
            return f"py-spy has written nothing: {errors.decode(errors='replace').strip()}"
        return report(self._target.read_text(), turn_ms) + f"\n\nstacks (for speedscope.app): {self._target}"


def report(raw: str, turn_ms: float, rows: int = 30) -> str:
    """Packages, functions and lines by their own time, and functions by their time with all they call."""
    stacks = [_stack(line) for line in raw.splitlines()]
    samples = max(1, sum(count for _, count in stacks))
    tables = {
        "packages, own time": _count(stacks, lambda stack: [_package(stack[-1])]),
        "functions, own time": _count(stacks, lambda stack: [_function(stack[-1])]),
        "functions, with what they call": _count(stacks, lambda stack: {_function(frame) for frame in stack}),
        "lines, own time": _count(stacks, lambda stack: [stack[-1]]),
    }
    lines = [
        f"{samples} samples of Python and of C that holds its lock; µs: as if they were all of a {turn_ms:.2f} ms turn"
    ]
    for title, counted in tables.items():
        lines += ["", f"  {title}"]
        for what, count in counted.most_common(rows):
            lines.append(f"{count / samples:7.1%}  {count / samples * turn_ms * 1000:8.1f} µs  {what}")
    return "\n".join(lines)


def _count(stacks: list[tuple[list[str], int]], told: Callable[[list[str]], Iterable[str]]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for stack, count in stacks:
        for what in told(stack):
            counted[what] += count
    return counted


def _stack(line: str) -> tuple[list[str], int]:
    """The frames below the loop of the thread, and how often they were seen."""
    stack, _, count = line.rpartition(" ")
    frames = [_short(frame) for frame in stack.split(";")]
    roots = [at for at, frame in enumerate(frames) if _ROOT.match(frame)]
    below = frames[roots[-1] + 1 if roots else 0 :]
    return below or ["the loop itself, and what it calls in C (uvloop)"], int(count)


def _short(frame: str) -> str:
    for root in (*sys.path, sys.prefix):
        if root:
            frame = frame.replace(f"({root.rstrip('/')}/", "(")
    return frame


def _function(frame: str) -> str:
    return _LINE.sub(")", frame)


def _package(frame: str) -> str:
    """Two levels of the path of our own modules, one of others."""
    path = _function(frame).rpartition(" (")[2].rstrip(")").split("/")
    return "/".join(path[:2]) if path[0] == "stateroom" else path[0]
