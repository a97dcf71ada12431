"""A real engine, and tools to call from it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from stateroom.tools.program.contract import (
    Answered,
    Caller,
    Outcome,
    ProgramAnswer,
    ProgramCall,
    ProgramLimits,
    ProgramTool,
)
from stateroom.tools.program.engine import Programs

KEY = bytes(range(32))
TIME = 1_790_000_000.25
SMALL = ProgramLimits(cpu_seconds=0.25, wall_seconds=20, memory_bytes=48 * 2**20)


class Tools:
    """Tools that write down what they were called with, and answer with something that follows from it."""

    def __init__(self) -> None:
        self.calls: list[ProgramCall] = []

    async def __call__(self, call: ProgramCall) -> ProgramAnswer:
        self.calls.append(call)
        return answer_to(call)


def answer_to(call: ProgramCall) -> ProgramAnswer:
    """Always the same for the same call: a number, a list, a text or, from `fails`, an error."""
    digest = hashlib.sha256(f"{call.name} {call.arguments}".encode()).digest()
    if call.name == "fails":
        return ProgramAnswer(f"no luck with {call.arguments}", failed=True)
    said = [f'{{"n": {digest[0]}}}', f"[{digest[1]}, {digest[2]}]", f"text {digest[3]}"]
    return ProgramAnswer(said[digest[4] % 3])


async def run(
    code: str,
    call: Caller | None = None,
    *,
    tools: Sequence[str | ProgramTool] = ("a", "b", "fails"),
    answers: Sequence[Answered] = (),
    limits: ProgramLimits = SMALL,
    programs: Programs | None = None,
    seed: str = "seed",
    fingerprint: str = "",
) -> Outcome:
    programs = programs or Programs(KEY)
    made = fingerprint or programs.fingerprints.make(code, project="p", seed=seed, time=TIME)
    offered = [ProgramTool(tool, parameters={}) if isinstance(tool, str) else tool for tool in tools]
    return await programs.run(
        code,
        fingerprint=made,
        project="p",
        tools=offered,
        answers=answers,
        call=call or Tools(),
        limits=limits,
    )


def answered(call: ProgramCall, answer: ProgramAnswer) -> Answered:
    return Answered(call.call_id, call.name, call.arguments, answer.result, answer.failed)


def children(pid: int) -> list[int]:
    """Processes that a process started and that have not been waited for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid and b"tools/program/child.py" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: object, seconds: float = 10.0) -> None:
    """Poll; fails when the time is over."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def mine() -> list[int]:
    return children(os.getpid())
