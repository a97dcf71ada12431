"""Dying at exact points: a journal that sends its own process SIGKILL when a chosen moment has come for the n-th time.

Only test programs wire it in. What to die of is said as `POINT:N`, in the environment variable STATEROOM_TEST_KILL_AT
or as a line written to the FIFO that STATEROOM_TEST_KILL_FIFO names, which arms a server that is running already.

Around the COMMIT of the journal's writer thread there are `before_X` and `after_X`, where X is `commit` (every one) or
what is in that commit: start, steer, item, compaction (such an item), intent, outcome, end, items, conversation,
deletion, frames, take_up (recovery taking a run), redact, and what was done to a record of a collection: put_file,
note_batch and the like (`RECORD_MARKS`). On the event loop there are `publish` (a batch of events was given to the
readers, who have not been woken yet), `sent` (they have), and `mid_stream` (publish, of neither the first nor the last
batch of a run). The tools of probe_server.py add `before_effect`, `mid_effect` and `after_effect`; the workspaces of
mortal_workspaces.py add `WORKSPACE_POINTS`.

`POINT:N@VICTIM` leaves this process alive and kills, at the n-th passing, what holds its sandboxes: see `VICTIMS`.

A line `slow:N` makes no one die: from then on each commit takes N milliseconds longer, as on a slow disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stateroom.journal.entries import Kind, RecordDropped, RecordNoted, RecordPut, decode
from stateroom.journal.sqlite import SqliteJournal, _Redaction
from stateroom.journal.store import Append, Appended, Draft

KILL_AT: Final = "STATEROOM_TEST_KILL_AT"
SLOW: Final = "slow"
KILL_FIFO: Final = "STATEROOM_TEST_KILL_FIFO"

_MARKS: Final[dict[str, str]] = {
    Kind.RUN_STARTED: "start",
    Kind.RUN_STEERED: "steer",
    Kind.ITEM_FINISHED: "item",
    Kind.TOOL_INTENT: "intent",
    Kind.TOOL_OUTCOME: "outcome",
    Kind.RUN_ENDED: "end",
    Kind.ITEMS_ADDED: "items",
    Kind.CONVERSATION_CREATED: "conversation",
    Kind.CONVERSATION_UPDATED: "conversation",
    Kind.CONVERSATION_DELETED: "deletion",
}
_COMPACTION: Final = b'"type":"compaction"'
_RECORDS: Final = frozenset((Kind.RECORD_PUT, Kind.RECORD_NOTED, Kind.RECORD_DROPPED))
RECORD_MARKS: Final = (
    *("put_file", "drop_file", "put_upload", "note_upload", "put_upload_part", "drop_upload_part"),
    *("put_batch", "note_batch", "put_webhook_endpoint", "drop_webhook_endpoint", "put_webhook_delivery"),
    *("put_skill", "drop_skill", "put_skill_version", "drop_skill_version"),
    *("put_container", "note_container", "drop_container"),
    *("put_idempotency", "put_chat_metadata"),
)
_OWN_MARKS: Final = (
    *("commit", *dict.fromkeys(_MARKS.values()), "compaction", *RECORD_MARKS, "frames", "take_up", "redact"),
)

WORKSPACE_POINTS: Final = (
    *("before_command", "mid_command", "after_command", "before_write", "after_write"),
    *("before_start_sandbox", "after_start_sandbox", "before_freeze", "after_freeze"),
    *("before_content", "after_content", "after_snapshot", "before_kept", "after_kept"),
    *("before_materialise", "mid_materialise", "after_materialise"),
    *("before_discard", "after_discard", "before_sweep", "mid_sweep", "after_sweep"),
)
"""Around what the workspaces of hosted tools do: commands and cells (`mid`: something came of one), files that are put
there, sandboxes, the commits of their files (`content`: the transaction of the content store; `snapshot`: all is
written and nothing refers to it; `kept`: the journal knows, the directory does not), getting them back, and the
collection of what nothing refers to."""

POINTS: Final = (
    *(f"{side}_{mark}" for mark in _OWN_MARKS for side in ("before", "after")),
    *("publish", "sent", "mid_stream", "before_effect", "mid_effect", "after_effect"),
    *WORKSPACE_POINTS,
)
"""Every point there is."""

VICTIMS: Final = ("bwrap", "agent", "interpreter", "command")
"""What can be killed instead of the server: the process that holds a sandbox from outside, the first one inside, the
Python that runs cells, and whatever else runs there."""

_SENT_SECONDS: Final = 0.002
"""After this long the readers of a published batch have been woken and have written it to their sockets."""


class KillPoints:
    """Which point this process is to die at, and how often it has been passed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: dict[str, list[_Strike]] = {}
        self.commit_seconds = 0.0
        """By which each commit is slower."""
        self.strike: Callable[[str], None] = lambda victim: None
        """Kills what is not this process."""

    def arm(self, spec: str) -> None:
        """Die at the n-th passing of a point from now on, given as `POINT:N`; '' disarms all. Raises ValueError.

        `POINT:N@VICTIM` kills something else there.
        """
        point, _, rest = spec.partition(":")
        count, _, victim = rest.partition("@")
        if point == SLOW:
            self.commit_seconds = int(count) / 1000
            return
        if point and point not in POINTS:
            raise ValueError(f"{point!r} is not a kill point: {', '.join(POINTS)}")
        if victim and victim not in VICTIMS:
            raise ValueError(f"{victim!r} is not a victim: {', '.join(VICTIMS)}")
        with self._lock:
            if not point:
                self._armed = {}
                return
            self._armed.setdefault(point, []).append(_Strike(int(count or 1), victim))

    def listen(self, fifo: Path) -> None:
        """Let others arm it through a FIFO, one spec a line."""
        descriptor = os.open(fifo, os.O_RDWR)  # both ways, so that it never reads as ended
        threading.Thread(target=self._read, args=(descriptor,), name="kill points", daemon=True).start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as lines:
            for line in lines:
                self.arm(line.strip())

    def reach(self, point: str) -> None:
        """Pass a point; does not return when it was the one."""
        if point not in self._armed:
            return
        with self._lock:
            victims = []
            for strike in self._armed.get(point, ()):
                strike.left -= 1
                if strike.left == 0:
                    victims.append(strike.victim)
            if "" in victims:
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()
        for victim in victims:
            self.strike(victim)


