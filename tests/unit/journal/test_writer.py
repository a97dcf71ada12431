"""The writer's thread: batches, order, and going on after anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from stateroom.journal.writer import Writer


async def test_jobs_are_committed_in_order_and_gather_while_the_writer_is_busy() -> None:
    gate = threading.Event()
    batches: list[list[int]] = []

    def commit(jobs: Sequence[int]) -> list[int]:
        gate.wait(10)
        batches.append(list(jobs))
        return [job * 10 for job in jobs]

    writer = Writer(commit, lambda: False, name="test")
    futures = [writer.submit(number) for number in range(100)]
    gate.set()
    assert await asyncio.gather(*futures) == [number * 10 for number in range(100)]
    assert [number for batch in batches for number in batch] == list(range(100))
    assert len(batches) < 10
    await asyncio.to_thread(writer.stop)


async def test_a_commit_that_breaks_is_everybodys_answer_and_nobodys_end() -> None:
    def commit(jobs: Sequence[str]) -> list[Any]:
        if "break" in jobs:
            raise ZeroDivisionError
        return list(jobs)

    writer = Writer(commit, lambda: False, name="test")
    with pytest.raises(ZeroDivisionError):
        await writer.submit("break")
    assert await writer.submit("fine") == "fine"
    await asyncio.to_thread(writer.stop)


async def test_an_outcome_that_is_an_error_is_raised() -> None:
    writer = Writer(lambda jobs: [KeyError(job) for job in jobs], lambda: False, name="test")
    with pytest.raises(KeyError, match="one"):
        await writer.submit("one")
    await asyncio.to_thread(writer.stop)


async def test_an_idle_writer_is_asked_until_it_has_nothing_left_to_do() -> None:
    done = threading.Event()
    asked: list[int] = []

    def idle() -> bool:
        asked.append(len(asked))
        if len(asked) == 2:
            done.set()
        return len(asked) < 2

    writer = Writer(list, idle, name="test")
    await writer.submit("work")
    assert await asyncio.to_thread(done.wait, 10)
    await asyncio.to_thread(writer.stop)
    assert asked == [0, 1]


async def test_stopping_waits_for_what_was_handed_in() -> None:
    writer = Writer(list, lambda: False, name="test")
    futures = [writer.submit(number) for number in range(3_000)]
    await asyncio.to_thread(writer.stop)
    assert await asyncio.gather(*futures) == list(range(3_000))
