"""What goes wrong beside hosted calls: no room for what they leave, containers that are deleted, clients that hurry."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ServerProcess
from tests.acceptance.hosted import OUTPUTS, SHELL, container_of, kinds, of_type, python, said, shell
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.test_hosted_policy import RULES, configured
from tests.acceptance.test_hosted_state import BOTH, ask, began, client_of, commands, shown
from tests.acceptance.wire import get, iter_stream, post, send

MIB = 1024 * 1024


@pytest.fixture
def server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that a test may kill, or keep from writing."""
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)).start() as process:
        yield process
        process.terminate()


@contextmanager
def small_files(server: ServerProcess, most: int) -> Iterator[None]:
    """The server can make no file larger than that; processes that it has started can."""
    assert server.process is not None
    pid = server.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))


@pytest.mark.parametrize("background", [True, False])
def test_a_response_whose_files_find_no_room_ends_once_there_is_some(server: ServerProcess, background: bool) -> None:
    big = "head -c 20000000 /dev/urandom > big; ls"
    with client_of(server) as client:
        first = ask(client, shell("echo 1 > f"))
        body = {"model": "scripted", "input": shell(big), "tools": [SHELL], "background": background}
        with small_files(server, 8 * MIB):
            answer = send(server.url, "POST", "/responses", {**body, "previous_response_id": first.id})
            listed = get(server.url, "/responses?limit=1")["data"][0]
            assert listed["id"] != first.id
            if background:
                until(lambda: "run.given_up" in server.output, "its files find no room")
            else:
                assert (answer.status, answer.error["code"]) == (503, "storage_full")
            assert client.responses.retrieve(listed["id"]).status in ("queued", "in_progress")
        until(lambda: client.responses.retrieve(listed["id"]).status == "completed", "it ends", 20)
        after = ask(client, shell("ls; wc -c < big"), previous_response_id=listed["id"])
        assert shown(after) == "big\nf\n20000000\n"


def test_what_is_sent_along_comes_after_what_the_chain_has(client: OpenAI) -> None:
    stored = ask(client, shell("echo stored > f"))
    first = ask(client, shell("echo first >> f"), previous_response_id=stored.id, store=False)
    history: list[Any] = [{"role": "user", "content": "first"}, *(item.model_dump() for item in first.output)]
    again = [*history, {"role": "user", "content": shell("cat f")}]
    for store in (False, True):
        assert shown(ask(client, again, previous_response_id=stored.id, store=store)) == "stored\nfirst\n"
    assert shown(ask(client, shell("cat f"), previous_response_id=stored.id)) == "stored\n"


def test_a_history_whose_last_calls_were_not_made_goes_on_from_those_that_were(client: OpenAI) -> None:
    history: list[Any] = []

    def turn(words: str, **more: Any) -> Any:
        history.append({"role": "user", "content": words})
        answer = ask(client, history, store=False, **more)
        history.extend(item.model_dump() for item in answer.output)
        return answer

    turn(shell("echo 1 > f"))
    refused = turn('call: shell {"commands": "no list"}')
    assert kinds(refused)[:2] == ["shell_call", "shell_call_output"]
    assert shown(turn(shell("cat f"))) == "1\n"


def test_a_response_goes_on_in_a_new_container_when_its_own_is_deleted(client: OpenAI, url: str) -> None:
    base = ask(client, shell("echo base > f"))
    words = shell("echo more > g; echo begun; sleep 300", timeout_ms=600_000) + "\n" + shell("ls; echo on")
    body = {"model": "scripted", "input": words, "tools": [SHELL], "stream": True, "previous_response_id": base.id}
    events = iter_stream(url, "POST", "/responses", body)
    first = began(events)
    assert send(url, "DELETE", f"/containers/{container_of(base)}").status == 200
    answer = client.responses.retrieve([*first, *events][-1]["response"]["id"])
    assert answer.status == "completed"
    cut_off, after = of_type(answer, "shell_call_output")
    assert "outcome of this call is unknown" in cut_off.output[0].stderr
    assert "not found" in after.output[0].stderr
    later = ask(client, shell("ls | wc -l"), previous_response_id=answer.id)
    assert shown(later) == "0\n"
    assert container_of(later) != container_of(base)


def test_a_model_whose_container_is_gone_is_told_so_once(client: OpenAI, url: str, seen: Seen) -> None:
    gone = "Tools work in a new one, which began without them."
    made = client.containers.create(name="its own")
    own: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    first = ask(client, shell("echo 1 > f"))
    assert send(url, "DELETE", f"/containers/{container_of(first)}").status == 200
    client.responses.create(model="scripted", input=shell("ls"), tools=[own], previous_response_id=first.id)
    assert gone not in json.dumps(seen.messages)
    second = ask(client, shell("ls; echo 2 > g"), previous_response_id=first.id, instructions="Be brief.")
    assert shown(second) == ""
    for asked in seen.requests[-2:]:  # before the command and after it
        assert asked["messages"][0]["content"].startswith("Be brief.\n\nThe container in which earlier calls")
        assert asked["messages"][0]["content"].endswith(gone)
    third = ask(client, shell("ls"), previous_response_id=second.id)
    assert shown(third) == "g\n"
    assert gone not in json.dumps(seen.messages)


