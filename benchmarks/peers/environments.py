"""A virtual environment for each peer, made once and kept. Nothing of it comes into the one that measures."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.peers.pythons import Python

INSTALL_SECONDS: Final = 900.0
_HEARTBEAT_SECONDS: Final = 10.0
_WIDTH: Final = 110


class NotInstalled(Exception):
    """A peer that cannot be had here, and why."""


class Environment(msgspec.Struct, frozen=True):
    """A peer, installed."""

    folder: Path
    python: str
    """The version of its interpreter."""
    version: str

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)


def prepare(
    package: str, requirement: str, python: Python, cache: Path, say: Callable[[str], None] = print
) -> Environment:
    """Install a peer, unless an earlier call has. Raises NotInstalled."""
    folder = cache / package
    marker = folder / "installed"
    wanted = f"{requirement} on Python {python.version}"
    if not marker.is_file() or marker.read_text() != wanted:
        say(f"installing {requirement} into {folder}; the first time takes a minute …")
        shutil.rmtree(folder, ignore_errors=True)
        _run([str(python.path), "-m", "venv", str(folder)], folder, say)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-color"]
        _run([*pip, "--progress-bar", "off", requirement], folder, say)
        marker.write_text(wanted)
    return Environment(folder, python.version, _version(folder, package))


def _run(command: list[str], folder: Path, say: Callable[[str], None]) -> None:
    lines: list[str] = []
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as failure:
        raise NotInstalled(str(failure)) from failure
    watchdog = threading.Timer(INSTALL_SECONDS, process.kill)
    watchdog.start()
    told = time.monotonic()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if time.monotonic() - told > _HEARTBEAT_SECONDS:
                told = time.monotonic()
                say(f"  … {lines[-1][:_WIDTH]}")
        failed = process.wait()
    finally:
        watchdog.cancel()
    if failed:
        shutil.rmtree(folder, ignore_errors=True)
        raise NotInstalled(_reason(lines) if failed > 0 else f"it took longer than {INSTALL_SECONDS:.0f} s")


def _reason(lines: list[str]) -> str:
    """What pip says last of errors."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return [*(lines or ["no reason was given"])[-1:], *errors][-1][:_WIDTH]


def _version(folder: Path, package: str) -> str:
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    told = subprocess.run([folder / "bin/python", "-I", "-c", ask], capture_output=True, text=True, check=False)
    if told.returncode:
        raise NotInstalled(f"{folder} is broken: remove it and try again")
    return told.stdout.strip()
