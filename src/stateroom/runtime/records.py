"""Records: the named things besides runs and conversations (files, uploads, batches, webhooks, ...), in the journal.

A collection decodes its records' states into a type of its owner. Every change of a record appends its whole new state
to a branch of the record's own, so the journal tells its history. Changes of one record go one after the other; a
change is durable when its call returns.

Dropping a record commits the drop first and erases what was said afterwards: from the drop on nobody takes the record
up again, and what a crash leaves to be erased is known to the index, so that `sweep` finishes it at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import groupby, islice
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec

from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.errors import HeadMoved, StorageError
from stateroom.journal.entries import Entry, Fact, RecordDropped, RecordNoted, RecordPut, decode, encode, kind_of
from stateroom.journal.store import MARK_MAX, Append, Branch, Draft, Index, Journal, NoteRow, RecordPlace, RecordRow
from stateroom.runtime.note_search import first_since

State = TypeVar("State", bound=msgspec.Struct)

_ERASED_AT_ONCE: Final = 500
"""Entries that one commit erases: it keeps everybody else's waiting."""
_READ_AT_ONCE: Final = 32
"""Notes in memory at the same time, where there may be many."""
_READ_FIRST: Final = 2
"""Notes that are read at first: whoever looks for the latest needs no more."""
_READ_FACTOR: Final = 4


class Held(msgspec.Struct, Generic[State], frozen=True):
    """A record as it stands."""

    id: str
    project: str
    state: State
    created_at: int
    """Milliseconds since the epoch."""
    open: bool = False
    expires_at: int = 0
    changed_at: int = 0
    blobs: Sequence[str] = ()


