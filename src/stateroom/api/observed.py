"""The layer around everything: each request is counted, timed, traced and written down, whatever came of it.

It sees method, route, status and ids. Never a body, a query, an address as the client wrote it, or a header beside
`traceparent` and `tracestate`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Iterable
from typing import Final

from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateroom.access.principal import Principal
from stateroom.telemetry.context import Asked, TraceContext, current_request, current_trace, read_trace
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.logs import AccessLog, Answered, level_of
from stateroom.telemetry.metrics import code_label
from stateroom.telemetry.spans import Span, Value

_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_QUIET: Final = frozenset({"/health", "/ready", "/metrics"})
"""Routes that machines ask all day long."""
_NOBODY: Final = Principal(project="")
UNKNOWN: Final = "unknown"
"""The route of a request that has none."""
SWITCHING: Final = 101
GONE: Final = 499
"""Stands for the status of a request whose client went away before there was one."""
_STREAM: Final = b"text/event-stream"
_ID: Final = re.compile(r"[a-z]{2,24}_[0-9a-hjkmnp-tv-z]{26}")
"""What a run can be named; anything else in its place is the client's own text."""


class Observed:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, instruments: Instruments, routes: Iterable[BaseRoute], access_log: AccessLog
    ) -> None:
        self._app = app
        self._instruments = instruments
        self._log = access_log
        self._routes = {id(endpoint): path for endpoint, path in _templates(routes)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        instruments, began = self._instruments, time.monotonic()
        asked = Asked() if scope["type"] == "http" else Asked(self._count)
        seen = _Seen(send, instruments)
        trace = _given(scope)
        span: Span | None = None
        if instruments.tracer is not None:
            span = instruments.tracer.start(_method(scope), "server", {}, parent=trace)
            trace = span.context
        if trace is not None:
            asked.trace_id = trace.trace_id
        # Set in every case: the task may have inherited what an earlier request on its connection was about.
        current_request.set(asked)
        current_trace.set(trace)
        instruments.requests_active += 1
        try:
            await self._app(scope, receive, seen)
        finally:
            instruments.requests_active -= 1
            if seen.streams:
                instruments.streams_active -= 1
            self._answered(scope, asked, seen.status or GONE, began, span)

    def _answered(self, scope: Scope, asked: Asked, status: int, began: float, span: Span | None) -> None:
        seconds = time.monotonic() - began
        route = self._routes.get(id(scope.get("endpoint")), UNKNOWN) if scope["type"] == "http" else _socket(status)
        method = _method(scope)
        instruments = self._instruments
        instruments.requests.add((method, route, _STATUS.get(status) or str(status)))
        instruments.request_seconds.observe((route,), seconds)
        if asked.code and asked.count is None:
            instruments.errors.add(("http", code_label(asked.code)))
        level = level_of(status, quiet=route in _QUIET)
        if self._log.wants(level):
            who: Principal = scope.get("stateroom.principal", _NOBODY)
            told = Answered(method, route, status, seconds * 1000, who.project, who.key_id)
            told.request_id = asked.request_id
            told.run_id, told.trace_id, told.code = asked.run_id or _named(scope), asked.trace_id, asked.code
            self._log.write(level, told)
        if span is not None:
            self._end(span, method, route, status, asked)

    def _count(self, code: str) -> None:
        """An error that a request over a WebSocket was answered with."""
        self._instruments.errors.add(("socket", code_label(code)))

    def _end(self, span: Span, method: str, route: str, status: int, asked: Asked) -> None:
        attributes: dict[str, Value] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "stateroom.request.id": asked.request_id,
        }
        if asked.run_id:
            attributes["gen_ai.response.id"] = asked.run_id
        span.end(attributes, name=f"{method} {route}", error=(asked.code or str(status)) if status >= 500 else "")


_STATUS: Final = {status: str(status) for status in (200, 101, 204, 400, 401, 403, 404, 405, 409, 413, 429, 500, 503)}


class _Seen:
    """Sends on, and remembers what the answer's head said."""

    __slots__ = ("_instruments", "_send", "status", "streams")

    def __init__(self, send: Send, instruments: Instruments) -> None:
        self._send = send
        self._instruments = instruments
        self.status = 0
        self.streams = False

    def __call__(self, message: Message) -> Awaitable[None]:
        if not self.status:
            self._head(message)
        return self._send(message)

    def _head(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            if any(name == b"content-type" and value.startswith(_STREAM) for name, value in message["headers"]):
                self.streams = True
                self._instruments.streams_active += 1
        elif kind == "websocket.accept":
            self.status = SWITCHING
        elif kind == "websocket.close":
            self.status = 403


def _given(scope: Scope) -> TraceContext | None:
    """The trace that the client's headers name. More than one parent is none."""
    parent, state = b"", b""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parent = b"," if parent else value
        elif name == b"tracestate":
            state = state + b"," + value if state else value
    return read_trace(parent, state) if parent else None


def _method(scope: Scope) -> str:
    method: str = scope.get("method", "WS") if scope["type"] == "http" else "WS"
    return method if method in _METHODS or method == "WS" else "other"


def _socket(status: int) -> str:
    return "/v1/responses" if status == SWITCHING else UNKNOWN


def _named(scope: Scope) -> str:
    """The run that the address names, if it can be one's name."""
    named = scope.get("path_params", {}).get("response_id", "")
    return named if _ID.fullmatch(named) else ""


def _templates(routes: Iterable[BaseRoute], before: str = "") -> Iterable[tuple[object, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _templates(route.routes, before + route.path)
        elif isinstance(route, Route):
            yield route.endpoint, before + route.path
