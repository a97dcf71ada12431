"""Watching the calls of hosted tools: how often, how long, with which outcome. Never arguments or results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from stateroom.telemetry.context import current_trace
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.spans import Span, Value
from stateroom.tools.tool import ToolCall


class ToolWatch:
    """One call. `failed` is to be set by who sees its result."""

    __slots__ = ("failed",)

    def __init__(self) -> None:
        self.failed = False


@contextmanager
def watched(instruments: Instruments, tool: str, call: ToolCall) -> Iterator[ToolWatch]:
    """Around the call itself. What the tool asks of other servers belongs to its span."""
    watch, began, outcome = ToolWatch(), time.monotonic(), "broke"
    trace, span = current_trace.get(), _span(instruments, tool, call)
    token = current_trace.set(span.context if span is not None else trace)
    try:
        yield watch
        outcome = "failed" if watch.failed else "ok"
    finally:
        current_trace.reset(token)
        instruments.tool_calls.add((tool, outcome))
        instruments.tool_seconds.observe((tool,), time.monotonic() - began)
        if span is not None:
            span.end({}, error="" if outcome == "ok" else outcome)


def _span(instruments: Instruments, tool: str, call: ToolCall) -> Span | None:
    if instruments.tracer is None:
        return None
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool,
        "gen_ai.tool.type": "extension",
        "gen_ai.tool.call.id": call.call_id,
        "stateroom.tool.attempt": call.attempt,
    }
    return instruments.tracer.start(f"execute_tool {tool}", "internal", attributes, parent=current_trace.get())
