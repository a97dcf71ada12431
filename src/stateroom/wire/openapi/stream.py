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


class HostedCallEvent(InItem, kw_only=True):
    """How far a call is that the server carries out."""

    type: Literal[
        "response.code_interpreter_call.in_progress",
        "response.code_interpreter_call.interpreting",
        "response.code_interpreter_call.completed",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed",
        "response.mcp_list_tools.failed",
    ]


class HostedCallDelta(InItem, kw_only=True):
    """More of its code, or of its arguments."""

    type: Literal["response.code_interpreter_call_code.delta", "response.mcp_call_arguments.delta"]
    delta: str


class CodeDone(InItem, kw_only=True):
    type: Literal["response.code_interpreter_call_code.done"]
    code: str


class McpArgumentsDone(InItem, kw_only=True):
    type: Literal["response.mcp_call_arguments.done"]
    arguments: str


class ShellCommandEvent(Numbered, kw_only=True):
    """A command of a shell call begins, or is whole."""

    type: Literal["response.shell_call_command.added", "response.shell_call_command.done"]
    output_index: int
    command_index: int
    command: str


class ShellCommandDelta(Numbered, kw_only=True):
    type: Literal["response.shell_call_command.delta"]
    output_index: int
    command_index: int
    delta: str


class Printed(msgspec.Struct):
    stdout: str
    stderr: str


class ShellOutputDelta(InItem, kw_only=True):
    """A command says something while it runs."""

    type: Literal["response.shell_call_output_content.delta"]
    command_index: int
    delta: Printed


class ShellOutputDone(InItem, kw_only=True):
    """What came of a command."""

    type: Literal["response.shell_call_output_content.done"]
    command_index: int
    output: list[dict[str, Any]]


class AnnotationAdded(InPart, kw_only=True):
    """Something in the text refers to a file."""

    type: Literal["response.output_text.annotation.added"]
    annotation_index: int
    annotation: dict[str, Any]


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
    HostedCallEvent,
    HostedCallDelta,
    CodeDone,
    McpArgumentsDone,
    ShellCommandEvent,
    ShellCommandDelta,
    ShellOutputDelta,
    ShellOutputDone,
    AnnotationAdded,
    ErrorEvent,
)


def event_schemas() -> dict[str, Schema]:
    """The union of all events."""
    events = any_of(*(ref(kind.__name__) for kind in EVENT_SHAPES))
    events["description"] = "What `data` of an event holds."
    return {"ResponseEvent": events}
