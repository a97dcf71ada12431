"""Erasing a whole project: every entry, record, stream and blob of it. For a journal that no server works on.

What stays is what stays of everything that is erased: places, kinds and times, and the project's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from stateroom.blobs.store import Blobs
from stateroom.journal.entries import Kind
from stateroom.journal.store import Index, Journal

_AT_ONCE: Final = 500
"""Entries of one commit."""
_KEPT: Final = frozenset({Kind.ERASED, Kind.CONVERSATION_DELETED})


class Gone(NamedTuple):
    """How much was erased."""

    branches: int
    entries: int
    blobs: int


async def erase_project(
    journal: Journal, index: Index, blobs: Blobs, project: str, *, at: int, progress: Callable[[int], None]
) -> Gone:
    """Erase it; may be cut off anywhere and asked for again. `progress` is told how many entries are gone."""
    branches = entries = 0
    page = await index.branches(project)
    while page:
        for branch in page:
            left = [
                entry.seq
                for entry in await journal.read(project, branch.id, after=branch.parent_seq)
                if entry.kind not in _KEPT
            ]
            for first in range(0, len(left), _AT_ONCE):
                await journal.redact(project, branch.id, dict.fromkeys(left[first : first + _AT_ONCE]), at=at)
            branches += bool(left)
            entries += len(left)
            progress(entries)
        page = await index.branches(project, after=page[-1].id)
    return Gone(branches, entries, await _drop_unused(index, blobs))


async def _drop_unused(index: Index, blobs: Blobs) -> int:
    dropped = 0
    for digest in await blobs.digests():
        if not await index.blob_in_use(digest):
            await blobs.delete(digest)
            dropped += 1
    return dropped
