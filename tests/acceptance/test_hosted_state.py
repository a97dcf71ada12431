"""What hosted tools work in follows the conversation: at every fork, after every death of the server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.contract import hold_answer
from tests.acceptance.hosted import OUTPUTS, PYTHON, SHELL, container_of, kinds, of_type, python, said, shell
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import check_stream, iter_stream, post, read_stream, send

BOTH: Any = [SHELL, PYTHON]


@contextmanager
def client_of(server: ServerProcess) -> Iterator[OpenAI]:
    checked = DefaultHttpxClient(base_url=server.url, event_hooks={"response": [hold_answer]})
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=60, http_client=checked) as client:
        yield client


@pytest.fixture
def server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that a test may kill."""
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)).start() as process:
        yield process
        process.terminate()


def ask(client: OpenAI, words: Any, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=words, tools=BOTH, include=OUTPUTS, **more)


def shown(response: Any) -> str:
    return str(said(response)[0][0])


def logs(response: Any) -> str:
    [call] = of_type(response, "code_interpreter_call")
    return "".join(output.logs for output in call.outputs or ())


def test_every_turn_can_be_continued_as_it_was_left(client: OpenAI) -> None:
    turns = [ask(client, shell("echo 0 > log"))]
    for turn in range(1, 4):
        turns.append(ask(client, shell(f"echo {turn} >> log"), previous_response_id=turns[-1].id))
    for turn, response in enumerate(turns):
        forked = ask(client, shell("tr -d '\\n' < log"), previous_response_id=response.id)
        assert shown(forked) == "0123"[: turn + 1]
        assert (container_of(forked) == container_of(response)) == (response is turns[-1])


def test_two_forks_do_not_see_each_other(client: OpenAI) -> None:
    base = ask(client, "\n".join([shell("echo base > f"), python("v = 'base'")]))
    left = ask(client, "\n".join([shell("echo left > f; touch l"), python("v = 'left'")]), previous_response_id=base.id)
    right = ask(client, "\n".join([shell("cat f; ls"), python("v")]), previous_response_id=base.id)
    assert shown(right) == "base\nf\n"
    assert logs(right).endswith("'base'")
    more = ask(client, "\n".join([shell("cat f; ls"), python("v")]), previous_response_id=left.id)
    assert shown(more) == "left\nf\nl\n"
    assert logs(more).endswith("'left'")


def test_a_forked_conversation_has_the_files_of_its_turn(client: OpenAI, url: str) -> None:
    conversation = client.conversations.create()
    first = ask(client, shell("echo 1 > f"), conversation=conversation.id)
    ask(client, shell("echo 2 > f"), conversation=conversation.id)
    fork = post(url, f"/conversations/{conversation.id}/fork", {"response_id": first.id})
    assert shown(ask(client, shell("cat f; echo 3 > f"), conversation=fork["id"])) == "1\n"
    assert shown(ask(client, shell("cat f"), conversation=conversation.id)) == "2\n"
    assert shown(ask(client, shell("cat f"), conversation=fork["id"])) == "3\n"
    chain = post(url, f"/responses/{first.id}/fork", {})
    assert shown(ask(client, shell("cat f"), conversation=chain["id"])) == "1\n"


def test_a_container_that_is_named_is_shared_by_chains(client: OpenAI) -> None:
    made = client.containers.create(name="shared")
    tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    one = client.responses.create(model="scripted", input=shell("echo one >> f"), tools=[tool])
    two = client.responses.create(model="scripted", input=shell("echo two >> f; cat f"), tools=[tool])
    assert shown(two) == "one\ntwo\n"
    again = client.responses.create(model="scripted", input=shell("cat f"), tools=[tool], previous_response_id=one.id)
    assert shown(again) == "one\ntwo\n"


def test_a_chain_that_named_a_container_and_then_asks_for_its_own_begins_with_nothing(client: OpenAI) -> None:
    made = client.containers.create(name="mine")
    tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    one = client.responses.create(model="scripted", input=shell("echo one > f"), tools=[tool])
    two = ask(client, shell("ls | wc -l"), previous_response_id=one.id)
    assert container_of(two) != made.id


