"""Bytes on their way out: whole, in ranges, to clients that stop listening."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from stateroom.api import download
from stateroom.api.download import Download, RangeNotSatisfiable, range_of
from tests.unit.api.driver import Exchange, scope_of

CONTENT = bytes(range(256)) * 40


class Source:
    """Gives out the content in pieces of a thousand bytes."""

    def __init__(self) -> None:
        self.given = 0
        self.closed = False

    async def read(self, first: int, last: int | None) -> AsyncGenerator[bytes, None]:
        wanted = CONTENT[first : None if last is None else last + 1]
        try:
            for at in range(0, len(wanted), 1_000):
                await asyncio.sleep(0)
                self.given += 1
                yield wanted[at : at + 1_000]
        finally:
            self.closed = True


async def fetch(method: str = "GET", *, source: Source | None = None, **headers: str) -> Exchange:
    exchange = Exchange()
    given_ = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = scope_of(method, "/", headers=given_)
    answer = Download(
        Request(scope, exchange.receive),
        (source or Source()).read,
        size=len(CONTENT),
        etag='"tag"',
        disposition="attachment",
    )
    await asyncio.wait_for(answer(scope, exchange.receive, exchange.send), 10)
    return exchange


async def test_the_whole_content_comes_with_its_length() -> None:
    exchange = await fetch()
    assert (exchange.status, exchange.body, exchange.whole) == (200, CONTENT, True)
    assert exchange.headers["content-length"] == str(len(CONTENT))
    assert exchange.headers["content-type"] == "application/octet-stream"
    assert exchange.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=10000-", 10_000, 10_239),
        ("bytes=0-999999", 0, 10_239),
        ("bytes=-10", 10_230, 10_239),
        ("bytes=-999999", 0, 10_239),
    ],
)
async def test_a_range_is_what_was_asked_for(asked: str, first: int, last: int) -> None:
    exchange = await fetch(range=asked)
    assert (exchange.status, exchange.body) == (206, CONTENT[first : last + 1])
    assert exchange.headers["content-range"] == f"bytes {first}-{last}/10240"
    assert exchange.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-5", "bytes=-", "items=0-5", "", "bytes=٣-٤", "bytes=a-b"])
async def test_what_is_no_range_is_ignored(asked: str) -> None:
    assert (await fetch(range=asked)).status == 200


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
async def test_a_range_beyond_the_end_is_refused_with_the_size(asked: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        await fetch(range=asked)
    assert refused.value.headers() == {"content-range": "bytes */10240"}


async def test_a_range_of_another_version_is_the_whole_of_this_one() -> None:
    assert (await fetch(range="bytes=0-0", if_range='"tag"')).status == 206
    assert (await fetch(range="bytes=0-0", if_range='"other"')).status == 200


async def test_a_head_says_what_a_get_would_and_reads_nothing() -> None:
    source = Source()
    exchange = await fetch("HEAD", source=source)
    assert (exchange.status, exchange.body, source.given) == (200, b"", 0)
    assert exchange.headers["content-length"] == str(len(CONTENT))


async def stopped(exchange: Exchange, source: Source) -> None:
    scope = scope_of("GET", "/")
    answer = Download(
        Request(scope, exchange.receive), source.read, size=len(CONTENT), etag='"t"', disposition="attachment"
    )
    await asyncio.wait_for(answer(scope, exchange.receive, exchange.send), 10)


async def test_nothing_is_read_for_a_client_that_is_gone() -> None:
    exchange, source = Exchange([]), Source()
    exchange.gone.set()
    exchange.gate.clear()
    await stopped(exchange, source)
    assert source.given <= 1
    assert source.closed or source.given == 0


async def test_a_client_that_takes_nothing_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.05)

    class Stalled(Exchange):
        async def send(self, message: object) -> None:
            if len(self.sent) == 2:
                await asyncio.Event().wait()
            await super().send(message)  # type: ignore[arg-type]  # handed through

    source = Source()
    with pytest.raises(TimeoutError):
        await stopped(Stalled([]), source)
    assert source.closed


async def test_a_failure_before_the_first_byte_can_still_be_answered() -> None:
    async def broken(first: int, last: int | None) -> AsyncGenerator[bytes, None]:
        raise ZeroDivisionError
        yield b""

    exchange = Exchange()
    scope = scope_of("GET", "/")
    answer = Download(Request(scope, exchange.receive), broken, size=5, etag='"t"', disposition="attachment")
    with pytest.raises(ZeroDivisionError):
        await answer(scope, exchange.receive, exchange.send)
    assert exchange.sent == []


@given(st.text(alphabet="bytes=-0123456789, ", max_size=30), st.integers(0, 1_000))
def test_any_range_lies_within_the_content_or_is_none(given_: str, size: int) -> None:
    try:
        found = range_of(given_, size)
    except RangeNotSatisfiable:
        return
    assert found is None or 0 <= found[0] <= found[1] < size
