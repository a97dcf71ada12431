"""What became of the requests of a batch, noted in the journal until the batch ends and its files hold it.

Outcomes that come while a commit goes on are in the next one together, so that a note costs the less, the more there is
to be noted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec

from stateroom.runtime.batches.lines import Finished, Outcome, Progress
from stateroom.runtime.batches.state import BatchGone, BatchParts

INLINE_BYTES: Final = 64 * 1024
"""An answer that is larger is a blob of its own until the batch ends."""

_FINISHED: Final = msgspec.json.Decoder(Finished)


class BatchNotes:
    """The notes of one batch."""

    def __init__(self, parts: BatchParts, project: str, batch_id: str) -> None:
        self._parts = parts
        self._project = project
        self._id = batch_id
        self.progress = Progress(0)
        """What is noted."""
        self.begun: set[int] = set()
        """Requests that an earlier process asked, whatever became of them, and that must not be asked again."""
        self._waiting: list[Outcome] = []
        self._beginning: list[int] = []
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def recount(self, total: int) -> None:
        """Count what an earlier process noted."""
        progress = Progress(total)
        if total:
            async with aclosing(self._parts.batches.each_note(self._project, self._id)) as notes:
                async for note in notes:
                    finished = _FINISHED.decode(note)
                    self.begun.update(finished.begun)
                    for outcome in finished.outcomes:
                        progress.add(outcome)
        self.progress = progress

    async def read(self) -> AsyncGenerator[Outcome, None]:
        """All that is noted, in the order in which it came, each request once."""
        seen: set[int] = set()
        async with aclosing(self._parts.batches.each_note(self._project, self._id)) as notes:
            async for note in notes:
                for outcome in _FINISHED.decode(note).outcomes:
                    if outcome.number not in seen:
                        seen.add(outcome.number)
                        yield outcome

    async def line_of(self, outcome: Outcome) -> bytes:
        """The line of a file that an outcome is."""
        if not outcome.blob:
            return bytes(outcome.written)
        return await self._parts.blobs.get(outcome.blob) or b"null"

    async def erase(self) -> None:
        """Erase them all."""
        await self._parts.batches.erase_notes(self._project, self._id)

    async def add(self, outcome: Outcome) -> None:
        """Returns when it is durable. Raises StorageError, BatchGone."""
        self._waiting.append(outcome)
        await self._soon()

    async def begin(self, number: int) -> None:
        """Note that a request is going to be asked which must not be asked twice. Returns and raises as `add`."""
        self._beginning.append(number)
        await self._soon()

    async def _soon(self) -> None:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """Wait for what is being committed."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._next is not None:
            waited, self._next = self._next, None
            outcomes, self._waiting = self._waiting, []
            begun, self._beginning = self._beginning, []
            try:
                await self._commit(outcomes, begun)
            except Exception as error:  # whatever it is, who waits for the commit has to hear of it
                waited.set_exception(error)
                waited.exception()  # they may have gone
            else:
                waited.set_result(None)
        self._task = None

    async def _commit(self, outcomes: list[Outcome], begun: list[int]) -> None:
        with self._parts.held.hold() as hold:
            kept = []
            for outcome in outcomes:
                written = bytes(outcome.written)
                if len(written) > INLINE_BYTES:
                    digest = await hold.put(written)
                    kept.append(msgspec.structs.replace(outcome, written=msgspec.Raw(b"null"), blob=digest))
                else:
                    kept.append(outcome)
            blobs = [outcome.blob for outcome in kept if outcome.blob]
            note = Finished(tuple(kept), tuple(begun))
            if not await self._parts.batches.note(self._project, self._id, note, blobs=blobs):
                raise BatchGone(f"Batch with id '{self._id}' not found.")
        for outcome in outcomes:
            self.progress.add(outcome)
