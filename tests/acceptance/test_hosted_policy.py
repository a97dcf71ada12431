"""Rules for hosted calls from a configuration file, what of them the audit shows, and servers that run nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from openai import APIStatusError, BadRequestError, DefaultHttpxClient, OpenAI

from stateroom.testing.mcp_server import ScriptedMcp, served
from stateroom.testing.process import ServerProcess
from tests.acceptance.contract import hold_answer
from tests.acceptance.hosted import PATCH, PYTHON, SHELL, kinds, of_type, patch, python, said, shell
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import get, send, stream

RULES = """
[[policy]]
decision = "deny"
tool = "shell"
arguments = 'rm\\s+-rf'
reason = "Nothing is deleted here."

[[policy]]
decision = "ask"
tool = "shell"
arguments = "deploy"
reason = "Deployments are looked at first."

[[policy]]
decision = "allow"
tool = "mcp.notes.read_*"

[[policy]]
decision = "ask"
tool = "mcp.notes.*"

[[policy]]
decision = "deny"
tool = "apply_patch"
arguments = '\\.env$'

[[policy]]
decision = "ask"
tool = "code_interpreter"
arguments = "import socket"
"""


def configured(host: ModelHost, folder: Path, rules: str, **options: Any) -> ServerProcess:
    file = folder / "stateroom.toml"
    file.write_text(f'allow_private_addresses = true\n[[backends]]\nurl = "{host.url}"\n{rules}')
    return ServerProcess(folder / "data", options=("--config", str(file)), **options)


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with configured(model_host, tmp_path_factory.mktemp("policy"), RULES).start() as process:
        yield process
        process.terminate()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    checked = DefaultHttpxClient(base_url=server.url, event_hooks={"response": [hold_answer]})
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=60, http_client=checked) as client:
        yield client


def ask(client: OpenAI, words: Any, *tools: Any, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=words, tools=list(tools) or [SHELL], **more)


def decisions(server: ServerProcess, response: Any) -> list[tuple[str, str]]:
    """What was decided in a response, and by which rule, as its audit shows it."""
    entries = get(server.url, f"/responses/{response.id}/events?order=asc&limit=100")["data"]
    return [(each["decision"], each["decided_by"]) for each in entries if each["kind"] == "tool.decided"]


def approve(request: Any, approve: bool = True, **more: Any) -> Any:
    return [{"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve, **more}]


def test_a_call_that_a_rule_forbids_is_not_made(client: OpenAI, server: ServerProcess, seen: Seen) -> None:
    words = "\n".join([shell("touch kept"), shell("echo fine", "rm  -rf ."), shell("ls")])
    answer = ask(client, words)
    assert said(answer) == [
        ("", "", 0),
        ("", "This call is not allowed here. Reason: Nothing is deleted here.", 1),
        ("kept\n", "", 0),
    ]
    assert decisions(server, answer) == [("allow", "default"), ("deny", "rule 1"), ("allow", "default")]
    assert any("Nothing is deleted here." in (message["content"] or "") for message in seen.messages)
    denied = ask(client, patch("create_file", "a/.env", "+S=1\n"), SHELL, PATCH)
    assert of_type(denied, "apply_patch_call_output")[0].status == "failed"
    assert decisions(server, denied) == [("deny", "rule 5")]
    allowed = ask(client, patch("create_file", "a/env", "+S=1\n"), SHELL, PATCH)
    assert of_type(allowed, "apply_patch_call_output")[0].status == "completed"


def test_a_call_that_a_rule_forbids_is_an_exception_in_a_program(client: OpenAI) -> None:
    code = "try { await shell({commands: ['rm -rf .']}) } catch (error) { return `caught: ${error.message}` }"
    by_programs: Any = {**SHELL, "allowed_callers": ["programmatic"]}
    answer = ask(
        client, f"call: program {json.dumps({'code': code})}", {"type": "programmatic_tool_calling"}, by_programs
    )
    [output] = of_type(answer, "shell_call_output")
    assert output.status == "incomplete"
    [told] = of_type(answer, "program_output")
    assert told.result.startswith("caught: This call is not allowed here.")


def test_a_call_that_is_to_be_asked_for_waits(client: OpenAI, server: ServerProcess, seen: Seen) -> None:
    asked = ask(client, shell("echo deploy >> done; cat done"))
    request = of_type(asked, "mcp_approval_request")[0]
    assert (request.server_label, request.name) == ("stateroom", "shell")
    assert json.loads(request.arguments) == {"commands": ["echo deploy >> done; cat done"]}
    assert "not made yet" in said(asked)[0][1]
    assert "Deployments are looked at first." in said(asked)[0][1]
    assert decisions(server, asked) == [("ask", "rule 2")]
    done = ask(client, approve(request), previous_response_id=asked.id)
    assert kinds(done) == ["shell_call", "shell_call_output", "message"]
    assert said(done) == [("deploy\n", "", 0)]
    assert decisions(server, done) == [("allow", request.id)]
    with pytest.raises(BadRequestError, match="was answered before"):
        ask(client, approve(request), previous_response_id=done.id)


def test_a_call_that_was_refused_by_a_person_is_not_made(client: OpenAI, server: ServerProcess) -> None:
    asked = ask(client, shell("echo deploy > done"))
    request = of_type(asked, "mcp_approval_request")[0]
    no = ask(client, approve(request, False, reason="too late"), previous_response_id=asked.id)
    assert said(no) == [("", "The user refused this call. Reason: too late", 1)]
    assert decisions(server, no) == [("deny", request.id)]
    after = ask(client, shell("ls | wc -l"), previous_response_id=no.id)
    assert said(after) == [("0\n", "", 0)]


def test_an_approval_of_a_command_outlives_the_server(model_host: ModelHost, tmp_path: Path) -> None:
    process = configured(model_host, tmp_path, RULES).start()
    try:
        with OpenAI(base_url=process.url, api_key="x", max_retries=0, timeout=60) as client:
            first = ask(client, shell("echo before > f"))
            asked = ask(client, shell("echo deploy >> f; cat f"), previous_response_id=first.id)
            process.kill()
            process.start()
            done = ask(client, approve(of_type(asked, "mcp_approval_request")[0]), previous_response_id=asked.id)
        assert said(done) == [("before\ndeploy\n", "", 0)]
    finally:
        process.terminate()


def test_approvals_are_asked_for_in_streams_too(server: ServerProcess) -> None:
    calls = [
        {"name": "shell", "arguments": {"commands": ["echo deploy"]}},
        {"name": "python", "arguments": {"code": "import socket"}},
    ]
    words = f"calls: {json.dumps(calls)}"
    events = stream(server.url, {"input": words, "tools": [SHELL, PYTHON]})
    types = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
    assert types == [
        "shell_call",
        "shell_call_output",
        "mcp_approval_request",
        "code_interpreter_call",
        "mcp_approval_request",
    ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    requests = [item for item in done if item["type"] == "mcp_approval_request"]
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": each["id"], "approve": True} for each in requests
    ]
    body = {"input": answers, "tools": [SHELL, PYTHON], "previous_response_id": events[-1]["response"]["id"]}
    types = [
        event["item"]["type"] for event in stream(server.url, body) if event["type"] == "response.output_item.done"
    ]
    assert types == ["shell_call", "shell_call_output", "code_interpreter_call", "message"]


def test_rules_are_about_tools_of_servers_one_by_one(client: OpenAI, server: ServerProcess) -> None:
    script = ScriptedMcp()
    with served(script.app()) as url:
        tool = {"type": "mcp", "server_label": "notes", "server_url": url, "require_approval": "never"}
        read = ask(client, "call: notes__read_note {}", tool)
        assert kinds(read) == ["mcp_list_tools", "mcp_call", "message"]
        assert decisions(server, read) == [("allow", "rule 3")]
        asked = ask(client, 'call: notes__write_note {"text":"x"}', tool)
        assert script.calls == [("read_note", {})]
        request = of_type(asked, "mcp_approval_request")[0]
        assert (request.server_label, request.name) == ("notes", "write_note")
        done = ask(client, approve(request), tool, previous_response_id=asked.id)
        assert of_type(done, "mcp_call")[0].output == "the note is: x"
        assert decisions(server, done) == [("allow", request.id)]


def test_neither_the_audit_nor_log_and_figures_hold_content(client: OpenAI, server: ServerProcess) -> None:
    word = "zanzibar-9f1"
    answer = ask(
        client, "\n".join([shell(f"echo {word}"), shell(f"rm -rf {word}"), python(f"'{word}'")]), SHELL, PYTHON
    )
    assert word in answer.model_dump_json()
    events = send(server.url, "GET", f"/responses/{answer.id}/events?limit=100")
    figures = send(server.url.removesuffix("/v1"), "GET", "/metrics")
    assert word.encode() not in events.body
    assert word.encode() not in figures.body
    assert word not in server.output
    counted = re.findall(r'^stateroom_tool_calls_total{outcome="ok",tool="(\w+)"} [1-9]', figures.body.decode(), re.M)
    assert {"shell", "code_interpreter"} <= set(counted)


class Once(ScriptedMcp):
    """Hangs the first time."""

    async def _tool_hang(self, ctx: Any, given: dict[str, Any]) -> types.CallToolResult:
        if len(self.calls) == 1:
            await asyncio.Event().wait()
        return types.CallToolResult(content=[types.TextContent(text="back")])


@pytest.mark.parametrize(
    ("hints", "calls"),
    [({"read_only_hint": True}, 2), ({"idempotent_hint": True}, 2), ({"destructive_hint": False}, 1), ({}, 1)],
)
def test_only_what_does_no_harm_is_repeated_after_a_death(
    model_host: ModelHost, tmp_path: Path, hints: dict[str, bool], calls: int
) -> None:
    hang = types.Tool(
        name="hang", description="Hangs.", input_schema={"type": "object"}, annotations=types.ToolAnnotations(**hints)
    )
    script = Once(tools=(hang,))
    process = configured(model_host, tmp_path, "").start()
    with served(script.app()) as url, OpenAI(base_url=process.url, api_key="x", max_retries=0, timeout=60) as client:
        tool = {"type": "mcp", "server_label": "slow", "server_url": url, "require_approval": "never"}
        begun = ask(client, "call: slow__hang {}", tool, background=True)
        assert script.called.wait(20)
        process.kill()
        process.start()
        until(lambda: client.responses.retrieve(begun.id).status == "completed", "the run is taken up and ends")
        call = of_type(client.responses.retrieve(begun.id), "mcp_call")[0]
        assert len(script.calls) == calls
        if calls == 2:
            assert (call.status, call.output) == ("completed", "back")
        else:
            assert call.status == "incomplete"
            assert "outcome of this call is unknown" in call.model_dump_json()
        process.terminate()


def test_a_rule_that_makes_no_sense_stops_the_start(model_host: ModelHost, tmp_path: Path) -> None:
    process = configured(model_host, tmp_path, '[[policy]]\ndecision = "deny"\narguments = "("\n').spawn()
    assert process.wait() != 0
    assert "policy, rule 1: `arguments` is no regular expression" in process.output
    assert "Traceback" not in process.output


def test_a_server_without_sandboxes_refuses_with_advice(model_host: ModelHost, tmp_path: Path) -> None:
    rules = '[workspaces]\ndriver = "none"\n'
    with configured(model_host, tmp_path, rules).start() as process:
        checked = DefaultHttpxClient(base_url=process.url, event_hooks={"response": [hold_answer]})
        with OpenAI(base_url=process.url, api_key="x", max_retries=0, timeout=60, http_client=checked) as client:
            for tool in (SHELL, PYTHON, {"type": "apply_patch", "environment": {"type": "container_auto"}}):
                with pytest.raises(BadRequestError) as refused:
                    ask(client, "hi", tool)
                assert refused.value.code == "unsupported_tool"
                assert refused.value.param == "tools[0].type"
                assert "has no hosted tool" in str(refused.value)
            local = {"type": "shell", "environment": {"type": "local"}}
            assert kinds(ask(client, shell("ls"), local)) == ["shell_call"]
            assert kinds(ask(client, patch("delete_file", "a"), PATCH)) == ["apply_patch_call"]
            assert client.containers.create(name="files only").id


def test_a_machine_without_a_way_to_isolate_says_so(model_host: ModelHost, tmp_path: Path) -> None:
    rules = '[workspaces]\ndriver = "podman"\nimage = "none.invalid/none"\n'
    path = {"PATH": "/nonexistent"}
    with (
        configured(model_host, tmp_path, rules).start(environment=path) as process,
        OpenAI(base_url=process.url, api_key="x", max_retries=0, timeout=60) as client,
    ):
        for _ in range(2):
            with pytest.raises(APIStatusError) as refused:
                ask(client, shell("ls"))
            assert refused.value.status_code == 503
            assert "podman" in str(refused.value)
