"""The Responses API: translate, check access, call the runtime, translate back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom import ids
from stateroom.access.principal import Principal
from stateroom.api.claims import claim, conversation_once, earlier_run, failure_of, has_called
from stateroom.api.http import (
    EventStream,
    Json,
    error_response,
    flag,
    included,
    listed,
    page_of,
    read_body,
    slice_page,
    unless_dropped,
)
from stateroom.api.item_pages import render_items
from stateroom.errors import InvalidRequest, ServerStopping, StateroomError
from stateroom.journal.entries import RunView
from stateroom.runtime.conversations import Conversations
from stateroom.runtime.idempotency import Claim, Idempotency
from stateroom.runtime.live import LiveRun
from stateroom.runtime.runs import RunRequest, Runs
from stateroom.runtime.stream import LiveStream
from stateroom.wire.events import DONE, slice_events
from stateroom.wire.requests import Bounds, CreateRequest, decode_count, decode_create, decode_fork
from stateroom.wire.responses import (
    render_conversation,
    render_deleted_response,
    render_input_tokens,
    render_response,
)

SURFACE = "responses"


class ResponsesApi:
    """Handlers over the runtime."""

    def __init__(
        self, runs: Runs, conversations: Conversations, idempotency: Idempotency, bounds: Bounds, body_bytes: int
    ) -> None:
        self._runs = runs
        self._conversations = conversations
        self._idempotency = idempotency
        self._bounds = bounds
        self._body_bytes = body_bytes

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/responses", self.create, methods=["POST"]),
            Route("/responses", self.page, methods=["GET"]),
            Route("/responses/input_tokens", self.count, methods=["POST"]),
            Route("/responses/{response_id}", self.retrieve, methods=["GET"]),
            Route("/responses/{response_id}", self.delete, methods=["DELETE"]),
            Route("/responses/{response_id}/cancel", self.cancel, methods=["POST"]),
            Route("/responses/{response_id}/fork", self.fork, methods=["POST"]),
            Route("/responses/{response_id}/input_items", self.input_items, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._body_bytes)
        asked = decode_create(body, self._bounds)
        who = principal(request)
        async with claim(self._idempotency, request, body) as claimed:
            waits = not (asked.stream or asked.background)
            run = await earlier_run(self._runs, who.project, claimed, waits=waits, background=asked.background)
            if run is None:
                run = await self._create(who, asked, claimed)
        if isinstance(run, RunView):
            return await self._shown_again(who, asked, run)
        if asked.stream:
            assert run.stream is not None, "streamed runs have a stream"
            on_drop = None if run.stored else partial(self._runs.dispatcher.abandon, run)
            return EventStream(events(run.stream, -1), on_drop=on_drop)
        if asked.background:
            return Json(render_response(run.view()))
        return await self._finished(request, run)

    async def _create(self, who: Principal, asked: CreateRequest, claimed: Claim) -> LiveRun:
        run_id = ids.new_id("resp")
        wanted = RunRequest(
            settings=asked.settings,
            input=asked.input,
            previous=asked.previous,
            conversation=asked.conversation,
            background=asked.background,
            stream=asked.stream,
            store=asked.store,
            obfuscate=asked.obfuscate,
            also=claimed.also(run_id) if asked.store else (),
            id=run_id,
            key=who.key_id,
        )
        run = await self._runs.create(who.project, wanted, surface=SURFACE)
        if not asked.store:
            claimed.keep(run, run.done)
        return run

    async def _shown_again(self, who: Principal, asked: CreateRequest, view: RunView) -> Response:
        """The answer to a request that was answered before, from what is stored."""
        if asked.stream:
            return EventStream(events(await self._runs.follow(who.project, view.id, after=-1), -1))
        failure = None if asked.background else failure_of(view)
        if failure is not None:
            return _refused(failure, view)
        return Json(render_response(await self._runs.with_images(view)))

    async def _finished(self, request: Request, run: LiveRun) -> Response:
        """Wait for the end. A stored run goes on without its client, another is cancelled with it."""
        if not run.stored and not await unless_dropped(request, run.done):
            self._runs.dispatcher.abandon(run)
        await asyncio.shield(run.done)
        if run.failure is not None:
            return _refused(run.failure, run.view())
        if run.state.ended is None:
            return _refused(ServerStopping(_cut_off(run)), run.view())
        return Json(render_response(await self._runs.with_images(run.view())))

    async def retrieve(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        query = request.query_params
        include = included(query)
        if flag(query, "stream"):
            after = _starting_after(query.get("starting_after"))
            stream = await self._runs.follow(principal(request).project, response_id, after=after)
            return EventStream(events(stream, after))
        view = await self._runs.with_images(await self._runs.view(principal(request).project, response_id))
        return Json(render_response(view, include=include))

    async def page(self, request: Request) -> Response:
        project = principal(request).project

        async def read(**asked: Any) -> list[RunView]:
            return [await self._runs.with_images(view) for view in await self._runs.page(project, **asked)]

        return await listed(request.query_params, read, _as_listed)

    async def cancel(self, request: Request) -> Response:
        view = await self._runs.cancel(principal(request).project, request.path_params["response_id"])
        return Json(render_response(await self._runs.with_images(view)))

    async def delete(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        await self._runs.delete(principal(request).project, response_id)
        return Json(render_deleted_response(response_id))

    async def fork(self, request: Request) -> Response:
        body = await read_body(request, self._body_bytes)
        asked = decode_fork(body, self._bounds)
        if asked.after_item_id or asked.response_id:
            message = "A response is forked at its own end: only `metadata` can be given. Fork a conversation instead."
            param = "after_item_id" if asked.after_item_id else "response_id"
            raise InvalidRequest(message, code="unsupported_parameter", param=param)
        project, response_id = principal(request).project, request.path_params["response_id"]
        forked = await conversation_once(
            self._idempotency,
            self._conversations,
            request,
            body,
            lambda new_id, also: self._conversations.fork_chain(
                project, response_id, asked.metadata or {}, new_id=new_id, also=also
            ),
        )
        return Json(render_conversation(forked.id, forked.created_at, forked.metadata))

    async def input_items(self, request: Request) -> Response:
        query = request.query_params
        include = included(query)
        items = await self._runs.input_items(principal(request).project, request.path_params["response_id"])
        part, more = slice_page(items, page_of(query))
        return Json(await render_items(part, more, self._runs.shown, include))

    async def count(self, request: Request) -> Response:
        asked = decode_count(await read_body(request, self._body_bytes), self._bounds)
        count, exact = await self._runs.count_input(
            principal(request).project,
            RunRequest(asked.settings, asked.input, asked.previous, asked.conversation, store=False),
            surface=SURFACE,
        )
        headers = {} if exact else {"x-stateroom-token-count": "estimate"}
        return Json(render_input_tokens(count), headers=headers)


async def events(stream: LiveStream, after: int) -> AsyncGenerator[bytes, None]:
    """The stream's events beyond `after`, then the closing line, which says that nothing was cut off."""
    async with aclosing(stream.follow(after)) as frames:
        async for frame in frames:
            yield frame.body if frame.first > after else slice_events(frame.body, frame.first, after)
    if not stream.cut:
        yield DONE


def principal(request: Request) -> Principal:
    """Who is asking."""
    found: Principal = request.scope["stateroom.principal"]
    return found


def _as_listed(view: RunView) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.json.decode(render_response(view))
    return shown


def _refused(error: StateroomError, view: RunView) -> Response:
    """The answer to whoever waited for a response that came to nothing.

    SDKs send again by themselves what failed with such a status: not where something was done that would be done twice.
    """
    answer = error_response(error)
    if has_called(view.output):
        answer.headers["x-should-retry"] = "false"
    return answer


def _cut_off(run: LiveRun) -> str:
    """What becomes of a response whose client was still waiting when the server had to stop."""
    if not run.stored:
        return "The server is shutting down, and what is not stored ends with it. Send the request again."
    return (
        f"The server is shutting down; response '{run.id}' goes on when it is up again. Retrieve it then: the same "
        "request without an `Idempotency-Key` begins another one."
    )


def _starting_after(value: str | None) -> int:
    if value is None or value == "":
        return -1
    if not re.fullmatch(r"-?[0-9]{1,17}", value):
        raise InvalidRequest(
            "`starting_after` must be a sequence number.", code="invalid_value", param="starting_after"
        )
    return int(value)
