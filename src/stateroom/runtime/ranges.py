"""A part of what is made piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing


async def part_of(
    pieces: AsyncGenerator[bytes, None], first: int, last: int | None, size: int
) -> AsyncGenerator[bytes, None]:
    """The bytes from `first` to `last` (inclusive; None: the end) of what is `size` bytes long as a whole."""
    at, end = 0, size if last is None else last + 1
    async with aclosing(pieces):
        async for piece in pieces:
            part = piece[max(0, first - at) : max(0, end - at)]
            at += len(piece)
            if part:
                yield part
            if at >= end:
                return
