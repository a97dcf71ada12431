"""Letting go of what is older than a project keeps it: responses, streams, files, and records whose time has come.

It goes on beside everything else and gives way to it: after each piece of work it rests four times as long. What it has
done is in the journal, and what is left it finds there again: it may be killed anywhere, and begins anew.

A response goes when it and everything that continues it are old enough: no chain loses its beginning while it is in
use. What a conversation holds belongs to the conversation, which no retention touches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from stateroom.clock import Clock
from stateroom.errors import StorageError
from stateroom.journal.store import Append, Branch, Index, Journal
from stateroom.runtime.branches import Branches
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.files.files import COLLECTION as FILES
from stateroom.runtime.records import Records
from stateroom.settings import RetentionSettings

log = logging.getLogger("stateroom.retention")

EXPIRY_SECONDS: Final = 60.0
"""Between two looks for records whose time has come."""
SWEEP_SECONDS: Final = 600.0
"""Between two looks for what is older than its project keeps it."""
REST_FACTOR: Final = 4.0
REST_SECONDS: Final = 0.01
"""A rest is at least as long as this."""
_PAGE: Final = 200
_TOGETHER: Final = 16
"""Things that go in one commit."""
_LOOKED_AT_MAX: Final = 50_000

_Thing = TypeVar("_Thing")

_DAY: Final = 24 * 3_600 * 1000
_HOUR: Final = 3_600 * 1000


class Swept(NamedTuple):
    """How much has gone."""

    responses: int = 0
    streams: int = 0
    files: int = 0


class Retention:
    """Sweeps the journal of this process."""

    def __init__(
        self,
        journal: Journal,
        index: Index,
        *,
        records: Records,
        erasure: Erasure,
        branches: Branches,
        clock: Clock,
        of_project: Callable[[str], RetentionSettings],
    ) -> None:
        self._journal = journal
        self._index = index
        self._records = records
        self._erasure = erasure
        self._branches = branches
        self._clock = clock
        self._of_project = of_project
        self._since = 0.0

    async def run(self) -> None:
        """Go on until cancelled."""
        swept_at = -SWEEP_SECONDS
        await self._try("blobs", self._clean_up)
        while True:
            await self._try("records", self._drop_expired)
            if self._clock.monotonic() - swept_at >= SWEEP_SECONDS:
                swept_at = self._clock.monotonic()
                await self._try("responses", self._sweep_and_tell)
            await self._clock.sleep(EXPIRY_SECONDS)

    async def sweep(self) -> Swept:
        """Look once through everything that a project does not keep for ever. Raises StorageError."""
        self._since = self._clock.monotonic()
        now = int(self._clock.now() * 1000)
        responses = files = 0
        frames: dict[str, int] = {}
        for project in await self._index.projects():
            kept = self._of_project(project)
            if kept.responses_days:
                responses += await self._erase_responses(project, now - int(kept.responses_days * _DAY))
            if kept.files_days:
                files += await self._drop_files(project, now - int(kept.files_days * _DAY))
            if kept.frames_hours:
                frames[project] = now - int(kept.frames_hours * _HOUR)
        streams = await self._drop_streams(frames) if frames else 0
        return Swept(responses, streams, files)

    async def _try(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            self._since = self._clock.monotonic()
            await work()
        except StorageError as error:
            log.warning("retention.failed what=%s code=%s it is tried again", what, error.code)
        except Exception:  # whatever it is: the next look must come, and the trace is logged
            log.exception("retention.failed what=%s", what)

    async def _clean_up(self) -> None:
        """What a crash left behind."""
        await self._records.sweep()
        await self._erasure.sweep()

    async def _drop_expired(self) -> None:
        while await self._records.drop_expired():
            await self._rest()

    async def _sweep_and_tell(self) -> None:
        swept = await self.sweep()
        if any(swept):
            log.info("retention.swept responses=%d streams=%d files=%d", swept.responses, swept.streams, swept.files)

    async def _erase_responses(self, project: str, upto: int) -> int:
        """Erase the responses and chat completions that ended by then, and all that continues them did."""
        erased = 0
        looked_at: dict[str, None] = {}
        page = await self._index.ended_runs(project, upto, limit=_PAGE)
        while page:
            found = {run.branch: None for run in page if not run.conversation and run.branch not in looked_at}
            if len(looked_at) > _LOOKED_AT_MAX:
                looked_at.clear()
            looked_at.update(found)
            for some in _batches(list(found)):
                counts = await _all([self._erase_branch(project, branch, upto) for branch in some])
                erased += sum(counts)
            await self._rest()
            page = await self._index.ended_runs(project, upto, after=page[-1].mark, limit=_PAGE)
        return erased

    async def _erase_branch(self, project: str, branch: str, upto: int) -> int:
        """Erase what of a branch nothing needs that is younger; how many runs."""
        if self._branches.in_use(project, branch):
            return 0
        needed = await self._index.needed(project, branch, upto)
        for fork in await self._index.children(project, branch):
            if fork.parent_seq > needed and await self._lives(project, fork, upto):
                needed = fork.parent_seq
        return await self._erasure.erase_after(project, branch, needed, self._rest)

    async def _lives(self, project: str, fork: Branch, upto: int) -> bool:
        """Whether a fork, or one of its own, has anything younger, or a conversation."""
        waiting = [fork.id]
        while waiting:
            branch = waiting.pop()
            if self._branches.in_use(project, branch) or await self._index.needed(project, branch, upto) >= 0:
                return True
            waiting += [child.id for child in await self._index.children(project, branch)]
        return False

    async def _drop_streams(self, upto: dict[str, int]) -> int:
        """Drop the streams of runs that ended by then, which differs by project; the runs stay."""
        dropped = 0
        page = await self._index.kept_streams(limit=_PAGE)
        while page:
            due = [run for run in page if run.ended_at <= upto.get(run.project, -1)]
            for some in _batches(due):
                changes = [Append(run.project, run.branch, frames_run=run.start, seal=True) for run in some]
                await asyncio.gather(*[self._journal.append(change) for change in changes])
                dropped += len(some)
                await self._rest()
            await self._rest()
            page = await self._index.kept_streams(after=page[-1].mark, limit=_PAGE)
        return dropped

    async def _drop_files(self, project: str, upto: int) -> int:
        dropped = 0
        while True:
            oldest = await self._index.records(project, FILES, limit=_TOGETHER, descending=False)
            due = [row.id for row in oldest if row.created_at <= upto]
            gone = sum(await _all([self._records.drop(project, FILES, file_id) for file_id in due]))
            if not gone:
                return dropped
            dropped += gone
            await self._rest()

    async def _rest(self) -> None:
        took = self._clock.monotonic() - self._since
        await self._clock.sleep(max(REST_SECONDS, REST_FACTOR * took))
        self._since = self._clock.monotonic()


def _batches(things: Sequence[_Thing]) -> Iterator[Sequence[_Thing]]:
    for first in range(0, len(things), _TOGETHER):
        yield things[first : first + _TOGETHER]


async def _all(works: Sequence[Awaitable[_Thing]]) -> list[_Thing]:
    """What came of all of them. All are waited for: one that fails must not leave the others to nobody."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    done = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        done.append(outcome)
    return done
