"""A journal that fails where a plan says so, around one that does not: disks that fill up, servers that die.

A death before a commit loses the append; one after it keeps the append and loses the answer, which is the harder case.
A dead store refuses everything, as a process that is gone would; open another around the same inner store to go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

from stateroom.errors import StorageError, StorageFull
from stateroom.journal.entries import Entry, Frame
from stateroom.journal.store import (
    MARK_MAX,
    Append,
    Appended,
    Branch,
    ConversationRow,
    EndedRun,
    ItemRow,
    Lease,
    NoteRow,
    RecordName,
    RecordPlace,
    RecordRow,
    RunRow,
)
from stateroom.testing.journal_stage import Store

_Answer = TypeVar("_Answer")


class Fault(StrEnum):
    """What goes wrong with a write."""

    FULL = "full"
    """The disk is full: nothing of it is kept, and later writes may succeed."""
    DIE_BEFORE = "die before"
    """The process dies before the commit."""
    DIE_AFTER = "die after"
    """The process dies after the commit, before anyone is told."""


class Plan(msgspec.Struct, frozen=True):
    """Which writes fail, counted from 0 over everything that writes."""

    faults: Mapping[int, Fault] = {}

    @classmethod
    def seeded(cls, seed: int, *, writes: int, full: float = 0.0, death: bool = True) -> Plan:
        """Of the first `writes`, each fails for want of room with probability `full`; one of them is the last."""
        chance = random.Random(seed)  # noqa: S311 - a plan must be repeatable, not secret
        faults = {number: Fault.FULL for number in range(writes) if chance.random() < full}
        if death:
            faults[chance.randrange(writes)] = chance.choice((Fault.DIE_BEFORE, Fault.DIE_AFTER))
        return cls(faults)


class StoreDied(StorageError):
    """The plan has come to the store's death: nothing passes any more."""

    code = "store_died"


