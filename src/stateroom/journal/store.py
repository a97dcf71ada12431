"""The seam of the journal: what a store must do, in eight verbs, and the index it derives from its entries.

A store is handed whole appends and commits each of them entirely or not at all. It knows branches, seqs, leases and
frames; what an entry means it knows only through `journal.index`, whose rows it keeps in the same transaction.
Every store passes `stateroom.testing.journal_conformance`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from stateroom.journal.entries import Entry, Frame


class Branch(msgspec.Struct, frozen=True):
    """An append-only sequence of entries."""

    id: str
    project: str
    parent: str = ""
    """The branch it was forked from, or ''."""
    parent_seq: int = -1
    """Last seq of the parent that it shares; its own entries begin at the next."""
    head: int = -1
    """Seq of its last entry; `parent_seq` while it has none of its own."""


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An entry on its way in; the store gives it the next seq."""

    kind: str
    body: bytes
    at: int
    run: int = -1
    """Seq of its run's first entry; `THIS` for that first entry itself."""


THIS = -2
"""In `Draft.run`: the run that this very entry starts."""
MARK_MAX: Final = 2**63 - 1
"""Beyond every mark."""


class Lease(msgspec.Struct, frozen=True):
    """The right to write one branch. `fence` grows with every holder; an older one can write nothing more."""

    branch: str
    fence: int


class Append(msgspec.Struct, frozen=True):
    """One atomic change of one branch. Either all of it is committed or none.

    The append is refused with HeadMoved unless `expected` is the head (not checked when it is None, for changes that
    carry frames alone), and with Fenced unless `lease` is the current one. Without a lease, `acquire` takes a free or
    expired one in the same commit (HeadMoved when somebody else holds it); entries without either are refused likewise
    while somebody holds the branch. Entries extend the lease they come with; frames alone do not.
    """

    project: str
    branch: str
    expected: int | None = None
    entries: Sequence[Draft] = ()
    create: Branch | None = None
    """Create this branch first (its `parent_seq` must not lie beyond the parent's head)."""
    lease: Lease | None = None
    acquire: str = ""
    """Holder that takes the lease with this append."""
    lease_seconds: float = 30.0
    release: bool = False
    """Give the lease back in the same commit."""
    frames_run: int = -1
    """Run whose frames follow: seq of its first entry, or `THIS` when this append starts it (its first entry)."""
    frames: Sequence[Frame] = ()
    seal: bool = False
    """Replace all frames of the run by the single one given here (stored compressed)."""


class Appended(msgspec.Struct, frozen=True, gc=False):
    """What a commit answered."""

    head: int
    lease: Lease | None
    """The lease as it stands after the append; None when it was released or never asked for."""


class Journal(Protocol):
    """The only truth. All methods raise StorageError subclasses and nothing else of their own."""

    def append(self, change: Append) -> Awaitable[Appended]:
        """Commit `change`; resolves after the commit. Appends of one branch are committed in call order.

        Raises HeadMoved, Fenced, StorageFull.
        """
        ...

    def renew(self, leases: Sequence[Lease], seconds: float) -> Awaitable[Sequence[Lease]]:
        """Extend leases; returns those that are still held."""
        ...

    async def branch(self, project: str, branch: str) -> Branch | None:
        """The branch, or None when it is missing or another project's."""
        ...

    async def read(
        self, project: str, branch: str, *, after: int = -1, upto: int | None = None, run: int | None = None
    ) -> list[Entry]:
        """Entries with `after` < seq <= `upto`, oldest first, through all ancestors of the branch.

        With `run`, only that run's entries of this branch itself. A foreign or missing branch reads as empty.
        """
        ...

    async def frames(self, project: str, branch: str, run: int, *, after: int = -1) -> list[Frame]:
        """Frames of a run whose last event is beyond `after`, in order; sealed ones come back unpacked."""
        ...

    def redact(self, project: str, branch: str, bodies: Mapping[int, bytes | None], *, at: int) -> Awaitable[None]:
        """Overwrite the bodies of own entries of `branch`; None erases an entry altogether (kind ERASED).

        An erased entry takes the frames of its run with it, unless it is about a record, whose entries stay about the
        same one. Index rows follow the new bodies in the same commit.
        """
        ...

    async def rebuild(self) -> None:
        """Drop every index row and derive it anew from the entries."""
        ...

    async def close(self) -> None:
        """Finish what was handed in, then close. Later calls raise StorageError."""
        ...


class RunRow(msgspec.Struct, frozen=True, gc=False):
    """Where a run stands in the journal."""

    id: str
    branch: str
    start: int
    """Seq of its RUN_STARTED entry, by which the run is known on its branch."""
    end: int
    """Seq of its RUN_ENDED entry; -1 while it is open."""
    status: str
    """in_progress until it has ended."""
    surface: str
    created_at: int
    """Milliseconds since the epoch."""
    project: str = ""


