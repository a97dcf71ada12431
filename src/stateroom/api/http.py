"""What every surface needs of HTTP: bodies within bounds, errors in one shape, request ids, streams of frames."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import Receive, Scope, Send

from stateroom.errors import InvalidRequest, MethodNotAllowed, NotFound, StateroomError, TooLarge
from stateroom.telemetry.context import note_error
from stateroom.wire.requests import check_include
from stateroom.wire.responses import render_list
from stateroom.wire.sse import KEEPALIVE

log = logging.getLogger("stateroom.api")

KEEPALIVE_SECONDS = 15.0
STALL_SECONDS = 60.0
"""How long a client may take nothing in of a stream that has something for it."""
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 64 * 1024
"""How long a body may take: so many seconds, and what its size takes at this rate."""


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. Raises TooLarge before more than `bytes_max` are kept."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > bytes_max):
        raise _too_large(bytes_max)
    receive = request.receive
    chunks: list[bytes] = []
    size = 0
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(BODY_SECONDS) as limit:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    gone = "The client went away before its body was complete."
                    raise InvalidRequest(gone, code="client_disconnected")
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
                limit.reschedule(began + BODY_SECONDS + size / BODY_BYTES_PER_SECOND)
    except TimeoutError:
        raise InvalidRequest("The request body came in too slowly.", code="body_too_slow") from None


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {bytes_max} bytes (`limits.body_bytes`).")


class Json(Response):
    """A body that is JSON already."""

    media_type = "application/json"


class Page(msgspec.Struct, frozen=True):
    """The paging parameters of a list."""

    after: str
    before: str
    limit: int
    descending: bool


def page_of(query: QueryParams, *, order: str = "desc") -> Page:
    """`after`, `before`, `limit` (1-100, 20) and `order` of a list request. Raises InvalidRequest."""
    limit = query.get("limit") or "20"
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= 100:
        raise InvalidRequest("`limit` must be a number from 1 to 100.", code="invalid_value", param="limit")
    order = query.get("order") or order
    if order not in ("asc", "desc"):
        raise InvalidRequest("`order` must be `asc` or `desc`.", code="invalid_value", param="order")
    return Page(query.get("after") or "", query.get("before") or "", int(limit), order == "desc")


async def listed(query: QueryParams, read: Callable[..., Awaitable[list[Any]]], show: Callable[[Any], Any]) -> Json:
    """The page that a list request asks for. `read` gives what lies between its ends, and one more if there is more."""
    page = page_of(query)
    found = await read(after=page.after, before=page.before, limit=page.limit, descending=page.descending)
    return Json(render_list([show(each) for each in found[: page.limit]], len(found) > page.limit))


def included(query: QueryParams) -> list[str]:
    """What a request asks to be shown besides. Raises InvalidRequest."""
    include = [*query.getlist("include"), *query.getlist("include[]")]
    check_include(include)
    return include


def slice_page(entries: list[Any], page: Page, param: str = "after") -> tuple[list[Any], bool]:
    """The page's part of objects with an `id`, given oldest first, and whether more follow."""
    ordered = entries[::-1] if page.descending else entries
    start, end = 0, len(ordered)
    if page.after:
        # The last of those that go by this id: whoever pages through the list must come to its end.
        start = len(ordered) - _position(ordered[::-1], page.after, "after")
    if page.before:
        end = _position(ordered, page.before, "before")
    part = ordered[start:end]
    return part[: page.limit], len(part) > page.limit


def _position(ordered: list[Any], identifier: str, param: str) -> int:
    for position, entry in enumerate(ordered):
        if entry.id == identifier:
            return position
    message = f"`{param}`: no item with id '{identifier[:256]}' in this list."
    raise InvalidRequest(message, code="invalid_value", param=param)


def flag(query: QueryParams, name: str) -> bool:
    """A boolean query parameter."""
    value = (query.get(name) or "false").lower()
    if value in ("true", "1"):
        return True
    if value in ("false", "0"):
        return False
    raise InvalidRequest(f"`{name}` must be `true` or `false`.", code="invalid_value", param=name)


