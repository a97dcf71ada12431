"""Our wire format against the types of the installed `openai` package, the authority on them.

What we know of is compared with what its types name; what we render is validated by its models, strictly, and must
hold nothing that they do not name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItem,
    ConversationItemList,
    conversation_create_params,
    conversation_update_params,
    item_create_params,
)
from openai.types.responses import (
    Response,
    ResponseError,
    ResponseIncludable,
    ResponseInputItem,
    ResponseItem,
    ResponseItemList,
    ResponseOutputItem,
    ResponseStreamEvent,
    ResponseTextConfig,
    Tool,
    input_token_count_params,
    response_compact_params,
    response_create_params,
    response_input_item_param,
)
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from openai.types.responses.response import IncompleteDetails
from pydantic import BaseModel, TypeAdapter

from stateroom.journal.entries import OutputItem, RunSettings, RunView, Usage
from stateroom.wire import parameters, requests
from stateroom.wire.events import ResponsesRenderer, events_of
from stateroom.wire.item_types import REFUSED, TYPES
from stateroom.wire.items import item_id, pack, prefix, type_of, unpack
from stateroom.wire.responses import (
    ERROR_CODES,
    INCOMPLETE_REASONS,
    conversation_object,
    render_deleted_conversation,
    render_input_tokens,
    render_list,
    render_response,
)

RESPONSE = TypeAdapter(Response)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
OUTPUT_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)

# Fields that OpenAI's API sends and other clients need, but that the package does not name.
UNNAMED = {
    "presence_penalty",
    "frequency_penalty",
    "store",
    "output.status",  # of a custom_tool_call
    "item.status",
    "name",  # of response.function_call_arguments.done
    "obfuscation",
    "logprobs.bytes",  # of deltas and of response.output_text.done: parts must have them
    "logprobs.top_logprobs.bytes",
}


def unnamed(value: Any, path: str = "") -> Iterator[str]:
    """The paths of everything in a parsed object that its models do not name."""
    if isinstance(value, BaseModel):
        for name in value.model_extra or {}:
            yield f"{path}.{name}".removeprefix(".")
        for name in type(value).model_fields:
            yield from unnamed(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from unnamed(inner, path)


def check(adapter: TypeAdapter[Any], data: bytes) -> Any:
    """Validate JSON strictly against the package's types and return what it made of it."""
    parsed = adapter.validate_json(data, strict=True)
    found = {path.removeprefix("response.") for path in unnamed(parsed)}
    assert found <= UNNAMED, f"{type(parsed).__name__} does not name {found - UNNAMED}"
    return parsed


def literals(kind: Any) -> set[str]:
    """All values of the Literals in a type."""
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    return set().union(*(literals(inner) for inner in get_args(kind)))


def view(**changes: Any) -> RunView:
    given = {"id": "resp_1", "created_at": 1_700_000_000_123, "settings": RunSettings(model="m"), "status": "completed"}
    return RunView(**{**given, "ended_at": 1_700_000_001_456, "usage": Usage(5, 7, 1, 2), **changes})


def test_every_parameter_of_create_is_known_and_its_fate_is_documented() -> None:
    theirs = set(get_type_hints(response_create_params.ResponseCreateParamsNonStreaming)) | {"stream"}
    ours = set(parameters.Create.__struct_fields__)
    assert theirs <= ours
    for name in ours:
        assert re.search(rf"\b{name}\b", requests.__doc__ or ""), f"{name} is not in the list of parameters"


def test_every_parameter_of_the_other_requests_is_known() -> None:
    for theirs, ours in (
        (input_token_count_params.InputTokenCountParams, parameters.Count),
        (response_compact_params.ResponseCompactParams, parameters.Compact),
        (conversation_create_params.ConversationCreateParams, parameters.Conversation),
        (conversation_update_params.ConversationUpdateParams, parameters.Update),
        (item_create_params.ItemCreateParams, parameters.Items),
    ):
        assert set(get_type_hints(theirs)) <= set(ours.__struct_fields__)


