"""The HTTP edge: who is let in, how much may be sent, how pages are asked for, what strangers get for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.requests import Request

from stateroom.api import http
from stateroom.api.http import page_of, read_body, slice_page
from stateroom.api.responses import _starting_after
from stateroom.app import Application
from stateroom.errors import InvalidRequest, StateroomError, TooLarge
from stateroom.settings import BackendSettings, Limits, Settings
from stateroom.testing.scripted import ScriptedServer
from tests.unit.api.driver import Exchange, call, scope_of


async def read(
    chunks: list[bytes], *, bytes_max: int = 100, headers: tuple[Any, ...] = (), stays: bool = True
) -> bytes:
    exchange = Exchange(chunks, stays=stays)
    return await read_body(Request(scope_of("POST", "/", headers=headers), exchange.receive), bytes_max)


async def test_a_body_within_its_bound_is_read_whole() -> None:
    assert await read([b"a" * 40, b"", b"b" * 60]) == b"a" * 40 + b"b" * 60


@pytest.mark.parametrize("length", [b"101", b"99999999999999999999"])
async def test_a_body_that_declares_too_much_is_refused_unread(length: bytes) -> None:
    with pytest.raises(TooLarge):
        await read([b"x"], headers=((b"content-length", length),))


async def test_a_body_that_grows_too_large_is_refused_as_soon_as_it_does() -> None:
    exchange = Exchange([b"x" * 60] * 10)
    with pytest.raises(TooLarge):
        await read_body(Request(scope_of("POST", "/", headers=[(b"content-length", b"1")]), exchange.receive), 100)
    assert len(exchange._body) == 8


@pytest.mark.parametrize("length", [b"\xb2", b"-5", b"1e3", b"", b"9" * 5000])
async def test_a_strange_length_is_no_reason_to_break(length: bytes) -> None:
    try:
        assert await read([b"abc"], headers=((b"content-length", length),)) == b"abc"
    except TooLarge:
        assert length.startswith(b"99")


async def test_a_client_that_goes_away_in_its_body_is_no_error_of_ours() -> None:
    exchange = Exchange([b"half"], stays=False)
    exchange.gone.set()
    with pytest.raises(InvalidRequest) as refused:
        await read_body(Request(scope_of("POST", "/"), exchange.receive), 100)
    assert refused.value.code == "client_disconnected"


async def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.02)
    with pytest.raises(InvalidRequest) as refused:
        await read([b"half"], stays=False)
    assert refused.value.code == "body_too_slow"


class Entry(NamedTuple):
    id: str


LIST = [Entry(f"i{number}") for number in range(10)]


@given(st.integers(1, 100), st.booleans(), st.sampled_from([None, *range(10)]), st.sampled_from([None, *range(10)]))
def test_a_page_is_a_part_of_the_list_in_its_order(
    limit: int, descending: bool, after: int | None, before: int | None
) -> None:
    query = {"limit": str(limit), "order": "desc" if descending else "asc"}
    if after is not None:
        query["after"] = f"i{after}"
    if before is not None:
        query["before"] = f"i{before}"
    part, more = slice_page(LIST, page_of(QueryParams(query)))
    ordered = LIST[::-1] if descending else LIST
    start = ordered.index(LIST[after]) + 1 if after is not None else 0
    end = ordered.index(LIST[before]) if before is not None else len(ordered)
    assert part == ordered[start:end][:limit]
    assert more == (len(ordered[start:end]) > limit)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "ten", "²", "１", "9" * 5000, "1_0", " 1", "0x1"])
def test_limits_that_are_none_are_refused(limit: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        page_of(QueryParams({"limit": limit}))
    assert refused.value.param == "limit"


@given(st.text(max_size=30))
def test_no_paging_parameter_can_break_a_list(value: str) -> None:
    for name in ("limit", "order", "after", "before"):
        refused = None
        try:
            slice_page(LIST, page_of(QueryParams({name: value})))
        except InvalidRequest as error:
            refused = error
        assert refused is None or (refused.param == name and len(refused.message) < 400)


@pytest.mark.parametrize("value", ["--5", "²", "1.0", "9" * 30, "five", "0x1", " 1"])
def test_a_place_in_a_stream_is_a_number(value: str) -> None:
    with pytest.raises(InvalidRequest):
        _starting_after(value)
    assert (_starting_after("-1"), _starting_after("0"), _starting_after("")) == (-1, 0, -1)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    async with ScriptedServer() as model:
        settings = Settings(
            data=str(tmp_path / "data"),
            backends=(BackendSettings(url=model.url),),
            limits=Limits(body_bytes=100_000),
            shutdown_seconds=0,
        )
        application = Application(settings)
        await application.start()
        yield application
        await application.stop()


def paths() -> Iterator[tuple[str, str]]:
    for path in (
        "/v1/responses",
        "/v1/responses/x",
        "/v1/conversations",
        "/v1/conversations/x/items",
        "/v1/models",
        "/health",
    ):
        for method in ("PUT", "PATCH", "OPTIONS", "TRACE"):
            yield method, path


async def test_a_method_that_is_not_there_is_refused_in_the_usual_shape(app: Application) -> None:
    for method, path in paths():
        answer = await call(app.asgi, method, path)
        assert answer.status == 405, (method, path)
        assert answer.json["error"]["code"] == "method_not_allowed"
        assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


async def test_a_head_request_is_answered_as_get_is(app: Application) -> None:
    for path, status in (("/v1/models", 200), ("/v1/responses/resp_x", 404), ("/health", 200)):
        assert (await call(app.asgi, "HEAD", path)).status == status


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/%00",
        "/v1/responses/\x00",
        "/v1/responses/resp_\n\x1b[31m",
        "/v1/conversations/../../etc/passwd",
        "/v1/conversations/é/items/ü",
        "/v1/responses/" + "a" * 20_000,
        "/v1/models/a/b/c",
        "/v1",
        "/",
        "//v1/responses",
    ],
)
async def test_strange_paths_get_a_plain_answer_and_are_logged_on_one_line(
    app: Application, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("GET", "DELETE"):
        answer = await call(app.asgi, method, path)
        assert answer.status in (404, 405, 307)
        if answer.status != 307:
            assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert all("\n" not in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"model":"m","input":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"model":"m","input":"\\ud800"}',
        b'{"model":"m","input":"x","metadata":{"a":"' + b"b" * 600 + b'"}}',
        b'{"model":"m","input":"x","metadata":' + b"{" + b",".join(b'"%d":"v"' % n for n in range(17)) + b"}}",
        b'{"model":"m","input":[{"type":"item_reference","id":"' + b"x" * 300 + b'"}]}',
        b'{"model":"m","input":"x","previous_response_id":"' + b"y" * 300 + b'"}',
        b'{"model":"m","input":"' + b"x" * 100_001 + b'"}',
    ],
)
async def test_hostile_bodies_get_a_client_error_with_a_code(app: Application, body: bytes) -> None:
    answer = await call(app.asgi, "POST", "/v1/responses", body)
    assert 400 <= answer.status < 500
    error = answer.json["error"]
    assert error["code"]
    assert len(error["message"]) < 1_000
    assert "Traceback" not in answer.body.decode()


async def test_what_nobody_foresaw_gives_nothing_away(app: Application, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the password is hunter2")

    app.runs.create = broken  # type: ignore[method-assign]  # a mistake of ours that nobody knows of yet
    exchange = Exchange([b'{"model":"m","input":"a secret question"}'])
    await app.asgi(scope_of("POST", "/v1/responses"), exchange.receive, exchange.send)
    assert exchange.status == 500
    assert "ZeroDivisionError" in caplog.text
    assert "hunter2" not in exchange.body.decode()
    assert exchange.json["error"]["code"] == "server_error"
    assert exchange.headers["x-request-id"]
    assert "a secret question" not in caplog.text


async def test_an_unstored_stream_ends_with_its_client(app: Application) -> None:
    exchange = Exchange([b'{"model":"m","input":"slow: 50\\nchunks: 200","stream":true,"store":false}'])
    asking = asyncio.ensure_future(app.asgi(scope_of("POST", "/v1/responses"), exchange.receive, exchange.send))
    async with asyncio.timeout(5):
        while not exchange.chunks:  # noqa: ASYNC110 - what is waited for says nothing of itself
            await asyncio.sleep(0.005)
        exchange.gone.set()
        await asking
        while app.dispatcher.count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
    assert app.runs.live == {}


async def test_an_unstored_answer_ends_with_its_client_too_and_a_stored_one_goes_on(app: Application) -> None:
    for stored in (False, True):
        body = b'{"model":"m","input":"slow: 10\\nchunks: 20","store":%b}' % (b"true" if stored else b"false")
        exchange = Exchange([body])
        asking = asyncio.ensure_future(app.asgi(scope_of("POST", "/v1/responses"), exchange.receive, exchange.send))
        async with asyncio.timeout(5):
            while not app.runs.live:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
            run = next(iter(app.runs.live.values()))
            exchange.gone.set()
            await asking
        assert run.state.ended is not None
        assert run.state.ended.status == ("completed" if stored else "cancelled")


async def test_every_error_of_the_tree_is_answered_in_the_same_shape() -> None:
    def tree(kind: type[StateroomError]) -> Iterator[type[StateroomError]]:
        yield kind
        for under in kind.__subclasses__():
            yield from tree(under)

    for kind in tree(StateroomError):
        exchange = Exchange()
        await http.error_response(kind("what happened"))(scope_of("GET", "/"), exchange.receive, exchange.send)
        assert 400 <= exchange.status < 600
        assert "what happened" in exchange.json["error"]["message"]
        assert exchange.json["error"]["code"]