def test_a_model_is_told_so_where_its_client_brings_the_history(client: OpenAI, url: str, seen: Seen) -> None:
    first = ask(client, shell("echo 1 > f"), store=False)
    sent = [{"role": "user", "content": "first"}, *(item.model_dump() for item in first.output)]
    again = [*sent, {"role": "user", "content": shell("ls")}]
    assert shown(ask(client, again, store=False)) == "f\n"
    assert "Tools work in a new one" not in json.dumps(seen.messages)
    assert send(url, "DELETE", f"/containers/{container_of(first)}").status == 200
    assert shown(ask(client, again, store=False)) == ""
    assert "Tools work in a new one" in json.dumps(seen.messages)


def test_what_is_sent_again_under_its_key_runs_no_command_again(client: OpenAI, url: str) -> None:
    made = client.containers.create(name="once")
    tool = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    body = {"model": "scripted", "input": shell("echo x >> times; cat times"), "tools": [tool]}
    headers = {"idempotency-key": "one command"}
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: send(url, "POST", "/responses", body, headers=headers), range(3)))
    answers.append(send(url, "POST", "/responses", body, headers=headers))
    for answer in answers:
        assert answer.status in (200, 409), answer
    read = client.responses.create(model="scripted", input=shell("cat times"), tools=[tool])  # type: ignore[list-item]  # as plain data
    assert shown(read) == "x\n"


def test_a_command_that_was_cancelled_is_told_and_its_files_are_gone_on_with(client: OpenAI, seen: Seen) -> None:
    words = shell("echo kept > f; exec sleep 98762.5", timeout_ms=600_000)
    begun = client.responses.create(model="scripted", input=words, tools=[SHELL], background=True)
    until(lambda: commands("sleep 98762.5"), "the command goes on")
    cancelled: Any = client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    until(lambda: not commands("sleep 98762.5"), "the command is ended")
    [output] = of_type(cancelled, "shell_call_output")
    assert "cancelled while it was being carried out" in output.output[0].stderr
    after = ask(client, shell("cat f"), previous_response_id=begun.id)
    assert shown(after) == "kept\n"
    assert container_of(after) == container_of(cancelled)
    assert "cancelled while it was being carried out" in json.dumps(seen.messages)


def test_a_response_that_is_deleted_in_a_command_ends_it(client: OpenAI, url: str) -> None:
    words = shell("echo kept > f; exec sleep 98763.5", timeout_ms=600_000)
    begun = client.responses.create(model="scripted", input=words, tools=[SHELL], background=True)
    until(lambda: commands("sleep 98763.5"), "the command goes on")
    held: Any = client.responses.retrieve(begun.id)
    container_id = container_of(held)
    client.responses.delete(begun.id)
    until(lambda: not commands("sleep 98763.5"), "the command is ended")
    until(lambda: send(url, "GET", f"/containers/{container_id}").status == 404, "its container goes with it", 30)


def test_a_conversation_is_forked_while_a_command_runs_in_it(client: OpenAI, url: str) -> None:
    conversation = client.conversations.create()
    first = ask(client, shell("echo 1 > f"), conversation=conversation.id)
    words = shell("echo 2 > f; echo begun; until [ -e go ]; do sleep 0.02; done; cat f", timeout_ms=20_000)
    body = {"model": "scripted", "input": words, "tools": [SHELL], "stream": True, "conversation": conversation.id}
    events = iter_stream(url, "POST", "/responses", body)
    began(events)
    fork = post(url, f"/conversations/{conversation.id}/fork", {"response_id": first.id})
    forked = ask(client, shell("cat f; echo 3 > f; cat f"), conversation=fork["id"])
    assert shown(forked) == "1\n3\n"
    chain = ask(client, shell("cat f; echo 4 > f"), previous_response_id=first.id)
    assert shown(chain) == "1\n"
    client.containers.files.create(container_of(first), file=("go", b""))
    done = list(events)[-1]["response"]
    assert done["output"][1]["output"][0]["stdout"] == "begun\n2\n"
    assert shown(ask(client, shell("cat f"), conversation=conversation.id)) == "2\n"
    assert shown(ask(client, shell("cat f"), conversation=fork["id"])) == "3\n"


