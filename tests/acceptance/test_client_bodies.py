"""Whole requests as other clients send them, turn by turn; the model must always get a strictly paired history."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import (
    assert_paired,
    check_stream,
    get,
    output_text,
    read_stream,
    respond,
    send,
    stream,
    told,
)

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def function(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": f"Does {name}.",
        "strict": False,
        "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "additionalProperties": False},
    }


# Codex: everything again at every turn, nothing stored, ids of its own.

CODEX_TOOLS = [
    function("exec_command"),
    function("write_stdin"),
    function("view_image"),
    {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [function("spawn")]},
    {"type": "namespace", "name": "mcp__files", "description": "MCP.", "tools": [function("read")]},
    {
        "type": "custom",
        "name": "apply_patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
    },
    {"type": "web_search", "external_web_access": True},
]


def codex(items: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "model": "scripted",
        "input": items,
        "tools": CODEX_TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": str(uuid.uuid4()),
        "text": {"verbosity": "medium"},
        "client_metadata": {"x-codex-installation-id": str(uuid.uuid4())},
        **more,
    }


def codex_message(role: str, text: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": str(uuid.uuid4()),
        "role": role,
        "content": [{"type": "input_text", "text": text}],
        "internal_chat_message_metadata_passthrough": {"turn_id": str(uuid.uuid4())},
    }


def as_codex_keeps_it(item: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in item.items() if name not in ("status",)}
    if item["type"] == "reasoning":
        kept["content"] = None
    return {**kept, "id": item["id"]}


def test_a_codex_session_of_several_turns(url: str, seen: Seen) -> None:
    calls = (
        ("exec_command", '{"cmd": "ls"}'),
        ("multi_agent_v1__spawn", "{}"),
        ("mcp__files__read", '{"cmd": "x"}'),
        ("apply_patch", '{"input": "*** Begin Patch"}'),
        ("view_image", '{"cmd": "a.png"}'),
    )
    script = "reason: let me see\n" + "\n".join(f"call: {name} {arguments}" for name, arguments in calls)
    items = [
        codex_message("developer", "You are a coding agent."),
        codex_message("user", "<environment_context>cwd</environment_context>"),
        codex_message("user", script),
    ]
    made: list[tuple[str, str, str | None]] = []
    for _ in calls:
        done = codex_turn(url, items)
        call = done[-1]
        made.append((call["type"], call["name"], call.get("namespace")))
        items += [as_codex_keeps_it(item) for item in done]
        output: Any = "total 0"
        if call["name"] == "view_image":
            output = [{"type": "input_text", "text": "here"}, {"type": "input_image", "image_url": PIXEL}]
        answer = {"type": f"{call['type']}_output", "call_id": call["call_id"], "output": output}
        items.append({**answer, "id": str(uuid.uuid4())})
    assert made == [
        ("function_call", "exec_command", None),
        ("function_call", "spawn", "multi_agent_v1"),
        ("function_call", "read", "mcp__files"),
        ("custom_tool_call", "apply_patch", None),
        ("function_call", "view_image", None),
    ]
    final = codex_turn(url, items)
    assert final[-1]["type"] == "message"
    for request in seen.requests:
        assert_paired(request["messages"])
    thoughts = [message.get("reasoning_content") for message in seen.messages if message["role"] == "assistant"]
    assert thoughts == ["let me see"] * len(calls)
    assert "image_url" in json.dumps(seen.messages)


def test_codex_lets_its_user_type_while_a_command_runs(url: str, seen: Seen) -> None:
    items = [codex_message("user", 'call: exec_command {"cmd": "sleep"}')]
    done = codex_turn(url, items)
    items += [as_codex_keeps_it(item) for item in done]
    items.append(codex_message("user", "say: stopped"))
    items.append({"type": "function_call_output", "call_id": done[-1]["call_id"], "output": "interrupted"})
    assert codex_turn(url, items)[-1]["type"] == "message"
    assert_paired(seen.messages)
    assert [role for role, _ in told(seen.messages)] == ["user", "user", "assistant", "tool"]


def test_codex_gets_name_and_namespace_apart_and_free_text_as_such(url: str) -> None:
    for said, kind, name, space in (
        ("call: mcp__files__read {}", "function_call", "read", "mcp__files"),
        ("call: multi_agent_v1__spawn {}", "function_call", "spawn", "multi_agent_v1"),
        ('call: apply_patch {"input": "*** x"}', "custom_tool_call", "apply_patch", None),
    ):
        done = codex_turn(url, [codex_message("user", said)])
        assert (done[-1]["type"], done[-1]["name"], done[-1].get("namespace")) == (kind, name, space)


def test_codex_with_a_light_model_brings_its_tools_in_an_item(url: str, seen: Seen) -> None:
    execute = {"type": "custom", "name": "exec", "description": "Runs JavaScript.", "format": {"type": "text"}}
    tools = {
        "type": "additional_tools",
        "id": str(uuid.uuid4()),
        "role": "developer",
        "tools": [{"type": "namespace", "name": "functions", "description": "All.", "tools": [execute]}],
    }
    said = codex_message("user", 'call: functions__exec {"input": "1 + 1"}')
    body = codex([tools, said])
    del body["tools"]
    events = stream(url, body)
    made = [event["item"] for event in events if event["type"] == "response.output_item.done"][-1]
    assert (made["type"], made["name"], made["namespace"]) == ("custom_tool_call", "exec", "functions")
    assert made["input"] == "1 + 1"
    assert [tool["function"]["name"] for tool in seen.last["tools"]] == ["functions__exec"]


def test_codex_asks_for_structured_output_by_its_own_name(url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "codex_output_schema", "schema": schema, "strict": True}
    body = codex([codex_message("user", 'json: {"ok": true}')], text={"format": form, "verbosity": "low"})
    assert json.loads(output_text(stream(url, body)[-1]["response"])) == {"ok": True}


def test_codex_is_told_to_send_everything_when_its_parent_is_unknown(url: str) -> None:
    body = {**codex([codex_message("user", "x")]), "previous_response_id": "resp_of_another_connection"}
    answer = send(url, "POST", "/responses", body)
    assert answer.status == 400
    assert answer.error["code"] == "previous_response_not_found"


def codex_turn(url: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Codex acts on: the items of `response.output_item.done`."""
    events = stream(url, codex(items))
    return [event["item"] for event in events if event["type"] == "response.output_item.done"]


