"""A run as a renderer sees it, and its stream as a reader does: what the tests of events begin with."""

from __future__ import annotations

from typing import Any

import msgspec

from stateroom.journal.entries import Item, OutputItem, RunSettings, RunView, Usage
from stateroom.wire.events import ResponsesRenderer, events_of

MESSAGE: Item = {"role": "assistant", "content": []}
REASONING: Item = {"type": "reasoning", "summary": []}
CALL: Item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": ""}
CUSTOM: Item = {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": ""}


def view(status: str = "in_progress", *output: OutputItem, **changes: Any) -> RunView:
    return RunView(
        **{
            "id": "resp_1",
            "created_at": 1_700_000_000_000,
            "settings": RunSettings(model="m"),
            "status": status,
            "output": output,
            "usage": Usage(1, 2) if status == "completed" else None,
            "ended_at": 1_700_000_001_000 if status == "completed" else 0,
            **changes,
        }
    )


def begun(**options: Any) -> ResponsesRenderer:
    renderer = ResponsesRenderer(view(), **options)
    renderer.begin(view())
    return renderer


def taken(renderer: ResponsesRenderer) -> list[dict[str, Any]]:
    frame = renderer.take()
    assert frame is not None
    events = [msgspec.json.decode(data) for data in events_of(frame.body)]
    assert [event["sequence_number"] for event in events] == list(range(frame.first, frame.last + 1))
    return events


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]