@pytest.mark.parametrize("committed_meanwhile", [False, True])
def test_a_failed_response_leaves_its_conversation_the_files_from_before(
    client: OpenAI, url: str, committed_meanwhile: bool
) -> None:
    conversation = client.conversations.create()
    first = ask(client, shell("echo 1 > f"), conversation=conversation.id)
    wait = "until [ -e go ]; do sleep 0.02; done" if committed_meanwhile else "true"
    words = shell(f"echo 2 > f; echo begun; {wait}", timeout_ms=20_000)
    body = {"model": "scripted", "input": f"overflow: 5\n{words}", "tools": [SHELL], "stream": True}
    events = iter_stream(url, "POST", "/responses", {**body, "conversation": conversation.id})
    began(events)
    if committed_meanwhile:
        client.containers.files.create(container_of(first), file=("go", b""))
    failed = list(events)[-1]
    assert failed["type"] == "response.failed"
    assert [item["type"] for item in failed["response"]["output"]] == ["shell_call", "shell_call_output"]
    after = ask(client, shell("cat f"), conversation=conversation.id)
    assert shown(after) == "1\n"


def test_what_failed_after_a_command_is_not_to_be_sent_again_by_itself(client: OpenAI, url: str) -> None:
    body = {"model": "scripted", "input": f"overflow: 2\n{shell('echo x')}", "tools": [SHELL]}
    for store in (True, False):
        failed = send(url, "POST", "/responses", {**body, "store": store})
        assert (failed.status, failed.headers["x-should-retry"]) == (400, "false")
    before = send(url, "POST", "/responses", {**body, "input": "fail: 500 no"})
    assert (before.status >= 500, before.headers.get("x-should-retry")) == (True, None)


def test_files_are_cited_by_what_is_said_of_them_after_a_death(server: ServerProcess) -> None:
    words = shell("echo x > out.txt") + "\nslow: 60\nsay: one two three See /workspace/out.txt and then more words"
    body = {"model": "scripted", "input": words, "tools": [SHELL], "stream": True, "background": True}
    got: list[dict[str, Any]] = []
    for event in iter_stream(server.url, "POST", "/responses", body):
        got.append(event)
        if [each["type"] for each in got].count("response.output_text.delta") == 2:
            break
    server.kill()
    server.start()
    with client_of(server) as client:
        identifier = got[0]["response"]["id"]
        until(lambda: client.responses.retrieve(identifier).status == "completed", "the run is taken up and ends")
        answer: Any = client.responses.retrieve(identifier)
        [cited] = answer.output[-1].content[0].annotations
        assert (cited.type, cited.filename, cited.container_id) == (
            "container_file_citation",
            "out.txt",
            container_of(answer),
        )
        content = client.containers.files.content.retrieve(cited.file_id, container_id=cited.container_id)
        assert content.read() == b"x\n"


