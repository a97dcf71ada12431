"""Finds a Python that is new enough for a peer: on the PATH, among uv's, among pyenv's. It installs none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

# 3.13 and 3.12 have wheels for everything the peers need; of a newer one that is only likely.
NAMES: Final = ("python3.13", "python3.12", "python3.14", "python3.15")
_ASK: Final = "import ensurepip, sys, venv; print('%d.%d.%d' % sys.version_info[:3])"
_SECONDS: Final = 20.0


class Python(msgspec.Struct, frozen=True):
    """An interpreter that can make virtual environments."""

    path: Path
    version: str


def find(least: tuple[int, int]) -> Python | None:
    """The first one that is at least so new."""
    seen: set[Path] = set()
    for path in _candidates():
        if path in seen:
            continue
        seen.add(path)
        version = _version(path)
        if version is not None and tuple(map(int, version.split(".")))[:2] >= least:
            return Python(path, version)
    return None


def _candidates() -> Iterator[Path]:
    for name in NAMES:
        if found := shutil.which(name):
            yield Path(found)
    yield from _of_pyenv()
    yield from _of_uv()
    if found := shutil.which("python3"):
        yield Path(found)
    yield Path(sys.executable)


def _of_uv() -> Iterator[Path]:
    if uv := shutil.which("uv"):
        command = [uv, "python", "list", "--only-installed", "--output-format", "json"]
        told = _output(command, UV_PYTHON_DOWNLOADS="never")
        try:
            yield from (
                Path(str(each["path"])) for each in msgspec.json.decode(told or "[]", type=list[dict[str, object]])
            )
        except (msgspec.MsgspecError, KeyError, TypeError):
            return


def _of_pyenv() -> Iterator[Path]:
    """Also those that no `pyenv global` makes known to the PATH."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (found for name in NAMES for found in sorted(root.glob(f"versions/*/bin/{name}"), reverse=True))


def _version(path: Path) -> str | None:
    told = _output([str(path), "-I", "-c", _ASK])
    return told.strip() if told else None


def _output(command: list[str], **environment: str) -> str | None:
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, **environment}, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
