"""Chat Completions on the wire: requests against the installed client's types, messages and items, answers."""

from __future__ import annotations

import re
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionDeleted,
    chat_completion_message_param,
    completion_create_params,
)
from openai.types.chat.chat_completion import Choice
from pydantic import TypeAdapter

from stateroom.errors import BackendFailed, InvalidRequest
from stateroom.journal.entries import OutputItem, RunSettings, RunView, Usage
from stateroom.wire import chat_completions_parameters as parameters
from stateroom.wire import chat_completions_requests as requests
from stateroom.wire.chat_completions import (
    ChatStyle,
    completion_id,
    completion_object,
    render_completion,
    render_deleted_completion,
    run_id,
    stored_messages,
)
from stateroom.wire.chat_completions_messages import Messages, show_messages
from stateroom.wire.chat_completions_requests import ChatRequest, decode_chat, decode_update, in_chat_words
from stateroom.wire.decoding import Bounds
from tests.unit.wire.test_contract import literals, unnamed

COMPLETION: TypeAdapter[Any] = TypeAdapter(ChatCompletion)
KEY = "0" * 26
BOUNDS = Bounds()


def decoded(bounds: Bounds = BOUNDS, **body: Any) -> ChatRequest:
    given_body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    return decode_chat(msgspec.json.encode(given_body), bounds)


def refusal(bounds: Bounds = BOUNDS, **body: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        decoded(bounds, **body)
    return caught.value.code, caught.value.param


def view(*items: Any, **changes: Any) -> RunView:
    output = tuple(OutputItem(index, f"item_{index}", item) for index, item in enumerate(items))
    settings = RunSettings(model="m", echo=changes.pop("echo", {}), served=changes.pop("served", ""))
    given_fields = {"id": f"resp_{KEY}", "created_at": 1_700_000_000_123, "status": "completed", "ended_at": 1}
    return RunView(**{**given_fields, "settings": settings, "output": output, "usage": Usage(5, 7, 1, 2), **changes})


# Requests.


def test_every_parameter_is_known_and_its_fate_is_documented() -> None:
    theirs = set(get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming)) | {"stream"}
    ours = set(parameters.Create.__struct_fields__)
    assert theirs == ours
    for name in ours:
        assert re.search(rf"\b{name}\b", requests.__doc__ or ""), f"{name} is not in the list of parameters"


def test_the_values_that_parameters_take_are_openai_s() -> None:
    theirs = get_type_hints(completion_create_params.CompletionCreateParamsBase)
    ours = get_type_hints(parameters.Create, include_extras=True)
    for name in ("service_tier", "prompt_cache_retention", "reasoning_effort", "verbosity"):
        assert literals(theirs[name]) <= literals(ours[name]) | {None}, name


def test_every_role_is_known() -> None:
    kinds = get_args(chat_completion_message_param.ChatCompletionMessageParam)
    roles = set().union(*(literals(get_type_hints(kind)["role"]) for kind in kinds))
    for role in roles - {"function"}:
        shown = {"role": role, "content": "x", **({"tool_call_id": "c"} if role == "tool" else {})}
        assert decoded(messages=[shown]).input


def test_nulls_mean_absent_everywhere() -> None:
    nulls = {name: None for name in parameters.Create.__struct_fields__ if name not in ("model", "messages")}
    assert decoded(**nulls) == decoded()


def test_settings_are_those_of_the_runtime() -> None:
    asked = decoded(
        tools=[
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}},
            {
                "type": "custom",
                "custom": {
                    "name": "c",
                    "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}},
                },
            },
        ],
        tool_choice={"type": "custom", "custom": {"name": "c"}},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        verbosity="low",
        reasoning_effort="high",
        logprobs=True,
        top_logprobs=3,
        stop="x",
        metadata={"a": "b"},
    ).settings
    assert asked.tools == [
        {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},
        {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}},
    ]
    assert asked.tool_choice == {"type": "custom", "name": "c"}
    assert asked.text == {
        "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
        "verbosity": "low",
    }
    assert (asked.reasoning, asked.top_logprobs, asked.stop) == ({"effort": "high"}, 3, ["x"])
    assert asked.echo == {"metadata": {"a": "b"}, "chat": {"logprobs": True}}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"role": 1, "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "tool", "tool_call_id": "", "content": "x"}]}, "string_below_min_length", None),
        ({"tool_choice": {"type": "allowed_tools"}}, "invalid_type", "tool_choice.allowed_tools"),
        ({"prompt_cache_options": {"prewarm": True}}, "unsupported_parameter", "prompt_cache_options.prewarm"),
        ({"function_call": {"name": "f"}}, "invalid_value", "function_call"),
        (
            {"functions": [{"name": "f"}], "function_call": "auto", "tool_choice": "auto"},
            "mutually_exclusive_parameters",
            "function_call",
        ),
    ],
)
def test_what_is_wrong_is_named(body: Any, code: str, param: str | None) -> None:
    found = refusal(**body)
    assert found[0] == code
    assert param is None or found[1] == param


