"""A journal for tests that count what is read."""

from __future__ import annotations

from typing import Any

from stateroom.journal.memory import MemoryJournal
from stateroom.journal.store import NoteRow


class CountedJournal(MemoryJournal):
    """Knows how many notes were read of it."""

    notes = 0

    async def record_notes(self, *asked: Any, **more: Any) -> list[NoteRow]:
        rows = await super().record_notes(*asked, **more)
        self.notes += len(rows)
        return rows
