"""MCP servers that are programs in a container's real sandbox: called, killed in mid-call, ended with the sandbox."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.hosted import kinds, of_type
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import send

SECRET = "env-secret-77c1"

# Speaks the protocol with the standard library alone. What it counts, it counts in memory; "hang" never answers.
SERVER = b"""
import json, os, sys

TOOLS = ["count", "hang", "write", "environ"]
counted = 0


def called(name, arguments):
    global counted
    if name == "count":
        counted += 1
        return "counted %d" % counted
    if name == "hang":
        with open("hung", "a") as file:
            file.write("%d\\n" % os.getpid())
        sys.stdin.read()
    if name == "write":
        with open(arguments["path"], "w") as file:
            file.write(arguments["text"])
        return "written"
    return os.environ.get("TOKEN", "none")


for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    method, given = asked["method"], asked.get("params") or {}
    if method == "initialize":
        said = {
            "protocolVersion": given["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "small", "version": "1"},
        }
    elif method == "tools/list":
        said = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    elif method == "tools/call":
        text = called(given["name"], given.get("arguments") or {})
        said = {"content": [{"type": "text", "text": text}]}
    else:
        said = {}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}), flush=True)
"""


@pytest.fixture
def own(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process:
        yield process
        process.terminate()


@pytest.fixture
def client(own: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=own.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def container(client: OpenAI) -> str:
    made = client.containers.create(name="with a server")
    client.containers.files.create(made.id, file=("server.py", SERVER))
    return made.id


def tools(container: str) -> Any:
    return [
        {"type": "shell", "environment": {"type": "container_reference", "container_id": container}},
        {
            "type": "mcp",
            "server_label": "small",
            "command": ["python3", "/workspace/server.py"],
            "environment": {"TOKEN": SECRET},
            "require_approval": "never",
        },
    ]


def ask(client: OpenAI, container: str, name: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
    said = f"call: small__{name} {json.dumps(arguments or {})}"
    return client.responses.create(model="scripted", input=said, tools=tools(container), **more)


def call_of(response: Any) -> Any:
    [call] = of_type(response, "mcp_call")
    return call


def command(own: ServerProcess, container: str, text: str) -> str:
    answer = send(own.url, "POST", f"/containers/{container}/exec", {"command": text})
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    return "".join(each["text"] for each in events if each["type"] == "container.exec.output")


def test_a_server_works_in_the_container_and_lives_from_one_response_to_the_next(
    own: ServerProcess, client: OpenAI, container: str
) -> None:
    first = ask(client, container, "count")
    assert kinds(first) == ["mcp_list_tools", "mcp_call", "message"]
    assert call_of(first).output == "counted 1"
    second = ask(client, container, "count", previous_response_id=first.id)
    assert kinds(second) == ["mcp_call", "message"]
    assert call_of(second).output == "counted 2"
    ask(client, container, "write", {"path": "made.txt", "text": "by the server"})
    assert command(own, container, "cat made.txt") == "by the server"
    assert "/mnt/data/made.txt" in [file.path for file in client.containers.files.list(container)]
    told = ask(client, container, "environ")
    assert SECRET not in told.model_dump_json()
    assert SECRET not in own.output


def test_a_server_that_is_killed_in_mid_call_leaves_it_unknown_and_comes_back(
    own: ServerProcess, client: OpenAI, container: str
) -> None:
    first = ask(client, container, "count")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(ask(client, container, "hang")))
    asking.start()
    until(lambda: command(own, container, "cat hung 2>/dev/null"), "the call has begun")
    command(own, container, "kill -9 $(cat hung)")
    asking.join(30)
    [answer] = answers
    call = call_of(answer)
    assert call.status == "incomplete"
    assert "Whether the call was carried out is not known" in json.dumps(call.model_dump())
    assert command(own, container, "wc -l < hung").strip() == "1", "it was not made again"
    assert call_of(ask(client, container, "count", previous_response_id=first.id)).output == "counted 1"


def test_a_server_ends_with_its_sandbox_and_the_next_call_starts_both(
    own: ServerProcess, client: OpenAI, container: str
) -> None:
    assert call_of(ask(client, container, "count")).output == "counted 1"
    own.terminate()
    own.start()
    again = ask(client.with_options(base_url=own.url), container, "count")
    assert call_of(again).output == "counted 1"
    assert "Traceback" not in own.output


def test_a_server_ends_when_its_workspace_makes_room_for_another(model_host: ModelHost, tmp_path: Path) -> None:
    environment = {"STATEROOM_WORKSPACES__LIVE": "1"}
    with (
        ServerProcess(tmp_path / "small", backends=(model_host.url,), environment=environment) as small,
        OpenAI(base_url=small.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        one, other = (client.containers.create(name=name).id for name in ("one", "other"))
        client.containers.files.create(one, file=("server.py", SERVER))
        assert call_of(ask(client, one, "count")).output == "counted 1"
        assert open_connections(small) == 1
        assert command(small, other, "echo here") == "here\n"
        assert open_connections(small) == 0
        assert call_of(ask(client, one, "count")).output == "counted 1"


def open_connections(server: ServerProcess) -> int:
    lines = send(server.url.removesuffix("/v1"), "GET", "/metrics").body.decode().splitlines()
    [line] = [line for line in lines if line.startswith("stateroom_mcp_connections ")]
    return int(float(line.split()[1]))


def test_without_another_tool_a_server_gets_a_container_of_the_chains_own(client: OpenAI) -> None:
    """Here the program comes along in the command itself."""
    tool: Any = {
        "type": "mcp",
        "server_label": "small",
        "command": ["python3", "-c", SERVER.decode()],
        "require_approval": "never",
    }
    said = 'call: small__write {"path": "kept", "text": "x"}'
    first = client.responses.create(model="scripted", input=said, tools=[tool])
    assert call_of(first).output == "written"
    shell: Any = {"type": "shell", "environment": {"type": "container_auto"}}
    look = client.responses.create(
        model="scripted", input='call: shell {"commands": ["cat kept"]}', tools=[shell], previous_response_id=first.id
    )
    [output] = of_type(look, "shell_call_output")
    assert output.output[0].stdout == "x"


def test_where_nothing_runs_a_command_is_refused(model_host: ModelHost, tmp_path: Path) -> None:
    environment = {"STATEROOM_WORKSPACES__DRIVER": "none"}
    with (
        ServerProcess(tmp_path / "none", backends=(model_host.url,), environment=environment) as none,
        OpenAI(base_url=none.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        tool: Any = {"type": "mcp", "server_label": "small", "command": ["python3", "server.py"]}
        with pytest.raises(APIStatusError) as refused:
            client.responses.create(model="scripted", input="hi", tools=[tool])
        assert refused.value.code == "no_sandbox"
