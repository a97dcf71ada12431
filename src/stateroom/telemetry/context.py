"""What a task works for: the request it came in with, and its place in a trace (W3C Trace Context). No tracing library.

Both go along in context variables, which tasks inherit: a run that goes on in the background continues the trace of the
request that began it without anybody handing it on. Nothing here decides anything; what it holds is for logs, counters
and headers only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_STATE: Final = re.compile(rb"[\x20-\x7e]{1,512}")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class TraceContext:
    """A span, ours or somebody else's, as `traceparent` and `tracestate` name it."""

    __slots__ = ("flags", "own", "span_id", "state", "trace_id")

    def __init__(self, trace_id: str, span_id: str, flags: str = "01", state: str = "", *, own: bool = False) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.state = state
        self.own = own
        """It is recorded here: what follows from it names it as its parent."""

    @property
    def sampled(self) -> bool:
        return bool(int(self.flags, 16) & 1)

    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def outgoing(self) -> dict[str, str]:
        """Headers for what is asked of another server. A span that is not ours to name gets a child id of its own."""
        span_id = self.span_id if self.own else os.urandom(8).hex()
        headers = {"traceparent": f"00-{self.trace_id}-{span_id}-{self.flags}"}
        if self.state:
            headers["tracestate"] = self.state
        return headers


class Asked:
    """One request, as far as who answers it notes things down for its line in the log."""

    __slots__ = ("code", "count", "request_id", "run_id", "trace_id")

    def __init__(self, count: Callable[[str], None] | None = None) -> None:
        self.count = count
        """Told of each error, where there may be more than one: on a WebSocket."""
        self.request_id = ""
        self.trace_id = ""
        self.run_id = ""
        """The run that it began."""
        self.code = ""
        """The error that it was answered with."""


current_request: Final[ContextVar[Asked | None]] = ContextVar("stateroom_request", default=None)
current_trace: Final[ContextVar[TraceContext | None]] = ContextVar("stateroom_trace", default=None)


def note_request(request_id: str) -> None:
    """The request of this task goes by that id."""
    asked = current_request.get()
    if asked is not None:
        asked.request_id = request_id


def note_error(code: str) -> None:
    """The request of this task is answered with that error."""
    asked = current_request.get()
    if asked is None:
        return
    asked.code = code
    if asked.count is not None:
        asked.count(code)


def read_trace(parent: bytes, state: bytes = b"") -> TraceContext | None:
    """What a client's headers say; None when they say nothing that can be understood."""
    found = _PARENT.fullmatch(parent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = (part.decode() if part is not None else "" for part in found.groups())
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    # A later version may give other flags a meaning; of these two are known.
    known = f"{int(flags, 16) & 3:02x}"
    return TraceContext(trace_id, span_id, known, state.decode() if _STATE.fullmatch(state) else "")


def traced(held: str) -> TraceContext | None:
    """The context that an entry of the journal holds."""
    return read_trace(held.encode()) if held else None


def to_keep() -> str:
    """What an entry is to hold of the current trace, so that what a crash cuts off can be told to belong to it."""
    trace = current_trace.get()
    if trace is None or (trace.own and not trace.sampled):
        return ""
    return trace.header()
