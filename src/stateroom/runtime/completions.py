"""Answers to prompts that leave nothing behind: no run, no journal, no branch. For surfaces that keep no state.

Several prompts are answered at a time, within the same bound as runs. Each answer is cut at its stop texts, whether or
not its server heeds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from stateroom.errors import BackendError, BackendFailed, ServerStopping, StateroomError, TooMany
from stateroom.journal.entries import Usage
from stateroom.models.backend import Backend, Delta, Finished, ModelCall, RefusalDelta, TextDelta
from stateroom.models.router import Router
from stateroom.models.stops import heeding_stops
from stateroom.runtime.closing import wait_ended
from stateroom.runtime.generate import estimate_usage
from stateroom.settings import Limits

QUEUE: Final = 64
"""Pieces that wait for a reader who is slower than the models."""


class Piece(msgspec.Struct, frozen=True):
    """Of one answer."""

    index: int
    text: str
    finish: str = ""
    """On its last piece: stop, length, content_filter."""
    usage: Usage | None = None
    """On its last piece."""


class Answers:
    """The answers to all calls of a request, piece by piece as they come."""

    def __init__(self, queue: asyncio.Queue[Piece | Exception], tasks: Sequence[asyncio.Task[None]]) -> None:
        self._queue = queue
        self._tasks = tasks
        self._left = len(tasks)

    async def next(self) -> Piece | None:
        """The next piece; None when all have ended. Raises the StateroomError of the first that failed."""
        if not self._left:
            return None
        piece = await self._queue.get()
        if isinstance(piece, Exception):
            self.close()
            raise piece
        self._left -= bool(piece.finish)
        return piece

    def close(self) -> None:
        """End what still goes on, upstream too."""
        self._left = 0
        for task in self._tasks:
            task.cancel()


class Completer:
    """Asks models."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._output_bytes = limits.output_bytes
        self._places = asyncio.Semaphore(limits.runs)
        self._bound = limits.runs + limits.waiting_runs
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def find(self, model: str) -> tuple[Backend, str]:
        """Who serves a name, and under which name. Raises NotFound, BackendUnavailable."""
        return await self._router.find(model)

    def start(self, backend: Backend, calls: Sequence[ModelCall]) -> Answers:
        """Begin to answer all calls. Raises TooMany, or StateroomError when the server stops."""
        if self._closed:
            raise _stopping()
        if len(self._tasks) + len(calls) > self._bound:
            raise TooMany(
                "Too many answers are waiting on this server. Retry in a few seconds, or raise `limits.waiting_runs`.",
                retry_after=2.0,
            )
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue(QUEUE)
        tasks = [
            asyncio.create_task(self._answer(backend, call, index, queue), name="completion")
            for index, call in enumerate(calls)
        ]
        self._tasks.update(tasks)
        for task in tasks:
            task.add_done_callback(self._tasks.discard)
        return Answers(queue, tasks)

    async def close(self, seconds: float, enough: asyncio.Event | None = None) -> None:
        """Take no more, and let those end that do within this time, or until `enough`.

        Closing the backends ends the others.
        """
        self._closed = True
        await wait_ended(self._tasks, seconds, enough)

    async def _answer(
        self, backend: Backend, call: ModelCall, index: int, queue: asyncio.Queue[Piece | Exception]
    ) -> None:
        try:
            async with self._places:
                if call.max_output_tokens == 0:
                    count, _ = await backend.count_tokens(call)
                    await queue.put(Piece(index, "", "length", Usage(input=count)))
                else:
                    await self._generate(backend, call, index, queue)
        except BackendError as error:
            await queue.put(_stopping() if self._closed else error)
        except Exception as error:  # whatever it is, who reads the queue has to hear of it
            await queue.put(error)

    async def _generate(
        self, backend: Backend, call: ModelCall, index: int, queue: asyncio.Queue[Piece | Exception]
    ) -> None:
        size = 0
        finished: Finished | None = None
        async with aclosing(heeding_stops(backend, call)) as batches:
            async for batch in batches:
                text, finished = _read(batch)
                if size + len(text) > self._output_bytes:
                    text = text[: self._output_bytes - size]
                    finished = Finished("length", finished.usage if finished is not None else None)
                size += len(text)
                if finished is not None:
                    await queue.put(Piece(index, text, finished.reason, finished.usage or estimate_usage(call, size)))
                    return
                if text:
                    await queue.put(Piece(index, text))
        raise BackendFailed("The model server ended its answer without saying that it was complete.")


def _read(batch: Sequence[Delta]) -> tuple[str, Finished | None]:
    """The text of a batch, and how the answer ended if it did. Reasoning is not shown."""
    text = "".join([delta.text for delta in batch if isinstance(delta, TextDelta | RefusalDelta)])
    last = batch[-1] if batch else None
    return text, last if isinstance(last, Finished) else None


def _stopping() -> StateroomError:
    return ServerStopping()
