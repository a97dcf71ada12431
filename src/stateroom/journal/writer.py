"""One thread that commits for everybody: whatever has gathered since its last commit goes into one transaction.

Knows nothing of journals: it is handed jobs and a `commit` that carries out a list of them, and gives each job's
outcome to the future it was promised to, with one wake-up of the event loop for a whole batch. The other way it is the
same: what a turn of the event loop submits is handed over at its end, so that the thread is woken once for all of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from stateroom.telemetry.metrics import CommitMeter

Outcome: TypeAlias = Any
"""What a job answered, or the exception it failed with."""

_BATCH_MAX: Final = 1_024
"""Jobs of one commit: bounds how long the first of them waits."""
_IDLE_SECONDS: Final = 1.0


class Job:
    """Something to be committed, and who waits for it."""

    __slots__ = ("future", "loop", "request", "since")

    def __init__(self, request: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self.since = time.monotonic()
        self.future: asyncio.Future[Any] = loop.create_future()


class Writer:
    """The thread. `idle` is called when nothing came in for a second, as long as it answers True after a commit."""

    def __init__(
        self, commit: Callable[[Sequence[Any]], Sequence[Outcome]], idle: Callable[[], bool], *, name: str
    ) -> None:
        self._commit = commit
        self._idle = idle
        self._restless = False
        self.meter = CommitMeter()
        self._submitted: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        """Of this turn of each loop."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, request: Any) -> asyncio.Future[Any]:
        """Hand in a request; its future resolves on the running loop after the commit, cancelled or not."""
        loop = asyncio.get_running_loop()
        job = Job(request, loop)
        submitted = self._submitted.get(loop)
        if submitted is None:
            submitted = self._submitted[loop] = []
            loop.call_soon(self._hand_over, loop)
        submitted.append(job)
        return job.future

    @property
    def waiting(self) -> int:
        """How many are handed in and not begun."""
        return self._jobs.qsize()

    def stop(self) -> None:
        """Finish what was handed in, then end. Blocks."""
        for loop in list(self._submitted):
            self._hand_over(loop)
        self._jobs.put(None)
        self._thread.join()

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        for job in self._submitted.pop(loop, ()):
            self._jobs.put(job)

    def _run(self) -> None:
        while True:
            batch, stopped = self._gather()
            if batch:
                began = time.monotonic()
                try:
                    outcomes = self._commit([job.request for job in batch])
                except Exception as error:  # the thread must survive, and every job be answered
                    outcomes = [error] * len(batch)
                self._measure(batch, outcomes, began)
                _deliver(batch, outcomes)
                self._restless = True
            if stopped:
                return

    def _measure(self, batch: list[Job], outcomes: Sequence[Outcome], began: float) -> None:
        meter = self.meter
        meter.changes += len(batch)
        meter.commit_seconds.observe(time.monotonic() - began)
        meter.wait_seconds.observe(began - batch[0].since)
        meter.failures += sum([isinstance(outcome, BaseException) for outcome in outcomes])

    def _gather(self) -> tuple[list[Job], bool]:
        batch: list[Job] = []
        job = self._wait()
        while job is not None:
            batch.append(job)
            if len(batch) == _BATCH_MAX:
                return batch, False
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _wait(self) -> Job | None:
        while self._restless:
            try:
                return self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                self._restless = self._idle()
        return self._jobs.get()


def _deliver(batch: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    settled = list(zip(batch, outcomes, strict=True))
    for loop in {id(job.loop): job.loop for job in batch}.values():
        try:
            loop.call_soon_threadsafe(_settle, loop, settled)
        except RuntimeError:  # the loop is closed: nobody waits any more, and the commit stands
            continue


def _settle(loop: asyncio.AbstractEventLoop, settled: Sequence[tuple[Job, Outcome]]) -> None:
    for job, outcome in settled:
        if job.loop is not loop or job.future.done():
            continue
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
