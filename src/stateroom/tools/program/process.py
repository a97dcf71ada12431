"""The server's end of the process that one program runs in: starts it, speaks with it line by line, ends it.

What comes from there is not trusted: it is bounded, decoded against a type, and anything else ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from stateroom.tools.program.confinement import filter_for
from stateroom.tools.program.contract import ProgramLimits

_HERE = Path(__file__).parent
_ENVIRONMENT = {"TZ": "UTC0", "LC_ALL": "C"}
_BYTES_PER_CHARACTER = 6
"""Of a line, at most, escaped."""


CANNOT_CONFINE = 77
"""What the process exits with when the system call filter is refused to it."""


class CallMade(msgspec.Struct, frozen=True):
    """A call, as the engine tells it."""

    name: str
    arguments: str


class Said(msgspec.Struct, frozen=True):
    """What came of one step."""

    state: Literal["running", "done", "failed", "time", "memory"]
    calls: tuple[CallMade, ...] = ()
    texts: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    cut: bool = False
    error: str = ""


class Gone(Exception):
    """The process ended, or said what it could not have meant."""


class Overtime(Exception):
    """It took too long."""


class EngineProcess:
    """One process, for one segment of one program."""

    def __init__(self, process: asyncio.subprocess.Process, limits: ProgramLimits) -> None:
        self._process = process
        self._seconds = limits.wall_seconds

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, limits: ProgramLimits) -> EngineProcess:
        """Start it; the first step tells it what to run."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # none of the environment, the user's packages or the working directory
            "-S",
            str(_HERE / "child.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            limit=_line_max(limits),
        )
        return cls(process, limits)

    async def step(self, line: bytes, computing: asyncio.Semaphore) -> Said:
        """Hand over a line, wait for what comes of it. Raises Gone or Overtime."""
        async with computing:
            clock = asyncio.get_running_loop().time
            began = clock()
            try:
                async with asyncio.timeout(max(self._seconds, 0)):
                    said = await self._exchange(line)
            except TimeoutError as error:
                raise Overtime from error
            finally:
                self._seconds -= clock() - began
        return said

    async def _exchange(self, line: bytes) -> Said:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()
            answer = await self._process.stdout.readline()
            if not answer.endswith(b"\n"):
                raise Gone
            return msgspec.json.decode(answer, type=Said)
        except (OSError, ValueError, msgspec.DecodeError) as error:  # ValueError: a line above every bound
            raise Gone from error

    async def end(self) -> int:
        """Kill it and wait for it; how it ended, which is our signal unless it was gone before."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await self._process.wait()


def engine_library() -> str | None:
    """Where the engine's extension module is; it is never loaded into this process."""
    found = importlib.util.find_spec("_quickjs")
    return found.origin if found is not None else None


def first_line(program: dict[str, Any], limits: ProgramLimits) -> bytes:
    """What the process is told."""
    filter = filter_for()
    told = {
        "parent": os.getpid(),
        "library": engine_library(),
        "prelude": (_HERE / "prelude.js").read_text("utf-8"),
        "memory_bytes": limits.memory_bytes,
        "stack_bytes": limits.stack_bytes,
        "cpu_seconds": limits.cpu_seconds,
        "filter": filter.hex() if filter is not None else "",
        "program": program
        | {
            "calls": limits.calls,
            "timers": limits.timers,
            "output_chars": limits.output_bytes,
            "argument_chars": limits.arguments_bytes,
        },
    }
    return msgspec.json.encode(told)


def _line_max(limits: ProgramLimits) -> int:
    return _BYTES_PER_CHARACTER * (2 * limits.output_bytes + limits.arguments_bytes) + 256 * limits.calls + 65536
