"""Folds the events of a stream before they are packed: numbers are counted, and like events are written once.

Almost all events of a stream are deltas that differ from their predecessor in one short text. Each event is written as
the length of the beginning and of the end that it shares with the event before it, and what stands between. The
lengths stand in columns, the texts in one piece: a packer finds little left to do, and finds the whole text again where
later events repeat it. What does not have this form is not folded; `fold` checks that `unfold` gives it back exactly.
"""

from __future__ import annotations

import sys
from array import array
from itertools import accumulate
from typing import Final

END: Final = b"\n\n"
_NUMBER: Final = b'"sequence_number":'
_HEADER: Final = 2
"""Numbers in front of the columns: how many events, and the sequence number of the first."""


def fold(body: bytes) -> bytes | None:
    """The folded form of events that end in a blank line each; None when they cannot be folded."""
    events = body.split(END)
    if events.pop() != b"" or not events:
        return None
    first = _number_of(events[0])
    if first is None:
        return None
    begin, text, end = b"", b"", b""
    closing: bytes | None = None
    starts, ends, sizes, texts = array("I"), array("I"), array("I"), []
    for number, event in enumerate(events, first):
        # Nearly all events are like the one before: to see that must cost little.
        ended = closing % number if closing is not None else None
        if ended and event.startswith(begin) and event.endswith(ended) and len(begin) + len(ended) <= len(event):
            text = event[len(begin) : len(event) - len(ended)]
        else:
            bare = _without_number(event, number)
            if bare is None:
                return None
            begin, end = _shared(begin + text + end, bare)
            text = bare[len(begin) : len(bare) - len(end)]
            closing = _closing(begin, end)
        starts.append(len(begin))
        ends.append(len(end))
        sizes.append(len(text))
        texts.append(text)
    columns = array("I", (len(events), first)) + starts + ends + sizes
    if sys.byteorder == "big":
        columns.byteswap()
    folded = columns.tobytes() + b"".join(texts)
    return folded if unfold(folded) == body else None


def unfold(folded: bytes) -> bytes:
    """What was folded. Raises ValueError on anything else."""
    width = array("I").itemsize
    header = _columns(folded[: _HEADER * width])
    if len(header) != _HEADER or len(folded) < (_HEADER + 3 * header[0]) * width:
        raise ValueError("a folded stream is cut off")
    count, first = header
    columns = _columns(folded[_HEADER * width : (_HEADER + 3 * count) * width])
    texts = folded[(_HEADER + 3 * count) * width :]
    starts, ends, sizes = columns[:count], columns[count : 2 * count], columns[2 * count :]
    bounds = accumulate(sizes, initial=0)
    begin = next(bounds)
    before = b""
    events: list[bytes] = []
    for number, start, end, bound in zip(range(first, first + count), starts, ends, bounds, strict=True):
        before = before[:start] + texts[begin:bound] + (before[-end:] if end else b"")
        begin = bound
        at = before.find(_NUMBER) + len(_NUMBER)
        events.append(b"%b%d%b" % (before[:at], number, before[at:]))
    events.append(b"")
    return END.join(events)


def _columns(raw: bytes) -> array[int]:
    columns = array("I")
    columns.frombytes(raw)
    if sys.byteorder == "big":
        columns.byteswap()
    return columns


def _number_of(event: bytes) -> int | None:
    at = event.find(_NUMBER)
    if at < 0:
        return None
    digits = event[at + len(_NUMBER) : at + len(_NUMBER) + 10].split(b",")[0].split(b"}")[0]
    return int(digits) if digits.isdigit() else None


def _without_number(event: bytes, number: int) -> bytes | None:
    at = event.find(_NUMBER) + len(_NUMBER)
    digits = b"%d" % number
    if at < len(_NUMBER) or not event.startswith(digits, at):
        return None
    return event[:at] + event[at + len(digits) :]


def _closing(begin: bytes, end: bytes) -> bytes | None:
    """What `end` becomes with the number in it, as a format; None when the next event is to be compared anew.

    That is so after the first event of a kind, which shares no more than some of the name with the one before.
    """
    at = end.find(_NUMBER) + len(_NUMBER)
    if at < len(_NUMBER) or _NUMBER in begin or b"\n" not in begin:
        return None
    return end[:at].replace(b"%", b"%%") + b"%d" + end[at:].replace(b"%", b"%%")


def _shared(before: bytes, event: bytes) -> tuple[bytes, bytes]:
    """The beginning and end that both share, cut back to a quote, so that the text of a delta stays in one piece."""
    begin = event[: _common(before, event)]
    begin = begin[: begin.rfind(b'"') + 1]
    rest, other = event[len(begin) :], before[len(begin) :]
    shared = _common(other[::-1], rest[::-1])
    end = rest[len(rest) - shared :]
    quote = end.find(b'"')
    return begin, end[quote:] if quote >= 0 else b""


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
