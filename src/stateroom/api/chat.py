"""The Chat Completions API: translate, check access, call the runtime, translate back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom import ids
from stateroom.access.principal import Principal
from stateroom.api.claims import claim
from stateroom.api.http import EventStream, Json, error_response, page_of, read_body, slice_page, unless_dropped
from stateroom.api.responses import events, principal
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest, NotFound, ServerStopping, StateroomError
from stateroom.journal.entries import Frame, RunSettings, RunView, Usage
from stateroom.runtime.chat_completions import CHAT, ChatCompletions
from stateroom.runtime.idempotency import Claim, Idempotency
from stateroom.runtime.live import LiveRun
from stateroom.runtime.runs import RunRequest, Runs
from stateroom.runtime.stream import LiveStream
from stateroom.wire.chat_completions import (
    completion_id,
    completion_object,
    render_completion,
    render_deleted_completion,
    run_id,
    stored_messages,
)
from stateroom.wire.chat_completions_requests import ChatRequest, decode_chat, decode_update, in_chat_words
from stateroom.wire.chat_events import ERROR_HEAD, is_cut_off, render_chunks, render_usage_chunk
from stateroom.wire.decoding import Bounds
from stateroom.wire.responses import render_list
from stateroom.wire.sse import DONE

FIRST_SECONDS: Final = 10.0
"""How long a stream waits with its status for the first chunk: what fails until then is answered as an error."""

_METADATA: Final = re.compile(r"\Ametadata\[(.{1,64})\]\Z", re.DOTALL)


class ChatApi:
    """Handlers over the runtime."""

    def __init__(
        self,
        runs: Runs,
        completions: ChatCompletions,
        idempotency: Idempotency,
        clock: Clock,
        bounds: Bounds,
        body_bytes: int,
    ) -> None:
        self._runs = runs
        self._completions = completions
        self._idempotency = idempotency
        self._clock = clock
        self._bounds = bounds
        self._body_bytes = body_bytes

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/chat/completions", self.create, methods=["POST"]),
            Route("/chat/completions", self.page, methods=["GET"]),
            Route("/chat/completions/{completion_id}", self.retrieve, methods=["GET"]),
            Route("/chat/completions/{completion_id}", self.update, methods=["POST"]),
            Route("/chat/completions/{completion_id}", self.delete, methods=["DELETE"]),
            Route("/chat/completions/{completion_id}/messages", self.messages, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._body_bytes)
        asked = decode_chat(body, self._bounds)
        who = principal(request)
        async with claim(self._idempotency, request, body) as claimed:
            runs = await self._earlier(who.project, asked, claimed)
            if runs is None:
                runs = await self._start(who, asked, claimed)
        if isinstance(runs, RunView):
            return EventStream(_again(runs)) if asked.stream else Json(render_completion([runs]))
        if asked.stream:
            return await self._streamed(request, asked, runs)
        return await self._finished(request, asked, runs)

    async def retrieve(self, request: Request) -> Response:
        return Json(render_completion([await self._completions.get(principal(request).project, _run_of(request))]))

    async def update(self, request: Request) -> Response:
        metadata = decode_update(await read_body(request, self._body_bytes), self._bounds)
        view = await self._completions.update(principal(request).project, _run_of(request), metadata)
        return Json(render_completion([view]))

    async def delete(self, request: Request) -> Response:
        await self._completions.delete(principal(request).project, _run_of(request))
        return Json(render_deleted_completion(request.path_params["completion_id"]))

    async def page(self, request: Request) -> Response:
        query = request.query_params
        page = page_of(query, order="asc")
        views = await self._completions.page(
            principal(request).project,
            after=run_id(page.after) or page.after,
            before=run_id(page.before) or page.before,
            limit=page.limit,
            descending=page.descending,
            model=query.get("model") or "",
            metadata=_metadata(query),
        )
        shown = [completion_object([view]) for view in views[: page.limit]]
        return Json(render_list(shown, len(views) > page.limit))

    async def messages(self, request: Request) -> Response:
        items = await self._completions.messages(principal(request).project, _run_of(request))
        shown = [_Message(message) for message in stored_messages(request.path_params["completion_id"], items)]
        part, more = slice_page(shown, page_of(request.query_params, order="asc"))
        return Json(render_list([message.shown for message in part], more))

    async def _earlier(self, project: str, asked: ChatRequest, claimed: Claim) -> list[LiveRun] | RunView | None:
        """What the claim's key made before, if it can answer once more."""
        kept: list[LiveRun] = claimed.kept or []
        if kept and not any(run.cancelling or run.failure is not None for run in kept):
            return kept
        if not claimed.made:
            return None
        live = self._runs.find_live(project, claimed.made, surface=CHAT)
        if live is not None and live.state.ended is None and not (asked.stream and is_cut_off(live.renderer)):
            return [live]
        try:
            return await self._completions.get(project, claimed.made)
        except NotFound:
            return None

    async def _start(self, asker: Principal, asked: ChatRequest, claimed: Claim) -> list[LiveRun]:
        """A run for each choice. Raises RequestError, StorageError."""
        runs: list[LiveRun] = []
        try:
            for settings in _settings_of(asked, int(self._clock.now())):
                made = ids.new_id("resp")
                wanted = RunRequest(
                    settings=settings,
                    input=asked.input,
                    stream=asked.stream,
                    store=asked.store,
                    obfuscate=asked.obfuscate,
                    also=claimed.also(made) if asked.store else (),
                    id=made,
                    key=asker.key_id,
                )
                runs.append(await self._runs.create(asker.project, wanted, surface=CHAT))
        except BaseException as error:
            self._abandon(runs)
            if isinstance(error, StateroomError):
                in_chat_words(error, asked)
            raise
        if not asked.store:
            claimed.keep(runs, runs[-1].done)
        return runs

    def _abandon(self, runs: Sequence[LiveRun]) -> None:
        """Nobody waits for these any more. Stored ones go on."""
        for run in runs:
            if not run.stored:
                self._runs.dispatcher.abandon(run)

    async def _finished(self, request: Request, asked: ChatRequest, runs: list[LiveRun]) -> Response:
        """Wait for the end. A stored run goes on without its client, others are cancelled with it."""
        done = runs[0].done if len(runs) == 1 else asyncio.ensure_future(_all_done(runs))
        if not await unless_dropped(request, done):
            self._abandon(runs)
        for run in runs:
            await asyncio.shield(run.done)
            if (error := _failure(run)) is not None:
                self._abandon(runs)
                return error_response(in_chat_words(error, asked))
        return Json(render_completion([run.view() for run in runs]))

    async def _streamed(self, request: Request, asked: ChatRequest, runs: list[LiveRun]) -> Response:
        streams = [_stream_of(run) for run in runs]
        first = asyncio.ensure_future(asyncio.wait_for(_begun(streams), FIRST_SECONDS))
        try:
            if not await unless_dropped(request, first):
                self._abandon(runs)
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        for run, stream in zip(runs, streams, strict=True):
            unsaid = not stream.frames or stream.frames[0].body.startswith(ERROR_HEAD)
            if stream.ended or run.failure is not None:
                error = _failure(run) if unsaid else None
                if error is not None:
                    self._abandon(runs)
                    return error_response(in_chat_words(error, asked))
        on_drop = partial(self._abandon, runs)
        if len(runs) == 1:
            return EventStream(events(streams[0], -1), on_drop=on_drop)
        return EventStream(_merged(asked, runs, streams), on_drop=on_drop)