@dataclass
class _Strike:
    left: int
    victim: str
    """'': this process."""


def from_environment() -> KillPoints:
    """Kill points as the environment wants them."""
    points = KillPoints()
    points.arm(os.environ.get(KILL_AT, ""))
    if fifo := os.environ.get(KILL_FIFO):
        points.listen(Path(fifo))
    return points


class MortalJournal(SqliteJournal):
    """The journal on SQLite, passing kill points. Made of an open one by `make_mortal`."""

    points: KillPoints
    marks: tuple[str, ...] = ()
    """What is in the transaction that is under way."""

    def append(self, change: Append) -> asyncio.Future[Appended]:
        future = super().append(change)
        if change.frames:
            # Callbacks run in the order they were added: this one comes before that of whoever publishes the frames.
            future.add_done_callback(lambda done: self._committed(done, change))
        return future

    def _committed(self, done: asyncio.Future[Appended], change: Append) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        loop = done.get_loop()
        loop.call_soon(self.points.reach, "publish")
        loop.call_later(_SENT_SECONDS, self.points.reach, "sent")
        if not change.release and change.frames[0].first > 0:
            loop.call_soon(self.points.reach, "mid_stream")

    def _transact(self, requests: Sequence[Any]) -> list[Any]:
        self.marks = tuple({"commit": None, **{mark: None for request in requests for mark in _marks_of(request)}})
        return super()._transact(requests)


def make_mortal(journal: SqliteJournal, points: KillPoints) -> SqliteJournal:
    """Have an open journal pass these points."""
    journal.__class__ = MortalJournal
    assert isinstance(journal, MortalJournal)
    journal.points = points
    execute = journal._execute

    def execute_mortally(*given: Any, **options: Any) -> Any:
        if given[0] != "COMMIT":
            return execute(*given, **options)
        for mark in journal.marks:
            points.reach(f"before_{mark}")
        time.sleep(points.commit_seconds)
        cursor = execute(*given, **options)
        for mark in journal.marks:
            points.reach(f"after_{mark}")
        return cursor

    journal._execute = execute_mortally
    return journal


def _marks_of(request: Any) -> list[str]:
    if isinstance(request, _Redaction):
        return ["redact"]
    if not isinstance(request, Append):
        return []
    found = [mark for draft in request.entries for mark in _marks_of_entry(draft)]
    if request.frames and not request.seal:
        found.append("frames")
    abandons = all(draft.kind == Kind.ITEM_ABANDONED for draft in request.entries)
    if request.acquire and request.create is None and not request.release and abandons:
        found.append("take_up")
    return found


def _marks_of_entry(draft: Draft) -> list[str]:
    if draft.kind in _RECORDS:
        match decode(draft.kind, draft.body):
            case RecordPut(collection=collection):
                return [f"put_{collection}"]
            case RecordNoted(collection=collection):
                return [f"note_{collection}"]
            case RecordDropped(collection=collection):
                return [f"drop_{collection}"]
            case _:
                return []
    if draft.kind == Kind.ITEM_FINISHED and _COMPACTION in draft.body:
        return ["item", "compaction"]
    return [_MARKS[draft.kind]] if draft.kind in _MARKS else []
