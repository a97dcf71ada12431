"""Tools of MCP servers as the official client declares, approves and follows them, against a real MCP server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, OpenAI

from stateroom.testing.mcp_server import ScriptedMcp, served
from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen
from tests.acceptance.wire import stream

TOKEN = "tok-5b1f0c"


@pytest.fixture
def mcp() -> Iterator[tuple[ScriptedMcp, str]]:
    script = ScriptedMcp(token=TOKEN)
    with served(script.app("streamable_http")) as url:
        yield script, url


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("mcp")
    environment = {"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    process = ServerProcess(folder / "data", backends=(model_host.url,))
    with process.start(environment=environment):
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def declared(url: str, **more: Any) -> Any:
    return {"type": "mcp", "server_label": "notes", "server_url": url, "authorization": TOKEN, **more}


def kinds(response: Any) -> list[str]:
    return [item.type for item in response.output]


def ask(client: OpenAI, said: Any, tool: Any, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=said, tools=[tool], **more)


def test_a_tool_is_listed_once_in_a_chain_and_called(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    script, url = mcp
    tool = declared(url, require_approval="never")
    first = ask(client, 'call: notes__write_note {"text":"hello"}', tool)
    assert kinds(first) == ["mcp_list_tools", "mcp_call", "message"]
    listing, call, message = first.output
    assert {each.name for each in listing.tools} >= {"write_note", "read_note"}
    assert (call.server_label, call.name, call.status) == ("notes", "write_note", "completed")
    assert call.output == "the note is: hello"
    assert json.loads(call.arguments) == {"text": "hello"}
    assert "the note is: hello" in message.content[0].text
    pages = script.lists
    second = ask(client, "call: notes__read_note {}", tool, previous_response_id=first.id)
    assert kinds(second) == ["mcp_call", "message"]
    assert second.output[0].output == "hello"
    assert script.lists == pages
    assert [name for name, _ in script.calls] == ["write_note", "read_note"]


def test_a_secret_is_neither_shown_nor_kept(
    client: OpenAI, server: ServerProcess, mcp: tuple[ScriptedMcp, str]
) -> None:
    script, url = mcp
    tool = declared(f"{url}?key=sk-in-the-url", require_approval="never")
    answer = ask(client, "call: notes__read_note {}", tool)
    assert script.calls
    shown = answer.model_dump_json()
    again = client.responses.retrieve(answer.id).model_dump_json()
    for secret in (TOKEN, "sk-in-the-url"):
        assert secret not in shown
        assert secret not in again
        for file in Path(server.data).rglob("*"):
            if file.is_file():
                assert secret.encode() not in file.read_bytes(), file
    assert "sealed" not in json.loads(shown)["tools"][0]


def test_a_call_waits_for_its_approval(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    script, url = mcp
    tool = declared(url)
    asked = ask(client, 'call: notes__write_note {"text":"hi"}', tool)
    assert kinds(asked) == ["mcp_list_tools", "mcp_approval_request"]
    assert script.calls == []
    request = asked.output[1]
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    done = ask(client, [answer], tool, previous_response_id=asked.id)
    assert kinds(done) == ["mcp_call", "message"]
    assert done.output[0].approval_request_id == request.id
    assert done.output[0].output == "the note is: hi"
    with pytest.raises(BadRequestError, match="was answered before"):
        ask(client, [answer], tool, previous_response_id=done.id)
    assert len(script.calls) == 1


def test_a_refused_call_is_not_made_and_the_model_is_told(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    script, url = mcp
    tool = declared(url)
    asked = ask(client, 'call: notes__write_note {"text":"hi"}', tool)
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": asked.output[1].id,
        "approve": False,
        "reason": "not today",
    }
    done = ask(client, [answer], tool, previous_response_id=asked.id)
    assert kinds(done) == ["mcp_call", "message"]
    assert done.output[0].status == "failed"
    assert "not today" in done.output[1].content[0].text
    assert script.calls == []


def test_approvals_work_without_a_stored_response(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    script, url = mcp
    tool = declared(url)
    said: list[Any] = [{"role": "user", "content": 'call: notes__write_note {"text":"x"}'}]
    asked = ask(client, said, tool, store=False)
    said += [item.model_dump(exclude_none=True) for item in asked.output]
    said.append({"type": "mcp_approval_response", "approval_request_id": asked.output[-1].id, "approve": True})
    lists = script.lists
    done = ask(client, said, tool, store=False)
    assert kinds(done) == ["mcp_call", "message"]
    assert script.lists == lists
    said += [item.model_dump(exclude_none=True) for item in done.output]
    said.append({"role": "user", "content": "say: over"})
    assert ask(client, said, tool, store=False).output_text == "over"
    assert len(script.calls) == 1


@pytest.mark.parametrize("decision", [True, False])
def test_an_approval_outlives_the_server(
    model_host: ModelHost, tmp_path: Path, mcp: tuple[ScriptedMcp, str], decision: bool
) -> None:
    script, url = mcp
    process = ServerProcess(tmp_path / "data", backends=(model_host.url,))
    environment = {"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    tool = declared(url)
    process.start(environment=environment)
    with OpenAI(base_url=process.url, api_key="unused", max_retries=0) as client:
        asked = ask(client, 'call: notes__write_note {"text":"late"}', tool)
    process.kill()
    with process.start(environment=environment), OpenAI(base_url=process.url, api_key="x", max_retries=0) as client:
        answer = {
            "type": "mcp_approval_response",
            "approval_request_id": asked.output[1].id,
            "approve": decision,
        }
        done = ask(client, [answer], tool, previous_response_id=asked.id)
    assert kinds(done) == ["mcp_call", "message"]
    assert len(script.calls) == decision


def test_the_stream_shows_the_list_and_the_call(server: ServerProcess, mcp: tuple[ScriptedMcp, str]) -> None:
    _, url = mcp
    body = {
        "model": "scripted",
        "input": 'call: notes__write_note {"text":"s"}',
        "tools": [declared(url, require_approval="never")],
    }
    events = stream(server.url, body)
    told = [event["type"].removeprefix("response.") for event in events]
    assert told[2:9] == [
        "output_item.added",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "output_item.done",
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
    ]
    assert told[9:12] == ["mcp_call_arguments.done", "mcp_call.completed", "output_item.done"]
    begun, delta, done = events[6]["item"], events[8]["delta"], events[11]["item"]
    assert begun["arguments"] + delta == done["arguments"] == '{"text":"s"}'


def test_a_server_that_cannot_be_listed_fails_the_response(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    _, url = mcp
    with pytest.raises(APIStatusError) as failed:
        ask(client, "hi", {**declared(url), "authorization": "wrong"})
    assert failed.value.status_code == 424
    assert failed.value.code == "mcp_list_tools_failed"
    assert "wrong" not in str(failed.value)


def test_a_tool_that_fails_says_so(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    _, url = mcp
    tool = declared(url, require_approval="never")
    failed = ask(client, 'call: notes__fail {"text":"x"}', tool)
    call = failed.output[1]
    assert call.status == "failed"
    assert call.error.type == "mcp_tool_execution_error"
    refused = ask(client, 'call: notes__refuse {"text":"x"}', tool)
    assert refused.output[1].error.type == "mcp_protocol_error"


def test_only_allowed_tools_are_offered(client: OpenAI, seen: Seen, mcp: tuple[ScriptedMcp, str]) -> None:
    _, url = mcp
    ask(client, "say: only allowed ones", declared(url, allowed_tools=["read_note"]))
    assert [each["function"]["name"] for each in seen.last["tools"]] == ["notes__read_note"]


def test_the_choice_of_a_server_or_of_its_tool_is_kept_to(
    client: OpenAI, seen: Seen, mcp: tuple[ScriptedMcp, str]
) -> None:
    script, url = mcp
    tool = declared(url, require_approval="never", allowed_tools=["read_note", "structured"])
    for choice in ({"type": "mcp", "server_label": "notes", "name": "structured"}, "required"):
        before = len(seen.requests)
        answer = ask(client, "Do something.", tool, tool_choice=choice)
        assert kinds(answer) == ["mcp_list_tools", "mcp_call", "message"]
        first, second = seen.requests[before:]
        assert first["tool_choice"] == (
            "required" if choice == "required" else {"type": "function", "function": {"name": "notes__structured"}}
        )
        assert second.get("tool_choice") is None
    both = ask(client, "Do something.", tool, tool_choice={"type": "mcp", "server_label": "notes"})
    assert kinds(both) == ["mcp_list_tools", "mcp_call", "message"]
    assert script.calls[0][0] == "structured"
    with served(ScriptedMcp(token=TOKEN).app()) as second_url:
        other = {**declared(second_url, require_approval="never"), "server_label": "more", "allowed_tools": ["big"]}
        allowed = {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "mcp", "server_label": "notes"}, {"type": "mcp", "server_label": "more"}],
        }
        client.responses.create(
            model="scripted", input='call: more__big {"count": 2}', tools=[tool, other], tool_choice=allowed
        )
        assert seen.messages[-1]["content"] == "xx"
    with pytest.raises(BadRequestError):
        ask(client, "hi", tool, tool_choice={"type": "mcp", "server_label": "other"})


def test_deferred_tools_are_found_by_searching(client: OpenAI, mcp: tuple[ScriptedMcp, str]) -> None:
    script, url = mcp
    tools = [declared(url, require_approval="never", defer_loading=True), {"type": "tool_search"}]
    found = client.responses.create(
        model="scripted", input='call: tool_search {"query":"replace the note"}', tools=tools
    )
    assert kinds(found) == ["mcp_list_tools", "tool_search_call", "tool_search_output", "message"]
    assert found.output[1].execution == "server"
    [mcp_tool] = found.output[2].tools
    assert "set_note" in mcp_tool.allowed_tools
    called = client.responses.create(
        model="scripted", input='call: notes__set_note {"text":"q"}', tools=tools, previous_response_id=found.id
    )
    assert kinds(called) == ["mcp_call", "message"]
    assert script.note == "q"


def test_an_address_that_is_private_is_refused(url: str) -> None:
    with OpenAI(base_url=url, api_key="unused", max_retries=0) as strict, pytest.raises(BadRequestError) as refused:
        ask(strict, "hi", {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9/mcp"})
    assert refused.value.param == "tools[x].server_url"
