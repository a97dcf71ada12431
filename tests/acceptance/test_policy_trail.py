"""Rules for hosted calls, and the trail that each decision leaves in the journal of its response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI, PermissionDeniedError

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost

RULES = r"""
[[policy]]
tool = "shell"
arguments = '\brm -rf\b'
decision = "deny"
reason = "Delete files one by one."

[[policy]]
tool = "shell"
arguments = '^deploy\b'
decision = "ask"
reason = "A person agrees to each deployment."

[[policy]]
tool = "apply_patch"
arguments = '^secrets/|^\+TOKEN'
decision = "deny"

[[policy]]
tool = "code_interpreter"
arguments = "subprocess"
decision = "ask"
"""
SHELL: Any = {"type": "shell", "environment": {"type": "container_auto"}}
PYTHON: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
PATCH: Any = {"type": "apply_patch"}
DEPLOY = "deploy() { echo live; }; deploy"
"""The rule looks at how it begins."""


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "rules.toml").write_text(RULES)
    options = ("--config", str(folder / "rules.toml"))
    with ServerProcess(folder / "data", backends=(model_host.url,), options=options) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def call(name: str, **arguments: Any) -> str:
    return f"call: {name} {json.dumps(arguments)}"


def ask(client: OpenAI, said: Any, **more: Any) -> Any:
    more.setdefault("tools", [SHELL, PYTHON, PATCH])
    return client.responses.create(model="scripted", input=said, **more)


def answer(request: Any, approve: bool, reason: str = "") -> list[Any]:
    said = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}
    return [{**said, "reason": reason} if reason else said]


def kinds(response: Any) -> list[str]:
    return [item.type for item in response.output]


def trail(client: OpenAI, response: Any) -> list[tuple[str, ...]]:
    """What the journal says of the calls of a response."""
    events: Any = client.get(f"/responses/{response.id}/events", cast_to=object)
    told = []
    for event in events["data"]:
        if event["kind"] == "tool.decided":
            told.append((event["decision"], event["decided_by"]))
        elif event["kind"] == "tool.intent":
            told.append(("intent", event["effect"]))
        elif event["kind"] == "tool.outcome":
            told.append((event["outcome"],))
    return told


def test_what_no_rule_matches_is_made(client: OpenAI) -> None:
    done = ask(client, call("shell", commands=["echo made"]))
    assert kinds(done) == ["shell_call", "shell_call_output", "message"]
    assert done.output[1].output[0].stdout == "made\n"
    assert trail(client, done) == [("allow", "default"), ("intent", "effect"), ("completed",)]


def test_what_a_rule_denies_is_not_made_and_the_model_is_told_why(client: OpenAI) -> None:
    done = ask(client, call("shell", commands=["echo one", "rm -rf *"]))
    assert kinds(done) == ["shell_call", "shell_call_output", "message"]
    assert "Delete files one by one." in done.output_text
    assert "one\n" not in done.output[1].output[0].stdout
    assert trail(client, done) == [("deny", "rule 1"), ("failed",)]


def test_a_patch_is_judged_by_its_path_and_by_its_lines(client: OpenAI) -> None:
    def patch(path: str, diff: str) -> Any:
        operation = {"type": "create_file", "path": path, "diff": diff}
        return ask(client, call("apply_patch", operation=operation))

    for denied in (patch("secrets/key", "+x\n"), patch("notes", "+TOKEN = 1\n")):
        assert denied.output[1].status == "failed"
        assert trail(client, denied) == [("deny", "rule 3"), ("failed",)]
    assert trail(client, patch("notes", "+secrets/ are elsewhere\n"))[-1] == ("completed",)


@pytest.mark.parametrize("approve", [True, False])
def test_a_call_that_a_person_is_asked_about_waits_for_the_answer(client: OpenAI, approve: bool) -> None:
    asked = ask(client, call("shell", commands=[DEPLOY]))
    assert kinds(asked) == ["shell_call", "shell_call_output", "mcp_approval_request"]
    request = asked.output[2]
    assert (request.server_label, request.name) == ("stateroom", "shell")
    assert json.loads(request.arguments) == {"commands": [DEPLOY]}
    assert "A person agrees to each deployment." in asked.output[1].output[0].stderr
    assert trail(client, asked) == [("ask", "rule 2"), ("failed",)]

    done = ask(client, answer(request, approve, "Not on a Friday."), previous_response_id=asked.id)
    assert kinds(done) == ["shell_call", "shell_call_output", "message"]
    assert done.output[0].to_dict()["approval_request_id"] == request.id
    if approve:
        assert done.output[1].output[0].stdout == "live\n"
        assert trail(client, done) == [("allow", request.id), ("intent", "effect"), ("completed",)]
    else:
        assert "Not on a Friday." in done.output_text
        assert trail(client, done) == [("deny", request.id), ("failed",)]
    with pytest.raises(BadRequestError, match="was answered before"):
        ask(client, answer(request, True), previous_response_id=done.id)


def test_code_is_asked_about_by_its_text(client: OpenAI) -> None:
    asked = ask(client, call("python", code="import subprocess\nprint('ran')"))
    assert kinds(asked) == ["code_interpreter_call", "mcp_approval_request"]
    outputs: Any = ["code_interpreter_call.outputs"]
    done = ask(client, answer(asked.output[1], True), previous_response_id=asked.id, include=outputs)
    assert done.output[0].outputs[0].logs == "ran"


def test_a_command_of_a_client_goes_by_the_rules_for_the_shell(client: OpenAI) -> None:
    container = client.containers.create(name="by hand")
    path = f"/containers/{container.id}/exec"
    with pytest.raises(PermissionDeniedError) as denied:
        client.post(path, body={"command": "rm -rf *"}, cast_to=object)
    assert denied.value.code == "denied_by_policy"
    said: Any = client.post(path, body={"command": DEPLOY}, cast_to=str)
    assert '"text":"live\\n"' in said
