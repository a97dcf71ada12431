"""The events of a response's stream: each a line `event: TYPE` and a line `data: JSON`, then `data: [DONE]`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from stateroom.wire.openapi.schemas import OutputItem, Schema, ShownPart, any_of, ref

Whole = Annotated[Any, msgspec.Meta(extra_json_schema=ref("Response"))]


class Numbered(msgspec.Struct, kw_only=True):
    sequence_number: Annotated[int, msgspec.Meta(ge=0, description="From 0, without gaps, the same whenever read.")]


class InItem(Numbered, kw_only=True):
    item_id: str
    output_index: int


class InPart(InItem, kw_only=True):
    content_index: int


class InSummary(InItem, kw_only=True):
    summary_index: int


class ResponseLifeEvent(Numbered, kw_only=True):
    """The response as it is now."""

    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Whole


class OutputItemEvent(Numbered, kw_only=True):
    """An item begins, or is finished."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class ContentPartEvent(InPart, kw_only=True):
    """A part of an item begins, or is finished."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: ShownPart


class OutputTextDelta(InPart, kw_only=True):
    """More of what the model says."""

    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[dict[str, Any]]
    obfuscation: str = ""


class OutputTextDone(InPart, kw_only=True):
    """All of it."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[dict[str, Any]]


class ContentDelta(InPart, kw_only=True):
    """More of a refusal, or of reasoning."""

    type: Literal["response.refusal.delta", "response.reasoning_text.delta"]
    delta: str
    obfuscation: str = ""


class RefusalDone(InPart, kw_only=True):
    type: Literal["response.refusal.done"]
    refusal: str


class ReasoningTextDone(InPart, kw_only=True):
    type: Literal["response.reasoning_text.done"]
    text: str


class SummaryPartEvent(InSummary, kw_only=True):
    """A part of what is told of reasoning begins, or is finished."""

    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    part: ShownPart


class SummaryTextDelta(InSummary, kw_only=True):
    type: Literal["response.reasoning_summary_text.delta"]
    delta: str
    obfuscation: str = ""


class SummaryTextDone(InSummary, kw_only=True):
    type: Literal["response.reasoning_summary_text.done"]
    text: str


class CallDelta(InItem, kw_only=True):
    """More of a call's arguments, or of a custom tool's input."""

    type: Literal["response.function_call_arguments.delta", "response.custom_tool_call_input.delta"]
    delta: str
    obfuscation: str = ""


class FunctionArgumentsDone(InItem, kw_only=True):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class CustomInputDone(InItem, kw_only=True):
    type: Literal["response.custom_tool_call_input.done"]
    input: str


class CompactingEvent(InItem, kw_only=True):
    """The summary of a compaction is being written."""

    type: Literal["response.compaction.compacting"]


class ErrorEvent(Numbered, kw_only=True):
    """Why the run fails; `response.failed` follows."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None


EVENT_SHAPES: Final = (
    ResponseLifeEvent,
    OutputItemEvent,
    ContentPartEvent,
    OutputTextDelta,
    OutputTextDone,
    ContentDelta,
    RefusalDone,
    ReasoningTextDone,
    SummaryPartEvent,
    SummaryTextDelta,
    SummaryTextDone,
    CallDelta,
    FunctionArgumentsDone,
    CustomInputDone,
    CompactingEvent,
    ErrorEvent,
)


def event_schemas() -> dict[str, Schema]:
    """The union of all events."""
    events = any_of(*(ref(kind.__name__) for kind in EVENT_SHAPES))
    events["description"] = "What `data` of an event holds."
    return {"ResponseEvent": events}
