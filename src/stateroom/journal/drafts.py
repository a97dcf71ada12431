"""What every store asks of an append before it touches anything: is it well formed, and which run does THIS mean.

Pure. A refusal here is a mistake of the calling code, never a race.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stateroom.errors import StorageError
from stateroom.journal.entries import Kind
from stateroom.journal.store import THIS, Append, Draft

SEQ_MAX: Final = 2**32 - 1
"""A branch holds at most this many entries."""


def this_run(entries: Sequence[Draft], first: int) -> int:
    """Seq of the run that these entries start when they begin at `first`; THIS when they start none."""
    for offset, draft in enumerate(entries):
        if draft.kind == Kind.RUN_STARTED:
            return first + offset
    return THIS


def check_append(change: Append) -> None:
    """Raise StorageError when `change` contradicts itself."""
    create = change.create
    if create is not None:
        if create.id != change.branch or create.project != change.project:
            raise malformed(change, "creates another branch or another project's")
        if change.lease is not None:
            raise malformed(change, "holds a lease of a branch that it creates")
        if not (create.parent or create.parent_seq == -1) or not -1 <= create.parent_seq <= SEQ_MAX:
            raise malformed(change, "has a fork point that does not fit its parent")
    if change.lease is not None and change.lease.branch != change.branch:
        raise malformed(change, "holds a lease of another branch")
    if change.frames_run == -1 and (change.frames or change.seal):
        raise malformed(change, "has frames of no run")
    if change.seal and len(change.frames) > 1:
        raise malformed(change, "seals with more than one frame")
    if _needs_this(change) and this_run(change.entries, 0) == THIS:
        raise malformed(change, "speaks of THIS run and starts none")


def malformed(change: Append, reason: str) -> StorageError:
    """The error for an append that contradicts itself."""
    return StorageError(f"An append to branch {change.branch!r} {reason}.", code="malformed_append")


def _needs_this(change: Append) -> bool:
    if change.frames_run == THIS:
        return True
    # A loop, because it runs for every append and a generator costs more than the whole check.
    for draft in change.entries:  # noqa: SIM110 - see above
        if draft.run == THIS:
            return True
    return False
