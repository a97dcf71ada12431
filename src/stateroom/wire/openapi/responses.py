"""The Responses API: its operations, and the shapes of its answers."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from stateroom.wire import parameters
from stateroom.wire.openapi.operations import AFTER, BEFORE, LIMIT, ORDER, PAGE, Body, Operation, Parameter, Surface
from stateroom.wire.openapi.run_events import LIST_EVENTS, JournalEntry
from stateroom.wire.openapi.schemas import (
    OutputItem,
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
    whole,
)
from stateroom.wire.openapi.stream import EVENT_SHAPES, event_schemas
from stateroom.wire.parameters import INCLUDABLE
from stateroom.wire.responses import ERROR_CODES, INCOMPLETE_REASONS

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Tool = Annotated[Any, msgspec.Meta(extra_json_schema=ref("ShownTool"))]
Choice = Annotated[Any, msgspec.Meta(extra_json_schema=ref("ToolChoice"))]


class ConversationReference(msgspec.Struct):
    id: str


class ResponseError(msgspec.Struct):
    code: Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted(ERROR_CODES)})]
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted(INCOMPLETE_REASONS)})]


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseText(msgspec.Struct):
    format: dict[str, Any]
    verbosity: Literal["low", "medium", "high"]


class Response(msgspec.Struct):
    """One run of the model: what came of it, and what was asked for."""

    id: str
    object: Literal["response"]
    created_at: Time
    status: Status
    completed_at: Annotated[int | None, msgspec.Meta(description="Seconds since 1970; null unless it is completed.")]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: Annotated[ResponseUsage | None, msgspec.Meta(description="Null until it has ended.")]
    output: list[OutputItem]
    model: Annotated[str, msgspec.Meta(description="The model that answers; it need not be the name that was sent.")]
    instructions: str | None
    previous_response_id: str | None
    conversation: ConversationReference | None
    background: bool
    store: bool
    tools: list[Tool]
    tool_choice: Choice
    parallel_tool_calls: bool
    max_tool_calls: int | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    truncation: Literal["auto", "disabled"]
    reasoning: dict[str, Any] | None
    text: ResponseText
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: str
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None


class CompactedResponse(msgspec.Struct):
    """A context made short: send its `output` as the `input` of what follows."""

    id: str
    object: Literal["response.compaction"]
    created_at: Time
    output: list[OutputItem]
    usage: ResponseUsage


CONTEXT: Final[dict[str, Schema]] = {
    "input": nullable(any_of(text(), list_of(ref("InputItem")))),
    "tools": nullable(list_of(ref("Tool"))),
    "tool_choice": nullable(ref("ToolChoice")),
}
"""What the structs leave to later checks."""

_ABOUT_CONTEXT: Final = {
    "model": "A name of `GET /v1/models`. Unknown names go to the default model, unless the server is set otherwise.",
    "input": "A text, or items. May be left out when a response or conversation is gone on from.",
    "instructions": "A system message for this response only.",
    "conversation": "The conversation to go on with: its id, or an object that has it. It gets input and output.",
    "previous_response_id": "The response to go on from. Not together with `conversation`.",
    "truncation": "`auto` drops the oldest turns when the context is longer than the model can read.",
    "text": "How the answer is to be written; `format` may hold a JSON Schema.",
}

_ABOUT: Final = {
    **_ABOUT_CONTEXT,
    "store": "Whether it is kept; true when absent. An unstored response leaves nothing behind.",
    "stream": "Answer with server-sent events.",
    "background": "Answer at once, and go on without a client. Needs `store`.",
    "metadata": "Up to 16 pairs of texts of your own.",
    "max_output_tokens": "The answer ends as `incomplete` when it has so many.",
    "context_management": "One entry of type `compaction`: make the context short when it has so many tokens.",
    "service_tier": "A hint, given back.",
    "user": "A hint, given back.",
    "safety_identifier": "A hint, given back.",
    "prompt_cache_key": "A hint, given back.",
    "prompt_cache_retention": "A hint, given back.",
}

INCLUDE: Final = Parameter("include", list_of(one_of(*sorted(INCLUDABLE))), "Accepted; what can be shown always is.")
_ASK: Final[dict[str, Any]] = {"model": "default", "input": "What is the capital of France?"}
_COMPACTION: Final = list_of(
    fields(
        {
            "type": {"const": "compaction"},
            "compact_threshold": nullable({"type": "integer", "minimum": 1_000, "maximum": 2**31 - 1}),
        },
        ("type",),
    ),
    maxItems=1,
)
_FORK: Final = body_of(parameters.Fork, about={"metadata": "Without it the fork has that of its origin."})


def _create() -> Schema:
    return body_of(
        parameters.Create,
        required=("model",),
        never={
            "prompt": "There are no stored prompts: send the text.",
            "moderation": "Moderate before and after the request.",
        },
        replaced={**CONTEXT, "include": nullable(INCLUDE.schema), "context_management": nullable(_COMPACTION)},
        about=_ABOUT,
    )


def _count() -> Schema:
    never = {"personality": "Put what it stands for into `instructions`."}
    return body_of(parameters.Count, never=never, replaced=CONTEXT, about=_ABOUT_CONTEXT)


def _compact() -> Schema:
    return body_of(parameters.Compact, required=("model",), replaced={"input": CONTEXT["input"]})


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Responses",
        about="Ask a model. What it needs is kept here: what was said, streams to read again, unfinished work.",
        operations=(*_asking(), *_stored(), LIST_EVENTS),
        shapes=(Response, CompactedResponse, JournalEntry, *EVENT_SHAPES),
        schemas={
            "CreateResponse": _create(),
            "CountInputTokens": _count(),
            "CompactResponse": _compact(),
            "Fork": _FORK,
            "ResponseList": page_of("Response"),
            "JournalEntryList": page_of("JournalEntry"),
            "DeletedResponse": deleted("response"),
            "InputTokens": whole(
                {"object": {"const": "response.input_tokens"}, "input_tokens": {"type": "integer", "minimum": 0}}
            ),
            **event_schemas(),
        },
    )


def _asking() -> tuple[Operation, ...]:
    return (
        Operation(
            place="POST /v1/responses",
            name="createResponse",
            summary="Ask a model",
            about="The answer as JSON when it is whole; as server-sent events with `stream`; at once, while the run "
            "goes on, with `background`. The same path is a WebSocket: its messages are `response.create`, with these "
            "parameters, and `response.steer`; its events are those of the stream.",
            body=Body(
                ref("CreateResponse"),
                examples={
                    "a question": _ASK,
                    "structured output": {
                        "model": "default",
                        "input": 'json: {"city": "Paris"}',
                        "text": {"format": {"type": "json_schema", "name": "place", "schema": {"type": "object"}}},
                    },
                    "a stream": {**_ASK, "stream": True},
                    "in the background": {**_ASK, "background": True},
                    "a tool": {
                        **_ASK,
                        "tools": [
                            {
                                "type": "function",
                                "name": "get_weather",
                                "description": "The weather in a city.",
                                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                            }
                        ],
                    },
                },
            ),
            answer=ref("Response"),
            answered="The response; its stream when `stream` was asked for.",
            media={"text/event-stream": ref("ResponseEvent")},
            errors=(404, 409),
            scope="write",
            asks_model=True,
            makes=True,
            python="response = client.responses.create(\n"
            '    model="default",\n    input="What is the capital of France?",\n)\n'
            "print(response.output_text)",
        ),
        Operation(
            place="POST /v1/responses/input_tokens",
            name="countInputTokens",
            summary="Count the tokens of what would be asked",
            body=Body(ref("CountInputTokens"), examples={"a question": _ASK}),
            answer=ref("InputTokens"),
            headers={"x-stateroom-token-count": "`estimate` when the model's server cannot count; it errs upwards."},
            errors=(404,),
            scope="read",
            asks_model=True,
            python='client.responses.input_tokens.count(model="default", input="What is the capital of France?")',
        ),
        Operation(
            place="POST /v1/responses/compact",
            name="compactResponse",
            summary="Make a context short",
            about="The model writes a summary of what is old; nothing that is stored is changed or deleted.",
            body=Body(ref("CompactResponse"), examples={"a conversation": _ASK}),
            answer=ref("CompactedResponse"),
            errors=(404,),
            scope="write",
            asks_model=True,
            python='client.responses.compact(model="default", input="What is the capital of France?")',
        ),
    )


def _stored() -> tuple[Operation, ...]:
    return (
        Operation(
            place="GET /v1/responses",
            name="listResponses",
            summary="List stored responses",
            query=PAGE,
            answer=ref("ResponseList"),
            errors=(400, 404),
            scope="read",
            extension=True,
        ),
        Operation(
            place="GET /v1/responses/{response_id}",
            name="getResponse",
            summary="Retrieve a response, or its stream from any point",
            query=(
                INCLUDE,
                Parameter("stream", {"type": "boolean"}, "Its stream, as it was sent or goes on."),
                Parameter("starting_after", {"type": "integer"}, "The sequence number that the stream begins behind."),
            ),
            answer=ref("Response"),
            media={"text/event-stream": ref("ResponseEvent")},
            errors=(400, 404),
            scope="read",
            python="client.responses.retrieve(response.id)",
        ),
        Operation(
            place="DELETE /v1/responses/{response_id}",
            name="deleteResponse",
            summary="Delete a response",
            about="What it says is erased. One that is still being made is cancelled first.",
            answer=ref("DeletedResponse"),
            errors=(400, 404),
            scope="write",
            python="client.responses.delete(response.id)",
        ),
        Operation(
            place="POST /v1/responses/{response_id}/cancel",
            name="cancelResponse",
            summary="Cancel a background response",
            answer=ref("Response"),
            errors=(400, 404),
            scope="write",
            python="client.responses.cancel(response.id)",
        ),
        Operation(
            place="POST /v1/responses/{response_id}/fork",
            name="forkResponse",
            summary="A new conversation with a chain's items up to this response",
            body=Body(ref("Fork"), required=False, examples={"a name for it": {"metadata": {"name": "another end"}}}),
            answer=ref("Conversation"),
            errors=(404,),
            scope="write",
            makes=True,
            extension=True,
        ),
        Operation(
            place="GET /v1/responses/{response_id}/input_items",
            name="listInputItems",
            summary="List what a response was given",
            query=(INCLUDE, AFTER, BEFORE, LIMIT, ORDER),
            answer=ref("ItemList"),
            errors=(400, 404),
            scope="read",
            python="client.responses.input_items.list(response.id)",
        ),
    )