def test_a_history_that_is_sent_along_goes_on_from_the_files_of_its_end(client: OpenAI) -> None:
    first = ask(client, "\n".join([shell("echo 1 > f"), python("v = 1")]), store=False)
    history: list[Any] = [{"role": "user", "content": "first"}, *(item.model_dump() for item in first.output)]
    second = ask(client, [*history, {"role": "user", "content": shell("echo 2 >> f")}], store=False)
    longer = [*history, {"role": "user", "content": "second"}, *(item.model_dump() for item in second.output)]
    words = "\n".join([shell("tr -d '\\n' < f"), python("v")])
    for store in (True, False):
        of_first = ask(client, [*history, {"role": "user", "content": words}], store=store)
        assert (shown(of_first), logs(of_first).splitlines()[-1]) == ("1", "1")
        of_second = ask(client, [*longer, {"role": "user", "content": words}], store=store)
        assert (shown(of_second), logs(of_second).splitlines()[-1]) == ("12", "1")
    foreign = [{**item, "id": "cntr"} if "id" in item else item for item in history]
    assert shown(ask(client, [*foreign, {"role": "user", "content": words}], store=False)) == "1"


def test_everything_is_there_after_the_server_was_killed(server: ServerProcess, seen: Seen) -> None:
    with client_of(server) as client:
        base = ask(client, "\n".join([shell("echo base > f"), python("n = 41; g = (i for i in [1])")]))
        later = ask(client, shell("echo later > f"), previous_response_id=base.id)
        server.kill()
        server.start()
        on = ask(client, "\n".join([shell("cat f"), python("n + 1")]), previous_response_id=later.id)
        assert shown(on) == "later\n"
        assert logs(on).splitlines()[-1] == "42"
        assert "g (generator)" in logs(on) or "g: generator" in logs(on)
        fork = ask(client, "\n".join([shell("cat f"), python("n")]), previous_response_id=base.id)
        assert shown(fork) == "base\n"
        assert logs(fork).splitlines()[-1] == "41"
        lost = ask(client, python("'g' in globals()"), previous_response_id=on.id)
        assert logs(lost).splitlines()[-1] == "False"


