"""Live streams: every reader sees every frame once and in order, whenever it comes and however slow it is."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from stateroom.api.responses import events
from stateroom.journal.entries import Frame
from stateroom.runtime.stream import LiveStream


def frame(first: int, last: int) -> Frame:
    return Frame(first, last, b"".join(b"event: n\ndata: %d\n\n" % number for number in range(first, last + 1)))


async def numbers(stream: LiveStream, after: int = -1) -> list[int]:
    body = b"".join([chunk async for chunk in events(stream, after)])
    return [int(line.removeprefix("data: ")) for line in body.decode().split("\n") if line[6:].isdecimal()]


async def test_a_late_reader_sees_everything_and_so_does_one_that_was_there() -> None:
    stream = LiveStream()
    early = asyncio.ensure_future(numbers(stream))
    for first in range(0, 30, 3):
        stream.publish(frame(first, first + 2))
        await asyncio.sleep(0)
    late = asyncio.ensure_future(numbers(stream))
    stream.end()
    assert await early == await late == list(range(30))
    assert await numbers(stream) == list(range(30))


async def test_a_slow_reader_holds_nobody_up_and_misses_nothing() -> None:
    stream = LiveStream()
    reader = stream.follow(-1)
    stream.publish(frame(0, 0))
    seen = [await anext(reader)]
    for first in range(1, 100):
        stream.publish(frame(first, first))
    stream.end()
    assert len(stream.frames) == 100
    seen += [each async for each in reader]
    assert [each.first for each in seen] == list(range(100))


@pytest.mark.parametrize("after", [-1, 0, 1, 2, 3, 8, 9, 10, 10**17])
async def test_a_reader_sees_exactly_what_comes_after_the_number_it_names(after: int) -> None:
    stream = LiveStream([frame(0, 2), frame(3, 3), frame(4, 9)])
    stream.end()
    assert await numbers(stream, after) == list(range(max(after + 1, 0), 10))


async def test_a_reader_that_goes_away_leaves_nothing_behind() -> None:
    stream = LiveStream()
    for _ in range(50):
        reading = asyncio.ensure_future(numbers(stream))
        await asyncio.sleep(0)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    assert not stream._waiting


async def test_a_stream_that_was_cut_off_does_not_say_that_it_is_done() -> None:
    whole, cut = LiveStream([frame(0, 0)]), LiveStream([frame(0, 0)])
    whole.end()
    cut.end(cut=True)
    cut.end()
    assert [chunk async for chunk in events(whole, -1)][-1] == b"data: [DONE]\n\n"
    assert [chunk async for chunk in events(cut, -1)] == [frame(0, 0).body]
