"""The seam of the journal: what a store must do, in eight verbs, and the index it derives from its entries.

A store is handed whole appends and commits each of them entirely or not at all. It knows branches, seqs, leases and
frames; what an entry means it knows only through `journal.index`, whose rows it keeps in the same transaction.
Every store passes `stateroom.testing.journal_conformance`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

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

        An erased entry takes the frames of its run with it. Index rows follow the new bodies in the same commit.
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


class Index(Protocol):
    """Look-ups derived from the entries; the store keeps them in the transaction that appends."""

    async def run(self, project: str, run_id: str) -> RunRow | None: ...

    async def runs(self, project: str, *, after: str = "", limit: int = 20, descending: bool = True) -> list[RunRow]:
        """Runs by age, beyond the one named `after` ('' = from the beginning)."""
        ...

    async def open_runs(self) -> list[RunRow]:
        """All runs without a terminal entry, of every project: what recovery has to take up."""
        ...

    async def runs_on(self, project: str, branch: str) -> list[RunRow]:
        """The runs of one branch, oldest first."""
        ...

    async def item(self, project: str, item_id: str) -> ItemRow | None:
        """An item that brought its own id or was added to a conversation; the latest one wins."""
        ...

    async def conversation(self, project: str, conversation_id: str) -> ConversationRow | None: ...

    async def conversations(
        self, project: str, *, after: str = "", limit: int = 20, descending: bool = True
    ) -> list[ConversationRow]: ...

    async def children(self, project: str, branch: str) -> list[Branch]:
        """Branches forked directly from this one."""
        ...

    async def blob_in_use(self, digest: str) -> bool:
        """Whether any entry of any project still refers to the blob."""
        ...