def began(events: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events up to the first that a command said."""
    got = []
    for event in events:
        got.append(event)
        if event["type"] == "response.shell_call_output_content.delta":
            return got
    raise AssertionError(f"no command said anything: {got[-1]}")


@pytest.mark.parametrize("background", [True, False])
def test_a_command_that_a_death_cut_off_is_not_repeated(server: ServerProcess, seen: Seen, background: bool) -> None:
    words = shell("echo x >> /workspace/times; echo begun; sleep 300", timeout_ms=600_000) + "\n" + shell("cat times")
    body = {"model": "scripted", "input": words, "tools": [SHELL], "stream": True, "background": background}
    events = iter_stream(server.url, "POST", "/responses", body)
    first = began(events)
    run_id = first[0]["response"]["id"]
    server.kill()
    server.start()
    with client_of(server) as client:
        until(lambda: client.responses.retrieve(run_id).status == "completed", "the run is taken up and ends")
        answer = client.responses.retrieve(run_id)
        assert kinds(answer) == ["shell_call", "shell_call_output", "shell_call", "shell_call_output", "message"]
        cut_off, after = of_type(answer, "shell_call_output")
        assert cut_off.status == "incomplete"
        assert "outcome of this call is unknown" in cut_off.output[0].stderr
        assert after.output[0].stdout == "x\n"
        told = [message["content"] for message in seen.messages if message["role"] == "tool"]
        assert "unknown" in told[0]
        path = f"/responses/{run_id}?stream=true"
        whole = check_stream(read_stream(server.url, "GET", path))
        assert whole[: len(first)] == first
        for after_number in range(0, len(whole), 3):
            assert read_stream(server.url, "GET", f"{path}&starting_after={after_number}") == whole[after_number + 1 :]
        journal = client.get(f"/responses/{run_id}/events", cast_to=object)
        outcomes = [each.get("outcome") for each in journal["data"] if each["kind"] == "tool.outcome"]  # type: ignore[index]  # plain JSON
        assert sorted(filter(None, outcomes)) == ["completed", "unknown"]


def test_a_cell_that_a_death_cut_off_is_not_repeated(server: ServerProcess, seen: Seen) -> None:
    code = "open('times', 'a').write('x')\nimport time; time.sleep(300)"
    words = python(code) + "\n" + shell("cat times")
    with client_of(server) as client:
        begun = ask(client, words, background=True, stream=False)
        folder = server.data / "workspaces" / "live"
        until(lambda: list(folder.glob("*/files/times")), "the cell has begun")
        server.kill()
        server.start()
        until(lambda: client.responses.retrieve(begun.id).status == "completed", "the run is taken up and ends")
        answer = client.responses.retrieve(begun.id, include=OUTPUTS)
        [call] = of_type(answer, "code_interpreter_call")
        assert call.status == "incomplete"
        assert "outcome of this call is unknown" in call.outputs[0].logs
        assert shown(answer) == "x"


def test_nothing_of_a_killed_server_lives_on(server: ServerProcess) -> None:
    with client_of(server) as client:
        made = client.containers.create(name="orphans")
        tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
        words = shell("sleep 98761 & sleep 98762 & echo up")
        client.responses.create(model="scripted", input=words, tools=[tool])
        assert len(commands("sleep 9876")) >= 2
        server.kill()
        until(lambda: not commands("sleep 9876"), "the processes are gone")
        server.start()
        answer = client.responses.create(model="scripted", input=shell("pgrep sleep; echo none"), tools=[tool])
        assert shown(answer) == "none\n"


def commands(words: str) -> list[str]:
    """The processes of this machine whose command line holds these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if line.startswith(words):
            found.append(line)
    return found


def test_a_server_that_is_stopped_in_the_middle_of_a_command_leaves_its_outcome_unknown(server: ServerProcess) -> None:
    words = shell("echo begun; sleep 300", timeout_ms=600_000) + "\nsay: over"
    body = {"model": "scripted", "input": words, "tools": [SHELL], "stream": True, "background": True}
    run_id = began(iter_stream(server.url, "POST", "/responses", body))[0]["response"]["id"]
    process = server.process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    server.wait()
    server.start()
    with client_of(server) as client:
        until(lambda: client.responses.retrieve(run_id).status == "completed", "the run is taken up and ends")
        answer = client.responses.retrieve(run_id)
        assert of_type(answer, "shell_call_output")[0].status == "incomplete"
        assert answer.output_text == "over"


def test_a_container_that_is_deleted_meanwhile_is_told(client: OpenAI, url: str) -> None:
    made = client.containers.create(name="gone")
    tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    one = client.responses.create(model="scripted", input=shell("echo begun > f"), tools=[tool])
    assert send(url, "DELETE", f"/containers/{made.id}").status == 200
    answer = send(
        url,
        "POST",
        "/responses",
        {"model": "scripted", "input": "hi", "tools": [tool], "previous_response_id": one.id},
    )
    assert answer.status == 404
    assert answer.error["code"] == "container_not_found"


def test_a_cell_is_ended_when_its_response_is_cancelled(client: OpenAI, url: str) -> None:
    made = client.containers.create(name="cells")
    tool: Any = {"type": "code_interpreter", "container": made.id}
    first = client.responses.create(model="scripted", input=python("kept = 5"), tools=[tool])
    code = "import time, subprocess\nsubprocess.Popen(['sleep', '98771'])\ntime.sleep(98772)"
    begun = client.responses.create(model="scripted", input=python(code), tools=[tool], background=True)
    until(lambda: commands("sleep 98771"), "the cell has begun")
    client.responses.cancel(begun.id)
    until(lambda: client.responses.retrieve(begun.id, include=OUTPUTS).output, "what it did is shown")
    [call] = client.responses.retrieve(begun.id, include=OUTPUTS).output
    assert (call.type, call.status) == ("code_interpreter_call", "incomplete")
    assert "cancelled" in call.outputs[0].logs
    after = client.responses.create(
        model="scripted", input=python("kept"), tools=[tool], include=OUTPUTS, previous_response_id=first.id
    )
    assert logs(after).splitlines()[-1] in ("5", "NameError: name 'kept' is not defined")


def test_a_command_is_ended_with_the_connection_of_an_unstored_response(url: str) -> None:
    words = shell("echo begun; exec sleep 98781", timeout_ms=600_000)
    body = {"model": "scripted", "input": words, "tools": [SHELL], "stream": True, "store": False}
    events = iter_stream(url, "POST", "/responses", body)
    began(events)
    until(lambda: commands("sleep 98781"), "the command goes on")
    events.close()  # type: ignore[attr-defined]  # a generator
    until(lambda: not commands("sleep 98781"), "the command is ended")


def test_the_container_says_what_is_left_of_the_variables(server: ServerProcess) -> None:
    code = json.dumps({"code": "kept = 1\nlost = (n for n in ())"})
    with client_of(server) as client:
        first = ask(client, f"call: python {code}")
        container_id = container_of(first)
        assert interpreter(server.url, container_id) == {"state": "live", "lost": {}}
    assert server.terminate() == 0
    server.start()
    with client_of(server) as client:
        assert interpreter(server.url, container_id) == {"state": "partial", "lost": {"lost": "generator"}}
        client.containers.files.create(container_id, file=("beside.txt", b"no cell ran"))
        assert interpreter(server.url, container_id) == {"state": "partial", "lost": {"lost": "generator"}}
        again = ask(client, 'call: python {"code": "kept"}', previous_response_id=first.id)
        assert "lost" in again.output[0].outputs[0].logs
        assert interpreter(server.url, container_id)["state"] == "live"


def interpreter(url: str, container_id: str) -> Any:
    return httpx.get(f"{url}/containers/{container_id}").json()["interpreter"]
