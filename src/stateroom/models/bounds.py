"""A bound on the text of one answer, kept to the character: an answer may come in one piece, however long it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from stateroom.models.backend import Delta, Finished, ItemDelta, TextDelta, ToolCallDelta
from stateroom.models.stops import within


def bounded(batch: Sequence[Delta], room: int) -> tuple[Sequence[Delta], bool]:
    """What of a batch has so many characters of text at most, and whether that is not all of it.

    How the answer ended, and what it used, is kept in any case.
    """
    left = room
    for delta in batch:
        # Nearly all of them are text, and a call for each would cost more than all the rest.
        left -= len(delta.text) if type(delta) is TextDelta else _size(delta)
    return (batch, False) if left >= 0 else (list(_cut(batch, room)), True)


def _size(delta: Delta) -> int:
    if isinstance(delta, ToolCallDelta):
        return len(delta.arguments)
    return 0 if isinstance(delta, Finished | ItemDelta) else len(delta.text)


def _cut(batch: Sequence[Delta], room: int) -> Iterator[Delta]:
    for delta in batch:
        size = _size(delta)
        if isinstance(delta, Finished) or (room >= 0 and size <= room):
            yield delta
        elif room > 0:
            yield _beginning(delta, room)
        room = room - size if size <= room else -1


def _beginning(delta: Delta, size: int) -> Delta:
    if isinstance(delta, TextDelta):
        text = delta.text[:size]
        return TextDelta(text, within(delta.logprobs, text) if delta.logprobs else None)
    if isinstance(delta, ToolCallDelta):
        return msgspec.structs.replace(delta, arguments=delta.arguments[:size])
    return delta if isinstance(delta, Finished | ItemDelta) else msgspec.structs.replace(delta, text=delta.text[:size])
