"""The layer around everything: it notes what came of each request, and never what was in it."""

from __future__ import annotations

import asyncio
import io

import pytest
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from stateroom.api.observed import Observed
from stateroom.telemetry.context import current_request, current_trace, note_error
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.logs import AccessLog
from tests.unit.api.driver import HOST, Exchange, call, scope_of

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Inner:
    """An application that answers what it is told to, and looks at what its task works for."""

    def __init__(self) -> None:
        self.status = 200
        self.kind = b"application/json"
        self.traces: list[str] = []
        self.failure: Exception | None = None
        self.silent = False
        self.during: list[int] = []
        self.instruments = Instruments()
        self.log = io.StringIO()
        routes = [Mount("/v1", routes=[Route("/things/{thing}", self.endpoint)])]
        self.app = Observed(self, self.instruments, routes, AccessLog("all", "info", "text", self.log))
        self.route = routes[0].routes[0]

    async def endpoint(self) -> None:
        raise AssertionError("it only gives the route its name")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = current_trace.get()
        self.traces.append(trace.header() if trace is not None else "")
        if scope["path"].startswith("/v1/things/"):
            assert isinstance(self.route, Route)
            scope["endpoint"] = self.route.endpoint
        if self.silent:
            return
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-type", self.kind)]})
        self.during.append(self.instruments.streams_active)
        if self.failure is not None:
            raise self.failure
        await send({"type": "http.response.body", "body": b"{}"})

    @property
    def counted(self) -> dict[tuple[str, ...], float]:
        return self.instruments.requests.values


async def test_a_request_is_counted_under_the_template_of_its_route() -> None:
    inner = Inner()
    await call(inner.app, "GET", "/v1/things/PRIVATE", query="PRIVATE=1")
    await call(inner.app, "GET", "/PRIVATE")
    assert inner.counted == {("GET", "/v1/things/{thing}", "200"): 1, ("GET", "unknown", "200"): 1}
    assert inner.log.getvalue().count("\n") == 2
    assert "PRIVATE" not in inner.log.getvalue()


async def test_a_method_that_nobody_knows_is_no_label() -> None:
    inner = Inner()
    await call(inner.app, "PRIVATE", "/v1/things/a")
    assert inner.counted == {("other", "/v1/things/{thing}", "200"): 1}


async def test_streams_count_while_they_are_sent() -> None:
    inner = Inner()
    inner.kind = b"text/event-stream; charset=utf-8"
    await call(inner.app, "GET", "/v1/things/a")
    assert inner.during == [1]
    assert (inner.instruments.streams_active, inner.instruments.requests_active) == (0, 0)


async def test_a_client_that_went_away_unanswered_and_a_handler_that_broke_are_noted() -> None:
    inner = Inner()
    inner.silent = True
    await call(inner.app, "GET", "/v1/things/a")
    inner.silent, inner.failure = False, ValueError("PRIVATE")
    with pytest.raises(ValueError, match="PRIVATE"):
        await call(inner.app, "GET", "/v1/things/a")
    assert inner.counted == {("GET", "/v1/things/{thing}", "499"): 1, ("GET", "/v1/things/{thing}", "200"): 1}
    assert inner.instruments.requests_active == 0
    assert "PRIVATE" not in inner.log.getvalue()


async def test_a_request_does_not_inherit_the_trace_of_the_one_before_it() -> None:
    inner = Inner()
    await call(inner.app, "GET", "/v1/things/a", headers=(HOST, (b"traceparent", TRACE)))
    await call(inner.app, "GET", "/v1/things/a")
    assert inner.traces == [TRACE.decode(), ""]


async def test_two_parents_are_none() -> None:
    inner = Inner()
    await call(inner.app, "GET", "/v1/things/a", headers=(HOST, (b"traceparent", TRACE), (b"traceparent", TRACE)))
    assert inner.traces == [""]


async def test_a_socket_counts_when_it_ends_and_its_errors_when_they_happen() -> None:
    instruments, log = Instruments(), io.StringIO()
    accepted, over = asyncio.Event(), asyncio.Event()

    async def socket(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        note_error("invalid_type")
        note_error("invalid_type")
        accepted.set()
        await over.wait()

    app = Observed(socket, instruments, [], AccessLog("all", "info", "text", log))
    exchange = Exchange()
    scope = scope_of("GET", "/v1/responses", kind="websocket")
    task = asyncio.create_task(app(scope, exchange.receive, exchange.send))
    await accepted.wait()
    assert instruments.errors.values == {("socket", "invalid_type"): 2}
    assert instruments.requests.values == {}
    over.set()
    await task
    assert instruments.requests.values == {("WS", "/v1/responses", "101"): 1}
    assert "method=WS route=/v1/responses status=101" in log.getvalue()


async def test_notes_of_nobodys_request_are_passed_over() -> None:
    token = current_request.set(None)
    note_error("invalid_type")
    current_request.reset(token)
