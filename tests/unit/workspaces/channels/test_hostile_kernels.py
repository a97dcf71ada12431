"""Kernels that somebody has taken over: they say what they like, and the server bounds it and believes none of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import SandboxFailed
from stateroom.workspaces.channels.cell_output import CellOutput, RestoreReport
from stateroom.workspaces.channels.interpreter import Interpreter, KernelTimes
from stateroom.workspaces.inside.kernel import frames
from tests.unit.workspaces.kernels import PlainAgent, PlainProcess

READY = frames.header(frames.READY, 2) + b"{}"
PNG = b"\x89PNG\r\n\x1a\n"


def framed(kind: bytes, body: bytes) -> bytes:
    return frames.header(kind, len(body)) + body


class TakenOver(PlainAgent):
    """Spawns a program that says `first`, and `then` for every frame that it gets."""

    def __init__(self, first: bytes, then: bytes, times: int) -> None:
        super().__init__()
        self.program = (
            f"import os, struct\nos.write(1, {first!r})\n"
            "while True:\n"
            "    head = os.read(0, 5)\n"
            "    if not head: break\n"
            "    left = struct.unpack('>cI', head)[1]\n"
            "    while left: left -= len(os.read(0, left))\n"
            f"    for _ in range({times}):\n"
            f"        data = {then!r}\n"
            "        while data: data = data[os.write(1, data):]\n"
        )

    async def spawn(
        self, argv: Sequence[str], *, cwd: str = ".", env: Mapping[str, str] | None = None, stdin: bool = False
    ) -> PlainProcess:
        program = Path(cwd, "kernel.py")
        await asyncio.to_thread(program.write_text, self.program)
        return await super().spawn([sys.executable, "-I", "-S", str(program)], cwd=cwd, env=env, stdin=stdin)


def taken_over(directory: Path, then: bytes, *, first: bytes = READY, times: int = 1) -> Interpreter:
    limits = KernelTimes(start=5.0, interrupted=0.1, answer=0.3, restore=0.3)
    return Interpreter(TakenOver(first, then, times), python="", cwd=str(directory), times=limits)


@pytest.mark.parametrize(
    ("then", "times"),
    [
        (frames.header(frames.DONE, 2**32 - 1), 1),
        (frames.header(b"?", 1), 1),
        (framed(frames.STATE, b"x"), 1),
        (framed(frames.READY, b"{}"), 1),
        (framed(frames.OUTPUT, b"x" * 30_000), 10_000),
        (framed(frames.SKIPPED, b"1"), 2),
        (framed(frames.SKIPPED, b'"a"'), 1),
        (framed(frames.IMAGE, PNG), 17),
        (framed(frames.IMAGE, b"<svg>"), 1),
        (framed(frames.DONE, b"[" * 100_000), 1),
        (framed(frames.DONE, b'{"error": 1}'), 1),
        (framed(frames.DONE, b'{"error": "' + b"x" * 500_000 + b'"}'), 1),
        (framed(frames.DIED, b'{"status": "x"}'), 1),
        (b"\0" * 100_000, 100),
    ],
)
async def test_a_kernel_that_breaks_the_rules_is_ended(tmp_path: Path, then: bytes, times: int) -> None:
    python = taken_over(tmp_path, then, times=times)
    result = await python.run("1", timeout=10, output_bytes=1000)
    assert result.died
    assert result.error is not None
    assert result.error.startswith("The Python interpreter broke off.")
    assert len(result.logs) < 32_000
    assert (python.state, python.is_alive) == ("fresh", False)


async def test_a_kernel_that_says_nothing_is_ended_at_the_time_limit(tmp_path: Path) -> None:
    python = taken_over(tmp_path, b"")
    result = await python.run("1", timeout=0.1, output_bytes=1000)
    assert result.timed_out
    assert result.died


async def test_a_kernel_that_does_not_listen_is_given_up(tmp_path: Path) -> None:
    python = taken_over(tmp_path, b"")
    agent = python.agent
    assert isinstance(agent, TakenOver)
    agent.program = f"import os, time\nos.write(1, {READY!r})\ntime.sleep(60)"
    result = await python.run("#" * 8_000_000, timeout=10, output_bytes=1000)
    assert result.died


@pytest.mark.parametrize("first", [b"", framed(frames.DONE, b"{}"), frames.header(frames.READY, 2**31)])
async def test_a_kernel_that_never_says_that_it_is_ready_is_not_waited_for(tmp_path: Path, first: bytes) -> None:
    python = taken_over(tmp_path, b"", first=first)
    python._times = KernelTimes(start=0.2)
    with pytest.raises(SandboxFailed):
        await python.run("1", timeout=1, output_bytes=10)


@pytest.mark.parametrize(
    "then",
    [
        framed(frames.STATE, b"x" * 2000),
        framed(frames.SAVED, b'{"lost": []}'),
        framed(frames.DONE, b"{}"),
        frames.header(frames.STATE, 2**30),
        b"",
    ],
)
async def test_more_state_than_was_asked_for_is_not_taken(tmp_path: Path, then: bytes) -> None:
    python = taken_over(tmp_path, b"")
    await python.run("1", timeout=0.05, output_bytes=10)
    python = taken_over(tmp_path, then)
    python._kernel = await python._started()
    assert await python.save(bytes_max=1000, seconds_max=0.1) is None
    await python.close()


async def test_a_restore_that_is_not_answered_gives_a_fresh_interpreter(tmp_path: Path) -> None:
    python = taken_over(tmp_path, b"")
    await python.restore(b"anything")
    assert python.state == "fresh"
    await python.close()


def test_names_of_what_is_lost_are_printable_and_few() -> None:
    lost = {f"a{i}\n\x1b[31m": "t\r\n" * 1000 for i in range(5000)}
    report = RestoreReport.of(frames.encode({"lost": lost, "restored": 0}))
    assert len(report.lost) == 500
    assert all(name.isprintable() and kind.isprintable() and len(kind) <= 200 for name, kind in report.lost.items())


@given(st.binary(max_size=200), st.integers(1, 50))
def test_frames_come_out_whole_however_they_were_cut(data: bytes, cut: int) -> None:
    stream = framed(frames.OUTPUT, data) + framed(frames.DONE, b"{}")
    parser = frames.Parser(frames.LIMITS)
    found = []
    for at in range(0, len(stream), cut):
        parser.feed(stream[at : at + cut])
        frame = parser.next()
        while frame is not None:
            found.append(frame)
            frame = parser.next()
    assert found == [(frames.OUTPUT, data), (frames.DONE, b"{}")]


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    parser = frames.Parser(frames.LIMITS)
    output = CellOutput(100, None)
    parser.feed(data)
    try:
        frame = parser.next()
        while frame is not None and output.take(*frame) is None:
            frame = parser.next()
    except frames.Broken:
        return
    assert len(output.logs()) <= 2000