class _Message:
    """A message as a list shows it."""

    def __init__(self, shown: dict[str, object]) -> None:
        self.shown = shown
        self.id = shown["id"]


def _run_of(request: Request) -> str:
    return run_id(request.path_params["completion_id"])


def _metadata(query: QueryParams) -> dict[str, str]:
    """The filter of a list: `metadata[key]=value`."""
    found = ((_METADATA.match(name), value) for name, value in query.items())
    return {match.group(1): value for match, value in found if match is not None}


def _settings_of(asked: ChatRequest, created: int) -> list[RunSettings]:
    """The settings of each choice's run; they have the id and the time of their completion in common."""
    if asked.choices == 1:
        return [asked.settings]
    identifier = completion_id(ids.new_id("resp"))
    settings = []
    for number in range(asked.choices):
        style = msgspec.structs.replace(asked.style, choice=number, id=identifier, created=created)
        seed = asked.settings.seed
        settings.append(
            msgspec.structs.replace(
                asked.settings,
                echo=style.written_to(asked.settings.echo),
                seed=None if seed is None else seed + number,  # answers with one seed would be the same one
            )
        )
    return settings


async def _again(view: RunView) -> AsyncGenerator[bytes, None]:
    """The stream of a completion that has ended: what it said, in fewer chunks."""
    yield render_chunks(view)
    yield DONE


async def _all_done(runs: Sequence[LiveRun]) -> None:
    for run in runs:
        await asyncio.shield(run.done)


def _failure(run: LiveRun) -> StateroomError | None:
    """Why there is no answer of a run that is through; None when there is one."""
    if run.failure is not None:
        return run.failure
    if run.state.ended is None:
        return ServerStopping("The server is shutting down; a stored completion goes on when it is up again.")
    if run.state.ended.status == "cancelled":
        return InvalidRequest("The completion was deleted while it was being made.", code="completion_not_found")
    return None


def _stream_of(run: LiveRun) -> LiveStream:
    assert run.stream is not None, "streamed runs have a stream"
    return run.stream


async def _begun(streams: Sequence[LiveStream]) -> None:
    """Returns when one of them has something to show, or has ended."""
    if len(streams) == 1:
        await _first(streams[0])
        return
    reading = [asyncio.ensure_future(_first(stream)) for stream in streams]
    try:
        await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _first(stream: LiveStream) -> None:
    async with aclosing(stream.follow(-1)) as frames:
        async for _ in frames:
            return


async def _merged(
    asked: ChatRequest, runs: Sequence[LiveRun], streams: Sequence[LiveStream]
) -> AsyncGenerator[bytes, None]:
    """The chunks of all choices as they come, then the usage of all."""
    queue: asyncio.Queue[Frame | None] = asyncio.Queue()

    async def read(stream: LiveStream) -> None:
        async with aclosing(stream.follow(-1)) as frames:
            async for frame in frames:
                queue.put_nowait(frame)
        queue.put_nowait(None)

    reading = [asyncio.ensure_future(read(stream)) for stream in streams]
    try:
        left = len(reading)
        while left:
            frame = await queue.get()
            if frame is None:
                left -= 1
            else:
                yield frame.body
    finally:
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    if any(stream.cut for stream in streams):
        return
    if asked.include_usage and all(run.failure is None for run in runs):
        usages = [(run.state.usage or Usage()) for run in runs]
        yield render_usage_chunk(runs[0].view(), usages)
    yield DONE