# AI SDK: references to what is stored, calls in full without ids; with a conversation the user's message comes twice.


def test_the_ai_sdk_refers_to_what_is_stored(url: str, seen: Seen) -> None:
    asked = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "reason: hm\npreface: one moment\ncall: look {}"}]},
    ]
    body = {"model": "scripted", "tools": [function("look")], "tool_choice": "auto"}
    first = stream(url, {**body, "input": asked})[-1]["response"]
    thought, preface, call = first["output"]
    asked += [
        {"type": "item_reference", "id": thought["id"]},
        {"type": "item_reference", "id": preface["id"]},
        {"type": "function_call", "call_id": call["call_id"], "name": "look", "arguments": call["arguments"]},
        {"type": "function_call_output", "call_id": call["call_id"], "output": '{"seen":1}'},
    ]
    second = stream(url, {**body, "input": asked})[-1]["response"]
    assert output_text(second) == 'The tool answered: {"seen":1}'
    assert_paired(seen.messages)
    assert [role for role, _ in told(seen.messages)] == ["system", "user", "assistant", "tool"]
    assert seen.messages[2]["content"] == "one moment"
    assert seen.messages[2]["reasoning_content"] == "hm"
    asked += [{"type": "item_reference", "id": item["id"]} for item in second["output"]]
    asked.append({"role": "user", "content": [{"type": "input_text", "text": "say: thanks"}]})
    third = stream(url, {**body, "input": asked})[-1]["response"]
    assert output_text(third) == "thanks"
    assert_paired(seen.messages)


def test_the_ai_sdk_repeats_the_user_between_call_and_result_of_a_conversation(url: str, seen: Seen) -> None:
    conversation = send(url, "POST", "/conversations", {}).json["id"]
    user = {"role": "user", "content": [{"type": "input_text", "text": "call: look {}\ncall: look {}"}]}
    body = {"model": "scripted", "conversation": conversation, "tools": [function("look")]}
    first = stream(url, {**body, "input": [user]})[-1]["response"]
    result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "found"}
    second = stream(url, {**body, "input": [user, result]})[-1]["response"]
    assert_paired(seen.messages)
    roles = [role for role, _ in told(seen.messages)]
    assert roles == ["user", "user", "assistant", "tool"]
    assert second["status"] == "completed"


def test_the_ai_sdk_without_storing_carries_reasoning_itself(url: str, seen: Seen) -> None:
    body = {
        "model": "scripted",
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "tools": [function("look")],
    }
    user = {"role": "user", "content": [{"type": "input_text", "text": "reason: mine\ncall: look {}"}]}
    first = stream(url, {**body, "input": [user]})[-1]["response"]
    thought, call = first["output"]
    sent = [
        user,
        {
            "type": "reasoning",
            "id": thought["id"],
            "encrypted_content": thought["encrypted_content"],
            "summary": [],
        },
        {"type": "function_call", "call_id": call["call_id"], "name": "look", "arguments": "{}", "id": call["id"]},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "ok"},
    ]
    stream(url, {**body, "input": sent})
    assert_paired(seen.messages)
    assert seen.messages[1]["reasoning_content"] == "mine"