class Records:
    """All records of this process's journal."""

    def __init__(self, journal: Journal, index: Index, blobs: Blobs, held: HeldBlobs, clock: Clock) -> None:
        self._journal = journal
        self._index = index
        self._blobs = blobs
        self._held = held
        self._clock = clock
        self._locks: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()

    def collection(self, name: str, state: type[State]) -> Collection[State]:
        """The records of one kind, whose states are of this type."""
        return Collection(self, name, state)

    async def drop(self, project: str, collection: str, record_id: str) -> bool:
        """Drop a record and erase what it said, its notes and the blobs that nothing else needs; False if missing."""
        async with self.changing(project, collection, record_id):
            row = await self._index.record(project, collection, record_id)
            if row is not None:
                await self.append(project, collection, record_id, [RecordDropped(collection, record_id)])
            return await self._erase(project, collection, record_id) or row is not None

    async def drop_expired(self, *, limit: int = 100) -> int:
        """Drop up to `limit` records whose time has come, together in a few commits; how many it were."""
        now = self.now()
        due = await self._index.expired_records(now, limit=limit)
        # All are waited for: one that fails must not leave the others to nobody.
        dropped = await asyncio.gather(*[self._drop_expired(each, now) for each in due], return_exceptions=True)
        for outcome in dropped:
            if isinstance(outcome, BaseException):
                raise outcome
        return dropped.count(True)

    async def sweep(self) -> None:
        """Erase what dropped records said, as far as a crash has left it to be done. Comes before blobs are swept."""
        for name in await self._index.unerased_records():
            async with self.changing(name.project, name.collection, name.id):
                await self._erase(name.project, name.collection, name.id)

    async def said(self, project: str, places: Iterable[RecordPlace]) -> list[Entry]:
        """The entries at these places, in the order of the places; entries beside each other are read together."""
        entries: list[Entry] = []
        span: list[RecordPlace] = []
        for place in [*places, None]:
            if span and (place is None or (place.branch, place.seq) != (span[-1].branch, span[-1].seq + 1)):
                first, last = span[0].seq, span[-1].seq
                entries += await self._journal.read(project, span[0].branch, after=first - 1, upto=last)
                span = []
            if place is not None:
                span.append(place)
        return entries

    async def noted(self, project: str, collection: str, record_id: str) -> list[RecordPlace]:
        """Where the notes of a record stand, oldest first."""
        places = await self._index.record_places(project, collection, record_id)
        return [place for place in places if place.note and not place.gone]

    async def existed(self, project: str, collection: str, record_id: str) -> bool:
        """Whether there ever was such a record, even if it was dropped."""
        return await self._journal.branch(project, _own_branch(project, collection, record_id)) is not None

    async def erase_notes(self, project: str, collection: str, record_id: str) -> None:
        """As `Collection.erase_notes`."""
        async with self.changing(project, collection, record_id):
            noted = await self.noted(project, collection, record_id)
            for branch, own in groupby(noted, key=lambda place: place.branch):
                while some := list(islice(own, _READ_AT_ONCE)):
                    await self._erase_places(project, branch, some)

    async def erase_old_notes(
        self, project: str, collection: str, record_id: str, old: Callable[[msgspec.Raw], bool]
    ) -> int:
        """As `Collection.erase_old_notes`."""
        erased = 0
        async with self.changing(project, collection, record_id):
            noted = await self.noted(project, collection, record_id)
            for branch, own in groupby(noted, key=lambda place: place.branch):
                while some := list(islice(own, _READ_AT_ONCE)):
                    said = [decode(entry.kind, entry.body) for entry in await self.said(project, some)]
                    due = [
                        place
                        for place, each in zip(some, said, strict=True)
                        if isinstance(each, RecordNoted) and old(each.note)
                    ]
                    if due:
                        await self._erase_places(project, branch, due)
                    erased += len(due)
        return erased

    @asynccontextmanager
    async def changing(self, project: str, collection: str, record_id: str) -> AsyncGenerator[None, None]:
        """Keeps others from changing the record meanwhile."""
        name = (project, collection, record_id)
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        async with lock:
            yield

    async def append(self, project: str, collection: str, record_id: str, records: Sequence[Fact]) -> int:
        """Append to the record's own branch, which begins with the first append; when it was, in milliseconds."""
        at = self.now()
        branch = _own_branch(project, collection, record_id)
        drafts = [Draft(kind_of(record), encode(record), at) for record in records]
        change = Append(project, branch, entries=drafts)
        if await self._journal.branch(project, branch) is None:
            change = Append(project, branch, -1, drafts, create=Branch(branch, project))
        await self._journal.append(change)
        return at

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._clock.now() * 1000)

    @property
    def index(self) -> Index:
        return self._index

    async def _drop_expired(self, due: RecordRow, now: int) -> bool:
        project, collection, record_id = due.project, due.collection, due.id
        async with self.changing(project, collection, record_id):
            row = await self._index.record(project, collection, record_id)
            if row is None or not 0 < row.expires_at <= now:
                return False
            await self.append(project, collection, record_id, [RecordDropped(collection, record_id)])
            await self._erase(project, collection, record_id)
            return True

    async def _erase(self, project: str, collection: str, record_id: str) -> bool:
        """Erase what was said before the record was last dropped; whether there was anything."""
        places = await self._index.record_places(project, collection, record_id)
        gone = sorted((place for place in places if place.gone), key=lambda place: (place.branch, place.seq))
        for branch, own in groupby(gone, key=lambda place: place.branch):
            while some := list(islice(own, _ERASED_AT_ONCE)):
                await self._erase_places(project, branch, some)
        return bool(gone)

    async def _erase_places(self, project: str, branch: str, places: Sequence[RecordPlace]) -> None:
        digests: set[str] = set()
        for entry in await self.said(project, places):
            said = decode(entry.kind, entry.body)
            if isinstance(said, RecordPut | RecordNoted):
                digests.update(said.blobs)
        await self._journal.redact(project, branch, dict.fromkeys(place.seq for place in places), at=self.now())
        for digest in digests:
            if not await self._index.blob_in_use(digest) and not self._held.is_held(digest):
                await self._blobs.delete(digest)


