"""What is kept of a batch, and what all batches are carried out with."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import msgspec

from stateroom.access.rates import Rates
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.errors import StateroomError
from stateroom.runtime.batches.places import Places
from stateroom.runtime.files.files import BATCH_SECONDS, Files
from stateroom.runtime.records import Collection
from stateroom.runtime.webhooks import Webhooks
from stateroom.settings import Limits
from stateroom.wire.batches import LineError, LineUsage

COLLECTION: Final = "batch"

UNFINISHED: Final = frozenset(("validating", "in_progress", "finalizing", "cancelling"))


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of the collection `batch`. Times are in milliseconds since the epoch; 0: it has not come to that."""

    endpoint: str
    input_file_id: str
    expires_at: int
    status: str = "validating"
    key: str = ""
    """Id of the access key that it was made with."""
    metadata: dict[str, str] | None = None
    output_seconds: int = BATCH_SECONDS
    """How long its files are kept."""
    model: str = ""
    total: int = 0
    completed: int = 0
    """Like those below, known when the batch has ended; before that the notes say."""
    failed: int = 0
    usage: LineUsage = LineUsage()
    errors: tuple[LineError, ...] = ()
    output_file_id: str = ""
    error_file_id: str = ""
    in_progress_at: int = 0
    finalizing_at: int = 0
    completed_at: int = 0
    failed_at: int = 0
    expired_at: int = 0
    cancelling_at: int = 0
    cancelled_at: int = 0


class Asked(msgspec.Struct, frozen=True):
    """A request of a batch, as if it had come over a connection."""

    project: str
    key: str
    endpoint: str
    name: str
    """Its idempotency key; '' for what is kept nowhere and may be asked again."""
    body: bytes


class Answer(msgspec.Struct, frozen=True):
    """What it was answered."""

    status: int
    request_id: str
    body: bytes
    retry_after: float = 0.0
    stands: bool = False
    """It must not be asked again, whatever the status says."""


class Answering(Protocol):
    """Whoever answers the requests of batches."""

    async def answer(self, asked: Asked, gone: asyncio.Event) -> Answer:
        """The answer, whatever it is. `gone`: nobody waits for it any more."""
        ...

    async def forget(self, asked: Asked) -> None:
        """Leave nothing of a try that failed and is to be made again."""
        ...


class BatchParts(msgspec.Struct, frozen=True):
    """What all batches are carried out with."""

    batches: Collection[Batch]
    files: Files
    blobs: Blobs
    held: HeldBlobs
    clock: Clock
    webhooks: Webhooks
    rates: Rates
    limits: Limits
    places: Places
    answering: Answering

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.clock.now() * 1000)


class BatchGone(StateroomError):
    """The batch was erased while it was carried out."""

    code = "batch_not_found"
