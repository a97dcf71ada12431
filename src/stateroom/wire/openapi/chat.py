"""The Chat Completions API: its operations, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from stateroom.wire import chat_completions_parameters as sent
from stateroom.wire.chat_completions_messages import ALLOWED_PARTS, PARTS, SHAPES
from stateroom.wire.openapi.operations import AFTER, BEFORE, LIMIT, ORDER_UP, Body, Operation, Parameter, Surface
from stateroom.wire.openapi.schemas import (
    OWN,
    Schema,
    Time,
    any_of,
    body_of,
    deleted,
    fields,
    list_of,
    nullable,
    one_of,
    page_of,
    ref,
    text,
    without_null,
)

_HELLO: Final = {"model": "default", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
_UP: Final = (AFTER, BEFORE, LIMIT, ORDER_UP)


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class CalledCustomTool(msgspec.Struct):
    name: str
    input: str


class ChatFunctionCall(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatCustomCall(msgspec.Struct):
    id: str
    type: Literal["custom"]
    custom: CalledCustomTool


class ChatMessage(msgspec.Struct):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    annotations: list[dict[str, Any]]
    reasoning_content: Annotated[str, msgspec.Meta(extra_json_schema=OWN)] = ""
    tool_calls: list[dict[str, Any]] = []
    function_call: CalledFunction | None = None


class ChatLogprobs(msgspec.Struct):
    content: list[dict[str, Any]]
    refusal: None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls", "function_call"]


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int
    audio_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class ChatUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(msgspec.Struct):
    """An answer, or several."""

    id: str
    object: Literal["chat.completion"]
    created: Time
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    service_tier: str = ""
    metadata: dict[str, str] = {}


class ChatDelta(msgspec.Struct):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str = ""
    reasoning_content: Annotated[str, msgspec.Meta(extra_json_schema=OWN)] = ""
    tool_calls: list[dict[str, Any]] = []
    function_call: dict[str, str] = {}


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls", "function_call"] | None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(msgspec.Struct):
    """A piece of an answer. The last one may have no choices and the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Time
    model: str
    choices: list[ChatChunkChoice]
    usage: ChatUsage | None = None
    service_tier: str = ""
    obfuscation: str = ""


class StoredChatMessage(msgspec.Struct):
    """A message that a stored completion was given."""

    id: str
    role: Literal["user", "assistant", "system", "developer", "tool"]
    content: str | None
    content_parts: list[dict[str, Any]] | None
    refusal: str | None
    name: str = ""
    tool_call_id: str = ""
    reasoning_content: Annotated[str, msgspec.Meta(extra_json_schema=OWN)] = ""
    tool_calls: list[dict[str, Any]] = []


SHOWN: Final = (ChatFunctionCall, ChatCustomCall, ChatCompletion, ChatCompletionChunk, StoredChatMessage)


def _create() -> Schema:
    tools = list_of(
        any_of(
            _typed("function", sent.FunctionTool),
            _typed("custom", sent.CustomTool),
            fields({"type": text()}, ("type",)),
        )
    )
    return body_of(
        sent.Create,
        required=("model", "messages"),
        never={"audio": "This server makes text only.", "moderation": "Moderate before and after the request."},
        replaced={
            "messages": list_of(ref("ChatInputMessage"), minItems=1),
            "modalities": nullable(list_of({"const": "text"})),
            "tools": nullable(tools),
            "tool_choice": nullable(any_of(one_of("none", "auto", "required"), {"type": "object"})),
        },
        about={
            "model": "A name of `GET /v1/models`.",
            "store": "Whether it is kept; only when it is said.",
            "n": "How many answers; each is a call of its own. Not with `store`.",
            "stop": "Up to four texts at which the answer ends. Heeded also where the model's server does not.",
            "max_tokens": "The older name of `max_completion_tokens`.",
            "functions": "The older form of `tools`.",
            "function_call": "The older form of `tool_choice`.",
            "prediction": "A hint.",
            "web_search_options": "A hint.",
        },
    )


def _part(kind: str) -> Schema:
    schema = _typed(kind, PARTS[kind])
    if kind == "file":
        schema["properties"]["file"]["anyOf"] = [
            fields({name: text(minLength=1)}, (name,)) for name in ("file_id", "file_data")
        ]
    return schema


def _typed(kind: str, shape: type[msgspec.Struct]) -> Schema:
    schema = body_of(shape)
    schema["properties"] = {"type": {"const": kind}, **schema["properties"]}
    schema["required"] = ["type", *schema.get("required", ())]
    return schema


