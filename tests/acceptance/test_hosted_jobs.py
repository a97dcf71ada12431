"""What a command left running does not outlive its environment, and the next call says so: once, after every end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import DefaultHttpxClient, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.contract import hold_answer
from tests.acceptance.hosted import OUTPUTS, PYTHON, SHELL, container_of, of_type, patch, python, said, shell
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import send

TOOLS: Any = [SHELL, PYTHON, {"type": "apply_patch"}]
SERVER = "python3 -m http.server 8123 > log 2>&1 &"
GONE = (
    "[what earlier commands left running has ended, since the environment was stopped, restarted or forked, or reached "
    f"a limit: `{SERVER}`]"
)


@contextmanager
def client_of(server: ServerProcess) -> Iterator[OpenAI]:
    checked = DefaultHttpxClient(base_url=server.url, event_hooks={"response": [hold_answer]})
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=60, http_client=checked) as client:
        yield client


@pytest.fixture
def server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that a test may kill, with its own idea of how long is idle."""
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)).start() as process:
        yield process
        process.terminate()


def ask(client: OpenAI, *words: str, **more: Any) -> Any:
    return client.responses.create(model="scripted", input="\n".join(words), tools=TOOLS, include=OUTPUTS, **more)


def stderr(response: Any) -> str:
    """Of the first command."""
    return said(response)[0][1]


def logs(response: Any) -> str:
    [call] = of_type(response, "code_interpreter_call")
    return "".join(output.logs for output in call.outputs or ())


def jobs(url: str, container_id: str) -> list[tuple[str, str]]:
    shown = send(url, "GET", f"/containers/{container_id}").json["jobs"]
    return [(each["command"], each["status"]) for each in shown]


def commits(url: str, container_id: str) -> list[dict[str, Any]]:
    """Newest first."""
    found: list[dict[str, Any]] = send(url, "GET", f"/containers/{container_id}/commits").json["data"]
    return found


def test_an_idle_stop_is_told_once(server: ServerProcess, seen: Seen) -> None:
    server.terminate()
    server.start(environment={"STATEROOM_WORKSPACES__IDLE_MINUTES": "0.02"})
    with client_of(server) as client:
        first = ask(client, shell(SERVER))
        assert "[still running: job 1" in stderr(first)
        container_id = container_of(first)
        until(lambda: jobs(server.url, container_id) == [(SERVER, "ended")], "an idle stop", seconds=30)
        patched = ask(client, patch("create_file", "f", "+1"), previous_response_id=first.id)
        assert "left running" not in of_type(patched, "apply_patch_call_output")[0].output
        second = ask(client, shell("true", "true"), previous_response_id=patched.id)
        assert [chunk[1] for chunk in said(second)] == [GONE, ""]
        assert GONE in [message["content"] for message in seen.messages if message["role"] == "tool"][-1]
        assert jobs(server.url, container_id) == []
        third = ask(client, shell("true"), previous_response_id=second.id)
        assert stderr(third) == ""


