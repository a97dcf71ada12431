"""Processes that die or fall asleep in the middle of writing: what was acknowledged stays, and sleepers are fenced."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.journal.sqlite_check import check_file
from stateroom.journal.store import Append
from stateroom.testing.index_conformance import index_answers
from stateroom.testing.journal_stage import P, note, texts

ROUNDS = 4


@contextmanager
def appender(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, str(Path(__file__).with_name("appender.py")), *arguments]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def killed_at_random(path: Path, durability: str, chance: random.Random) -> dict[str, int]:
    """Let a child append and kill it at some moment; the last seq that it said was committed, by branch."""
    with appender("many", str(path), durability) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        deadline = time.monotonic() + chance.uniform(0.0, 0.4)
        lines = [first]
        while time.monotonic() < deadline:
            lines.append(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate()
    lines += rest.splitlines(keepends=True)
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.endswith("\n"):
            branch, seq = line.split()
            acknowledged[branch] = int(seq)
    return acknowledged


async def answers(journal: SqliteJournal, branches: list[str]) -> object:
    youngest = await journal.runs(P, limit=50)
    return await index_answers(journal, [P], branches, [run.id for run in youngest])


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path, durability: str) -> None:
    chance = random.Random(durability)
    path = tmp_path / "journal.db"
    acknowledged: dict[str, int] = {}
    for _ in range(ROUNDS):
        acknowledged |= killed_at_random(path, durability, chance)
        journal = open_sqlite(path)
        for branch, seq in acknowledged.items():
            found = await journal.branch(P, branch)
            assert found is not None
            assert found.head >= seq
            entries = await journal.read(P, branch)
            assert [entry.seq for entry in entries] == list(range(found.head + 1))
        told = await answers(journal, list(acknowledged))
        await journal.rebuild()
        assert await answers(journal, list(acknowledged)) == told
        await journal.close()
        assert check_file(path) == []
    assert len(acknowledged) == 8 * ROUNDS


async def test_a_stopped_server_that_lost_its_directory_writes_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with appender("lease", str(path)) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline().startswith("took")
        os.kill(child.pid, signal.SIGSTOP)
        journal = open_sqlite(path)
        # The child's lease would have held for an hour: it is void, because its server is of an older generation.
        mine = await journal.append(Append(P, "b", 0, [note("theirs")], acquire="parent"))
        assert mine.head == 1
        child.stdin.write("wake\n")
        os.kill(child.pid, signal.SIGCONT)
        said, _ = child.communicate(timeout=30)
    assert said.splitlines() == ["refused Fenced"] * 5
    assert await texts(journal, "b") == ["mine", "theirs"]
    assert await journal.branch(P, "late") is None
    assert await journal.frames(P, "b", 0) == []
    assert (await journal.append(Append(P, "b", 1, [note("on")], lease=mine.lease))).head == 2
    await journal.close()
    assert check_file(path) == []
