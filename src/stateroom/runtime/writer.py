"""Writing one branch: facts and events that belong together go into one commit, and are shown only after it.

Records are folded into the branch's state as they are added, at the seq they will get: there is one writer, so the seq
is known. What was added is durable when `commit` returns; a failed commit makes the writer and its state unusable, and
the branch is folded from the journal anew.

Streams do not wait for each other: the flusher gathers what all of them produced since its last tick and hands it to
the journal at once, at once when the server is idle and at most every `interval` seconds when it is busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from stateroom.agent.state import BranchState
from stateroom.clock import Clock
from stateroom.errors import StorageError, StorageFull
from stateroom.journal.entries import Fact, Frame, RunStarted, encode, kind_of
from stateroom.journal.store import THIS, Append, Appended, Branch, Draft, Journal, Lease
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import Renderer
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.spans import Span

FULL_RETRY_SECONDS = 0.25
FULL_PATIENCE_SECONDS = 60.0
"""How long a run in progress waits for room on a full disk before it is given up (and resumed at the next start)."""


class Flusher:
    """One tick for all streams."""

    def __init__(self, interval: float = 0.008, instruments: Instruments | None = None) -> None:
        self.interval = interval
        self.instruments = instruments or Instruments()
        self._dirty: dict[BranchWriter, None] = {}
        self._scheduled = False
        self._last = 0.0

    def mark(self, writer: BranchWriter) -> None:
        """Have the writer send what it holds at the next tick."""
        self._dirty[writer] = None
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._last + self.interval), self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._last = asyncio.get_running_loop().time()
        dirty, self._dirty = self._dirty, {}
        for writer in dirty:
            writer.send()


class BranchWriter:
    """The only writer of a branch while it lives."""

    def __init__(
        self,
        journal: Journal,
        flusher: Flusher,
        clock: Clock,
        *,
        project: str,
        branch: str,
        state: BranchState,
        holder: str,
        create: Branch | None = None,
        on_failure: Callable[[StorageError], None] | None = None,
    ) -> None:
        self.journal = journal
        self.flusher = flusher
        self.clock = clock
        self.project = project
        self.branch = branch
        self.state = state
        self.lease: Lease | None = None
        self.renderer: Renderer | None = None
        self.stream: LiveStream | None = None
        self.span: Span | None = None
        """Of the run, where it is traced."""
        self.keeps_frames = True
        """Whether the frames of a run stay when it has ended."""
        self.run = -1
        """Seq of the run's first entry, once a run is written."""
        self.failure: StorageError | None = None
        self._holder = holder
        self._create = create
        self._on_failure = on_failure
        self._expected = state.head
        self._drafts: list[Draft] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight: list[asyncio.Future[None]] | None = None
        self._touched = False
        self._seal = False
        self._release = False
        self._released = False
        """The branch was given up: whatever is committed from now on is nothing."""
        self._hands_over = False
        self._patient = False
        self._again = False

    def add(self, record: Fact) -> None:
        """Fold the record in and queue it; durable after the next `commit`."""
        starts = isinstance(record, RunStarted)
        if starts:
            self.run = self.state.head + 1
        self._add(record, THIS if starts else self.run)

    def hand_over(self, successor: RunStarted) -> None:
        """Queue the run that is to go on with the branch: the commit that would release the branch keeps it for that.

        What is written after it is another writer's, who is given this one's lease.
        """
        self._hands_over = True
        self._add(successor, THIS)

    def _add(self, record: Fact, run: int) -> None:
        body = encode(record)  # first: what cannot be encoded must not be folded in either
        seq = self.state.head + 1
        at = int(self.clock.now() * 1000)
        self.state.apply_record(seq, seq if run == THIS else run, at, record)
        self.state.size += len(body)
        self._drafts.append(Draft(kind_of(record), body, at, run))

    def touch(self) -> None:
        """What the renderer holds may go out with the next tick."""
        self.flusher.mark(self)

    def commit(self, *, release: bool = False) -> asyncio.Future[None]:
        """Resolves when everything added and rendered so far is durable and shown. Raises StorageError.

        `release` gives up the branch in the same commit; a run's frames are sealed then.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._touched = True
        if release:
            self._release = True
            self._seal = self.stream is not None
        self.send()
        return waiter

    @property
    def is_settled(self) -> bool:
        """Whether all that the state shows is durable."""
        return self._expected == self.state.head or (self._hands_over and self._released)

    async def settled(self) -> None:
        """Wait for that. Raises StorageError."""
        while not self.is_settled:
            await self.commit()

    def send(self) -> None:
        """Hand what is queued to the journal, unless a commit is under way (it goes right behind it then)."""
        if self._in_flight is not None:
            self._again = True
            return
        waiters, self._waiters = self._waiters, []
        if self.failure is not None:
            _fail(waiters, self.failure)
            return
        frame = self.renderer.take() if self.renderer is not None else None
        if not self._drafts and frame is None and self._create is None and not (self._touched and self._needs_append()):
            _succeed(waiters)
            return
        self._touched = False
        self._again = False
        self._in_flight = waiters
        change = self._change(frame)
        self._submit(change, frame, self.clock.monotonic())

    def _needs_append(self) -> bool:
        return not self._released and (self.lease is None or self._release)

    def _change(self, frame: Frame | None) -> Append:
        drafts, self._drafts = self._drafts, []
        frames: Sequence[Frame] = (frame,) if frame is not None else ()
        seal = self._seal and self._release
        dropped = seal and not self.keeps_frames
        if dropped:
            frames = ()
        elif seal and self.stream is not None:
            whole = [*self.stream.frames, *frames]
            frames = (Frame(whole[0].first, whole[-1].last, b"".join([part.body for part in whole])),) if whole else ()
        change = Append(
            project=self.project,
            branch=self.branch,
            expected=self._expected,
            entries=drafts,
            create=self._create,
            lease=self.lease,
            acquire="" if self.lease is not None else self._holder,
            release=self._release and not self._hands_over,
            frames_run=self.run if frames or dropped else -1,
            frames=frames,
            seal=bool(seal and (frames or dropped)),
        )
        self._create = None
        return change

    def _submit(self, change: Append, frame: Frame | None, since: float) -> None:
        future = asyncio.ensure_future(self.journal.append(change))
        future.add_done_callback(lambda done: self._settled(done, change, frame, since))

    def _settled(self, done: asyncio.Future[Appended], change: Append, frame: Frame | None, since: float) -> None:
        error = done.exception() if not done.cancelled() else StorageError("The journal was closed.")
        if error is not None:
            if isinstance(error, StorageFull) and self._patient and self._has_patience(since):
                loop = asyncio.get_running_loop()
                loop.call_later(FULL_RETRY_SECONDS, self._submit, change, frame, since)
                return
            self._break(error if isinstance(error, StorageError) else StorageError(f"The journal failed: {error}"))
            return
        appended = done.result()
        self._patient = True
        self._expected = appended.head
        self.lease = appended.lease
        self._released = change.release or (self._hands_over and self._is_start(change))
        waiters, self._in_flight = self._in_flight or [], None
        if frame is not None and self.stream is not None:
            self.stream.publish(frame)
            self.flusher.instruments.frames += 1
            self.flusher.instruments.events += frame.last - frame.first + 1
        if self.span is not None and change.entries:
            took = {"stateroom.journal.entries": len(change.entries), "stateroom.journal.seq": appended.head}
            self.span.event("stateroom.journal.commit", {**took, "seconds": self.clock.monotonic() - since})
        _succeed(waiters)
        if self._waiters:
            self.send()
        elif self._again:
            self.touch()

    def _is_start(self, change: Append) -> bool:
        """Whether this was the commit that begins the run to which the branch is handed over."""
        return bool(change.entries) and change.entries[-1].run == THIS

    def _has_patience(self, since: float) -> bool:
        return self.clock.monotonic() - since < FULL_PATIENCE_SECONDS

    def _break(self, error: StorageError) -> None:
        self.failure = error
        waiters, self._in_flight = self._in_flight or [], None
        _fail([*waiters, *self._waiters], error)
        self._waiters = []
        if self.stream is not None:
            self.stream.end(cut=True)
        if self._on_failure is not None:
            self._on_failure(error)


def _succeed(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _fail(waiters: list[asyncio.Future[None]], error: StorageError) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # who waits hears of it; that somebody no longer does is nothing to be logged
