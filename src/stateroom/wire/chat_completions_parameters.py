"""What a body of `POST /v1/chat/completions` may hold, as typed structs, with OpenAI's bounds.

Every parameter is optional and may be null here; what is missing, contradicts itself or cannot be honoured is decided
in chat_completions_requests.py. What is not named here is ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from stateroom.wire import parameters
from stateroom.wire.item_types import CallId, Name

ToolName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
StopText: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Bias: TypeAlias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
Tokens: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SchemaFormat(parameters.Sparse):
    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class ObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: SchemaFormat


class NamedFunction(msgspec.Struct):
    name: ToolName


class LegacyFunction(msgspec.Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Create(msgspec.Struct):
    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: parameters.Penalty | None = None
    frequency_penalty: parameters.Penalty | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: StopText | Annotated[list[StopText], msgspec.Meta(max_length=4)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: Annotated[dict[str, Bias], msgspec.Meta(max_length=1024)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[LegacyFunction], msgspec.Meta(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    response_format: TextFormat | ObjectFormat | JsonSchemaFormat | None = None
    reasoning_effort: parameters.Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    metadata: parameters.Metadata | None = None
    user: str | None = None
    safety_identifier: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: parameters.CacheOptions | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    moderation: Any = None


class Update(msgspec.Struct):
    metadata: parameters.Metadata | None


# Messages and their parts.


class TextMessage(msgspec.Struct):
    """Of the system, a developer or a user."""

    content: str | list[dict[str, Any]]
    name: str | None = None


class LegacyCall(msgspec.Struct):
    name: Name
    arguments: str


class AssistantMessage(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: LegacyCall | None = None
    audio: Any = None


class ToolMessage(msgspec.Struct):
    tool_call_id: CallId
    content: str | list[dict[str, Any]] | None


class FunctionMessage(msgspec.Struct):
    name: Name
    content: str | None


class CalledFunction(msgspec.Struct):
    name: Name
    arguments: str


class CalledCustom(msgspec.Struct):
    name: Name
    input: str


class FunctionToolCall(msgspec.Struct):
    id: CallId
    function: CalledFunction


class CustomToolCall(msgspec.Struct):
    id: CallId
    custom: CalledCustom


class TextPart(msgspec.Struct):
    text: str


class RefusalPart(msgspec.Struct):
    refusal: str


class ImageUrl(msgspec.Struct):
    url: Annotated[str, msgspec.Meta(min_length=1)]
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(msgspec.Struct):
    image_url: ImageUrl


class FileSource(msgspec.Struct):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class FilePart(msgspec.Struct):
    file: FileSource


# Tools.


class Function(msgspec.Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct):
    function: Function


class Grammar(msgspec.Struct):
    syntax: Literal["lark", "regex"]
    definition: str


class GrammarFormat(msgspec.Struct, tag_field="type", tag="grammar"):
    grammar: Grammar


class FreeTextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class Custom(msgspec.Struct):
    name: ToolName
    description: str | None = None
    format: GrammarFormat | FreeTextFormat | None = None


class CustomTool(msgspec.Struct):
    custom: Custom


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class NamedTool(msgspec.Struct):
    name: ToolName
