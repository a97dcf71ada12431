"""The byte format of server-sent events: framing, cutting and taking apart what was already encoded.

One event is `event: TYPE`, one `data:` line of JSON, and a blank line, all ended by a single LF. Characters at which
some readers break lines (U+0085, U+2028, U+2029) are written as JSON escapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

DONE: Final = b"data: [DONE]\n\n"
"""Ends a stream of events on HTTP. It has no sequence number and is no part of a frame."""

KEEPALIVE: Final = b": keepalive\n\n"
"""A comment: keeps proxies from closing a silent stream."""

_DATA: Final = b"\ndata: "
_LINE_BREAKS: Final = (
    (b"\xc2\x85", b"\\u0085"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)


def escape_line_breaks(body: bytes) -> bytes:
    """Make encoded events safe for readers that split lines as Unicode does. Inside JSON this changes no value."""
    if not body.isascii():
        for raw, escaped in _LINE_BREAKS:
            body = body.replace(raw, escaped)
    return body


def slice_events(body: bytes, first: int, after: int) -> bytes:
    """The events of a frame beyond sequence number `after`. `first` is the number of the frame's first event."""
    start = 0
    for _ in range(after - first + 1):
        end = body.find(b"\n\n", start)
        if end < 0:
            return b""
        start = end + 2
    return body[start:] if start else body


def events_of(body: bytes) -> Iterator[bytes]:
    """The JSON of each event in a frame."""
    start = 0
    while (end := body.find(b"\n\n", start)) >= 0:
        yield body[body.index(_DATA, start) + len(_DATA) : end]
        start = end + 2
