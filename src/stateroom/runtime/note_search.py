"""Finding a note by the time when it was noted, among many, with few reads. Nothing here knows what a record is."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Protocol

from stateroom.journal.store import NoteRow

AT_ONCE: Final = 32
"""Notes that one look reads: they cost little more than one."""


class Read(Protocol):
    """Reads notes beyond a mark, by arrival."""

    def __call__(self, *, after: int = -1, limit: int, newest_first: bool = False) -> Awaitable[list[NoteRow]]: ...


async def first_since(read: Read, since: int, latest: NoteRow | None = None) -> list[NoteRow]:
    """The first notes from `since` (milliseconds) on, if the clock never went back: one at least, unless there is none.

    `latest`: the last of them, if it is known. It looks where the first would be if notes had come at a steady pace,
    and each third time in the middle of what is left: two or three looks are usual, and three a halving the most.
    """
    found = [latest] if latest is not None else await read(limit=1, newest_first=True)
    if not found or found[0].at < since:
        return []
    oldest = await read(limit=1)
    if not oldest or oldest[0].at >= since:
        return oldest
    low = oldest[0]
    ceiling, margin, looks = found[0].mark, AT_ONCE // 2, 0
    # The note at `low` is too early, the first that was found is not, and none is between the ceiling and that.
    while low.mark < ceiling:
        looks += 1
        middle = (low.mark + ceiling) // 2
        guess = middle if looks % 3 == 0 else _steady(low, found[0], since) - margin
        after = max(low.mark, min(guess, ceiling - 1))
        rows = await read(after=after, limit=AT_ONCE)
        later = next((place for place, row in enumerate(rows) if row.at >= since), None)
        if later:
            return rows[later:]
        if not rows:  # erased meanwhile
            break
        if later is None:
            low = rows[-1]
        else:
            found, ceiling = rows, after
        margin = (rows[-1].mark - rows[0].mark) // 2
    return found


def _steady(low: NoteRow, high: NoteRow, since: int) -> int:
    return low.mark + (high.mark - low.mark) * (since - low.at) // max(1, high.at - low.at)
