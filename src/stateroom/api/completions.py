"""The legacy Completions API: translate, ask the model, translate back. Nothing of it is stored.

A prompt is put to the model as the one message of a user, over the same backends as everything else, rather than
handed to a server's own /completions. Not every backend has one (Responses servers and most clouds do not), and those
that do disagree on what they honour in it; this way routing, retries, time-outs and counts are the same everywhere,
and each parameter is honoured or refused alike. The price: an instruct model answers a prompt instead of continuing
it, and a prompt that carries a chat template of its own is wrapped in another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom import ids
from stateroom.access.principal import Principal
from stateroom.access.rates import Rates
from stateroom.api.http import EventStream, Json, read_body, unless_dropped
from stateroom.api.responses import principal
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest, StateroomError
from stateroom.journal.entries import ContextItem, Usage
from stateroom.models.backend import ModelCall
from stateroom.runtime.completions import Answers, Completer, Piece
from stateroom.wire.completions import (
    Choice,
    ChunkRenderer,
    CompletionRequest,
    decode_completion,
    render_completion,
)
from stateroom.wire.sse import DONE

FIRST_SECONDS: Final = 10.0
"""How long a stream waits with its status for the first piece: what fails until then is answered as an error."""


class CompletionsApi:
    """The handler."""

    def __init__(
        self, completer: Completer, rates: Rates, clock: Clock, *, choices_max: int, depth: int, body_bytes: int
    ) -> None:
        self._completer = completer
        self._rates = rates
        self._clock = clock
        self._choices_max = choices_max
        self._depth = depth
        self._body_bytes = body_bytes

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [Route("/completions", self.create, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._body_bytes)
        asked = decode_completion(body, choices_max=self._choices_max, depth=self._depth)
        backend, model = await self._completer.find(asked.model)
        completion = _Completion(asked, self._rates, principal(request))
        completion.begin(lambda: self._completer.start(backend, _calls(asked, model)))
        identifier, created = ids.new_id("cmpl"), int(self._clock.now())
        if asked.stream:
            renderer = ChunkRenderer(identifier, created, model, include_usage=asked.include_usage)
            return await _streamed(completion, renderer)
        collecting = asyncio.ensure_future(completion.collect())
        try:
            if not await unless_dropped(request, collecting):
                raise InvalidRequest("The client went away.", code="client_disconnected")
            choices = collecting.result()
        finally:
            collecting.cancel()
            completion.end()
        return Json(render_completion(identifier, created, model, choices, completion.usage))


class _Completion:
    """One request on its way: its answers, what they have used, and its place among what its key may do at a time."""

    def __init__(self, asked: CompletionRequest, rates: Rates, principal: Principal) -> None:
        self.asked = asked
        self._rates = rates
        self._principal = principal
        self._answers: Answers | None = None
        self._used: list[tuple[int, Usage]] = []

    def begin(self, start: Callable[[], Answers]) -> None:
        """Raises TooMany."""
        project, key_id = self._principal.project, self._principal.key_id
        self._rates.begin(project, key_id)
        try:
            self._answers = start()
        except BaseException:
            self._rates.end(project, key_id, 0)
            raise

    def end(self) -> None:
        """However it came to its end; more than once does no harm."""
        answers, self._answers = self._answers, None
        if answers is not None:
            answers.close()
            usage = self.usage
            self._rates.end(self._principal.project, self._principal.key_id, usage.input + usage.output)

    @property
    def usage(self) -> Usage:
        """What all answers took; a prompt counts once, however often it was answered."""
        prompts = [usage for index, usage in self._used if index % self.asked.n == 0]
        return Usage(
            input=sum(usage.input for usage in prompts),
            output=sum(usage.output for _, usage in self._used),
            cached=sum(usage.cached for usage in prompts),
            reasoning=sum(usage.reasoning for _, usage in self._used),
        )

    def echo(self, index: int) -> str:
        """What stands before an answer."""
        return self.asked.prompts[index // self.asked.n] if self.asked.echo else ""

    async def next(self) -> Piece | None:
        """The next piece. Raises StateroomError, in the words of this surface."""
        if self._answers is None:
            return None
        try:
            piece = await self._answers.next()
        except StateroomError as error:
            if error.param == "input":
                error.param = "prompt"
            raise
        if piece is not None and piece.finish:
            self._used.append((piece.index, piece.usage or Usage()))
        return piece

    async def collect(self) -> list[Choice]:
        """All choices, whole."""
        choices = [Choice(self.echo(index)) for index in range(len(self.asked.prompts) * self.asked.n)]
        while (piece := await self.next()) is not None:
            choice = choices[piece.index]
            choice.text += piece.text
            choice.finish = piece.finish
        return choices


def _calls(asked: CompletionRequest, model: str) -> list[ModelCall]:
    """One call for each choice."""
    return [
        ModelCall(
            model=model,
            items=[ContextItem("msg_prompt", {"role": "user", "content": prompt})],
            cache={},
            stream=asked.stream,
            temperature=asked.temperature,
            top_p=asked.top_p,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            max_output_tokens=asked.max_tokens,
            stop=asked.stop,
            # Answers with one seed would be the same one.
            seed=None if asked.seed is None else asked.seed + number,
            user=asked.user,
        )
        for prompt in asked.prompts
        for number in range(asked.n)
    ]


async def _streamed(completion: _Completion, renderer: ChunkRenderer) -> EventStream:
    """The stream, once it is known to begin; what fails at once has a status of its own."""
    first = asyncio.ensure_future(completion.next())
    try:
        await asyncio.wait((first,), timeout=FIRST_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        completion.end()
        raise

    def drop() -> None:
        first.cancel()
        completion.end()

    return EventStream(_chunks(completion, first, renderer), on_drop=drop)


async def _chunks(
    completion: _Completion, first: asyncio.Future[Piece | None], renderer: ChunkRenderer
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()
    try:
        piece = await first
        while piece is not None:
            text = piece.text if piece.index in begun else completion.echo(piece.index) + piece.text
            begun.add(piece.index)
            yield renderer.text(piece.index, text, piece.finish)
            piece = await completion.next()
    except StateroomError as error:
        yield renderer.error(error)
        return
    finally:
        completion.end()
    if completion.asked.include_usage:
        yield renderer.usage(completion.usage)
    yield DONE
