"""What known clients need and what breaks them, one by one: see docs/how-to/clients.md for the clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from openai.types.responses import ResponseStreamEvent

from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import check_response, get, output_text, respond, send, stream, told

FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}

TOLERATED: dict[str, dict[str, Any]] = {
    "fields of other versions": {
        "client_metadata": {"session": "x"},
        "access_programs": {"cyber": "standard"},
        "prompt_cache_options": {"mode": "explicit", "ttl": "12h"},
        "safety_identifier": "someone",
        "some_future_field": {"deep": [1, 2, {"x": None}]},
    },
    "a null for every optional field": dict.fromkeys(
        (
            *("background", "background_options", "context_management", "conversation", "image", "include"),
            *("instructions", "max_output_tokens", "max_tool_calls", "metadata", "moderation", "parallel_tool_calls"),
            *("previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
            *("reasoning", "safety_identifier", "service_tier", "store", "stream", "stream_options", "temperature"),
            *("text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user", "access_programs"),
        )
    ),
    "nulls inside of objects": {
        "text": {"format": None, "verbosity": None},
        "reasoning": {"effort": None, "summary": None, "context": None, "mode": None, "generate_summary": None},
        "stream_options": None,
        "prompt_cache_options": {"mode": None, "ttl": None, "prewarm": None, "comparison_response_id": None},
    },
    "empty lists and objects": {"include": [], "tools": [], "metadata": {}, "text": {}, "reasoning": {}},
    "what is the default anyway": {
        "stream": False,
        "store": True,
        "background": False,
        "truncation": "disabled",
        "tool_choice": "none",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "service_tier": "auto",
    },
    "built-in tools that are not here": {"tools": [{"type": "web_search", "external_web_access": True}]},
    "a function without strict": {"tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}}]},
    "a function whose schema comes from another tool": {
        "tools": [
            {
                "type": "function",
                "name": "look",
                "strict": None,
                "description": None,
                "defer_loading": None,
                "parameters": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "type": "object",
                    "properties": {"n": {"type": "integer", "minimum": -9007199254740991}},
                },
            }
        ]
    },
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_is_not_known_or_not_given_is_tolerated(url: str, name: str) -> None:
    assert output_text(respond(url, {"input": "say: fine", **TOLERATED[name]})) == "fine"


@pytest.mark.parametrize("query", ["?beta=true", "?stream=false", "?anything=1"])
def test_odd_queries_and_headers_are_tolerated(url: str, query: str) -> None:
    headers = {
        "openai-beta": "responses=v1",
        "x-stainless-lang": "python",
        "originator": "x",
        "authorization": "Bearer x",
    }
    answer = send(url, "POST", f"/responses{query}", {"model": "m", "input": "say: fine"}, headers=headers)
    assert answer.status == 200
    assert get(url, f"/responses/{answer.json['id']}{query}") == answer.json


@pytest.mark.parametrize("kind", ["text/plain", "application/json; charset=utf-8", ""])
def test_the_content_type_does_not_matter(url: str, kind: str) -> None:
    headers = {"content-type": kind}
    assert send(url, "POST", "/responses", {"model": "m", "input": "x"}, headers=headers).status == 200


REPLAYED: dict[str, dict[str, Any]] = {
    "a message without type": {"role": "user", "content": "x"},
    "an assistant's text without type or id": {"role": "assistant", "content": "x"},
    "an assistant's parts without annotations": {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "x"}],
    },
    "an assistant's parts with nulls": {
        "type": "message",
        "id": None,
        "status": None,
        "role": "assistant",
        "content": [{"type": "output_text", "text": "x", "annotations": None, "logprobs": None}],
    },
    "an id that the client made": {
        "type": "message",
        "id": "0199c2e4-7b1c-7d60-9c0e-0d4f3f7f5a11",
        "role": "user",
        "content": [{"type": "input_text", "text": "x"}],
    },
    "fields of a client's own": {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}],
        "internal_chat_message_metadata_passthrough": {"turn_id": "t"},
    },
    "a phase": {"type": "message", "role": "assistant", "phase": "commentary", "content": "x"},
    "reasoning in progress": {"type": "reasoning", "id": "rs_1", "summary": [], "status": "in_progress"},
    "a call without id": {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
    "a call of a namespace": {
        "type": "function_call",
        "id": "fc_x",
        "call_id": "c",
        "name": "look",
        "namespace": "mcp__x",
        "arguments": "{}",
        "status": "completed",
    },
    "an output without its call": {"type": "function_call_output", "call_id": "nobody", "output": "x"},
    "an output in parts": {
        "type": "function_call_output",
        "call_id": "c",
        "output": [{"type": "input_text", "text": "x"}],
    },
    "a list of MCP tools": {
        "type": "mcp_list_tools",
        "id": "mcpl_1",
        "server_label": "x",
        "tools": [{"name": "t", "input_schema": {}, "annotations": None, "description": None}],
    },
    "an approval request": {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "server_label": "x",
        "name": "t",
        "arguments": "{}",
    },
    "an MCP call": {
        "type": "mcp_call",
        "id": "mcp_1",
        "server_label": "x",
        "name": "t",
        "arguments": "{}",
        "output": "done",
    },
    "a shell call": {
        "type": "shell_call",
        "id": "sh_1",
        "call_id": "c",
        "action": {"commands": ["ls"], "timeout_ms": None, "max_output_length": None},
        "status": "completed",
    },
    "a web search": {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    },
    "a custom call": {"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "x"},
    "a search for tools": {
        "type": "tool_search_call",
        "id": "ts_1",
        "call_id": "c",
        "arguments": {"q": "x"},
        "execution": "client",
        "status": "completed",
    },
    "more tools": {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]},
}


@pytest.mark.parametrize("name", REPLAYED)
def test_items_come_back_in_every_shape_and_stay_whole(url: str, name: str) -> None:
    item = REPLAYED[name]
    said = {"role": "user", "content": "say: fine"}
    response = respond(url, {"input": [item, said]})
    assert output_text(response) == "fine"
    held = get(url, f"/responses/{response['id']}/input_items?order=asc")["data"][0]
    assert held["type"] == item.get("type", "message")
    assert held["id"] == (item.get("id") or held["id"])
    for field in ("call_id", "name", "namespace", "arguments", "phase", "server_label", "approval_request_id", "input"):
        assert held.get(field) == item.get(field), field
    for field in ("internal_chat_message_metadata_passthrough",):
        assert held.get(field) == item.get(field)
    again = respond(url, {"input": [held, said]})
    assert output_text(again) == "fine"


@pytest.mark.parametrize("name", ["hologram", "item"])
def test_an_item_type_that_nobody_can_honour_is_refused(url: str, name: str) -> None:
    answer = send(url, "POST", "/responses", {"model": "m", "input": [{"type": name, "id": "x"}]})
    assert answer.status == 400
    assert answer.error["code"] in ("unknown_item_type", "unsupported_item_type")


def test_our_own_output_can_be_sent_back_as_it_came(url: str, seen: Seen) -> None:
    tools = [FUNCTION, {"type": "custom", "name": "write"}]
    said = [{"role": "user", "content": 'reason: hm\npreface: so\ncall: look {"a": 1}\ncall: write {"input": "text"}'}]
    request = {"tools": tools, "include": ["reasoning.encrypted_content"], "store": False}
    for number in range(2):
        response = respond(url, {"input": said, **request})
        said += response["output"]
        made = response["output"][-1]
        said.append(
            {"type": f"{made['type'].removesuffix('_call')}_call_output", "call_id": made["call_id"], "output": "r"}
        )
        if number == 0:
            assert made["type"] == "function_call"
    said[-1]["type"] = "custom_tool_call_output"
    final = respond(url, {"input": said, **request})
    assert output_text(final) == "The tool answered: r; r"
    assert [role for role, _ in told(seen.messages)] == ["user", "assistant", "tool", "assistant", "tool"]


def test_no_event_type_is_invented(url: str) -> None:
    known = {get_args(one.model_fields["type"].annotation)[0] for one in get_args(get_args(ResponseStreamEvent)[0])}
    used = {
        event["type"]
        for asked in (
            {"input": "reason: r\nsay: x"},
            {"input": "call: look {}", "tools": [FUNCTION]},
            {"input": "refuse: n"},
        )
        for event in stream(url, asked)
    }
    assert used <= known


FAULTS: dict[str, Callable[[list[dict[str, Any]], dict[str, Any]], bool]] = {
    "usage is null": lambda events, final: final["usage"] is None,
    "usage without details": lambda events, final: (
        not (final["usage"]["input_tokens_details"] and final["usage"]["output_tokens_details"])
    ),
    "an id without resp_": lambda events, final: not final["id"].startswith("resp_"),
    "an item without status or summary": lambda events, final: any(
        "summary" not in item if item["type"] == "reasoning" else "status" not in item for item in final["output"]
    ),
    "annotations null or missing": lambda events, final: any(
        not isinstance(part.get("annotations"), list) for part in text_parts(events, final)
    ),
    "created_at as a string": lambda events, final: isinstance(final["created_at"], str),
    "a call without id": lambda events, final: any(not item.get("id") for item in final["output"]),
    "completed with empty output": lambda events, final: not final["output"],
    "no sequence number": lambda events, final: any("sequence_number" not in event for event in events),
    "no logprobs in text events": lambda events, final: any(
        not isinstance(event.get("logprobs"), list) for event in events if ".output_text." in event["type"]
    ),
    "no output index": lambda events, final: any(
        "output_index" not in event for event in events if "response" not in event
    ),
    "no item id": lambda events, final: any(
        "item_id" not in event for event in events if "response" not in event and "item" not in event
    ),
    "no response.in_progress": lambda events, final: "response.in_progress" not in kinds(events),
    "no content parts": lambda events, final: (
        kinds(events).count("response.content_part.added") != len(text_parts([], final, every=True))
        or kinds(events).count("response.content_part.done") != len(text_parts([], final, every=True))
    ),
    "no done for text and arguments": lambda events, final: (
        sum(kind.endswith(("_text.done", "_arguments.done", "_input.done", "refusal.done")) for kind in kinds(events))
        != len(text_parts([], final, every=True)) + sum("call" in item["type"] for item in final["output"])
    ),
    "no deltas": lambda events, final: not any(kind.endswith(".delta") for kind in kinds(events)),
    "no output_item.added": lambda events, final: (
        [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
        != [item["id"] for item in final["output"]]
    ),
    "no output_item.done": lambda events, final: (
        [event["item"] for event in events if event["type"] == "response.output_item.done"] != final["output"]
    ),
    "another id in done than in added": lambda events, final: (
        len({event["item"]["id"] for event in events if "item" in event}) != len(final["output"])
    ),
    "a null where a key should be missing": lambda events, final: any(
        item.get(name, "") is None for item in final["output"] for name in ("phase", "content", "encrypted_content")
    ),
}

STREAMS: dict[str, dict[str, Any]] = {
    "text": {"input": "say: one two"},
    "reasoning": {"input": "reason: one two\nsay: three"},
    "calls": {
        "input": 'calls: [{"name": "look", "arguments": {"a": 1}}, {"name": "look", "arguments": {"b": 2}}]',
        "tools": [FUNCTION],
    },
    "a custom call": {"input": 'call: write {"input": "x y"}', "tools": [{"type": "custom", "name": "write"}]},
    "a refusal": {"input": "refuse: I cannot."},
}


@pytest.mark.parametrize("asked", STREAMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_we_never_show_a_fault_that_breaks_some_client(url: str, fault: str, asked: str) -> None:
    events = stream(url, STREAMS[asked])
    final = check_response(events[-1]["response"])
    assert not FAULTS[fault](events, final)


def test_the_faults_are_found_where_they_are(url: str) -> None:
    """The table itself works: each fault, planted, is seen."""
    events = stream(url, {"input": "reason: hm\npreface: so\ncall: look {}", "tools": [FUNCTION]})
    for name, shows in FAULTS.items():
        assert any(shows(*planted) for planted in _plant(events)), name


def _plant(events: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The stream, with one field or event after the other taken away or made null."""
    planted = []
    for index, event in enumerate(events):
        planted.append(events[:index] + events[index + 1 :])
        for name in ("sequence_number", "output_index", "item_id", "logprobs"):
            if name in event:
                changed = {key: value for key, value in event.items() if key != name}
                planted.append([*events[:index], changed, *events[index + 1 :]])
    broken = [(made, events[-1]["response"]) for made in planted if made]
    bare = [event for event in events if not event["type"].endswith(".delta")]
    broken.append((bare, events[-1]["response"]))
    text = json.dumps(events[-1]["response"])
    for old, new in (
        ('"resp_', '"r_'),
        ('"summary": []', '"nothing": []'),
        ('"annotations": []', '"annotations": null'),
        (f'"created_at": {events[-1]["response"]["created_at"]}', '"created_at": "x"'),
        ('"id": "fc_', '"other": "fc_'),
        ('"id": "msg_', '"id": "msg_other'),
        ('"input_tokens_details": {', '"input_tokens_details": {}, "x": {'),
        ('"type": "reasoning", "summary"', '"type": "reasoning", "phase": null, "summary"'),
    ):
        assert old in text, old
        broken.append((events, json.loads(text.replace(old, new))))
    broken.append((events, {**events[-1]["response"], "usage": None}))
    broken.append((events, {**events[-1]["response"], "output": []}))
    other = [{**event, "item": {**event["item"], "id": "x"}} if "item" in event else event for event in events[:-3]]
    broken.append((other, events[-1]["response"]))
    return broken


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def text_parts(events: list[dict[str, Any]], final: dict[str, Any], *, every: bool = False) -> list[dict[str, Any]]:
    """The content parts of a response and of its events: those of type output_text, or all."""
    items = [*final["output"], *(event["item"] for event in events if "item" in event)]
    parts = [part for item in items for part in item.get("content") or ()]
    parts += [event["part"] for event in events if "part" in event]
    return parts if every else [part for part in parts if part["type"] == "output_text"]