class FaultyStore:
    """Implements `Journal` and `Index`."""

    def __init__(self, inner: Store, plan: Plan, *, on_death: Callable[[], None] | None = None) -> None:
        self._inner = inner
        self._plan = plan
        self._on_death = on_death
        self.writes = 0
        """How many writes were asked for."""
        self.dead = False

    def append(self, change: Append) -> asyncio.Future[Appended]:
        return self._write(lambda: self._inner.append(change))

    def renew(self, leases: Sequence[Lease], seconds: float) -> asyncio.Future[Sequence[Lease]]:
        return self._write(lambda: self._inner.renew(leases, seconds))

    def redact(self, project: str, branch: str, bodies: Mapping[int, bytes | None], *, at: int) -> asyncio.Future[None]:
        return self._write(lambda: self._inner.redact(project, branch, bodies, at=at))

    async def rebuild(self) -> None:
        await self._write(self._inner.rebuild)

    async def close(self) -> None:
        """Close the inner store, unless this one has died: what a dead process held open is somebody else's now."""
        if not self.dead:
            await self._inner.close()

    async def branch(self, project: str, branch: str) -> Branch | None:
        return await self._read(self._inner.branch(project, branch))

    async def read(
        self, project: str, branch: str, *, after: int = -1, upto: int | None = None, run: int | None = None
    ) -> list[Entry]:
        return await self._read(self._inner.read(project, branch, after=after, upto=upto, run=run))

    async def frames(self, project: str, branch: str, run: int, *, after: int = -1) -> list[Frame]:
        return await self._read(self._inner.frames(project, branch, run, after=after))

    async def run(self, project: str, run_id: str) -> RunRow | None:
        return await self._read(self._inner.run(project, run_id))

    async def runs(
        self,
        project: str,
        *,
        surface: str = "",
        after: str = "",
        before: str = "",
        limit: int = 20,
        descending: bool = True,
    ) -> list[RunRow]:
        rows = self._inner.runs(
            project, surface=surface, after=after, before=before, limit=limit, descending=descending
        )
        return await self._read(rows)

    async def open_runs(self) -> list[RunRow]:
        return await self._read(self._inner.open_runs())

    async def runs_on(self, project: str, branch: str) -> list[RunRow]:
        return await self._read(self._inner.runs_on(project, branch))

    async def projects(self) -> list[str]:
        return await self._read(self._inner.projects())

    async def branches(self, project: str, *, after: str = "", limit: int = 100) -> list[Branch]:
        return await self._read(self._inner.branches(project, after=after, limit=limit))

    async def ended_runs(self, project: str, upto: int, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        return await self._read(self._inner.ended_runs(project, upto, after=after, limit=limit))

    async def kept_streams(self, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        return await self._read(self._inner.kept_streams(after=after, limit=limit))

    async def needed(self, project: str, branch: str, since: int) -> int:
        return await self._read(self._inner.needed(project, branch, since))

    async def item(self, project: str, item_id: str) -> ItemRow | None:
        return await self._read(self._inner.item(project, item_id))

    async def conversation(self, project: str, conversation_id: str) -> ConversationRow | None:
        return await self._read(self._inner.conversation(project, conversation_id))

    async def conversations(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True
    ) -> list[ConversationRow]:
        rows = self._inner.conversations(project, after=after, before=before, limit=limit, descending=descending)
        return await self._read(rows)

    async def children(self, project: str, branch: str) -> list[Branch]:
        return await self._read(self._inner.children(project, branch))

    async def blob_in_use(self, digest: str) -> bool:
        return await self._read(self._inner.blob_in_use(digest))

    async def record(self, project: str, collection: str, record_id: str) -> RecordRow | None:
        return await self._read(self._inner.record(project, collection, record_id))

    async def records(
        self,
        project: str,
        collection: str,
        *,
        after: str = "",
        before: str = "",
        limit: int = 20,
        descending: bool = True,
    ) -> list[RecordRow]:
        rows = self._inner.records(project, collection, after=after, before=before, limit=limit, descending=descending)
        return await self._read(rows)

    async def open_records(self, collection: str) -> list[RecordRow]:
        return await self._read(self._inner.open_records(collection))

    async def expired_records(self, now: int, *, limit: int = 100) -> list[RecordRow]:
        return await self._read(self._inner.expired_records(now, limit=limit))

    async def record_places(self, project: str, collection: str, record_id: str) -> list[RecordPlace]:
        return await self._read(self._inner.record_places(project, collection, record_id))

    async def record_notes(
        self,
        project: str,
        collection: str,
        record_id: str,
        *,
        after: int = -1,
        before: int = MARK_MAX,
        limit: int = 100,
        descending: bool = True,
    ) -> list[NoteRow]:
        rows = self._inner.record_notes(
            project, collection, record_id, after=after, before=before, limit=limit, descending=descending
        )
        return await self._read(rows)

    async def unerased_records(self) -> list[RecordName]:
        return await self._read(self._inner.unerased_records())

    def _write(self, action: Callable[[], Awaitable[_Answer]]) -> asyncio.Future[_Answer]:
        """Hand a write to the inner store at once, so that call order stays commit order, or fail as planned."""
        fault = None if self.dead else self._plan.faults.get(self.writes)
        self.writes += 1
        if fault is Fault.DIE_AFTER:
            handed_in = action()
            self._die()
            return asyncio.ensure_future(self._lost(handed_in))
        if fault is Fault.DIE_BEFORE:
            self._die()
        if self.dead:
            return _failed(_died())
        if fault is Fault.FULL:
            return _failed(StorageFull("The disk is full: the plan says so."))
        return asyncio.ensure_future(self._read(action()))

    async def _read(self, answer: Awaitable[_Answer]) -> _Answer:
        """The answer, if there is still somebody to be told."""
        found = await answer
        if self.dead:
            raise _died()
        return found

    async def _lost(self, handed_in: Awaitable[_Answer]) -> _Answer:
        await handed_in
        raise _died()

    def _die(self) -> None:
        self.dead = True
        if self._on_death is not None:
            self._on_death()


def _died() -> StoreDied:
    return StoreDied("The store has died: the plan says so.")


def _failed(error: StorageError) -> asyncio.Future[_Answer]:
    future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
