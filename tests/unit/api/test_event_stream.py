"""Streams over ASGI: clients that drop, that are slow or silent, and what breaks in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from stateroom.api import http
from stateroom.api.http import EventStream, unless_dropped
from tests.unit.api.driver import Exchange, scope_of
from tests.unit.runtime.stage import until


class Events:
    """Gives out chunks when it is told to; knows whether its reader has gone."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self.queue.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.closed = True


class Drops:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def others() -> set[asyncio.Task[None]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def streaming(events: Events, exchange: Exchange, drops: Drops | None = None) -> asyncio.Task[None]:
    stream = EventStream(aiter(events), on_drop=drops)
    return asyncio.ensure_future(stream(scope_of("GET", "/"), exchange.receive, exchange.send))


async def test_a_stream_is_sent_chunk_by_chunk_and_ended() -> None:
    events, exchange, drops = Events(), Exchange(), Drops()
    sending = streaming(events, exchange, drops)
    for chunk in (b"a", b"b"):
        events.queue.put_nowait(chunk)
        await until(lambda chunk=chunk: exchange.chunks[-1:] == [chunk])
    events.queue.put_nowait(None)
    await asyncio.wait_for(sending, 5)
    assert exchange.body == b"ab"
    assert exchange.whole
    assert drops.count == 0
    assert exchange.headers["content-type"].startswith("text/event-stream")
    assert exchange.headers["cache-control"] == "no-store"
    assert "content-length" not in exchange.headers
    assert others() == set()


async def test_a_client_that_drops_ends_the_stream_at_once_and_leaves_no_task() -> None:
    events, exchange, drops = Events(), Exchange(), Drops()
    sending = streaming(events, exchange, drops)
    events.queue.put_nowait(b"a")
    await until(lambda: exchange.chunks == [b"a"])
    exchange.gone.set()
    await asyncio.wait_for(sending, 5)
    assert drops.count == 1
    assert events.closed
    assert not exchange.whole
    assert others() == set()


async def test_a_client_that_drops_while_it_takes_nothing_in_ends_the_stream_too() -> None:
    events, exchange, drops = Events(), Exchange(), Drops()
    exchange.gate.clear()
    sending = streaming(events, exchange, drops)
    events.queue.put_nowait(b"a")
    await asyncio.sleep(0)
    exchange.gone.set()
    await asyncio.wait_for(sending, 5)
    assert drops.count == 1
    assert exchange.sent == []
    assert others() == set()


async def test_a_stream_that_is_cancelled_from_above_tells_whom_it_may_concern() -> None:
    events, exchange, drops = Events(), Exchange(), Drops()
    sending = streaming(events, exchange, drops)
    events.queue.put_nowait(b"a")
    await until(lambda: exchange.chunks == [b"a"])
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert drops.count == 1
    assert events.closed
    assert others() == set()


async def test_what_breaks_in_the_middle_is_not_passed_off_as_the_end() -> None:
    events, exchange, drops = Events(), Exchange(), Drops()
    sending = streaming(events, exchange, drops)
    events.queue.put_nowait(b"a")
    events.queue.put_nowait(RuntimeError("broke"))
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(sending, 5)
    assert exchange.body == b"a"
    assert not exchange.whole
    assert drops.count == 1
    assert others() == set()


async def test_a_connection_that_refuses_to_take_more_ends_the_stream() -> None:
    events, exchange, drops = Events(), Exchange(), Drops()
    sending = streaming(events, exchange, drops)
    await until(lambda: bool(exchange.sent))
    exchange.failure = OSError("broken pipe")
    events.queue.put_nowait(b"a")
    with pytest.raises(OSError, match="broken pipe"):
        await asyncio.wait_for(sending, 5)
    assert drops.count == 1
    assert others() == set()


async def test_silence_is_filled_with_comments_between_events_and_never_inside_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "KEEPALIVE_SECONDS", 0.01)
    events, exchange = Events(), Exchange()
    sending = streaming(events, exchange)
    await until(lambda: exchange.chunks.count(http.KEEPALIVE) >= 2)
    for number in range(3):
        events.queue.put_nowait(b"event: n\ndata: %d\n\n" % number)
    await until(lambda: sum(chunk.startswith(b"event") for chunk in exchange.chunks) == 3)
    await until(lambda: exchange.chunks[-1] == http.KEEPALIVE)
    events.queue.put_nowait(None)
    await asyncio.wait_for(sending, 5)
    assert set(exchange.chunks) == {http.KEEPALIVE, *(b"event: n\ndata: %d\n\n" % number for number in range(3))}
    assert exchange.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert others() == set()


async def test_comments_wait_as_well_for_a_client_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEEPALIVE_SECONDS", 0.001)
    events, exchange = Events(), Exchange()
    sending = streaming(events, exchange)
    await until(lambda: bool(exchange.sent))
    exchange.gate.clear()
    await asyncio.sleep(0.02)
    held = len(exchange.sent)
    await asyncio.sleep(0.02)
    assert len(exchange.sent) == held
    exchange.gate.set()
    events.queue.put_nowait(None)
    await asyncio.wait_for(sending, 5)
    assert exchange.whole


async def test_a_client_that_stops_taking_anything_in_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEEPALIVE_SECONDS", 0.01)
    monkeypatch.setattr(http, "STALL_SECONDS", 0.03)
    events, exchange, drops = Events(), Exchange(), Drops()
    sending = streaming(events, exchange, drops)
    events.queue.put_nowait(b"a")
    await until(lambda: b"a" in exchange.chunks)
    exchange.gate.clear()
    for _ in range(100):
        events.queue.put_nowait(b"b")
    await asyncio.wait_for(sending, 5)
    assert not exchange.whole
    assert drops.count == 1
    assert events.closed
    assert others() == set()


async def test_waiting_for_a_run_tells_who_was_first() -> None:
    from starlette.requests import Request

    for drops in (False, True):
        exchange = Exchange([])
        waited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(unless_dropped(Request(scope_of("POST", "/"), exchange.receive), waited))
        await asyncio.sleep(0)
        if drops:
            exchange.gone.set()
        else:
            waited.set_result(None)
        assert await asyncio.wait_for(waiting, 5) is not drops
        await until(lambda: others() == set())