def test_a_call_whose_files_cannot_be_put_in_place_is_told_why(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        first = ask(client, shell("head -c 20000000 /dev/urandom > big"))
        ask(client, shell("rm big"), previous_response_id=first.id)
        with small_files(server, 8 * MIB):
            refused = ask(client, shell("ls"), previous_response_id=first.id)
        assert "disk" in said(refused)[0][1]
        assert "is full" in json.dumps(seen.messages)
        assert "Traceback" not in server.output
        assert shown(ask(client, shell("ls"), previous_response_id=first.id)) == "big\n"
        again = ask(client, shell("wc -c < big"), previous_response_id=refused.id)
        assert shown(again) == "20000000\n"


def test_a_container_that_is_deleted_in_its_first_command_stays_deleted(client: OpenAI, url: str) -> None:
    words = shell("echo begun; sleep 300", timeout_ms=600_000) + "\n" + shell("ls")
    events = iter_stream(
        url, "POST", "/responses", {"model": "scripted", "input": words, "tools": BOTH, "stream": True}
    )
    identifier = began(events)[0]["response"]["id"]
    container_id = container_of(client.responses.retrieve(identifier))
    assert send(url, "DELETE", f"/containers/{container_id}").status == 200
    assert list(events)[-1]["type"] == "response.completed"
    answer = client.responses.retrieve(identifier)
    [cut_off, after] = said(answer)
    assert "outcome of this call is unknown" in cut_off[1]
    assert f"Container with id '{container_id}' not found." in after[1]
    assert send(url, "GET", f"/containers/{container_id}").status == 404
    later = ask(client, shell("echo new; ls"), previous_response_id=identifier)
    assert shown(later) == "new\n"
    assert container_of(later) != container_id


def test_a_cell_whose_container_is_deleted_has_an_unknown_outcome(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        made = client.containers.create(name="deleted")
        tool: Any = {"type": "code_interpreter", "container": made.id}
        words = python("open('begun', 'w').close()\nimport time; time.sleep(300)")
        begun = client.responses.create(model="scripted", input=words, tools=[tool], background=True)
        folder = server.data / "workspaces" / "live" / made.id / "files"
        until(lambda: (folder / "begun").exists(), "the cell has begun")
        client.containers.delete(made.id)
        until(lambda: client.responses.retrieve(begun.id).status == "completed", "the response goes on")
        [call] = of_type(client.responses.retrieve(begun.id, include=OUTPUTS), "code_interpreter_call")
        assert call.status == "incomplete"
        assert "outcome of this call is unknown" in call.outputs[0].logs
        assert "outcome of this call is unknown" in json.dumps(seen.messages)


@pytest.mark.parametrize(
    ("point", "outcome"),
    [
        ("before_start:1", "not asked"),
        ("after_start:1", "done"),
        ("before_item:1", "done"),
        ("after_item:1", "done"),
        ("before_intent:1", "done"),
        ("after_intent:1", "unknown"),
        ("after_command:1", "unknown"),
        ("before_outcome:1", "unknown"),
        ("after_outcome:1", "done"),
        ("before_put_container:1", "done"),
        ("after_put_container:1", "done"),
        ("before_end:1", "done"),
        ("after_end:1", "done"),
    ],
)
def test_wherever_a_death_cuts_off_what_was_approved_it_is_done_once_or_told(
    model_host: ModelHost, tmp_path: Path, point: str, outcome: str
) -> None:
    with configured(model_host, tmp_path, RULES, module="stateroom.testing.probe_server").start() as server:
        with client_of(server) as client:
            first = ask(client, shell("echo before > times"))
            asked = ask(client, shell("echo deploy >> times; cat times"), previous_response_id=first.id)
        server.kill()
        server.start(environment={KILL_AT: point})
        [request] = of_type(asked, "mcp_approval_request")
        yes = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        body = {"model": "scripted", "input": [yes], "tools": [SHELL], "previous_response_id": asked.id}
        with suppress(OSError, HTTPException):
            send(server.url, "POST", "/responses", body)
        assert server.wait() == -9
        server.start(environment={KILL_AT: ""})
        [found] = get(server.url, "/responses?limit=1")["data"]
        if outcome == "not asked":
            assert found["id"] == asked.id
            return
        until(lambda: get(server.url, f"/responses/{found['id']}")["status"] == "completed", "it is taken up and ends")
        call, result = get(server.url, f"/responses/{found['id']}")["output"][:2]
        assert call["approval_request_id"] == request.id
        assert ("unknown" in result["output"][0]["stderr"]) == (outcome == "unknown")
        again = send(server.url, "POST", "/responses", {**body, "previous_response_id": found["id"]})
        assert (again.status, again.error["code"]) == (400, "approval_already_answered")
        with client_of(server) as client:
            after = shown(ask(client, shell("cat times"), previous_response_id=found["id"]))
        assert after == "before\ndeploy\n" if outcome == "done" else after in ("before\n", "before\ndeploy\n")


def test_what_an_unstored_response_did_before_it_failed_is_not_done_again_under_its_key(
    client: OpenAI, url: str
) -> None:
    made = client.containers.create(name="once")
    tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    words = f"overflow: 2\n{shell('echo x >> times')}"
    body = {"model": "scripted", "input": words, "tools": [tool], "store": False}
    headers = {"idempotency-key": "fails after a command"}
    answers = [send(url, "POST", "/responses", body, headers=headers) for _ in range(2)]
    assert [answer.status for answer in answers] == [400, 400]
    assert answers[0].error["code"] == answers[1].error["code"]
    read = client.responses.create(model="scripted", input=shell("cat times"), tools=[tool])
    assert shown(read) == "x\n"


def test_what_a_client_went_away_from_is_told_and_not_done_again_under_its_key(client: OpenAI, url: str) -> None:
    made = client.containers.create(name="once")
    tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    words = shell("echo x >> times; echo begun; sleep 300", timeout_ms=600_000)
    body = {"model": "scripted", "input": words, "tools": [tool], "store": False, "stream": True}
    headers = {"idempotency-key": "went away in a command"}
    with httpx.stream("POST", f"{url}/responses", json=body, headers=headers, timeout=20) as events:
        next(line for line in events.iter_lines() if line == "event: response.shell_call_output_content.delta")
    with httpx.stream("POST", f"{url}/responses", json=body, headers=headers, timeout=20) as events:
        last = json.loads([line for line in events.iter_lines() if line.startswith("data: {")][-1][6:])
    assert last["response"]["status"] == "cancelled"
    assert "cancelled while it was being carried out" in last["response"]["output"][1]["output"][0]["stderr"]
    read = client.responses.create(model="scripted", input=shell("cat times"), tools=[tool])
    assert shown(read) == "x\n"
