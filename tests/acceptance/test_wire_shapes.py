"""Every kind of run, in every way of asking for it: each object and event holds to OpenAI's types and to the rules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.modelhost import until
from tests.acceptance.wire import check_response, check_stream, get, output_text, post, read_stream, respond, stream

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
POEM = {"type": "custom", "name": "write_file", "description": "Writes text.", "format": {"type": "text"}}
SCHEMA = {
    "type": "json_schema",
    "name": "point",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
}

RUNS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    # name: request, final status, types of the output items
    "text": ({"input": "say: one two three"}, "completed", ["message"]),
    "unicode": ({"input": "say: zwölf 😀 \u2028 Ünï"}, "completed", ["message"]),
    "empty answer": ({"input": "say:"}, "completed", ["message"]),
    "many lines": ({"input": "say: one\ntwo\n\nthree"}, "completed", ["message"]),
    "reasoning": ({"input": "reason: step by step\nsay: done"}, "completed", ["reasoning", "message"]),
    "sealed reasoning": (
        {"input": "reason: step by step\nsay: done", "include": ["reasoning.encrypted_content"]},
        "completed",
        ["reasoning", "message"],
    ),
    "call": (
        {"input": 'call: get_weather {"city": "Paris"}', "tools": [WEATHER]},
        "completed",
        ["function_call"],
    ),
    "parallel calls": (
        {
            "input": 'calls: [{"name": "get_weather", "arguments": {"city": "A"}},'
            ' {"name": "get_weather", "arguments": {"city": "B"}}]',
            "tools": [WEATHER],
        },
        "completed",
        ["function_call", "function_call"],
    ),
    "preface, then a call": (
        {"input": 'preface: Let me look.\ncall: get_weather {"city": "Paris"}', "tools": [WEATHER]},
        "completed",
        ["message", "function_call"],
    ),
    "reasoning, then a call": (
        {"input": 'reason: hm\ncall: get_weather {"city": "Paris"}', "tools": [WEATHER]},
        "completed",
        ["reasoning", "function_call"],
    ),
    "custom call": (
        {"input": 'call: write_file {"input": "roses are red"}', "tools": [POEM]},
        "completed",
        ["custom_tool_call"],
    ),
    "namespaced call": (
        {
            "input": 'call: crm__find {"name": "Ada"}',
            "tools": [{"type": "namespace", "name": "crm", "description": "d", "tools": [{**WEATHER, "name": "find"}]}],
        },
        "completed",
        ["function_call"],
    ),
    "refusal": ({"input": "refuse: I cannot do that."}, "completed", ["message"]),
    "structured": ({"input": 'json: {"x": 1, "y": 2}', "text": {"format": SCHEMA}}, "completed", ["message"]),
    "token limit": ({"input": "chunks: 40", "max_output_tokens": 16}, "incomplete", ["message"]),
    "content filter": ({"input": "finish: content_filter\nsay: so far"}, "incomplete", ["message"]),
    "log probabilities": (
        {"input": "say: one two", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        "completed",
        ["message"],
    ),
    "every setting": (
        {
            "input": [{"role": "user", "content": "say: all set"}],
            "instructions": "Be brief.",
            "metadata": {"a": "b"},
            "temperature": 0.5,
            "top_p": 0.9,
            "presence_penalty": 0.1,
            "frequency_penalty": -0.1,
            "max_output_tokens": 100,
            "max_tool_calls": 3,
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low", "summary": "auto"},
            "service_tier": "auto",
            "text": {"verbosity": "low"},
            "tools": [WEATHER, POEM, {"type": "web_search"}],
            "tool_choice": "auto",
            "truncation": "auto",
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "top_logprobs": 0,
        },
        "completed",
        ["message"],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_response_is_whole_and_reads_back_the_same(url: str, name: str) -> None:
    request, status, kinds = RUNS[name]
    answered = respond(url, request)
    assert answered["status"] == status
    assert [item["type"] for item in answered["output"]] == kinds
    assert get(url, f"/responses/{answered['id']}") == answered


@pytest.mark.parametrize("name", RUNS)
def test_a_stream_is_whole_and_ends_in_what_can_be_retrieved(url: str, name: str) -> None:
    request, status, kinds = RUNS[name]
    events = stream(url, request)
    final = events[-1]["response"]
    assert final["status"] == status
    assert [item["type"] for item in final["output"]] == kinds
    assert get(url, f"/responses/{final['id']}") == final
    assert read_stream(url, "GET", f"/responses/{final['id']}?stream=true") == events
    plain = respond(url, request)
    assert [without_ids(item) for item in plain["output"]] == [without_ids(item) for item in final["output"]]


@pytest.mark.parametrize("name", RUNS)
def test_an_unstored_response_has_the_same_shape(url: str, name: str) -> None:
    request, status, kinds = RUNS[name]
    plain = respond(url, {**request, "store": False})
    streamed = stream(url, {**request, "store": False})[-1]["response"]
    for answered in (plain, streamed):
        assert answered["store"] is False
        assert answered["status"] == status
        assert [item["type"] for item in answered["output"]] == kinds


@pytest.mark.parametrize("name", RUNS)
def test_a_background_run_is_queued_then_ends_in_the_same_response(url: str, name: str) -> None:
    request, status, kinds = RUNS[name]
    queued = post(url, "/responses", {"model": "scripted", **request, "background": True})
    assert queued["status"] in ("queued", "in_progress")
    check_response(queued, ended=False)
    ended = until(lambda: ended_response(url, queued["id"]), "the background run ends")
    assert ended["status"] == status
    assert [item["type"] for item in ended["output"]] == kinds
    events = check_stream(read_stream(url, "GET", f"/responses/{queued['id']}?stream=true"))
    assert events[-1]["response"] == ended
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]


def test_a_failed_stream_says_error_and_then_failed(url: str) -> None:
    events = stream(url, {"input": "say: one two three four\nerror_after: 2"})
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert "asked to fail in the stream" in failed["error"]["message"]
    assert events[-2]["message"] == failed["error"]["message"]
    assert get(url, f"/responses/{failed['id']}") == failed


def test_what_was_said_before_a_failure_is_marked_as_incomplete(url: str) -> None:
    events = stream(url, {"input": "say: one two three four\nerror_after: 2"})
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["status"] for item in items] == ["incomplete"]
    assert items[0]["content"][0]["text"] == "one two"


def test_log_probabilities_come_with_the_deltas_and_in_the_final_part(url: str) -> None:
    events = stream(url, {"input": "say: one two", "include": ["message.output_text.logprobs"], "top_logprobs": 2})
    streamed = [one for event in events if event["type"] == "response.output_text.delta" for one in event["logprobs"]]
    final = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert [one["token"] for one in final] == ["one", " two"]
    assert [one["token"] for one in streamed] == ["one", " two"]
    assert [len(one["top_logprobs"]) for one in final] == [2, 2]


def test_padding_is_added_to_deltas_only_when_it_is_asked_for(url: str) -> None:
    request = {"input": "say: one two three"}
    bare = stream(url, request)
    padded = stream(url, {**request, "stream_options": {"include_obfuscation": True}})
    assert not any("obfuscation" in event for event in bare)
    deltas = [event for event in padded if event["type"] == "response.output_text.delta"]
    assert deltas
    assert all("obfuscation" in event for event in deltas)


def test_an_empty_answer_is_an_empty_message(url: str) -> None:
    answered = respond(url, {"input": "say:"})
    assert output_text(answered) == ""
    assert answered["output"][0]["status"] == "completed"


def ended_response(url: str, response_id: str) -> dict[str, Any] | None:
    shown = get(url, f"/responses/{response_id}")
    if shown["status"] in ("queued", "in_progress"):
        check_response(shown, ended=False)
        return None
    return check_response(shown)


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("id", "call_id", "encrypted_content")}