# LlamaIndex: every setting, nulls included.


def test_llamaindex_sends_every_null(url: str, seen: Seen) -> None:
    body = {
        "model": "scripted",
        "input": [{"role": "user", "content": "say: fine"}],
        "include": None,
        "instructions": None,
        "metadata": None,
        "previous_response_id": None,
        "store": False,
        "temperature": None,
        "tools": [],
        "tool_choice": "none",
        "top_p": None,
        "truncation": "disabled",
        "user": None,
        "reasoning": None,
        "max_output_tokens": None,
        "parallel_tool_calls": True,
        "stream": False,
    }
    response = respond(url, body)
    assert output_text(response) == "fine"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    assert "tool_choice" not in seen.last
    tracked = respond(url, {**body, "store": True})
    again = {**body, "store": True, "previous_response_id": tracked["id"]}
    respond(url, again)
    assert [text for _, text in told(seen.messages)] == ["say: fine", "fine", "say: fine"]


# LangChain: chains, replays of streamed items, forced functions.


def test_langchain_replays_streamed_items_and_forces_functions(url: str, seen: Seen) -> None:
    body = {"model": "scripted", "stream": False, "tools": [{**function("look"), "strict": None}]}
    first = respond(url, {**body, "input": [{"role": "user", "content": "reason: hm\ncall: look {}"}]})
    call = first["output"][1]
    replayed = [
        {"role": "user", "content": "reason: hm\ncall: look {}"},
        {"type": "reasoning", "id": first["output"][0]["id"], "summary": [], "status": "in_progress", "index": 0},
        {**call, "index": 1},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "seen"},
    ]
    second = respond(url, {**body, "input": replayed})
    assert output_text(second) == "The tool answered: seen"
    assert_paired(seen.messages)
    forced = respond(
        url,
        {**body, "input": "x", "tool_choice": {"type": "function", "name": "look"}, "parallel_tool_calls": False},
    )
    assert [item["type"] for item in forced["output"]] == ["function_call"]
    chained = respond(url, {**body, "input": "say: on", "previous_response_id": second["id"]})
    assert chained["id"].startswith("resp_")


# pydantic-ai: polls with a query, output by a required tool, prompted JSON.


def test_pydantic_ai_polls_and_demands_its_output_tool(url: str) -> None:
    queued = send(url, "POST", "/responses", {"model": "m", "input": "say: x", "background": True}).json
    assert queued["background"] is True
    events = check_stream(read_stream(url, "GET", f"/responses/{queued['id']}?stream=true"))
    assert get(url, f"/responses/{queued['id']}?stream=false") == events[-1]["response"]
    tool = {
        **function("final_result"),
        "strict": True,
        "parameters": {**function("x")["parameters"], "required": ["cmd"]},
    }
    required = respond(url, {"input": "hello", "tools": [tool], "tool_choice": "required"})
    assert [item["name"] for item in required["output"]] == ["final_result"]
    prompted = respond(url, {"input": 'json: {"cmd": "x"}', "text": {"format": {"type": "json_object"}}})
    assert json.loads(output_text(prompted)) == {"cmd": "x"}


# OpenAI Agents: approvals of hosted MCP calls are found in the input.


def test_replayed_approvals_of_mcp_calls_are_passed_over(url: str, seen: Seen) -> None:
    items = [
        {"role": "user", "content": "find it"},
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": [{"name": "t", "input_schema": {}}]},
        {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "t", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
        {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "t", "arguments": "{}", "output": "found"},
        {"role": "user", "content": "say: and?"},
    ]
    assert output_text(respond(url, {"input": items})) == "and?"
    assert_paired(seen.messages)
    assert "found" in str(seen.messages)


# Whoever calls a strict server: late, doubled and missing results.


def test_results_that_come_late_doubled_or_never_are_settled(url: str, seen: Seen) -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": name, "name": "look", "arguments": "{}"}

    def result(name: str) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": name, "output": f"result {name}"}

    def user(text: str) -> dict[str, Any]:
        return {"role": "user", "content": text}

    for items in (
        [user("a"), call("1"), user("b"), result("1"), user("say: x")],
        [user("a"), call("1"), call("2"), result("2"), user("b"), result("1"), user("say: x")],
        [user("a"), call("1"), user("say: x")],
        [user("a"), result("1"), user("say: x")],
        [user("a"), call("1"), result("1"), result("1"), user("say: x")],
        [user("a"), call("1"), result("1"), call("1"), result("1"), user("say: x")],
        [call("1"), result("1"), {"role": "assistant", "content": "so"}, call("2"), user("say: x")],
    ):
        assert output_text(respond(url, {"input": items, "tools": [function("look")]})) == "x"
        assert_paired(seen.messages)