class EventStream(Response):
    """Server-sent events that are encoded already; a comment keeps idle connections open."""

    def __init__(self, events: AsyncGenerator[bytes, None], *, on_drop: Callable[[], None] | None = None) -> None:
        super().__init__(status_code=200, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._events = events
        self._on_drop = on_drop
        self._started = False
        self._written = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._written = loop.time()
        keeping = loop.create_task(self._keep_alive(send))
        writing = loop.create_task(self._write(send, keeping))
        watching = loop.create_task(_wait_disconnect(receive))
        try:
            await asyncio.wait((writing, watching, keeping), return_when=asyncio.FIRST_COMPLETED)
            if keeping.cancelled():  # by the writing task, which is about to end
                await asyncio.wait((writing, watching), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            whole = writing.done() and not writing.cancelled() and writing.exception() is None
            if not whole and self._on_drop is not None:
                self._on_drop()
            for task in (writing, watching, keeping):
                task.cancel()
            await asyncio.gather(writing, watching, keeping, return_exceptions=True)

    async def _write(self, send: Send, keeping: asyncio.Task[None]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._started = True
        loop = asyncio.get_running_loop()
        async with aclosing(self._events) as events:
            async for chunk in events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._written = loop.time()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """Fill silence with comments. Returns when the client takes nothing in any more."""
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._written
            if silent < KEEPALIVE_SECONDS:
                await asyncio.sleep(KEEPALIVE_SECONDS - silent)
                continue
            if self._started:
                try:
                    async with asyncio.timeout(STALL_SECONDS):
                        await send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})
                except TimeoutError:
                    return
            self._written = loop.time()


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_dropped(request: Request, waited: asyncio.Future[Any]) -> bool:
    """Wait for `waited`; False when the client went away first."""
    watching = asyncio.get_running_loop().create_task(_wait_disconnect(request.receive))
    try:
        await asyncio.wait((waited, watching), return_when=asyncio.FIRST_COMPLETED)
        return waited.done()
    finally:
        watching.cancel()


async def answer_error(request: Request, error: Exception) -> Response:
    """Any StateroomError in OpenAI's shape."""
    assert isinstance(error, StateroomError)
    return error_response(error)


def error_response(error: StateroomError) -> Response:
    """The answer that an error is sent as."""
    note_error(error.code)
    return Json(msgspec.json.encode(error.body()), status_code=error.status, headers=error.headers())


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own refusals, in the same shape."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        refusal = error_response(MethodNotAllowed(f"{request.method} is not allowed on {path}."))
        refusal.headers["allow"] = ", ".join(sorted(_allowed(request)))
        return refusal
    if error.status_code == 404:
        hint = "GET /openapi.json lists what there is." if path.startswith("/v1/") else "Base URLs end in /v1."
        return error_response(NotFound(f"Unknown request URL: {request.method} {path}. {hint}", code="unknown_url"))
    return error_response(InvalidRequest(str(error.detail)))


def _allowed(request: Request) -> set[str]:
    """The methods of the routes with this path, each of which has its own; the first path that fits counts."""
    scope = {**request.scope, "root_path": request.scope.get("app_root_path", "")}
    routes: list[BaseRoute] = request.app.routes
    while True:
        fitting = [(route, *route.matches(scope)) for route in routes]
        fitting = [each for each in fitting if each[1] is not Match.NONE]
        if not fitting or not isinstance(mount := fitting[0][0], Mount):
            break
        scope, routes = {**scope, **fitting[0][2]}, mount.routes
    paths = [(route.path, route.methods or set()) for route, _, _ in fitting if isinstance(route, Route)]
    return {method for path, methods in paths if path == paths[0][0] for method in methods}


async def answer_unexpected(request: Request, error: Exception) -> Response:
    """What nobody foresaw: the log has the trace, the client an id to quote."""
    log.error("request.broke path=%r", request.url.path, exc_info=error)
    return error_response(StateroomError("The server met an unexpected condition. Quote the x-request-id header."))
