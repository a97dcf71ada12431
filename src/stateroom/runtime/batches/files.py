"""The files of a batch: its requests are read from the one, and what became of them is written into two others."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from stateroom import ids
from stateroom.blobs.store import BlobMissing
from stateroom.errors import NotFound
from stateroom.journal.entries import Fact
from stateroom.runtime.batches.lines import Outcome, Progress, Requests
from stateroom.runtime.batches.notes import BatchNotes
from stateroom.runtime.batches.state import Batch, BatchParts
from stateroom.runtime.files.files import Incoming, new_file_id
from stateroom.runtime.records import Held
from stateroom.wire.batches import BatchLine, unanswered_line

log = logging.getLogger("stateroom.batches")

_WRITE_BYTES: Final = 256 * 1024
_EXPIRED: Final = ("batch_expired", "This request could not be executed before the completion window expired.")


class BatchRequest:
    """A request on its way."""

    __slots__ = ("answered_before", "line", "number", "tries")

    def __init__(self, number: int, line: BatchLine) -> None:
        self.number = number
        self.line = line
        self.tries = 0
        self.answered_before = 0
        """How many were answered when it was tried last."""


def pieces_of(parts: BatchParts, held: Held[Batch]) -> AsyncGenerator[bytes, None]:
    """The input file. Raises NotFound, BlobMissing."""
    return parts.files.chunks(held.project, held.state.input_file_id)


async def requests_left(parts: BatchParts, held: Held[Batch], progress: Progress) -> AsyncGenerator[BatchRequest, None]:
    """The requests that are not done, in the order of the file. Raises NotFound, BlobMissing."""
    reader = Requests(held.state.endpoint, depth=parts.limits.depth, line_bytes=parts.limits.body_bytes)
    async with aclosing(pieces_of(parts, held)) as pieces:
        async for piece in pieces:
            for number, line in reader.feed(piece, progress):
                yield BatchRequest(number, line)
    for number, line in reader.rest(progress):
        yield BatchRequest(number, line)


def name_of(batch_id: str, number: int) -> str:
    """The id of a request in the files."""
    return f"batch_req_{ids.key_of(batch_id)}{number:06d}"


class BatchFile:
    """An output or error file in the making, written in large pieces."""

    def __init__(self, incoming: Incoming, kind: str) -> None:
        self.incoming = incoming
        self.kind = kind
        self.id = ""
        """'' while nothing is in it."""
        self._lines: list[bytes] = []
        self._size = 0

    async def add(self, line: bytes) -> None:
        """Raises StorageFull."""
        self.id = self.id or new_file_id()
        self._lines += (line, b"\n")
        self._size += len(line) + 1
        if self._size >= _WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        if self._lines:
            await self.incoming.write(b"".join(self._lines))
            self._lines, self._size = [], 0

    async def records(self, parts: BatchParts, held: Held[Batch]) -> list[Fact]:
        """What has to be committed for the file to be there: nothing when it is empty."""
        if not self.id:
            return []
        await self.flush()
        return [
            await parts.files.prepare(
                self.incoming,
                file_id=self.id,
                filename=f"{held.id}_{self.kind}.jsonl",
                purpose="batch_output",
                expires_after=held.state.output_seconds,
            )
        ]


async def write_files(
    parts: BatchParts, held: Held[Batch], notes: BatchNotes, output: BatchFile, errors: BatchFile, *, expired: bool
) -> Progress:
    """Write what is noted, and with `expired` what was never asked; what came of it."""
    counted = Progress(held.state.total)
    async with aclosing(notes.read()) as outcomes:
        async for outcome in outcomes:
            await (errors if outcome.failed else output).add(await notes.line_of(outcome))
            counted.add(outcome)
    if expired:
        try:
            async with aclosing(requests_left(parts, held, counted)) as requests:
                async for request in requests:
                    name = name_of(held.id, request.number)
                    await errors.add(unanswered_line(name, request.line.custom_id, *_EXPIRED))
                    counted.add(Outcome(request.number, failed=True))
        except (NotFound, BlobMissing):
            log.warning("batch.input_gone batch_id=%s", held.id)
    return counted
