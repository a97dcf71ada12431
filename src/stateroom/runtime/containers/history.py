"""The commits of a container in the journal: going through them, and finding one of them without reading them all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from stateroom import ids
from stateroom.journal.store import MARK_MAX, NoteRow
from stateroom.runtime.containers.state import CommitNote, Container, read_note
from stateroom.runtime.records import Collection, Held

_RECENT: Final = 2
"""Notes, the latest, among which a commit is looked for first: whoever names one mostly names the last."""
_AROUND: Final = 32
"""Notes among which it is looked for beyond the first from the time in its id on: commands that were noted while it was
made, since nothing else commits the container meanwhile."""


class Commits:
    """The commits of one container."""

    def __init__(self, collection: Collection[Container], held: Held[Container]) -> None:
        self._collection = collection
        self._held = held

    async def each(
        self, *, after: int = -1, before: int = MARK_MAX, newest_first: bool = True
    ) -> AsyncGenerator[CommitNote, None]:
        """Those between two marks."""
        async with aclosing(self._rows(after=after, before=before, newest_first=newest_first)) as rows:
            async for row in rows:
                note = read_note(row.note)
                if isinstance(note, CommitNote):
                    yield note

    async def find(self, commit_id: str) -> tuple[int, CommitNote] | None:
        """One of them, with its mark.

        The latest are looked at, then those from the time when its id was made. Only for an id of nothing, or where
        the clock was set back, all of them are.
        """
        collection, held = self._collection, self._held
        latest = await collection.some_notes(held.project, held.id, limit=_RECENT, newest_first=True)
        if found := _among(latest, commit_id):
            return found
        at = ids.made_at(commit_id)
        if at >= 0 and latest and (rows := await collection.noted_since(held.project, held.id, at, latest=latest[0])):
            if found := _among(rows, commit_id):
                return found
            more = await collection.some_notes(held.project, held.id, after=rows[-1].mark, limit=_AROUND)
            if found := _among(more, commit_id):
                return found
        async with aclosing(self._rows(newest_first=True)) as all_of_them:
            async for row in all_of_them:
                if found := _among([row], commit_id):
                    return found
        return None

    def _rows(self, *, after: int = -1, before: int = MARK_MAX, newest_first: bool) -> AsyncGenerator[NoteRow, None]:
        held = self._held
        return self._collection.note_rows(held.project, held.id, after=after, before=before, newest_first=newest_first)


def _among(rows: Sequence[NoteRow], commit_id: str) -> tuple[int, CommitNote] | None:
    asked = commit_id.encode("utf-8", "replace")
    for row in rows:
        if asked not in bytes(row.note):  # most are another's, and are not worth being read
            continue
        note = read_note(row.note)
        if isinstance(note, CommitNote) and note.id == commit_id:
            return row.mark, note
    return None
