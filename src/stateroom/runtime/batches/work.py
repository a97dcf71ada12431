"""Carrying out one batch: examine its file, have its requests answered, write what came of them into files.

Every answer is noted in the journal before its place is given away, so that nothing that was noted is asked again,
whoever dies. The files are made of the notes at the end and committed together with it; then the notes are erased, so
that from there on the content is in the files alone. A batch that was cut off enters here like a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.blobs.store import BlobMissing
from stateroom.errors import NotFound, StateroomError
from stateroom.journal.entries import Fact
from stateroom.runtime.batches.files import BatchFile, BatchRequest, name_of, pieces_of, requests_left, write_files
from stateroom.runtime.batches.lines import Examination, Outcome, Progress
from stateroom.runtime.batches.notes import BatchNotes
from stateroom.runtime.batches.state import UNFINISHED, Answer, Asked, Batch, BatchGone, BatchParts
from stateroom.runtime.records import Held
from stateroom.wire.batches import LineError, LineUsage, answered_line, error_code, usage_of

log = logging.getLogger("stateroom.batches")

RUN_ENDPOINTS: Final = frozenset(("/v1/responses", "/v1/chat/completions"))
"""Those whose requests are runs."""
PASSING: Final = frozenset((409, 429, 500, 502, 503, 504))
"""Statuses that say more of the moment than of the request."""
PASSING_CODES: Final = frozenset(("conversation_locked", "previous_response_in_progress"))
TRIES: Final = 4
"""How often a request is tried that the model server fails at. While nobody reaches that, tries do not count."""
PAUSE_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 60.0
"""Between tries: it doubles until something is answered."""
LAST_SECONDS: Final = 600.0
"""How long requests on their way may take when the batch was cancelled or has expired."""
_LOOK_SECONDS: Final = 30.0
"""How often it is looked whether the clock says that the batch has expired."""
_CUT_OFF: Final = (
    "The server stopped while it carried this request out. Nothing of it is stored (`store: false`), so that nobody "
    "knows what its tools have done. It was not carried out again. Check before sending it again."
)
_FILE_GONE: Final = LineError("input_file_missing", "The input file was deleted or has expired.", param="input_file_id")


class BatchWork:
    """One batch in this process."""

    def __init__(self, parts: BatchParts, held: Held[Batch], turns: asyncio.Semaphore) -> None:
        self._parts = parts
        self.held = held
        self._turns = turns
        self._notes = BatchNotes(parts, held.project, held.id)
        self._halted = asyncio.Event()
        self._why = ""
        self._gone = asyncio.Event()
        self._changed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._again: deque[BatchRequest] = deque()
        self._answered = 0
        self._pause = 0.0
        self._pause_until = 0.0
        self._failure: BaseException | None = None

    @property
    def progress(self) -> Progress:
        """What is noted so far."""
        return self._notes.progress

    def halt(self, why: str) -> None:
        """Start nothing more: `cancelled`, `expired`, `lost`, or `stopping` with the server, which comes first."""
        if why == "stopping" or not self._why:
            self._why = why
        self._halted.set()

    async def carry_out(self) -> None:
        """Take the batch to its end, or to where the server's end leaves it. Raises StorageError, BatchGone."""
        has_turn = False
        try:
            await self._notes.recount(self.held.state.total)
            if self.held.state.status == "cancelling":
                self.halt("cancelled")
            has_turn = await self._unless_halted(self._turns.acquire())
            if self.held.state.status == "validating":
                await self._unless_halted(self._examine())
            if self.held.state.status == "in_progress":
                await self._unless_halted(self._answer_all())
            if self._running:
                await asyncio.wait(self._running, timeout=LAST_SECONDS)
            if self._failure is not None:
                raise self._failure
            if self._why != "stopping":
                await self._drop_running()
                await self._end()
        finally:
            if has_turn:
                self._turns.release()
            await self._drop_running()

    async def _unless_halted(self, doing: Coroutine[Any, Any, Any]) -> bool:
        """Do this until it is done, or the batch is halted; whether it was done."""
        task = asyncio.ensure_future(doing)
        halted = asyncio.ensure_future(self._halted.wait())
        try:
            while not task.done() and not self._halted.is_set():
                left = (self.held.state.expires_at - self._parts.now()) / 1000
                if left <= 0:
                    self.halt("expired")
                    break
                wait = min(left, _LOOK_SECONDS)
                await asyncio.wait((task, halted), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (task, halted):
                each.cancel()
            await asyncio.gather(task, halted, return_exceptions=True)
        if task.cancelled():
            return False
        task.result()
        return True

    async def _change(
        self, change: Callable[[Batch], Batch | None], *, open: bool | None = None, also: list[Fact] | None = None
    ) -> Batch:
        """Change the state; what it is then. Raises BatchGone."""
        held = await self._parts.batches.update(
            self.held.project, self.held.id, lambda held: change(held.state), open=open, also=also or ()
        )
        if held is None:
            raise BatchGone(f"Batch with id '{self.held.id}' not found.")
        self.held = held
        return held.state

    async def _examine(self) -> None:
        """Look through the whole input file. What is wrong with it ends the batch."""
        limits = self._parts.limits
        found = Examination(
            self.held.state.endpoint, depth=limits.depth, line_bytes=limits.body_bytes, lines_max=limits.batch_lines
        )
        try:
            async with aclosing(pieces_of(self._parts, self.held)) as pieces:
                async for piece in pieces:
                    if not found.feed(piece):
                        break
                    await asyncio.sleep(0)
                else:
                    found.end()
        except (NotFound, BlobMissing):
            found.errors = [_FILE_GONE]
        if found.errors:
            await self._fail(found.errors)
            return
        now = self._parts.now()

        def begin(state: Batch) -> Batch | None:
            if state.status != "validating":
                return None
            return msgspec.structs.replace(
                state, status="in_progress", in_progress_at=now, total=found.total, model=found.model
            )

        state = await self._change(begin)
        self._notes.progress = Progress(state.total)

    async def _fail(self, errors: list[LineError]) -> None:
        """End a batch of which nothing was asked."""
        now = self._parts.now()
        told = self._parts.webhooks.outgoing(self.held.project, "batch.failed", self.held.id)
        await self._change(
            lambda state: msgspec.structs.replace(state, status="failed", failed_at=now, errors=tuple(errors)),
            open=False,
            also=told,
        )
        self._parts.webhooks.sent(self.held.project, told)
        log.info("batch.failed batch_id=%s code=%s", self.held.id, errors[0].code)

    async def _answer_all(self) -> None:
        """Have every request answered that is not. Returns when all are."""
        project, batch_id = self.held.project, self.held.id
        allowed = self._parts.rates.runs_allowed(project, self.held.state.key)
        most = max(1, allowed // 2) if allowed else 0
        run = self.held.state.endpoint in RUN_ENDPOINTS
        try:
            async with aclosing(requests_left(self._parts, self.held, self.progress)) as requests:
                while True:
                    self._changed.clear()
                    if self._failure is not None:
                        raise self._failure
                    await self._rest()
                    request = self._again.popleft() if self._again else await anext(requests, None)
                    if request is None:
                        if not self._running:
                            return
                        await self._changed.wait()
                        continue
                    await self._parts.places.take(project, batch_id, most=most, run=run)
                    task = asyncio.get_running_loop().create_task(self._carry(request), name=batch_id)
                    self._running.add(task)
                    task.add_done_callback(lambda done: self._through(done, run))
        except (NotFound, BlobMissing):
            self.halt("lost")

    async def _rest(self) -> None:
        """Wait until it is worth trying again. A request that fails meanwhile makes the pause longer."""
        loop = asyncio.get_running_loop()
        left = self._pause_until - loop.time()
        while left > 0:
            await asyncio.sleep(left)
            left = self._pause_until - loop.time()

    def _through(self, task: asyncio.Task[None], run: bool) -> None:
        self._running.discard(task)
        self._parts.places.give(self.held.project, self.held.id, run=run)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
        self._changed.set()

    async def _carry(self, request: BatchRequest) -> None:
        """Have one request answered, and note the answer."""
        held, line = self.held, request.line
        if line.refusal is not None:
            answer = _refused(line.refusal)
        elif request.number in self._notes.begun:
            answer = _refused(StateroomError(_CUT_OFF, code="outcome_unknown"))
        else:
            if line.acts and not line.stored:
                await self._notes.begin(request.number)
            # The same name in every life of the server: a run that a crash cut off is found again by it.
            name = f"{held.id}.{request.number}" if line.stored else ""
            asked = Asked(held.project, held.state.key, held.state.endpoint, name, line.body)
            answer = await self._parts.answering.answer(asked, self._gone)
            if self._gone.is_set():
                return  # nobody waited for it any more
            if self._comes_again(request, answer):
                await self._parts.answering.forget(asked)
                self._again.append(request)
                return
        name = name_of(held.id, request.number)
        written = answered_line(name, line.custom_id, answer.status, answer.request_id, answer.body)
        failed = not 200 <= answer.status < 300
        usage = LineUsage() if failed else usage_of(answer.body)
        await self._notes.add(Outcome(request.number, msgspec.Raw(written), failed=failed, usage=usage))

    def _comes_again(self, request: BatchRequest, answer: Answer) -> bool:
        """Whether the request is to be asked again, and from when on."""
        if answer.stands:
            return False
        passing = answer.status in PASSING or (answer.status >= 400 and error_code(answer.body) in PASSING_CODES)
        if not passing:
            self._answered += 1
            self._pause = 0.0
            return False
        if self._why:
            return True  # nothing is asked any more: it is left undone
        if answer.status >= 500 and (answer.status != 503 or request.answered_before != self._answered):
            request.tries += 1
        request.answered_before = self._answered
        if request.tries >= TRIES:
            return False
        self._pause = min(2 * self._pause or PAUSE_SECONDS, PAUSE_SECONDS_MAX)
        until = asyncio.get_running_loop().time() + max(self._pause, answer.retry_after)
        self._pause_until = max(self._pause_until, until)
        return True

    async def _drop_running(self) -> None:
        """Wait for nothing any more."""
        self._gone.set()
        running = list(self._running)
        if running:
            await asyncio.wait(running, timeout=1.0)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._notes.close()

    async def _end(self) -> None:
        """End the batch with its files, and erase the notes that they are made of."""
        now, done = self._parts.now(), not self._why

        def begin(state: Batch) -> Batch | None:
            if not done or state.status != "in_progress":
                return None
            return msgspec.structs.replace(state, status="finalizing", finalizing_at=now)

        state = await self._change(begin)
        if state.status in UNFINISHED:
            await self._finalize(self._ending(state))
        if self.held.open:
            await self._notes.erase()
            await self._change(lambda state: state, open=False)

    def _ending(self, state: Batch) -> str:
        """The status that the batch ends with."""
        if state.status == "finalizing":
            return "completed"
        if state.status == "cancelling":
            return "cancelled"
        if self._why == "lost":
            return "failed"
        return "completed" if state.total and not self.progress.left else "expired"

    async def _finalize(self, status: str) -> None:
        """Make the files of the notes, and end the batch with them."""
        parts, held = self._parts, self.held
        async with parts.files.incoming() as for_output, parts.files.incoming() as for_errors:
            output, errors = BatchFile(for_output, "output"), BatchFile(for_errors, "error")
            count = await write_files(parts, held, self._notes, output, errors, expired=status == "expired")
            files = [*await output.records(parts, held), *await errors.records(parts, held)]
            told = parts.webhooks.outgoing(held.project, f"batch.{status}", held.id)
            now = parts.now()

            def ended(state: Batch) -> Batch:
                changes: dict[str, Any] = {f"{status}_at": now}
                if status == "failed":
                    changes["errors"] = (_FILE_GONE,)
                return msgspec.structs.replace(
                    state,
                    status=status,
                    completed=count.completed,
                    failed=count.failed,
                    usage=count.usage,
                    output_file_id=output.id,
                    error_file_id=errors.id,
                    **changes,
                )

            await self._change(ended, also=[*files, *told])
            for_output.kept = for_errors.kept = True
        parts.webhooks.sent(held.project, told)
        log.info("batch.%s batch_id=%s completed=%d failed=%d", status, held.id, count.completed, count.failed)


def _refused(error: StateroomError) -> Answer:
    """The answer to a request that is not carried out."""
    return Answer(error.status, ids.new_id("req"), msgspec.json.encode(error.body()))
