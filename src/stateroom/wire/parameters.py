"""The parameters that request bodies may hold, as typed structs, with OpenAI's bounds.

Every one is optional and may be null here; what is missing or cannot be honoured is decided in `requests.py`.
Parameters that are not named here are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

INCLUDABLE: Final = frozenset(
    (
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
        "message.output_text.logprobs",
    )
)

Metadata: TypeAlias = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=16),
]
Penalty: TypeAlias = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Tokens: TypeAlias = Annotated[int, msgspec.Meta(ge=16, le=2**31 - 1)]
Calls: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Identifier: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Summary: TypeAlias = Literal["auto", "concise", "detailed"]


class Sparse(msgspec.Struct, omit_defaults=True):
    """Turned back into a dict, it holds only what was given."""


class ConversationRef(msgspec.Struct):
    id: Identifier


class Reasoning(Sparse):
    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class PlainText(Sparse, tag_field="type", tag="text"):
    pass


class JsonObject(Sparse, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Sparse, tag_field="type", tag="json_schema", kw_only=True):
    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class TextSettings(Sparse):
    format: PlainText | JsonObject | JsonSchema | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


class BackgroundOptions(msgspec.Struct):
    completion_window: Literal["soonest", "2h", "8h"] | None = None
    continuation_id: str | None = None


class CacheOptions(Sparse):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: bool | None = None
    comparison_response_id: str | None = None


class AccessPrograms(msgspec.Struct):
    cyber: Literal["standard", "daybreak_blue", "daybreak_red"] | None = None


class Image(msgspec.Struct):
    context_compression: Literal["auto", "enabled", "disabled"] | None = None


class ContextManagement(msgspec.Struct):
    type: str
    compact_threshold: Annotated[int, msgspec.Meta(ge=1000, le=2**31 - 1)] | None = None


class Context(msgspec.Struct):
    """What decides the model's input: shared by creating a response and counting its tokens."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    conversation: Identifier | ConversationRef | None = None
    previous_response_id: Identifier | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextSettings | None = None
    truncation: Literal["auto", "disabled"] | None = None


class Count(Context):
    personality: str | None = None


class Create(Context):
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: Calls | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    stream_options: StreamOptions | None = None
    background_options: BackgroundOptions | None = None
    user: str | None = None
    safety_identifier: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: CacheOptions | None = None
    access_programs: AccessPrograms | None = None
    image: Image | None = None
    prompt: Any = None
    moderation: Any = None
    context_management: list[ContextManagement] | None = None


class Compact(msgspec.Struct):
    """`POST /v1/responses/compact`."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    previous_response_id: Identifier | None = None
    instructions: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    image: Image | None = None


class Conversation(msgspec.Struct):
    items: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class Items(msgspec.Struct):
    items: list[dict[str, Any]]
    include: list[str] | None = None


class Update(msgspec.Struct):
    metadata: Metadata | None


class Fork(msgspec.Struct):
    after_item_id: Identifier | None = None
    response_id: Identifier | None = None
    metadata: Metadata | None = None