def test_bounds_hold() -> None:
    two = [{"role": "user", "content": "x"}] * 2
    assert refusal(Bounds(items=1), messages=two) == ("array_above_max_length", "messages")
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}] * 2}]
    assert refusal(Bounds(content_parts=1), messages=parts) == ("array_above_max_length", "messages[0].content")
    tools = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(2)]
    assert refusal(Bounds(tools=1), tools=tools) == ("array_above_max_length", "tools")
    large = [{"role": "user", "content": "x"}, {"role": "user", "content": "x" * 99}]
    assert refusal(Bounds(item_bytes=99), messages=large) == ("item_too_large", "messages[1]")


def test_metadata_may_be_taken_away() -> None:
    assert decode_update(b'{"metadata": null}', BOUNDS) == {}
    assert decode_update(b'{"metadata": {"a": "b"}}', BOUNDS) == {"a": "b"}
    with pytest.raises(InvalidRequest):
        decode_update(b"{}", BOUNDS)


def test_errors_of_the_runtime_speak_of_what_the_caller_wrote() -> None:
    asked = decoded(
        messages=[
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": str(n), "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in range(2)
                ],
            },
            {"role": "user", "content": "y"},
        ],
        tools=[{"type": "custom", "custom": {"name": "c"}}],
    )
    error = InvalidRequest("'input[3].content[0]' is bad.", param="input[3].content[0].image_url")
    in_chat_words(error, asked)
    assert (error.message, error.param) == ("'messages[2].content[0]' is bad.", "messages[2].content[0].image_url")
    for theirs, ours in (
        ("input", "messages"),
        ("input[2]", "messages[1].tool_calls[1]"),
        ("tools[0].name", "tools[0].custom.name"),
        ("text.format.schema", "response_format.json_schema.schema"),
        ("tool_choice.tools[1]", "tool_choice.allowed_tools.tools[1]"),
        ("model", "model"),
    ):
        assert in_chat_words(InvalidRequest("x", param=theirs), asked).param == ours
    assert "`response_format`" in in_chat_words(BackendFailed("not JSON, which `text.format` demands.")).message


words = st.sampled_from(
    [
        *(
            "role",
            "content",
            "type",
            "text",
            "name",
            "id",
            "tool_calls",
            "function",
            "custom",
            "arguments",
            "input",
            "user",
        )
    ]
    + [
        *(
            "assistant",
            "tool",
            "tool_call_id",
            "image_url",
            "url",
            "file",
            "file_id",
            "refusal",
            "function_call",
            "auto",
        )
    ]
    + [*("allowed_tools", "tools", "mode", "json_schema", "schema", "parameters", "grammar", "format", "syntax")]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(parameters.Create.__struct_fields__), anything, max_size=6), st.lists(anything))
def test_whatever_is_sent_is_taken_or_refused(body: dict[str, Any], messages: list[Any]) -> None:
    for sent in ({"model": "m", **body}, {"model": "m", "messages": messages, **body}):
        try:
            asked = decode_chat(msgspec.json.encode(sent), BOUNDS)
        except InvalidRequest:
            continue
        assert len(asked.input) == len(asked.places) > 0
        show_messages(asked.input)


# Messages and items.