class ItemRow(msgspec.Struct, frozen=True, gc=False):
    """Where an item with an id of its own stands: entry and position within it."""

    id: str
    branch: str
    seq: int
    position: int


class ConversationRow(msgspec.Struct, frozen=True):
    """A living conversation."""

    id: str
    branch: str
    created_at: int
    metadata: dict[str, str]
    forked_from: str = ""


class EndedRun(msgspec.Struct, frozen=True, gc=False):
    """Where a run that has ended stands, and since when."""

    project: str
    branch: str
    start: int
    end: int
    ended_at: int
    """Milliseconds since the epoch."""
    conversation: bool
    """Whether its branch is a living conversation's."""
    mark: int
    """Its place in the list that it is from."""


class RecordRow(msgspec.Struct, frozen=True):
    """A record as it stands."""

    collection: str
    id: str
    branch: str
    """Where its latest state was written."""
    seq: int
    state: msgspec.Raw
    created_at: int
    """Milliseconds since the epoch: when it was first put."""
    changed_at: int
    """When its latest state was put."""
    open: bool = False
    expires_at: int = 0
    project: str = ""
    blobs: list[str] = []


class RecordPlace(msgspec.Struct, frozen=True, gc=False):
    """Where an entry stands that says something of a record."""

    branch: str
    seq: int
    note: bool
    """Whether it is a note and not a state."""
    gone: bool
    """Whether it was said before the record was last dropped, so that it is to be erased."""


class NoteRow(msgspec.Struct, frozen=True):
    """A note about a living record."""

    mark: int
    """Its place in the order of arrival: what is noted later has a greater one, for as long as the journal is open."""
    at: int
    """Milliseconds since the epoch."""
    note: msgspec.Raw


class RecordName(msgspec.Struct, frozen=True, gc=False):
    """Which record."""

    project: str
    collection: str
    id: str


class Index(Protocol):
    """Look-ups derived from the entries; the store keeps them in the transaction that appends."""

    async def run(self, project: str, run_id: str) -> RunRow | None: ...

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
        """Runs of a surface ('' = of all) by age, between those named `after` and `before` ('' = without a bound).

        None are listed when one that is named is missing.
        """
        ...

    async def open_runs(self) -> list[RunRow]:
        """All runs without a terminal entry, of every project: what recovery has to take up."""
        ...

    async def runs_on(self, project: str, branch: str) -> list[RunRow]:
        """The runs of one branch, oldest first."""
        ...

    async def projects(self) -> list[str]:
        """Every project of which anything was ever written, oldest first."""
        ...

    async def branches(self, project: str, *, after: str = "", limit: int = 100) -> list[Branch]:
        """The branches of a project beyond the one named `after` ('' = from the beginning), oldest first."""
        ...

    async def ended_runs(self, project: str, upto: int, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        """Runs that ended at `upto` (milliseconds) or before, beyond the mark `after`, oldest first."""
        ...

    async def kept_streams(self, *, after: int = 0, limit: int = 100) -> list[EndedRun]:
        """Ended runs of every project whose sealed frames are kept, beyond a mark, in an order of the store's own."""
        ...

    async def needed(self, project: str, branch: str, since: int) -> int:
        """The last seq of a branch that something on itself needs; -1: none, or the branch is missing or foreign.

        A living conversation and an open run need it to its head, a run that ended after `since` to that run's end.
        """
        ...

    async def item(self, project: str, item_id: str) -> ItemRow | None:
        """An item that brought its own id or was added to a conversation; the latest one wins."""
        ...

    async def conversation(self, project: str, conversation_id: str) -> ConversationRow | None: ...

    async def conversations(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True
    ) -> list[ConversationRow]: ...

    async def children(self, project: str, branch: str) -> list[Branch]:
        """Branches forked directly from this one."""
        ...

    async def blob_in_use(self, digest: str) -> bool:
        """Whether any entry of any project still refers to the blob."""
        ...

    async def record(self, project: str, collection: str, record_id: str) -> RecordRow | None: ...

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
        """Records by age of their first state, between those named, as `runs`."""
        ...

    async def open_records(self, collection: str) -> list[RecordRow]:
        """Records of every project whose latest state is open, oldest first."""
        ...

    async def expired_records(self, now: int, *, limit: int = 100) -> list[RecordRow]:
        """Records of every project and collection whose time has come by `now` (milliseconds), soonest first."""
        ...

    async def record_places(self, project: str, collection: str, record_id: str) -> list[RecordPlace]:
        """All that is said of a record and not erased, whether it is there or was dropped.

        Its states, then its notes, each in order of arrival.
        """
        ...

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
        """What was noted of a record since it was last dropped and is not erased, between two marks, by arrival."""
        ...

    async def unerased_records(self) -> list[RecordName]:
        """Records of every project that were dropped, and of which something from before is not erased yet."""
        ...
