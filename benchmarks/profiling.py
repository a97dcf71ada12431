"""Where the server's time goes: py-spy beside a load, told as the functions that cost most."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Final

HOW: Final = "py-spy is not installed: `pip install py-spy` into this environment, then run it again."
RATE: Final = 500
"""Samples a second."""


def find() -> str | None:
    """The py-spy of this environment, or any."""
    own = Path(sysconfig.get_path("scripts")) / "py-spy"
    return str(own) if own.exists() else shutil.which("py-spy")


class Recording:
    """Samples a process until it is ended."""

    def __init__(self, py_spy: str, pid: int, target: Path) -> None:
        self._target = target
        target.parent.mkdir(parents=True, exist_ok=True)
        options = ["--pid", str(pid), "--rate", str(RATE), "--format", "raw", "--output", str(target), "--threads"]
        self._process = subprocess.Popen(
            [py_spy, "record", *options, "--nonblocking"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def end(self) -> str:
        """Stop sampling; the report as text."""
        self._process.send_signal(2)
        _, errors = self._process.communicate(timeout=60)
        if not self._target.exists():
            return f"py-spy has written nothing: {errors.decode(errors='replace').strip()}"
        return report(self._target.read_text()) + f"\nstacks: {self._target} (open with https://www.speedscope.app)"


def report(raw: str, rows: int = 40) -> str:
    """The functions by their own time, and by their time with all they call."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_short(frame) for frame in stack.split(";")]
        samples += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    lines = [f"{samples} samples"]
    for title, counted in (("own time", own), ("with what it calls", total)):
        lines += ["", f"  {title}"]
        lines += [f"{count / max(1, samples):7.1%}  {frame}" for frame, count in counted.most_common(rows)]
    return "\n".join(lines)


def _short(frame: str) -> str:
    for root in (*sys.path, sys.prefix):
        if root and root + "/" in frame:
            return frame.replace(root + "/", "")
    return frame
