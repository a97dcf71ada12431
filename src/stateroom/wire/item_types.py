"""What an item of each type must hold to be accepted, and what of it can be derived and is therefore not kept.

The structs name the fields that are checked; every other field passes through untouched. They ask for less than
OpenAI's types do where real clients send less (ids and statuses are optional everywhere).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from stateroom.wire import parameters

Id: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
CallId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]
CallStatus: TypeAlias = Literal[
    "in_progress", "completed", "incomplete", "searching", "interpreting", "generating", "calling", "failed"
]
Role: TypeAlias = Literal["user", "assistant", "system", "developer"]


class _Common(msgspec.Struct):
    id: Id | None = None


class Caller(msgspec.Struct):
    """Who made a call: the model, or a program of its own."""

    type: Literal["direct", "program"]
    caller_id: CallId | None = None
    """The `call_id` of the program."""


class _Item(_Common):
    status: Status | None = None


class _HostedCall(_Common):
    status: CallStatus | None = None


class Message(_Item, kw_only=True):
    role: Role
    content: str | list[Any]
    phase: Literal["commentary", "final_answer"] | None = None


class TextPiece(msgspec.Struct):
    text: str
    type: str | None = None


class Reasoning(_Item):
    summary: list[TextPiece] | None = None
    content: list[TextPiece] | None = None
    encrypted_content: str | None = None


class FunctionCall(_Item, kw_only=True):
    call_id: CallId
    name: Name
    arguments: str
    namespace: str | None = None
    is_async: bool | None = msgspec.field(name="async", default=None)
    caller: Caller | None = None


class CallOutput(_Item, kw_only=True):
    call_id: CallId
    output: str | list[Any]
    name: str | None = None
    namespace: str | None = None
    caller: Caller | None = None


class CustomToolCall(_Item, kw_only=True):
    call_id: CallId
    name: Name
    input: str
    namespace: str | None = None
    is_async: bool | None = msgspec.field(name="async", default=None)
    caller: Caller | None = None


class FileSearchCall(_HostedCall, kw_only=True):
    queries: list[str]
    results: list[dict[str, Any]] | None = None


class WebSearchCall(_HostedCall):
    action: dict[str, Any] | None = None


class ComputerCall(_HostedCall, kw_only=True):
    call_id: CallId
    action: dict[str, Any] | None = None
    actions: list[dict[str, Any]] | None = None
    pending_safety_checks: list[dict[str, Any]] | None = None


class ComputerCallOutput(_HostedCall, kw_only=True):
    call_id: CallId
    output: dict[str, Any]
    acknowledged_safety_checks: list[dict[str, Any]] | None = None


class ImageGenerationCall(_HostedCall):
    result: str | None = None


class CodeInterpreterCall(_HostedCall, kw_only=True):
    container_id: str
    code: str | None = None
    outputs: list[dict[str, Any]] | None = None
    approval_request_id: str | None = None
    call_id: CallId | None = None
    """Of a call that a program made."""
    caller: Caller | None = None


class LocalShellCall(_Item, kw_only=True):
    call_id: CallId
    action: dict[str, Any]


class LocalShellCallOutput(_Item, kw_only=True):
    output: str


class ShellAction(msgspec.Struct):
    commands: list[str]
    max_output_length: int | None = None
    timeout_ms: int | None = None


class ShellCall(_Item, kw_only=True):
    call_id: CallId
    action: ShellAction
    environment: dict[str, Any] | None = None
    approval_request_id: str | None = None
    caller: Caller | None = None


class ShellOutcome(msgspec.Struct):
    type: Literal["exit", "timeout"]
    exit_code: int | None = None


class ShellChunk(msgspec.Struct):
    outcome: ShellOutcome
    stdout: str
    stderr: str


class ShellCallOutput(_Item, kw_only=True):
    call_id: CallId
    output: list[ShellChunk]
    max_output_length: int | None = None
    caller: Caller | None = None


class ApplyPatchCall(_Item, kw_only=True):
    call_id: CallId
    operation: dict[str, Any]
    approval_request_id: str | None = None
    caller: Caller | None = None


class ApplyPatchCallOutput(_Common, kw_only=True):
    call_id: CallId
    status: Literal["completed", "failed"] | None = None
    output: str | None = None
    caller: Caller | None = None


class McpListTools(_Common, kw_only=True):
    server_label: str
    tools: list[dict[str, Any]]
    error: Any = None


class McpApprovalRequest(_Common, kw_only=True):
    server_label: str
    name: str
    arguments: str
    call_id: CallId | None = None
    """Of a call that a program made."""
    caller: Caller | None = None


class McpApprovalResponse(_Common, kw_only=True):
    approval_request_id: Id
    approve: bool
    reason: str | None = None


class McpCall(_HostedCall, kw_only=True):
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: Any = None
    approval_request_id: str | None = None
    call_id: CallId | None = None
    """Of a call that a program made."""
    caller: Caller | None = None


class Compaction(_Common, kw_only=True):
    encrypted_content: str


class ItemReference(_Common, kw_only=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class AdditionalTools(_Common, kw_only=True):
    tools: list[dict[str, Any]]
    role: str | None = None


class ConfigurationUpdate(_Common):
    reasoning: parameters.Reasoning | None = None
    text: parameters.TextSettings | None = None


class ToolSearchCall(_Item, kw_only=True):
    arguments: Any
    call_id: str | None = None
    execution: Literal["server", "client"] | None = None
    caller: Caller | None = None


class ToolSearchOutput(_Item, kw_only=True):
    tools: list[dict[str, Any]]
    call_id: str | None = None
    execution: Literal["server", "client"] | None = None
    caller: Caller | None = None


class Program(_Common, kw_only=True):
    call_id: CallId
    code: str
    fingerprint: str


class ProgramOutput(_Common, kw_only=True):
    call_id: CallId
    result: str
    status: Literal["completed", "incomplete"] | None = None


class ItemType(msgspec.Struct, frozen=True):
    """One row of the table of item types."""

    prefix: str
    """Begins the ids of such items."""
    shape: type[Any]
    derived: dict[str, Any] = {}
    """Fields that are left out of a packed item when they hold this value, and put back when it is shown."""
    parts: str = ""
    """The field that holds content parts, if there is one."""


_DONE: Final[dict[str, Any]] = {"status": "completed"}

TYPES: Final[dict[str, ItemType]] = {
    "message": ItemType("msg", Message, _DONE, "content"),
    "reasoning": ItemType("rs", Reasoning, {"summary": [], "status": "completed"}),
    "function_call": ItemType("fc", FunctionCall, _DONE),
    "function_call_output": ItemType("fco", CallOutput, _DONE, "output"),
    "custom_tool_call": ItemType("ctc", CustomToolCall, _DONE),
    "custom_tool_call_output": ItemType("ctco", CallOutput, _DONE, "output"),
    "file_search_call": ItemType("fs", FileSearchCall, {"status": "completed", "results": None}),
    "web_search_call": ItemType("ws", WebSearchCall, {"status": "completed", "action": {"type": "search"}}),
    "computer_call": ItemType("cu", ComputerCall, {"status": "completed", "pending_safety_checks": []}),
    "computer_call_output": ItemType("cuo", ComputerCallOutput, _DONE, "output"),
    "image_generation_call": ItemType("ig", ImageGenerationCall, {"status": "completed", "result": None}),
    "code_interpreter_call": ItemType(
        "ci", CodeInterpreterCall, {"status": "completed", "code": None, "outputs": None}
    ),
    "local_shell_call": ItemType("lsh", LocalShellCall, _DONE),
    "local_shell_call_output": ItemType("lsho", LocalShellCallOutput, _DONE),
    "shell_call": ItemType("sh", ShellCall, _DONE),
    "shell_call_output": ItemType("sho", ShellCallOutput, _DONE),
    "apply_patch_call": ItemType("apc", ApplyPatchCall, _DONE),
    "apply_patch_call_output": ItemType("apco", ApplyPatchCallOutput, _DONE),
    "mcp_list_tools": ItemType("mcpl", McpListTools),
    "mcp_approval_request": ItemType("mcpr", McpApprovalRequest),
    "mcp_approval_response": ItemType("mcpa", McpApprovalResponse),
    "mcp_call": ItemType("mcp", McpCall, _DONE),
    "compaction": ItemType("cmp", Compaction),
    "item_reference": ItemType("ref", ItemReference),
    "additional_tools": ItemType("at", AdditionalTools, {"role": "developer"}),
    "configuration_update": ItemType("cfg", ConfigurationUpdate),
    "tool_search_call": ItemType(
        "tsc", ToolSearchCall, {"status": "completed", "execution": "server", "arguments": None}
    ),
    "tool_search_output": ItemType("tso", ToolSearchOutput, {"status": "completed", "execution": "server"}),
    "program": ItemType("prg", Program),
    "program_output": ItemType("prgo", ProgramOutput, _DONE),
}

REFUSED: Final[dict[str, str]] = {
    "compaction_trigger": "Only the last input item of POST /v1/responses may be a `compaction_trigger`.",
}
"""Types that are known and cannot be honoured where items are kept, with what to do instead."""