def _message(role: str) -> Schema:
    shape = SHAPES[role]
    replaced: dict[str, Schema] = {}
    if role in ALLOWED_PARTS:
        parts = list_of(any_of(*(_part(kind) for kind in sorted(ALLOWED_PARTS[role]))))
        optional = role in ("assistant", "tool")
        replaced["content"] = nullable(any_of(text(), parts)) if optional else any_of(text(), parts)
    if role == "assistant":
        calls = any_of(_call(sent.FunctionToolCall), _call(sent.CustomToolCall))
        replaced["tool_calls"] = nullable(list_of(calls))
        replaced["audio"] = {"type": "null"}
    schema = body_of(shape, replaced=replaced)
    schema["properties"] = {"role": {"const": role}, **schema["properties"]}
    schema["required"] = ["role", *schema.get("required", ())]
    return schema


def _call(shape: type[msgspec.Struct]) -> Schema:
    kind = "function" if shape is sent.FunctionToolCall else "custom"
    return _typed(kind, shape)


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Chat Completions",
        about="Messages in, a message out, over the same models. Kept only with `store: true`.",
        operations=_operations(),
        shapes=SHOWN,
        schemas={
            "CreateChatCompletion": _create(),
            "ChatInputMessage": any_of(*(_message(role) for role in SHAPES)),
            "UpdateChatCompletion": body_of(sent.Update),
            "ChatCompletionList": page_of("ChatCompletion"),
            "ChatMessageList": page_of("StoredChatMessage"),
            "DeletedChatCompletion": deleted("chat.completion.deleted"),
        },
    )


def refine(components: dict[str, Schema]) -> None:
    """What a struct cannot say of these shapes."""
    calls = list_of(any_of(ref("ChatFunctionCall"), ref("ChatCustomCall")))
    for name in ("ChatMessage", "StoredChatMessage"):
        components[name]["properties"]["tool_calls"] = calls
    called = components["ChatMessage"]["properties"]
    called["function_call"] = without_null(called["function_call"])
    pieces = fields({"index": {"type": "integer"}, "id": text(), "type": one_of("function", "custom")}, ("index",))
    components["ChatDelta"]["properties"]["tool_calls"] = list_of(pieces)


def _operations() -> tuple[Operation, ...]:
    one = "/v1/chat/completions/{completion_id}"
    return (
        Operation(
            place="POST /v1/chat/completions",
            name="createChatCompletion",
            summary="Have a chat answered",
            body=Body(
                ref("CreateChatCompletion"),
                examples={
                    "a question": _HELLO,
                    "kept": {**_HELLO, "store": True},
                    "a stream": {**_HELLO, "stream": True},
                },
            ),
            answer=ref("ChatCompletion"),
            answered="The completion; its chunks when `stream` was asked for, the last of which may be an `Error`.",
            media={"text/event-stream": any_of(ref("ChatCompletionChunk"), ref("Error"))},
            errors=(404, 409),
            scope="write",
            asks_model=True,
            makes=True,
            python='question = {"role": "user", "content": "What is the capital of France?"}\n'
            'completion = client.chat.completions.create(model="default", messages=[question], store=True)',
        ),
        Operation(
            place="GET /v1/chat/completions",
            name="listChatCompletions",
            summary="List stored completions",
            query=(
                AFTER,
                LIMIT,
                ORDER_UP,
                Parameter("model", text(), "Only those of this model."),
                Parameter(
                    "metadata",
                    {"type": "object", "additionalProperties": text(maxLength=512)},
                    "Only those with these pairs: `metadata[key]=value`.",
                ),
            ),
            answer=ref("ChatCompletionList"),
            errors=(400, 404),
            scope="read",
            python="client.chat.completions.list()",
        ),
        Operation(
            place=f"GET {one}",
            name="getChatCompletion",
            summary="Retrieve a stored completion",
            answer=ref("ChatCompletion"),
            errors=(404, 409),
            scope="read",
            python="client.chat.completions.retrieve(completion.id)",
        ),
        Operation(
            place=f"POST {one}",
            name="updateChatCompletion",
            summary="Replace the metadata of a stored completion",
            body=Body(ref("UpdateChatCompletion"), examples={"a name": {"metadata": {"name": "a walk"}}}),
            answer=ref("ChatCompletion"),
            errors=(404, 409),
            scope="write",
            python='client.chat.completions.update(completion.id, metadata={"name": "a walk"})',
        ),
        Operation(
            place=f"DELETE {one}",
            name="deleteChatCompletion",
            summary="Delete a stored completion",
            answer=ref("DeletedChatCompletion"),
            errors=(404,),
            scope="write",
            python="client.chat.completions.delete(completion.id)",
        ),
        Operation(
            place=f"GET {one}/messages",
            name="listChatMessages",
            summary="List the messages that a stored completion was given",
            query=_UP,
            answer=ref("ChatMessageList"),
            errors=(400, 404, 409),
            scope="read",
            python="client.chat.completions.messages.list(completion.id)",
        ),
    )