class Collection(Generic[State]):
    """The records of one kind."""

    def __init__(self, records: Records, name: str, state: type[State]) -> None:
        self._records = records
        self.name = name
        self._decode = msgspec.json.Decoder(state).decode

    async def create(
        self,
        project: str,
        record_id: str,
        state: State,
        *,
        open: bool = False,
        expires_at: int = 0,
        blobs: Sequence[str] = (),
        also: Sequence[Fact] = (),
    ) -> Held[State]:
        """A new record. `also` is committed with it, such as the idempotency key that it was asked for with.

        Put blobs under a `HeldBlobs.hold` that outlives this call. Raises RecordExists, StorageError.
        """
        put = self.put(record_id, state, open=open, expires_at=expires_at, blobs=blobs)
        async with self._records.changing(project, self.name, record_id):
            if await self._records.index.record(project, self.name, record_id) is not None:
                raise RecordExists(f"There is a {self.name} {record_id!r} already.")
            at = await self._records.append(project, self.name, record_id, [put, *also])
        return Held(record_id, project, state, at, open, expires_at, at, tuple(put.blobs))

    async def get(self, project: str, record_id: str) -> Held[State] | None:
        """Missing, dropped and foreign are None."""
        row = await self._records.index.record(project, self.name, record_id)
        return None if row is None else self._shown(row)

    async def page(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True
    ) -> list[Held[State]]:
        """By age between those named, one more than `limit` when there are more; none when one named is missing."""
        rows = await self._records.index.records(
            project, self.name, after=after, before=before, limit=limit + 1, descending=descending
        )
        return [self._shown(row) for row in rows]

    async def open(self) -> list[Held[State]]:
        """Those of every project on which work is left."""
        return [self._shown(row) for row in await self._records.index.open_records(self.name)]

    async def update(
        self,
        project: str,
        record_id: str,
        change: Callable[[Held[State]], State | None],
        *,
        open: bool | None = None,
        expires_at: int | None = None,
        blobs: Sequence[str] | None = None,
        also: Sequence[Fact] = (),
    ) -> Held[State] | None:
        """Put what `change` makes of the state; None from it leaves all as it is. None when the record is missing.

        `open`, `expires_at` and `blobs` stay when they are None; else `blobs` are those of the whole new state. `also`
        is committed with it.
        """
        async with self._records.changing(project, self.name, record_id):
            row = await self._records.index.record(project, self.name, record_id)
            if row is None:
                return None
            held = self._shown(row)
            state = change(held)
            if state is None:
                return held
            put = self.put(
                record_id,
                state,
                open=held.open if open is None else open,
                expires_at=held.expires_at if expires_at is None else expires_at,
                blobs=held.blobs if blobs is None else blobs,
            )
            at = await self._records.append(project, self.name, record_id, [put, *also])
            return Held(held.id, project, state, held.created_at, put.open, put.expires_at, at, tuple(put.blobs))

    async def note(self, project: str, record_id: str, note: msgspec.Struct, *, blobs: Sequence[str] = ()) -> bool:
        """Write down a fact about a record; False when it is missing."""
        async with self._records.changing(project, self.name, record_id):
            if await self._records.index.record(project, self.name, record_id) is None:
                return False
            said = RecordNoted(self.name, record_id, msgspec.Raw(msgspec.json.encode(note)), list(blobs))
            await self._records.append(project, self.name, record_id, [said])
            return True

    async def notes(self, project: str, record_id: str) -> list[msgspec.Raw]:
        """All facts about a record, oldest first."""
        noted = await self._records.noted(project, self.name, record_id)
        said = [decode(entry.kind, entry.body) for entry in await self._records.said(project, noted)]
        return [each.note for each in said if isinstance(each, RecordNoted)]

    async def each_note(
        self, project: str, record_id: str, *, newest_first: bool = False
    ) -> AsyncGenerator[msgspec.Raw, None]:
        """The same, few of them in memory at a time; what is noted meanwhile is not among them."""
        latest = await self.some_notes(project, record_id, limit=1, newest_first=True)
        before = latest[0].mark + 1 if latest else 0
        async with aclosing(self.note_rows(project, record_id, before=before, newest_first=newest_first)) as rows:
            async for row in rows:
                yield row.note

    async def note_rows(
        self, project: str, record_id: str, *, after: int = -1, before: int = MARK_MAX, newest_first: bool = False
    ) -> AsyncGenerator[NoteRow, None]:
        """The same between two marks, and what is noted there meanwhile. It costs what is taken, not what there is."""
        limit = _READ_FIRST
        while rows := await self.some_notes(
            project, record_id, after=after, before=before, limit=limit, newest_first=newest_first
        ):
            for row in rows:
                yield row
            if len(rows) < limit:
                return
            after, before = (after, rows[-1].mark) if newest_first else (rows[-1].mark, before)
            limit = min(limit * _READ_FACTOR, _READ_AT_ONCE)
            await asyncio.sleep(0)  # the journal answers without a pause, and there may be many pages

    async def some_notes(
        self,
        project: str,
        record_id: str,
        *,
        after: int = -1,
        before: int = MARK_MAX,
        limit: int,
        newest_first: bool = False,
    ) -> list[NoteRow]:
        """The first of these."""
        read = self._records.index.record_notes
        return await read(
            project, self.name, record_id, after=after, before=before, limit=limit, descending=newest_first
        )

    async def noted_since(
        self, project: str, record_id: str, since: int, *, latest: NoteRow | None = None
    ) -> list[NoteRow]:
        """Some notes, the first from `since` (milliseconds) on, as far as the clock never went back.

        `latest`: the last of all, where it is known.
        """
        return await first_since(partial(self.some_notes, project, record_id), since, latest)

    def noted(self, record_id: str, note: msgspec.Struct) -> RecordNoted:
        """The entry that notes it, for another commit about the record."""
        return RecordNoted(self.name, record_id, msgspec.Raw(msgspec.json.encode(note)))

    async def erase_old_notes(self, project: str, record_id: str, old: Callable[[msgspec.Raw], bool]) -> int:
        """Erase those notes of which `old` says so; how many."""
        return await self._records.erase_old_notes(project, self.name, record_id, old)

    async def erase_notes(self, project: str, record_id: str) -> None:
        """Erase what was noted of a record so far, with the blobs that nothing else needs; its state stays."""
        await self._records.erase_notes(project, self.name, record_id)

    async def drop(self, project: str, record_id: str) -> bool:
        """Drop a record and erase what it said; False when it is missing."""
        return await self._records.drop(project, self.name, record_id)

    def put(
        self, record_id: str, state: State, *, open: bool = False, expires_at: int = 0, blobs: Sequence[str] = ()
    ) -> RecordPut:
        """The entry that says so, for somebody else's commit.

        Such a commit does not wait for others who change the record: it is for one that nobody knows of yet.
        """
        raw = msgspec.Raw(msgspec.json.encode(state))
        return RecordPut(self.name, record_id, raw, open, expires_at, list(blobs))

    def _shown(self, row: RecordRow) -> Held[State]:
        try:
            state = self._decode(row.state)
        except msgspec.ValidationError as error:
            raise RecordUnreadable(
                f"What is kept of the {row.collection} {row.id!r} cannot be read ({error}). "
                "It may have been written by a newer version: start that one."
            ) from error
        return Held(
            row.id, row.project, state, row.created_at, row.open, row.expires_at, row.changed_at, tuple(row.blobs)
        )


class RecordExists(HeadMoved):
    """A record by this id is there already; whoever creates records by ids of clients handles it."""

    code = "record_exists"


class RecordUnreadable(StorageError):
    """A record's state is not of the shape that its collection has in this version."""

    code = "record_unreadable"


def _own_branch(project: str, collection: str, record_id: str) -> str:
    """The branch of a record. Clients choose some ids, and branches of all projects have their names in common."""
    name = msgspec.json.encode((project, collection, record_id))
    return f"{collection}_{hashlib.blake2b(name, digest_size=16).hexdigest()}"
