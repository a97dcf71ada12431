"""Batches from the outside: create, look up, list, cancel, and take up again what an earlier process left unfinished.

What a batch goes through is in batch_work.py; how it is answered is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from typing import Final

import msgspec

from stateroom import ids
from stateroom.errors import Fenced, InvalidRequest, NotFound, StorageError, TooMany
from stateroom.journal.entries import Fact
from stateroom.runtime.batches.state import UNFINISHED, Batch, BatchGone, BatchParts
from stateroom.runtime.batches.work import BatchWork
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.files.files import BATCH_SECONDS, file_not_found, file_too_large
from stateroom.runtime.records import Held
from stateroom.wire.batches import WINDOW_SECONDS, NewBatch

log = logging.getLogger("stateroom.batches")

TURNS: Final = 4
"""Batches of one project that are worked at; the others wait in line."""
RETRY_SECONDS: Final = 2.0
RETRY_SECONDS_MAX: Final = 60.0
"""Pauses after the storage failed."""
CLOSE_SECONDS: Final = 2.0
"""How long answers that have come may take to be noted when the server stops."""


class Batches:
    """The batches of all projects."""

    def __init__(self, parts: BatchParts) -> None:
        self._parts = parts
        self._works: dict[str, BatchWork] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._open: Counter[str] = Counter()
        """How many batches of a project are not finished."""
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(TURNS))
        self._stopping = False

    @property
    def count(self) -> int:
        """Batches that this process works at."""
        return len(self._tasks)

    async def create(
        self, project: str, asked: NewBatch, *, batch_id: str = "", key: str = "", also: Sequence[Fact] = ()
    ) -> Held[Batch]:
        """A new batch, which is worked at from now on. Raises RequestError, StorageError.

        `also` is committed with it. `key`: id of the access key that asks; what the batch uses is charged to it.
        """
        try:
            file = await self._parts.files.get(project, asked.input_file_id)
        except NotFound:
            raise file_not_found(asked.input_file_id, param="input_file_id") from None
        if file.purpose != "batch":
            message = f"The purpose of file '{file.id}' is '{file.purpose}'. Upload it with the purpose 'batch'."
            raise InvalidRequest(message, code="invalid_file_purpose", param="input_file_id")
        limits = self._parts.limits
        if file.bytes > limits.batch_bytes:
            raise file_too_large(limits.batch_bytes, param="input_file_id", setting="limits.batch_bytes")
        if self._open[project] >= limits.batches:
            message = f"{limits.batches} batches of this project are not finished yet (`limits.batches`). Wait for one."
            raise TooMany(message, retry_after=60.0, code="too_many_batches")
        self._open[project] += 1
        try:
            held = await self._parts.batches.create(
                project, batch_id or ids.new_id("batch"), self._new(asked, key), open=True, also=also
            )
        except BaseException:
            self._open[project] -= 1
            raise
        self._work_at(held)
        return held

    def _new(self, asked: NewBatch, key: str) -> Batch:
        expiry = asked.output_expires_after
        return Batch(
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            expires_at=self._parts.now() + WINDOW_SECONDS * 1000,
            key=key,
            metadata=asked.metadata,
            output_seconds=expiry.seconds if expiry is not None else BATCH_SECONDS,
        )

    async def get(self, project: str, batch_id: str) -> Held[Batch]:
        """How it stands; nothing in it is not durable. Raises NotFound."""
        held = await self._parts.batches.get(project, batch_id)
        if held is None:
            raise _not_found(batch_id)
        return self._as_it_stands(held)

    async def page(
        self, project: str, *, after: str, before: str = "", limit: int, descending: bool
    ) -> list[Held[Batch]]:
        """By age, one more than `limit` when there are more. Raises InvalidRequest on unknown cursors."""
        batches = self._parts.batches
        await check_cursors(partial(batches.get, project), "batch", after=after, before=before)
        found = await batches.page(project, after=after, before=before, limit=limit, descending=descending)
        return [self._as_it_stands(held) for held in found]

    async def cancel(self, project: str, batch_id: str) -> Held[Batch]:
        """Start nothing more of it. What is on its way is waited for. Raises NotFound, InvalidRequest. Idempotent."""
        now = self._parts.now()

        def change(held: Held[Batch]) -> Batch | None:
            if held.state.status not in ("validating", "in_progress"):
                return None
            return msgspec.structs.replace(held.state, status="cancelling", cancelling_at=now)

        held = await self._parts.batches.update(project, batch_id, change)
        if held is None:
            raise _not_found(batch_id)
        status = held.state.status
        if status not in ("cancelling", "cancelled"):
            message = f"Cannot cancel a batch with status '{status}'."
            raise InvalidRequest(message, code="batch_not_cancellable", param="batch_id")
        work = self._works.get(batch_id)
        if work is not None and status == "cancelling":
            work.halt("cancelled")
        return self._as_it_stands(held)

    async def start(self) -> int:
        """Take up every batch that is not finished; returns how many."""
        left = await self._parts.batches.open()
        for held in left:
            self._open[held.project] += 1
            self._work_at(held)
        return len(left)

    def stop(self) -> None:
        """Ask for nothing more; what is left is asked for after the next start."""
        self._stopping = True
        for work in self._works.values():
            work.halt("stopping")

    async def close(self) -> None:
        """Have the answers noted that have come, and leave the rest. Comes after `stop`, and when runs are parked."""
        self.stop()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _as_it_stands(self, held: Held[Batch]) -> Held[Batch]:
        """With the counts of what is noted so far."""
        work = self._works.get(held.id)
        if work is None or held.state.status not in UNFINISHED:
            return held
        done = work.progress
        state = msgspec.structs.replace(held.state, completed=done.completed, failed=done.failed, usage=done.usage)
        return msgspec.structs.replace(held, state=state)

    def _work_at(self, held: Held[Batch]) -> None:
        if self._stopping:
            return
        # Before its task begins: from now on a batch that is cancelled has somebody who has to hear of it.
        work = self._new_work(held)
        # In a context of its own: what a batch does within a day is no part of the request that made it.
        task = asyncio.get_running_loop().create_task(self._work(work), name=held.id, context=Context())
        self._tasks[held.id] = task
        task.add_done_callback(lambda _: self._through(held))

    def _through(self, held: Held[Batch]) -> None:
        self._tasks.pop(held.id, None)
        self._works.pop(held.id, None)
        self._open[held.project] -= 1
        if not self._open[held.project]:
            del self._open[held.project]

    def _new_work(self, held: Held[Batch]) -> BatchWork:
        work = self._works[held.id] = BatchWork(self._parts, held, self._turns[held.project])
        return work

    async def _work(self, work: BatchWork) -> None:
        """Carry a batch out, again and again while the storage fails."""
        pause = RETRY_SECONDS
        while not self._stopping:
            held = work.held
            try:
                await work.carry_out()
            except (Fenced, BatchGone) as error:
                log.warning("batch.given_up batch_id=%s code=%s", held.id, error.code)
            except StorageError as error:
                log.warning("batch.interrupted batch_id=%s code=%s", held.id, error.code)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)
                work = self._new_work(await self._again(held))
                continue
            except Exception:  # one batch must not end the others; the trace is logged, the next start tries again
                log.exception("batch.broke batch_id=%s", held.id)
            return

    async def _again(self, held: Held[Batch]) -> Held[Batch]:
        """The batch as it stands by now; as it was when that cannot be read."""
        try:
            return await self._parts.batches.get(held.project, held.id) or held
        except StorageError:
            return held


def _not_found(batch_id: str) -> NotFound:
    """Missing and foreign look the same."""
    return NotFound(f"Batch with id '{batch_id[:256]}' not found.", code="batch_not_found", param="batch_id")