def test_the_values_that_parameters_take_are_openai_s() -> None:
    assert set(get_args(ResponseIncludable)) == parameters.INCLUDABLE
    assert literals(ResponseError.model_fields["code"].annotation) == ERROR_CODES
    assert literals(IncompleteDetails.model_fields["reason"].annotation) == INCOMPLETE_REASONS
    theirs = get_type_hints(response_create_params.ResponseCreateParamsBase)
    ours = get_type_hints(parameters.Create)
    for name in ("service_tier", "truncation", "prompt_cache_retention"):
        assert literals(theirs[name]) == literals(ours[name]), name
    reasoning = get_type_hints(get_args(theirs["reasoning"])[0])
    for name in ("effort", "summary", "generate_summary", "context"):
        assert literals(reasoning[name]) == literals(get_type_hints(parameters.Reasoning)[name]), name


def test_every_input_item_type_is_known(samples: dict[str, dict[str, Any]]) -> None:
    kinds = get_args(response_input_item_param.ResponseInputItemParam)
    theirs = set().union(*(literals(get_type_hints(kind)["type"]) for kind in kinds)) - {None}
    assert theirs == set(TYPES) | set(REFUSED)
    assert {sample.get("type", "message") for sample in samples.values()} == set(TYPES)


def test_every_item_comes_back_in_the_shape_of_both_list_endpoints(samples: dict[str, dict[str, Any]]) -> None:
    inputs: TypeAdapter[Any] = TypeAdapter(ResponseInputItem)
    item: TypeAdapter[Any] = TypeAdapter(ResponseItem)
    conversation_item: TypeAdapter[Any] = TypeAdapter(ConversationItem)
    for name, sample in samples.items():
        inputs.validate_json(msgspec.json.encode(sample), strict=True)
        if sample.get("type") == "item_reference":
            continue
        packed = pack(sample, "input[0]")
        shown = msgspec.json.encode(unpack(packed, item_id(packed, "0" * 26, 0)))
        for adapter in (item, conversation_item):
            parsed = adapter.validate_json(shown, strict=True)
            assert parsed.type == type_of(packed), name
            extra = set(unnamed(parsed)) - {"status", "phase"}
            assert not extra, f"{name}: {extra}"


@pytest.mark.parametrize("status", ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"])
def test_a_response_of_every_status_is_one(status: str) -> None:
    ended = status not in ("queued", "in_progress")
    body = render_response(
        view(
            status=status,
            ended_at=1_700_000_001_456 if ended else 0,
            reason="content_filter" if status == "incomplete" else "",
            error={"code": "backend_failed", "message": "It broke.", "status": 502} if status == "failed" else None,
        )
    )
    parsed = check(RESPONSE, body)
    assert parsed.status == status
    assert (parsed.completed_at == 1_700_000_001) is (status == "completed")
    assert (parsed.usage is not None) is ended
    assert (parsed.error is not None) is (status == "failed")


def test_a_response_with_everything_set_is_one(samples: dict[str, dict[str, Any]]) -> None:
    body = msgspec.json.encode(
        {
            "model": "m",
            "input": "hi",
            "instructions": "be brief",
            "tools": [
                {"type": "function", "name": "f"},
                {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
                {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "f"}]},
                {"type": "web_search"},
                {"type": "tool_search"},
            ],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
            "metadata": {"a": "b"},
            "user": "u",
            "safety_identifier": "s",
            "service_tier": "fast",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"comparison_response_id": "resp_0"},
            "access_programs": {"cyber": "standard"},
            "image": {"context_compression": "auto"},
            "temperature": 0.5,
            "top_p": 0.5,
            "presence_penalty": 1,
            "frequency_penalty": 1,
            "max_output_tokens": 16,
            "max_tool_calls": 1,
            "top_logprobs": 2,
            "truncation": "auto",
        }
    )
    settings = requests.decode_create(body, requests.Bounds()).settings
    outputs = [pack(sample) for sample in samples.values() if sample.get("type") not in (None, "item_reference")]
    outputs = [item for item in outputs if item.get("role") not in ("user", "developer")]
    outputs = [item for item in outputs if item.get("type") not in ("configuration_update", "additional_tools")]
    items = tuple(OutputItem(n, item_id(item, "0" * 26, n), item) for n, item in enumerate(outputs))
    parsed = check(RESPONSE, render_response(view(settings=settings, output=items, conversation="conv_1")))
    assert [output.type for output in parsed.output] == [type_of(item) for item in outputs]
    assert parsed.conversation.id == "conv_1"
    assert parsed.service_tier == "priority"
    assert parsed.tool_choice.type == "allowed_tools"
    for name in set(parameters.Create.__struct_fields__) & set(Response.model_fields):
        assert getattr(parsed, name, None) is not None or name in ("prompt", "moderation", "previous_response_id")


