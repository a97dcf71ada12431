"""Who carries out a run: in this dispatcher, a task of this process.

A dispatcher promises only that a run is carried out at least once, somewhere; the journal's intents and fences make
that exactly once where it matters. This one bounds how many runs go on at a time, and lets the others wait in line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from stateroom.errors import ServerStopping, StateroomError, TooMany
from stateroom.runtime.closing import wait_ended
from stateroom.runtime.live import LiveRun
from stateroom.runtime.watch import RunWatch
from stateroom.runtime.worker import Worker

log = logging.getLogger("stateroom.runtime")


class Dispatcher(Protocol):
    """Starts, wakes, times, cancels and recovers runs."""

    def start(self, run: LiveRun) -> None:
        """Have the run carried out from where its journal stands."""
        ...

    def at(self, seconds: float, wake: Callable[[], Awaitable[None]]) -> None:
        """Call `wake` once, that many seconds from now."""
        ...

    async def cancel(self, run: LiveRun) -> None:
        """End the run as cancelled; returns when that is durable."""
        ...

    async def close(self, seconds: float, enough: asyncio.Event | None = None) -> int:
        """Let runs finish for that long, or until `enough`, then park the rest; returns how many were parked."""
        ...


class LocalDispatcher:
    """Tasks on this process's event loop."""

    def __init__(
        self,
        worker: Worker,
        *,
        runs_max: int,
        waiting_max: int,
        on_done: Callable[[LiveRun], None],
        watch: RunWatch | None = None,
    ) -> None:
        self._watch = watch or RunWatch()
        self._worker = worker
        self._places = asyncio.Semaphore(runs_max)
        self._placed = 0
        self._bound = runs_max + waiting_max
        self._on_done = on_done
        self._runs: dict[str, LiveRun] = {}
        self._coming = 0
        """Runs that were admitted and are not started yet: their input is still being made whole."""
        self._closed = False
        self._timers: set[asyncio.Task[None]] = set()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Keeps a place for a run that is about to be started. Raises TooMany when too many wait already."""
        if self._closed:
            raise ServerStopping
        if len(self._runs) + self._coming >= self._bound:
            raise TooMany(
                "Too many runs are waiting on this server. Retry in a few seconds, or raise `limits.waiting_runs`.",
                retry_after=2.0,
            )
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    @property
    def count(self) -> int:
        """Runs that go on or wait."""
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """Those of them that wait for a place."""
        return len(self._runs) - self._placed

    def start(self, run: LiveRun) -> None:
        if self._closed:
            self._through(run)  # parked before it began
            return
        self._runs[run.id] = run
        self._watch.began(run)
        run.task = asyncio.get_running_loop().create_task(self._carry_out(run), name=run.id)
        # Not a `finally` of the task: one that is cancelled before its first step never gets to it.
        run.task.add_done_callback(lambda _: self._through(run))

    def at(self, seconds: float, wake: Callable[[], Awaitable[None]]) -> None:
        if self._closed:
            return

        async def wait() -> None:
            await asyncio.sleep(seconds)
            await wake()

        task = asyncio.get_running_loop().create_task(wait())
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def cancel(self, run: LiveRun) -> None:
        self.abandon(run)
        await asyncio.shield(run.done)

    def abandon(self, run: LiveRun) -> None:
        """The same without waiting for it."""
        if run.state.ended is None and not run.cancelling:
            run.cancelling = True
            if run.begun and run.task is not None:
                run.task.cancel()

    async def close(self, seconds: float, enough: asyncio.Event | None = None) -> int:
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        await wait_ended(tasks, seconds, enough)
        parked = [task for task in tasks if not task.done()]
        for task in parked:
            task.cancel()
        if parked:
            await asyncio.wait(parked, timeout=5.0)
        return len(parked)

    async def _carry_out(self, run: LiveRun) -> None:
        run.begun = True
        try:
            try:
                if run.cancelling:
                    raise asyncio.CancelledError
                async with self._places:
                    self._placed += 1
                    try:
                        self._watch.placed(run)
                        await self._worker.drive(run)
                    finally:
                        self._placed -= 1
            except asyncio.CancelledError:
                # Cancelled while it waited for a place: the worker ends it, which takes no time.
                if not run.cancelling or run.state.ended is not None:
                    raise
                await self._worker.drive_cancelled(run)
        except asyncio.CancelledError:
            pass  # parked: the run stays open in the journal
        except Exception:  # not even its failure could be written down; whoever waits for the run must be told
            log.exception("run.broke run_id=%s", run.id)
            run.failure = StateroomError("The server met an unexpected condition in this run; see its log.")
            run.branch.stale = True

    def _through(self, run: LiveRun) -> None:
        """Its task is over, whatever came of it."""
        carried_out = self._runs.pop(run.id, None) is not None
        if run.stream is not None:
            run.stream.end(cut=run.state.ended is None)
        self._on_done(run)
        if not run.done.done():
            run.done.set_result(None)
        if carried_out:
            self._watch.ended(run)  # last: whoever waits for the run must be told, whatever becomes of this
