"""Pages of items: as many as were asked for, or as fit, whichever is less.

Images and files are put back into their items for whoever lists them; a hundred large ones would be gigabytes. A page
that is full says that there is more, and the next one begins where it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from stateroom.journal.entries import ContextItem
from stateroom.wire.items import unpack, withheld
from stateroom.wire.responses import render_encoded_list

PAGE_BYTES: Final = 32 * 1024 * 1024
"""JSON of one page; a single item that is larger is a page of its own."""


async def render_items(
    part: Sequence[ContextItem],
    more: bool,
    show: Callable[[ContextItem], Awaitable[ContextItem]],
    include: Sequence[str],
) -> bytes:
    """The list of these items, encoded; `show` puts the bytes of their parts back."""
    encoded: list[tuple[str, bytes]] = []
    size = 0
    for held in part:
        shown = await show(held)
        item = msgspec.json.encode(withheld(unpack(shown.item, shown.id), include))
        size += len(item)
        if encoded and size > PAGE_BYTES:
            return render_encoded_list(encoded, True)
        encoded.append((shown.id, item))
    return render_encoded_list(encoded, more)
