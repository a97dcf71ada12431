"""Hosted tools over a WebSocket: calls and chains, lanes, steering, approvals, and connections that end in mid-call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.hosted import PATCH, PYTHON, SHELL, patch, python, shell
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.socket_wire import ENDS, Socket, final_of, opened
from tests.acceptance.test_hosted_policy import RULES, configured
from tests.acceptance.test_hosted_state import commands
from tests.acceptance.wire import get, output_text, post, read_stream, send

TOOLS: Any = [SHELL, PYTHON, PATCH]
BEGUN = "response.shell_call_output_content.delta"


@pytest.fixture
def socket(url: str) -> Iterator[Socket]:
    with opened(url) as socket:
        yield socket


@pytest.fixture
def server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that a test may kill."""
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)).start() as process:
        yield process
        process.terminate()


def ask(socket: Socket, words: Any, previous: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A response that has worked to its end."""
    named = {} if previous is None else {"previous_response_id": previous["id"]}
    fields: dict[str, Any] = {"tools": TOOLS, "include": ["code_interpreter_call.outputs"], **named, **more}
    response = socket.respond(words, **fields)
    assert response["status"] == "completed", response
    return response


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


def outputs(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == "shell_call_output"]


def said(response: dict[str, Any]) -> str:
    """What its first command said."""
    text: str = outputs(response)[0]["output"][0]["stdout"]
    return text


def logs(response: dict[str, Any]) -> str:
    [call] = [item for item in response["output"] if item["type"] == "code_interpreter_call"]
    return "".join(output["logs"] for output in call["outputs"])


def container_of(response: dict[str, Any]) -> str:
    [first, *_] = [item for item in response["output"] if item["type"] == "shell_call"]
    identifier: str = first["environment"]["container_id"]
    return identifier


def test_calls_are_carried_out_and_told_as_in_a_stream(socket: Socket, url: str, seen: Seen) -> None:
    words = "\n".join([shell("echo one > f; cat f"), python("6 * 7"), patch("create_file", "g", "+two\n"), shell("ls")])
    response = ask(socket, words)
    assert kinds(response) == [
        *("shell_call", "shell_call_output", "code_interpreter_call"),
        *("apply_patch_call", "apply_patch_call_output", "shell_call", "shell_call_output", "message"),
    ]
    assert (said(response), logs(response)) == ("one\n", "42")
    assert outputs(response)[1]["output"][0]["stdout"] == "f\ng\n"
    assert get(url, f"/responses/{response['id']}?include[]=code_interpreter_call.outputs") == response
    replayed = read_stream(
        url, "GET", f"/responses/{response['id']}?stream=true&include[]=code_interpreter_call.outputs"
    )
    assert replayed[-1]["response"] == response


@pytest.mark.parametrize("store", [True, False])
def test_a_chain_on_a_connection_goes_on_with_its_files_and_variables(socket: Socket, store: bool) -> None:
    first = ask(socket, "\n".join([shell("echo 1 > f"), python("v = 1")]), store=store)
    second = ask(socket, "\n".join([shell("echo 2 >> f; cat f"), python("v += 1; v")]), first, store=store)
    assert (said(second), logs(second).splitlines()[-1]) == ("1\n2\n", "2")
    fork = ask(socket, "\n".join([shell("cat f"), python("v")]), first, store=store)
    assert (said(fork), logs(fork).splitlines()[-1]) == ("1\n", "1")
    third = ask(socket, "\n".join([shell("cat f"), python("v")]), second, store=store)
    assert (said(third), logs(third).splitlines()[-1]) == ("1\n2\n", "2")


def test_an_unstored_chain_that_only_patches_goes_on_with_its_files(socket: Socket) -> None:
    tools = [{**PATCH, "environment": {"type": "container_auto"}}]
    first = ask(socket, patch("create_file", "f", "+one\n"), store=False, tools=tools)
    second = ask(socket, patch("update_file", "f", "@@\n-one\n+two\n"), first, store=False, tools=tools)
    third = ask(socket, patch("update_file", "f", "@@\n-two\n+three\n"), second, store=False, tools=tools)
    done = [item for each in (first, second, third) for item in each["output"] if item["type"].endswith("_output")]
    assert [item["status"] for item in done] == ["completed"] * 3, done


def test_what_an_unstored_response_wrote_upon_a_stored_one_is_there_in_the_next(socket: Socket) -> None:
    stored = ask(socket, shell("echo stored > f"))
    first = ask(socket, shell("echo first >> f"), stored, store=False)
    second = ask(socket, shell("echo second >> f; cat f"), first, store=False)
    assert said(second) == "stored\nfirst\nsecond\n"
    again = ask(socket, shell("cat f"), first, store=False)
    assert said(again) == "stored\nfirst\n"
    assert said(ask(socket, shell("cat f"), stored)) == "stored\n"


@pytest.mark.parametrize("store", [True, False])
def test_lanes_that_go_on_from_one_response_at_once_do_not_see_each_other(socket: Socket, store: bool) -> None:
    base = ask(socket, shell("echo base > f"), store=store)
    names = ["one", "two", "three"]
    for name in names:
        words = shell(f"echo {name} >> f; sleep 0.3; cat f")
        socket.create(words, stream_id=name, previous_response_id=base["id"], tools=TOOLS, store=store)
    events: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    while any(not held or held[-1]["type"] not in ENDS for held in events.values()):
        event = socket.next()
        events[event["stream_id"]].append(event)
    done = {name: final_of(events[name], name) for name in names}
    assert {name: said(done[name]) for name in names} == {name: f"base\n{name}\n" for name in names}
    assert len({container_of(each) for each in done.values()}) == 3


def test_a_command_is_ended_with_the_connection_of_an_unstored_response(url: str) -> None:
    with opened(url) as socket:
        socket.create(shell("echo begun; exec sleep 98761.25", timeout_ms=600_000), tools=[SHELL], store=False)
        socket.until(BEGUN)
        until(lambda: commands("sleep 98761.25"), "the command goes on")
    until(lambda: not commands("sleep 98761.25"), "the command is ended")


def test_a_stored_response_goes_on_when_its_connection_ends_in_a_command(url: str) -> None:
    made = post(url, "/containers", {"name": "left alone"})
    tool = {"type": "shell", "environment": {"type": "container_reference", "container_id": made["id"]}}
    words = shell("echo begun; until [ -e go ]; do sleep 0.02; done; echo over", timeout_ms=20_000)
    with opened(url) as socket:
        socket.create(words, tools=[tool])
        identifier = socket.until(BEGUN)[0]["response"]["id"]
    assert get(url, f"/responses/{identifier}")["status"] == "in_progress"
    assert said(post(url, "/responses", {"model": "scripted", "input": shell("touch go; echo set"), "tools": [tool]}))
    until(lambda: get(url, f"/responses/{identifier}")["status"] == "completed", "the response goes on")
    assert said(get(url, f"/responses/{identifier}")) == "begun\nover\n"


@pytest.mark.parametrize("store", [True, False])
def test_what_is_said_during_a_command_is_taken_in_after_it_by_a_successor_with_its_files(
    socket: Socket, store: bool
) -> None:
    words = shell("echo begun; sleep 0.5; echo made > f") + "\nsay: not asked for"
    socket.create(words, tools=TOOLS, store=store)
    events = socket.until(BEGUN)
    identifier = events[0]["response"]["id"]
    socket.steer(identifier, shell("cat f"))
    while (event := socket.next())["type"] != "response.steer.accepted":
        events.append(event)
    steered = final_of(events + socket.until_end())
    assert (steered["status"], steered["incomplete_details"]) == ("incomplete", {"reason": "steered"})
    assert kinds(steered) == ["shell_call", "shell_call_output"]
    assert said(steered) == "begun\n"
    successor = final_of(socket.until_end())
    assert (successor["previous_response_id"], said(successor)) == (identifier, "made\n")
    assert (container_of(successor) == container_of(steered)) == store


@pytest.mark.parametrize("store", [True, False])
def test_a_call_that_is_to_be_asked_for_is_made_once_it_is_approved(
    model_host: ModelHost, tmp_path: Path, store: bool
) -> None:
    with configured(model_host, tmp_path, RULES).start() as process, opened(process.url) as socket:
        begun = ask(socket, shell("echo before > f"), store=store)
        asked = ask(socket, shell("echo deploy >> f; cat f"), begun, store=store)
        request = asked["output"][-1]
        assert request["type"] == "mcp_approval_request"
        yes = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
        done = ask(socket, [yes], asked, store=store)
        assert kinds(done) == ["shell_call", "shell_call_output", "message"]
        assert said(done) == "before\ndeploy\n"
        named = {"tools": TOOLS, "store": store}
        socket.create([yes], previous_response_id=done["id"], **named)
        assert socket.error()["error"]["code"] == "approval_already_answered"
        socket.create([{**yes, "approval_request_id": "mcpr_missing"}], previous_response_id=begun["id"], **named)
        assert socket.error()["error"]["code"] == "approval_request_not_found"


def test_a_death_in_a_command_is_told_after_the_client_has_come_back(server: ServerProcess, seen: Seen) -> None:
    words = shell("echo x >> times; echo begun; sleep 300", timeout_ms=600_000) + "\n" + shell("cat times")
    with opened(server.url) as socket:
        socket.create(words, tools=[SHELL])
        first = socket.until(BEGUN)
        server.kill()
    identifier = first[0]["response"]["id"]
    server.start()
    until(lambda: get(server.url, f"/responses/{identifier}")["status"] == "completed", "the run is taken up and ends")
    held = get(server.url, f"/responses/{identifier}")
    cut_off, after = outputs(held)
    assert cut_off["status"] == "incomplete"
    assert "outcome of this call is unknown" in cut_off["output"][0]["stderr"]
    assert after["output"][0]["stdout"] == "x\n"
    assert "unknown" in [message["content"] for message in seen.messages if message["role"] == "tool"][0]
    with opened(server.url) as socket:
        assert said(ask(socket, shell("cat times"), held)) == "x\n"


def test_tools_and_instructions_may_be_sent_before_there_is_anything_to_do(socket: Socket) -> None:
    warm = socket.respond("be ready", tools=TOOLS, generate=False)
    assert warm["output"] == []
    assert said(ask(socket, shell("echo hi"), warm)) == "hi\n"


def test_no_more_calls_are_made_than_a_request_allows(socket: Socket) -> None:
    calls = [{"name": "shell", "arguments": {"commands": [f"touch f{number}; ls"]}} for number in range(3)]
    response = ask(socket, f"calls: {json.dumps(calls)}", max_tool_calls=1)
    assert kinds(response) == [*["shell_call"] * 3, *["shell_call_output"] * 3, "message"]
    first, second, third = outputs(response)
    assert first["output"][0]["stdout"] == "f0\n"
    for refused in (second, third):
        assert "max_tool_calls" in refused["output"][0]["stderr"]


def test_a_container_that_is_deleted_in_a_command_is_told(socket: Socket, url: str) -> None:
    made = post(url, "/containers", {"name": "deleted"})
    tool = {"type": "shell", "environment": {"type": "container_reference", "container_id": made["id"]}}
    words = shell("echo begun; sleep 300", timeout_ms=600_000) + "\n" + shell("echo more") + "\nsay: see /workspace/f"
    socket.create(words, tools=[tool])
    events = socket.until(BEGUN)
    assert send(url, "DELETE", f"/containers/{made['id']}").status == 200
    response = final_of(events + socket.until_end())
    assert (response["status"], output_text(response)) == ("completed", "see /workspace/f")
    cut_off, after = outputs(response)
    assert "outcome of this call is unknown" in cut_off["output"][0]["stderr"]
    assert "not found" in after["output"][0]["stderr"]