def test_a_killed_server_is_told_of_also_when_it_dies_within_the_turn(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        words = (shell(SERVER), shell("echo begun; sleep 300", timeout_ms=600_000), shell("true"))
        begun = ask(client, *words, background=True)
        until(lambda: "echo begun" in client.responses.retrieve(begun.id).model_dump_json(), "the second call")
        state = server.data / "workspaces" / "live"
        until(lambda: any(SERVER in each.read_text() for each in state.glob("*/state.json")), "the job is known")
        server.kill()
        server.start()
        until(lambda: client.responses.retrieve(begun.id).status == "completed", "the run is taken up and ends")
        answer = client.responses.retrieve(begun.id)
        left, cut_off, after = of_type(answer, "shell_call_output")
        assert "still running" in left.output[0].stderr
        assert "outcome of this call is unknown" in cut_off.output[0].stderr
        assert after.output[0].stderr == GONE
        assert jobs(server.url, container_of(answer)) == []


def test_a_killed_server_is_told_of_in_the_next_turn_by_whichever_tool(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        first = ask(client, shell(SERVER))
        container_id = container_of(first)
        assert jobs(server.url, container_id) == [(SERVER, "running")]
        server.kill()
        server.start()
        until(lambda: jobs(server.url, container_id) == [(SERVER, "ended")], "the container says so")
        second = ask(client, python("1 + 1"), previous_response_id=first.id)
        assert logs(second).splitlines() == [GONE, "2"]
        server.kill()
        server.start()
        third = ask(client, shell("true"), previous_response_id=second.id)
        assert stderr(third) == ""


def test_an_update_of_the_server_is_told_of(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        first = ask(client, shell(SERVER))
        assert server.terminate() == 0
        server.start()
        second = ask(client, shell(SERVER), previous_response_id=first.id)
        assert stderr(second).splitlines()[0] == GONE
        assert "[still running: job 1" in stderr(second)
        assert jobs(server.url, container_of(first)) == [(SERVER, "running")]


def test_a_fork_is_told_what_did_not_come_along_and_its_origin_goes_on(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        first = ask(client, shell(SERVER))
        second = ask(client, shell("echo 2 > f"), previous_response_id=first.id)
        assert stderr(second) == ""
        fork = ask(client, shell("cat log; true"), previous_response_id=first.id)
        assert stderr(fork) == GONE
        assert container_of(fork) != container_of(first)
        again = ask(client, shell("true"), previous_response_id=fork.id)
        assert stderr(again) == ""
        assert jobs(server.url, container_of(first)) == [(SERVER, "running")]
        assert stderr(ask(client, shell("true"), previous_response_id=second.id)) == ""
        path = f"/containers/{container_of(first)}"
        copy = send(server.url, "POST", f"{path}/fork", {}).json
        assert copy["jobs"] == [{"command": SERVER, "status": "ended"}]
        tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": copy["id"]}}
        there = client.responses.create(model="scripted", input=shell("true"), tools=[tool])
        assert stderr(there) == GONE


def test_a_restore_ends_what_ran_and_says_so(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        first = ask(client, shell("echo 1 > f"))
        container_id = container_of(first)
        second = ask(client, shell(SERVER), previous_response_id=first.id)
        newest, oldest = commits(server.url, container_id)
        assert (newest["jobs"], oldest["jobs"]) == ([SERVER], [])
        back = send(server.url, "POST", f"/containers/{container_id}/restore", {"commit": oldest["id"]}).json
        assert back["jobs"] == [SERVER]
        third = ask(client, shell("cat f"), previous_response_id=second.id)
        assert said(third)[0][:2] == ("1\n", GONE)


def test_what_ended_by_itself_or_was_killed_is_nothing_to_be_told(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        first = ask(client, shell(f"{SERVER} echo $! > pid"))
        container_id = container_of(first)
        assert len(jobs(server.url, container_id)) == 1
        second = ask(
            client, shell("kill $(cat pid); while kill -0 $(cat pid); do :; done"), previous_response_id=first.id
        )
        assert jobs(server.url, container_id) == []
        server.kill()
        server.start()
        third = ask(client, shell("true"), previous_response_id=second.id)
        assert stderr(third) == ""


def test_a_program_is_not_told_in_the_place_of_the_model(server: ServerProcess, seen: Seen) -> None:
    tools: Any = [{"type": "programmatic_tool_calling"}, {**SHELL, "allowed_callers": ["direct", "programmatic"]}]
    with client_of(server) as client:
        first = client.responses.create(model="scripted", input=shell(SERVER), tools=tools)
        server.kill()
        server.start()
        code = 'return await shell({commands: ["true"]});'
        words = f"call: program {json.dumps({'code': code})}\n{shell('true')}"
        second = client.responses.create(model="scripted", input=words, tools=tools, previous_response_id=first.id)
        told = [chunk.stderr for item in of_type(second, "shell_call_output") for chunk in item.output]
        assert told == ["", GONE]
