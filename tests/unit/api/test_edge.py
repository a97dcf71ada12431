"""The edge: who is let in from where, and what every answer says besides what was asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from stateroom.access.keys import KeyRing, Keys, open_keys
from stateroom.access.rates import Allowance, Rates
from stateroom.api.edge import Edge
from stateroom.api.gate import Gate
from stateroom.clock import SystemClock
from tests.unit.api.driver import HOST, Exchange, call, scope_of

AWAY = (b"host", b"rooms.example")


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("in")(scope, receive, send)


class Door:
    """An edge with its keys."""

    def __init__(self, path: Path, *, demands_key: bool = False, cors_origins: tuple[str, ...] = ()) -> None:
        self.keys: Keys = open_keys(path)
        ring = KeyRing(open_keys(path))
        rates = Rates(SystemClock(), of_key=ring.allowance)
        self.gate = Gate(
            ring,
            rates,
            demands_key=demands_key,
            public=frozenset({"/health"}),
            reading=frozenset({"/v1/count"}),
            admin=("/metrics",),
        )
        self.edge = Edge(inside, self.gate, cors_origins=cors_origins)

    def make(self, *scopes: str, expires_at: int = 0, allowance: Allowance | None = None) -> tuple[bytes, bytes]:
        """A new key, as the header that shows it."""
        _, secret = self.keys.create(
            project="shop", name="", scopes=scopes or ("read", "write"), expires_at=expires_at, allowance=allowance
        )
        return (b"authorization", b"Bearer " + secret.encode())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.db"


@pytest.fixture
def door(path: Path) -> Door:
    return Door(path)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """Of a server on loopback that has no keys."""
    return Door(tmp_path_factory.mktemp("open") / "access.db").edge


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]", "[::1]:8000", "127.8.9.1:1", ""],
)
async def test_this_machine_is_let_in(edge: Edge, host: str) -> None:
    headers = [(b"host", host.encode())] if host else []
    for origin in ([], [(b"origin", b"http://localhost:3000")], [(b"origin", b"http://[::1]:5173")]):
        assert (await call(edge, "POST", "/", headers=[*headers, *origin])).body == b"in"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"evil.example")],
        [(b"host", b"evil.example:8000")],
        [(b"host", b"localhost.evil.example")],
        [(b"host", b"127.0.0.1.evil.example")],
        [(b"host", b"testserver")],
        [(b"host", b"10.0.0.1")],
        [(b"host", b"[::ffff:10.0.0.1]")],
        [(b"host", b"0.0.0.0:8000")],
        [(b"host", b"2130706433")],
        [(b"host", b"\xff\xfe")],
        [(b"host", b"")],
        [HOST, (b"host", b"evil.example")],
        [HOST, (b"origin", b"http://evil.example")],
        [HOST, (b"origin", b"http://localhost.evil.example")],
        [HOST, (b"origin", b"null")],
        [HOST, (b"origin", b"")],
        [HOST, (b"origin", b"http://[::1")],
        [HOST, (b"origin", b"http://localhost@evil.example")],
        [HOST, (b"origin", b"file://")],
        [HOST, (b"origin", b"\xff")],
    ],
)
async def test_whoever_names_another_machine_is_refused_before_anything_is_done(
    edge: Edge, headers: list[tuple[bytes, bytes]]
) -> None:
    for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE"):
        answer = await call(edge, method, "/v1/responses", headers=headers)
        assert answer.status == 403
        assert answer.json["error"]["code"] == "foreign_origin"
        assert answer.headers["x-request-id"].startswith("req_")


@given(st.binary(max_size=60))
def test_no_host_or_origin_can_break_the_edge(edge: Edge, value: bytes) -> None:
    for headers in ([(b"host", value)], [HOST, (b"origin", value)]):
        answer = asyncio.run(call(edge, "GET", "/", headers=headers))
        assert answer.status in (200, 403)


async def test_from_the_first_key_on_whoever_shows_none_is_refused(door: Door) -> None:
    assert (await call(door.edge, "GET", "/v1/things")).body == b"in"
    header = door.make()
    refused = await call(door.edge, "GET", "/v1/things")
    assert (refused.status, refused.json["error"]["code"]) == (401, "missing_api_key")
    assert refused.json["error"]["type"] == "invalid_request_error"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (await call(door.edge, "GET", "/v1/things", headers=[HOST, header])).body == b"in"


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer",
        b"Bearer ",
        b"Bearer unused",
        b"Basic dTpw",
        b"sk-stateroom-",
        b"Bearer sk-stateroom-" + b"0" * 52,
        b"\xff",
    ],
)
async def test_what_is_no_key_of_this_server_is_refused(door: Door, value: bytes) -> None:
    door.make()
    refused = await call(door.edge, "GET", "/v1/things", headers=[HOST, (b"authorization", value)])
    assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    assert value.decode("latin-1")[7:] not in refused.json["error"]["message"] or len(value) <= 7


async def test_a_key_that_has_ended_opens_nothing_and_its_end_opens_nothing_else(door: Door) -> None:
    expired = door.make(expires_at=1)
    for headers in ([HOST], [HOST, expired]):
        assert (await call(door.edge, "GET", "/", headers=headers)).status == 401
    revoked = door.make()
    assert (await call(door.edge, "GET", "/", headers=[HOST, revoked])).status == 200
    [key] = [key for key in door.keys.all() if not key.expires_at]
    door.keys.revoke(key.id)
    answer = await call(door.edge, "GET", "/", headers=[HOST, revoked])
    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert "revoked" in answer.json["error"]["message"]


async def test_a_server_that_others_reach_asks_for_a_key_before_there_is_one(path: Path) -> None:
    door = Door(path, demands_key=True)
    assert (await call(door.edge, "GET", "/v1/things")).json["error"]["code"] == "missing_api_key"
    assert (await call(door.edge, "GET", "/health", headers=[AWAY])).body == b"in"
    assert (await call(door.edge, "GET", "/v1/things", headers=[AWAY, door.make()])).body == b"in"


@pytest.mark.parametrize(
    ("method", "url", "needed"),
    [
        ("GET", "/v1/things", "read"),
        ("HEAD", "/v1/things", "read"),
        ("POST", "/v1/things", "write"),
        ("DELETE", "/v1/things/1", "write"),
        ("PATCH", "/v1/things/1", "write"),
        ("POST", "/v1/count", "read"),
        ("GET", "/metrics", "admin"),
        ("POST", "/metrics/reset", "admin"),
    ],
)
async def test_a_key_does_what_its_scopes_say_and_a_refusal_names_the_one_that_is_missing(
    door: Door, method: str, url: str, needed: str
) -> None:
    everything = {"read", "write", "admin"}
    assert (await call(door.edge, method, url, headers=[HOST, door.make(needed)])).status == 200
    refused = await call(door.edge, method, url, headers=[HOST, door.make(*(everything - {needed}))])
    assert refused.status == 403
    assert refused.json["error"]["code"] == "insufficient_scope"
    assert f"`{needed}`" in refused.json["error"]["message"]


async def test_a_socket_needs_a_key_that_may_write_and_is_told_why_not(door: Door) -> None:
    reading = door.make("read")
    told = {"extensions": {"websocket.http.response": {}}}
    for headers, code in (([HOST], "missing_api_key"), ([HOST, reading], "insufficient_scope")):
        exchange = Exchange()
        await door.edge(
            {**scope_of("GET", "/v1/things", headers=headers, kind="websocket"), **told},
            exchange.receive,
            exchange.send,
        )
        assert exchange.sent[0]["type"] == "websocket.http.response.start"
        assert exchange.json["error"]["code"] == code
        mute = Exchange()
        await door.edge(scope_of("GET", "/v1/things", headers=headers, kind="websocket"), mute.receive, mute.send)
        assert mute.sent == [{"type": "websocket.close", "code": 1008, "reason": code}]


async def test_the_application_is_told_who_asks(path: Path) -> None:
    seen: list[Scope] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await inside(scope, receive, send)

    door = Door(path)
    edge = Edge(look, door.gate)
    await call(edge, "GET", "/")
    await call(edge, "GET", "/", headers=[HOST, door.make("read")])
    first, second = (scope["stateroom.principal"] for scope in seen)
    assert (first.project, first.key_id) == ("default", "")
    assert (second.project, second.key_id, second.scopes) == ("shop", door.keys.all()[0].id, frozenset({"read"}))


async def test_every_answer_is_closed_to_caches_frames_and_guesses(door: Door) -> None:
    door.make()
    for headers in ([HOST], [HOST, door.make()]):
        answer = await call(door.edge, "GET", "/", headers=headers)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


async def test_an_answer_that_says_more_about_itself_is_left_as_it_is(path: Path) -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        own = {"cache-control": "max-age=60", "content-security-policy": "default-src 'self'"}
        await PlainTextResponse("page", headers=own)(scope, receive, send)

    answer = await call(Edge(page, Door(path).gate), "GET", "/")
    assert answer.headers["cache-control"] == "max-age=60"
    assert answer.headers["content-security-policy"] == "default-src 'self'"
    assert len([name for name, _ in answer.sent[0]["headers"] if name == b"cache-control"]) == 1


async def test_a_clients_own_request_id_is_kept_when_it_is_well_formed(door: Door) -> None:
    for offered, kept in (
        (b"0195-aB.c:d_e", True),
        (b"short", False),
        (b"a" * 129, False),
        (b"new\nline....", False),
        (b"", False),
    ):
        answer = await call(door.edge, "GET", "/", headers=[HOST, (b"x-request-id", offered)])
        assert (answer.headers["x-request-id"] == offered.decode()) is kept
        assert kept or answer.headers["x-request-id"].startswith("req_")


ASKS = [(b"origin", b"https://app.example"), (b"access-control-request-method", b"POST")]


async def test_a_page_is_let_in_where_the_settings_name_it_and_nowhere_else(path: Path) -> None:
    door = Door(path, cors_origins=("https://app.example/",))
    key = door.make()
    named = await call(door.edge, "POST", "/", headers=[AWAY, key, (b"origin", b"https://app.example")])
    assert named.body == b"in"
    assert named.headers["access-control-allow-origin"] == "https://app.example"
    assert named.headers["vary"] == "origin"
    for origin in (b"https://evil.example", b"http://app.example", b"https://app.example.evil.example", b"null", b""):
        refused = await call(door.edge, "POST", "/", headers=[AWAY, key, (b"origin", origin)])
        assert (refused.status, refused.json["error"]["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in refused.headers
    both = [AWAY, key, (b"origin", b"https://evil.example"), (b"origin", b"https://app.example")]
    assert (await call(door.edge, "POST", "/", headers=both)).status == 403


async def test_a_browser_that_asks_first_is_answered_without_a_key(path: Path) -> None:
    door = Door(path, cors_origins=("https://app.example",))
    door.make()
    headers = [AWAY, *ASKS, (b"access-control-request-headers", b"authorization, content-type")]
    answer = await call(door.edge, "OPTIONS", "/v1/things", headers=headers)
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    odd = [AWAY, *ASKS, (b"access-control-request-headers", b"a: b\nc")]
    assert "access-control-allow-headers" not in (await call(door.edge, "OPTIONS", "/", headers=odd)).headers
    elsewhere = [AWAY, (b"origin", b"https://evil.example"), ASKS[1]]
    assert (await call(door.edge, "OPTIONS", "/", headers=elsewhere)).status == 401


async def test_a_page_that_the_server_sent_out_itself_may_come_back(door: Door) -> None:
    key = door.make()
    own = [(b"host", b"rooms.example:8443"), key, (b"origin", b"https://rooms.example:8443")]
    assert (await call(door.edge, "POST", "/", headers=own)).body == b"in"


async def test_every_place_is_named_only_where_keys_protect(path: Path) -> None:
    door = Door(path, cors_origins=("*",))
    headers = [HOST, (b"origin", b"https://evil.example")]
    assert (await call(door.edge, "POST", "/", headers=headers)).status == 403
    key = door.make()
    assert (await call(door.edge, "POST", "/", headers=[*headers, key])).body == b"in"


async def test_a_named_page_may_use_an_open_server_under_its_own_name_only(path: Path) -> None:
    edge = Door(path, cors_origins=("https://app.example",)).edge
    origin = (b"origin", b"https://app.example")
    assert (await call(edge, "POST", "/", headers=[HOST, origin])).body == b"in"
    assert (await call(edge, "POST", "/", headers=[AWAY, origin])).status == 403
    assert (await call(edge, "OPTIONS", "/", headers=[AWAY, *ASKS])).status == 403


async def test_a_key_with_limits_is_told_how_it_stands_and_when_it_may_ask_again(door: Door) -> None:
    bound = door.make(allowance=Allowance(requests_per_minute=2, tokens_per_minute=100))
    free = door.make()
    first = await call(door.edge, "GET", "/", headers=[HOST, bound])
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    await call(door.edge, "GET", "/", headers=[HOST, bound])
    refused = await call(door.edge, "GET", "/", headers=[HOST, bound])
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await call(door.edge, "GET", "/health", headers=[HOST, bound])).status == 200
    other = await call(door.edge, "GET", "/", headers=[HOST, free])
    assert (other.status, "x-ratelimit-limit-requests" in other.headers) == (200, False)


async def test_whatever_is_neither_a_request_nor_a_socket_goes_through(door: Door) -> None:
    exchange = Exchange()
    seen: list[str] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await Edge(look, door.gate)({"type": "lifespan"}, exchange.receive, exchange.send)
    assert seen == ["lifespan"]