texts = st.text(min_size=1, max_size=5)
calls = st.lists(texts, max_size=2, unique=True)


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages as well-behaved clients send them."""
    messages: list[dict[str, Any]] = []
    number = 0
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("user", "system", "developer", "assistant")))
        if kind != "assistant":
            messages.append({"role": kind, "content": draw(texts)})
            continue
        message: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
        made = []
        for name in draw(calls):
            number += 1
            made.append({"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": "{}"}})
        if made:
            message["tool_calls"] = made
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(texts)} for call in made]
    return messages


@given(histories())
def test_messages_come_back_as_they_were_sent(messages: list[dict[str, Any]]) -> None:
    assert show_messages(decoded(messages=messages).input) == messages


def test_every_kind_of_message_becomes_items_and_comes_back() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    file = {"type": "file", "file": {"file_id": "file_1"}}
    sent: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, image, file], "name": "ann"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "custom", "custom": {"name": "w", "input": "x"}, "extra_content": {"s": 1}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "t"}, image]},
    ]
    items = decoded(messages=sent).input
    assert [item.get("type", "message") for item in items] == [
        "message",
        "reasoning",
        "message",
        "message",
        "custom_tool_call",
        "custom_tool_call_output",
    ]
    shown = show_messages(items)
    assert shown[0]["content_parts"] == sent[0]["content"]
    assert (shown[0]["content"], shown[0]["name"]) == ("a", "ann")
    assert shown[1] == sent[1]
    assert shown[2]["refusal"] == "no"
    assert shown[2]["tool_calls"] == sent[3]["tool_calls"]
    assert shown[3]["content_parts"][1] == image
    assert [message["id"] for message in stored_messages("chatcmpl-1", items)] == [f"chatcmpl-1-{n}" for n in range(4)]


def test_calls_without_an_id_are_paired_by_name_in_order() -> None:
    messages = Messages(BOUNDS)
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "r"}
    for position, message in enumerate([call, result, call, result]):
        messages.add(message, position)
    ids = [item["call_id"] for item in messages.items]
    assert ids[0] == ids[1] != ids[2] == ids[3]


# Answers.


def test_an_answer_is_one_and_holds_nothing_that_is_absent() -> None:
    shown = msgspec.json.decode(render_completion([view({"role": "assistant", "content": "hi"}, served="s")]))
    parsed = COMPLETION.validate_python(shown, strict=False)
    assert not set(unnamed(parsed))
    assert (shown["model"], shown["id"]) == ("s", f"chatcmpl-{KEY}")
    assert set(shown) == {"id", "object", "created", "model", "choices", "usage"}
    assert set(shown["choices"][0]["message"]) == {"role", "content", "refusal", "annotations"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "stop"),
        ({"status": "incomplete", "reason": "max_output_tokens"}, "length"),
        ({"status": "incomplete", "reason": "content_filter"}, "content_filter"),
    ],
)
def test_the_reason_is_one_that_clients_know(changes: dict[str, Any], reason: str) -> None:
    shown = completion_object([view({"role": "assistant", "content": "hi"}, **changes)])
    assert shown["choices"][0]["finish_reason"] == reason
    assert reason in literals(Choice.model_fields["finish_reason"].annotation)


def test_calls_reasoning_and_texts_are_gathered_in_one_message() -> None:
    items = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "a "},
        {"type": "stateroom:tool_call", "call_id": "h", "tool": "t", "name": "t", "output": "o"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "ha"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "extra": {"s": 1}},
        {"type": "custom_tool_call", "call_id": "c2", "name": "w", "input": "x"},
    ]
    [choice] = completion_object([view(*items)])["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "a b",
        "refusal": "no",
        "annotations": [],
        "reasoning_content": "hm\n\nha",
        "tool_calls": [
            {"s": 1, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "c2", "type": "custom", "custom": {"name": "w", "input": "x"}},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_choices_share_their_id_and_count_their_prompt_once() -> None:
    echo = ChatStyle(id="chatcmpl-x", created=7).written_to({"service_tier": "auto", "metadata": {"a": "b"}})
    shown = completion_object([view({"role": "assistant", "content": text}, echo=echo) for text in "ab"])
    assert (shown["id"], shown["created"], shown["service_tier"]) == ("chatcmpl-x", 7, "default")
    assert shown["metadata"] == {"a": "b"}
    assert [(one["index"], one["message"]["content"]) for one in shown["choices"]] == [(0, "a"), (1, "b")]
    usage = shown["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 14, 19)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4


def test_a_deletion_is_told_in_the_client_s_words() -> None:
    TypeAdapter(ChatCompletionDeleted).validate_json(render_deleted_completion("chatcmpl-1"), strict=True)


@pytest.mark.parametrize("identifier", ["", "resp_1", "x", "chatcmpl"])
def test_an_id_that_is_none_of_ours_is_no_run_s(identifier: str) -> None:
    assert run_id(identifier) == ""


def test_ids_lead_to_their_runs() -> None:
    assert run_id(completion_id(f"resp_{KEY}")) == f"resp_{KEY}"