def test_tool_declarations_are_echoed_as_tools() -> None:
    tools: TypeAdapter[Any] = TypeAdapter(list[Tool])
    given = [{"type": "function", "name": "f"}, {"type": "image_generation"}, {"type": "web_search_preview"}]
    rendered = msgspec.json.decode(render_response(view(settings=RunSettings(model="m", tools=given))))
    parsed = tools.validate_json(msgspec.json.encode(rendered["tools"]), strict=True)
    assert [tool.type for tool in parsed] == ["function", "image_generation", "web_search_preview"]
    text = msgspec.json.encode(rendered["text"])
    TypeAdapter(ResponseTextConfig).validate_json(text, strict=True)


def every_event() -> list[bytes]:
    """Runs that bring about every event we have."""
    queued, running = view(status="queued", ended_at=0, usage=None), view(status="in_progress", ended_at=0, usage=None)
    renderer = ResponsesRenderer(queued, obfuscate=True)
    renderer.begin(queued)
    renderer.proceed(running)
    renderer.item_opened(0, "rs_1", {"type": "reasoning", "summary": []})
    renderer.reasoning(0, "hm")
    finished = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "s"}],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    renderer.item_closed(0, "rs_1", finished)
    renderer.item_opened(1, "msg_1", {"role": "assistant", "content": []})
    yes = {"token": "yes", "bytes": list(b"yes"), "logprob": -0.5}
    renderer.text(1, "yes", [{**yes, "top_logprobs": [yes]}])
    renderer.refusal(1, "no")
    renderer.item_abandoned(1)
    renderer.item_closed(2, "fc_1", {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"})
    renderer.item_closed(3, "ctc_1", {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"})
    renderer.item_opened(4, "cmp_1", {"type": "compaction", "encrypted_content": ""})
    renderer.compacting(4, "cmp_1")
    renderer.item_closed(4, "cmp_1", {"type": "compaction", "encrypted_content": "x", "created_by": "m"})
    renderer.end(view(status="failed", error={"code": "backend_busy", "message": "Later.", "status": 429}))
    frames = [renderer.take()]
    for status in ("completed", "incomplete", "cancelled"):
        renderer = ResponsesRenderer(running)
        renderer.begin(running)
        renderer.end(view(status=status))
        frames.append(renderer.take())
    return [data for frame in frames if frame is not None for data in events_of(frame.body)]


def test_every_event_is_one_of_openai_s() -> None:
    seen = {check(EVENT, data).type for data in every_event()}
    assert seen == {
        "response.compaction.compacting",
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.refusal.delta",
        "response.refusal.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    }


def test_no_event_but_error_would_make_the_sdk_raise() -> None:
    for data in every_event():
        assert not msgspec.json.decode(data).get("error")


def test_conversations_lists_and_counts_are_openai_s() -> None:
    shown = conversation_object("conv_1", 1_700_000_000_123, {"a": "b"})
    assert check(TypeAdapter(Conversation), msgspec.json.encode(shown)).created_at == 1_700_000_000
    assert check(TypeAdapter(ConversationDeletedResource), render_deleted_conversation("conv_1")).deleted
    assert check(TypeAdapter(InputTokenCountResponse), render_input_tokens(7)).input_tokens == 7
    data = [unpack({"role": "user", "content": "hi"}, "msg_1"), unpack({"role": "user", "content": "ho"}, "msg_2")]
    for kind in (ConversationItemList, ResponseItemList):
        page = check(TypeAdapter(kind), render_list(data, True))
        assert (page.first_id, page.last_id, page.has_more) == ("msg_1", "msg_2", True)


def test_prefixes_are_fit_for_ids() -> None:
    for kind in TYPES:
        assert re.fullmatch(r"[a-z]{2,8}", prefix(kind))
