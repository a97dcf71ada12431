"""A transport for interpreters without a sandbox: the kernel is a process of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from stateroom.workspaces.channels.interpreter import Interpreter, KernelTimes
from stateroom.workspaces.layout import cloudpickle_directory, inside_directory


class PlainProcess:
    """What an agent's process is, over pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def read(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(256 * 1024):
            yield "stdout", data

    async def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process._transport.close()  # type: ignore[attr-defined]  # its pipes, which nobody may have read to the end

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    async def wait(self) -> int:
        return await self.process.wait()


class PlainAgent:
    """Spawns processes of this machine."""

    def __init__(self) -> None:
        self.processes: list[PlainProcess] = []

    async def spawn(
        self, argv: Sequence[str], *, cwd: str = ".", env: Mapping[str, str] | None = None, stdin: bool = False
    ) -> PlainProcess:
        started = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        process = PlainProcess(started)
        self.processes.append(process)
        return process


def interpreter(directory: Path, *, times: KernelTimes | None = None, python: str = sys.executable) -> Interpreter:
    return Interpreter(
        PlainAgent(),
        python=python,
        inside=str(inside_directory()),
        cloudpickle=str(cloudpickle_directory()),
        cwd=str(directory),
        times=times or KernelTimes(interrupted=1.0),
    )
