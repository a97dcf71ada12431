"""The hosted shell with the official client and real sandboxes: items, events, limits, processes, where it works."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.acceptance.hosted import SHELL, container_of, kinds, of_type, said, shell, told_kinds
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import iter_stream, read_stream, send, stream


def ask(client: OpenAI, words: Any, tool: Any = SHELL, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=words, tools=[tool], **more)


def test_commands_are_carried_out_and_told(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, shell("echo hi > a.txt; cat a.txt; pwd", "echo bad >&2; exit 3"))
    assert kinds(answer) == ["shell_call", "shell_call_output", "message"]
    call, output, message = answer.output
    assert (call.status, call.environment.type) == ("completed", "container_reference")
    assert call.action.commands == ["echo hi > a.txt; cat a.txt; pwd", "echo bad >&2; exit 3"]
    assert (output.call_id, output.status) == (call.call_id, "completed")
    assert said(answer) == [("hi\n/workspace\n", "", 0), ("", "bad\n", 3)]
    told = "[command 1]\nhi\n/workspace\n[command 2]\n[stderr]\nbad\n[exit code 3]"
    assert message.content[0].text == f"The tool answered: {told}"
    assert seen.messages[-1]["role"] == "tool"
    again = client.responses.retrieve(answer.id)
    assert again.output == answer.output


def test_commands_of_one_call_run_at_the_same_time(client: OpenAI) -> None:
    first = "mkfifo a b; echo from-1 > a; cat b"
    second = "until [ -p b ]; do sleep 0.01; done; cat a; echo from-2 > b"
    answer = ask(client, shell(first, second, timeout_ms=20_000))
    assert said(answer) == [("from-2\n", "", 0), ("from-1\n", "", 0)]


def test_every_event_comes_in_order(url: str) -> None:
    events = stream(url, {"input": shell("echo one; echo two >&2", "true"), "tools": [SHELL]})
    assert told_kinds(events)[2:-1] == [
        "output_item.added",
        "shell_call_command.added",
        "shell_call_command.delta",
        "shell_call_command.done",
        "shell_call_command.added",
        "shell_call_command.delta",
        "shell_call_command.done",
        "output_item.done",
        "output_item.added",
        "shell_call_output_content.delta",
        "shell_call_output_content.done",
        "shell_call_output_content.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    deltas = [event for event in events if event["type"] == "response.shell_call_output_content.delta"]
    assert "".join(event["delta"]["stdout"] for event in deltas) == "one\n"
    assert "".join(event["delta"]["stderr"] for event in deltas) == "two\n"
    done = [event for event in events if event["type"] == "response.shell_call_output_content.done"]
    assert [event["command_index"] for event in done] == [0, 1]
    assert done[0]["output"][0]["stdout"] == "one\n"


def test_output_is_told_while_the_command_runs(client: OpenAI, url: str) -> None:
    words = shell("echo begun; until [ -e go ]; do sleep 0.02; done; echo over", timeout_ms=20_000)
    made = client.containers.create(name="steps")
    tool = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    got = []
    body = {"model": "scripted", "input": words, "tools": [tool], "stream": True}
    for event in iter_stream(url, "POST", "/responses", body):
        if event["type"] == "response.shell_call_output_content.delta":
            got.append(event["delta"]["stdout"])
            if len(got) == 1:
                client.containers.files.create(made.id, file=("go", b"x"))
    assert got == ["begun\n", "over\n"]


def test_a_command_whose_time_is_over_is_ended(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, shell("echo before; sleep 60; echo after", "echo other", timeout_ms=300))
    assert said(answer) == [("before\n", "", None), ("other\n", "", 0)]
    assert of_type(answer, "shell_call")[0].action.timeout_ms == 300
    assert "[it took too long and was ended]" in seen.messages[-1]["content"]


def test_huge_output_is_kept_in_parts(client: OpenAI, url: str, seen: Seen) -> None:
    huge = "head -c 30000000 /dev/zero | tr '\\0' x; echo the-end"
    answer = ask(client, shell(huge))
    [(stdout, _, code)] = said(answer)
    assert code == 0
    assert len(stdout) <= 1024 * 1024 + 200
    assert stdout.startswith("xxx")
    assert stdout.endswith("the-end\n")
    assert "left out" in stdout
    events = stream(url, {"input": shell(huge), "tools": [SHELL]})
    deltas = [event for event in events if event["type"] == "response.shell_call_output_content.delta"]
    told = "".join(event["delta"]["stdout"] for event in deltas)
    assert len(told) <= 1024 * 1024 + 200
    assert sum(len(message["content"]) for message in seen.messages if message["role"] == "tool") < 1024 * 1024 + 300


def test_output_is_cut_to_what_the_call_asks_for(client: OpenAI, url: str) -> None:
    words = shell("seq 1 100000", max_output_length=200)
    answer = ask(client, words)
    call, output = answer.output[:2]
    assert call.action.max_output_length == output.max_output_length == 200
    assert output.output[0].stdout.startswith("1\n2\n")
    assert output.output[0].stdout.endswith("100000\n")
    assert len(output.output[0].stdout) < 300
    events = stream(url, {"input": words, "tools": [SHELL]})
    deltas = [event for event in events if event["type"] == "response.shell_call_output_content.delta"]
    assert sum(len(event["delta"]["stdout"]) for event in deltas) < 300


def test_bytes_that_are_no_text_do_no_harm(client: OpenAI) -> None:
    answer = ask(client, shell("printf '\\xff\\x00a\\xc3'"))
    assert said(answer) == [("\ufffd\x00a\ufffd", "", 0)]


def test_a_background_process_goes_on_between_calls(client: OpenAI) -> None:
    begun = ask(client, shell("(while [ ! -e stop ]; do sleep 0.02; done; echo stopped; touch seen) & echo started"))
    [(stdout, stderr, code)] = said(begun)
    assert (stdout, code) == ("started\n", 0)
    assert "still running" in stderr
    after = ask(
        client,
        shell("touch stop; until [ -e seen ]; do sleep 0.02; done; cat /run/agent/*/* 2>/dev/null; ls"),
        previous_response_id=begun.id,
    )
    assert "seen" in said(after)[0][0]
    log = stderr.partition("its output goes to ")[2].split("]")[0]
    read = ask(client, shell(f"cat {log}"), previous_response_id=after.id)
    assert said(read)[0][0].endswith("stopped\n")


@pytest.mark.parametrize(
    "arguments",
    ['{"commands": "ls"}', "no json", '{"commands": [1]}', "{}", '{"commands": []}', '{"commands": ["a\\u0000b"]}'],
)
def test_malformed_arguments_are_told_to_the_model(client: OpenAI, url: str, arguments: str) -> None:
    answer = ask(client, f"call: shell {arguments}")
    assert kinds(answer) == ["shell_call", "shell_call_output", "message"]
    [(stdout, stderr, code)] = said(answer)
    assert (stdout, code) == ("", 1)
    assert stderr
    stream(url, {"input": f"call: shell {arguments}", "tools": [SHELL]})


def test_too_many_or_too_long_commands_are_not_begun(client: OpenAI) -> None:
    many = ask(client, shell(*["echo x"] * 33))
    assert said(many) == [("", "A call may hold at most 32 commands.", 1)]
    long = ask(client, shell("echo " + "x" * 140_000))
    assert "longer than" in said(long)[0][1]


def test_parallel_calls_are_each_answered(client: OpenAI, url: str) -> None:
    calls = [{"name": "shell", "arguments": {"commands": [f"echo {n}"]}} for n in range(3)]
    answer = ask(client, f"calls: {json.dumps(calls)}")
    assert sorted(kinds(answer)[:-1]) == ["shell_call"] * 3 + ["shell_call_output"] * 3
    assert [each[0] for each in said(answer)] == ["0\n", "1\n", "2\n"]
    ids = [item.call_id for item in of_type(answer, "shell_call")]
    assert [item.call_id for item in of_type(answer, "shell_call_output")] == ids
    stream(url, {"input": f"calls: {json.dumps(calls)}", "tools": [SHELL]})


def test_a_container_that_is_named_is_used(client: OpenAI) -> None:
    made = client.containers.create(name="named")
    tool = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    answer = ask(client, shell("echo kept > here.txt; mkdir -p d; echo x > d/e.txt"), tool)
    assert container_of(answer) == made.id
    files = {file.path: file for file in client.containers.files.list(made.id)}
    assert set(files) == {"/mnt/data/here.txt", "/mnt/data/d/e.txt"}
    found = files["/mnt/data/here.txt"]
    assert found.source == "assistant"
    assert client.containers.files.content.retrieve(found.id, container_id=made.id).read() == b"kept\n"
    with pytest.raises(NotFoundError) as missing:
        ask(client, "hi", {"type": "shell", "environment": {"type": "container_reference", "container_id": "cntr_no"}})
    assert missing.value.code == "container_not_found"


def test_the_client_runs_the_commands_of_a_local_shell(client: OpenAI, url: str, seen: Seen) -> None:
    local: Any = {"type": "shell", "environment": {"type": "local"}}
    asked = ask(client, shell("ls", timeout_ms=1_000), local)
    assert kinds(asked) == ["shell_call"]
    call = asked.output[0]
    assert call.environment.type == "local"
    result: Any = {
        "type": "shell_call_output",
        "call_id": call.call_id,
        "output": [{"stdout": "mine.txt", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
    }
    answer = ask(client, [result], local, previous_response_id=asked.id)
    assert answer.output_text == "The tool answered: mine.txt"
    assert seen.messages[-1]["content"] == "mine.txt"
    undeclared = ask(client, shell("ls"), {"type": "shell"})
    assert kinds(undeclared) == ["shell_call"]
    events = stream(url, {"input": shell("ls"), "tools": [local]})
    assert "shell_call_output" not in json.dumps(events)


def zipped(**files: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_md", ".md"), text)
    return held.getvalue()


def test_files_that_are_named_are_there(client: OpenAI) -> None:
    file = client.files.create(file=("table.csv", b"a,b\n1,2\n"), purpose="user_data")
    tool = {"type": "shell", "environment": {"type": "container_auto", "file_ids": [file.id]}}
    assert "a,b\n1,2\n" in said(ask(client, shell("cat /mnt/data/*table.csv"), tool))[0][0]


def test_skills_are_mounted_and_told_once(client: OpenAI, seen: Seen) -> None:
    body = "---\nname: counting\ndescription: Counts things well.\n---\nUse wc.\n"
    skill = client.skills.create(files=[("counting/SKILL.md", body.encode())])
    tool = {
        "type": "shell",
        "environment": {"type": "container_auto", "skills": [{"type": "skill_reference", "skill_id": skill.id}]},
    }
    first = ask(client, shell("cat /skills/counting/SKILL.md"), tool, instructions="Be brief.")
    assert "Use wc." in said(first)[0][0]
    told = seen.messages[0]["content"]
    assert told.startswith("Be brief.")
    assert told.count("counting: Counts things well. (/skills/counting/SKILL.md)") == 1
    assert first.instructions == "Be brief."
    named = {
        "type": "shell",
        "environment": {"type": "container_reference", "container_id": container_of(first)},
    }
    again = ask(client, shell("ls /skills"), named, previous_response_id=first.id)
    assert said(again)[0][0] == "counting\n"
    systems = [message["content"] for message in seen.messages if message["role"] == "system"]
    assert "".join(systems).count("Counts things well.") == 1
    plain = ask(client, shell("ls /skills"), previous_response_id=again.id)
    assert said(plain)[0][0] == "counting\n"
    systems = [message["content"] for message in seen.messages if message["role"] == "system"]
    assert "".join(systems).count("Counts things well.") == 1


def test_local_skills_are_told(client: OpenAI, seen: Seen) -> None:
    skills = [{"name": "deploying", "description": "Deploys.", "path": "/home/me/skills/deploying"}]
    ask(client, "say: ok", {"type": "shell", "environment": {"type": "local", "skills": skills}})
    assert "deploying: Deploys. (/home/me/skills/deploying" in seen.messages[0]["content"]


@pytest.mark.parametrize("environment", [{"type": "container_auto", "memory_limit": "9z"}, {"type": "elsewhere"}])
def test_an_environment_that_makes_no_sense_is_refused(client: OpenAI, environment: Any) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask(client, "hi", {"type": "shell", "environment": environment})
    assert refused.value.param is not None
    assert refused.value.param.startswith(("environment", "tools[0].environment", "container"))


def test_the_choice_of_the_tool_is_kept_to(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, "Do something.", tool_choice={"type": "shell"})
    assert kinds(answer)[0] == "shell_call"
    first, *others = [request.get("tool_choice") for request in seen.requests]
    assert first == {"type": "function", "function": {"name": "shell"}}
    assert others == [None]
    with pytest.raises(BadRequestError, match="not declared"):
        ask(client, "hi", tool_choice={"type": "apply_patch"})


def test_no_more_calls_are_made_than_the_request_allows(client: OpenAI) -> None:
    words = "\n".join([shell("echo 1 >> n"), shell("echo 2 >> n"), shell("echo 3 >> n; cat n")])
    answer = ask(client, words, max_tool_calls=2)
    assert said(answer)[2] == (
        "",
        "This call was not made: the request allows no more tool calls (`max_tool_calls`).",
        1,
    )
    after = ask(client, shell("cat n"), previous_response_id=answer.id)
    assert said(after)[0][0] == "1\n2\n"


def test_an_answer_that_names_a_file_cites_it(client: OpenAI, url: str) -> None:
    words = (
        shell("echo x > a.txt; mkdir d; echo y > d/b.csv")
        + "\nsay: see sandbox:/mnt/data/a.txt, /mnt/data/none.txt and /workspace/d/b.csv."
    )
    answer = ask(client, words)
    part = answer.output[-1].content[0]
    first, second = part.annotations
    assert (first.type, first.filename, first.container_id) == (
        "container_file_citation",
        "a.txt",
        container_of(answer),
    )
    assert part.text[first.start_index : first.end_index] == "sandbox:/mnt/data/a.txt"
    assert second.filename == "b.csv"
    read = client.containers.files.content.retrieve(second.file_id, container_id=second.container_id)
    assert read.read() == b"y\n"
    events = stream(url, {"input": words, "tools": [SHELL]})
    added = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert [event["annotation"]["filename"] for event in added] == ["a.txt", "b.csv"]
    assert [event["annotation_index"] for event in added] == [0, 1]
    assert client.responses.retrieve(answer.id).output[-1].content[0].annotations == part.annotations


def test_a_response_that_is_not_stored_works_in_a_container_too(client: OpenAI) -> None:
    first = ask(client, shell("echo kept > a; cat a"), store=False)
    assert said(first) == [("kept\n", "", 0)]
    with pytest.raises(NotFoundError):
        client.responses.retrieve(first.id)
    items = [item.model_dump(exclude_none=True) for item in first.output]
    words: list[Any] = [{"role": "user", "content": "first"}, *items, {"role": "user", "content": shell("cat a")}]
    second = ask(client, words, store=False)
    assert said(second) == [("kept\n", "", 0)]
    assert container_of(second) != container_of(first)
    named: Any = {
        "type": "shell",
        "environment": {"type": "container_reference", "container_id": container_of(first)},
    }
    assert said(ask(client, words, named, store=False)) == [("kept\n", "", 0)]


def test_a_conversation_keeps_its_container(client: OpenAI) -> None:
    conversation = client.conversations.create()
    first = ask(client, shell("echo kept > a"), conversation=conversation.id)
    second = ask(client, shell("cat a"), conversation=conversation.id)
    assert said(second) == [("kept\n", "", 0)]
    assert container_of(first) == container_of(second)
    kept = [item.type for item in client.conversations.items.list(conversation.id, order="asc")]
    assert kept == ["message", "shell_call", "shell_call_output", "message"] * 2


def test_a_background_stream_can_be_read_again_from_anywhere(client: OpenAI, url: str) -> None:
    words = shell("for i in 1 2 3; do echo $i; done") + "\nsay: done"
    events = stream(url, {"input": words, "tools": [SHELL], "background": True})
    response = events[0]["response"]["id"]
    for after in range(len(events)):
        path = f"/responses/{response}?stream=true&starting_after={after}"
        assert read_stream(url, "GET", path) == events[after + 1 :]


def test_cancelling_ends_the_command(client: OpenAI, url: str) -> None:
    made = client.containers.create(name="cancelled")
    tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made.id}}
    words = shell("echo $$ > pid; echo begun; sleep 300; touch late", timeout_ms=600_000)
    body = {"model": "scripted", "input": words, "tools": [tool], "stream": True, "background": True}
    events = iter_stream(url, "POST", "/responses", body)
    run_id = next(events)["response"]["id"]
    assert any(event["type"] == "response.shell_call_output_content.delta" for event in events)
    ended = client.responses.cancel(run_id)
    assert ended.status == "cancelled"
    until(lambda: len(client.responses.retrieve(run_id).output) == 2, "what it did is shown")
    shown = client.responses.retrieve(run_id)
    assert kinds(shown) == ["shell_call", "shell_call_output"]
    assert shown.output[1].status == "incomplete"
    assert "unknown" in shown.output[1].output[0].stderr
    after = ask(client, shell("kill -0 $(cat pid) && echo alive; ls"), tool)
    assert "alive" not in said(after)[0][0]
    assert "late" not in said(after)[0][0]


def test_the_chat_surface_knows_no_hosted_tools(url: str) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "tools": [SHELL]}
    answer = send(url, "POST", "/chat/completions", body)
    assert answer.status == 400
    assert answer.error["param"].startswith("tools[0]")


def test_a_model_that_is_slow_to_call_keeps_the_stream_whole(url: str, model_host: ModelHost) -> None:
    events = stream(url, {"input": "preface: Let me look.\n" + shell("echo x"), "tools": [SHELL]})
    types = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
    assert types == ["message", "shell_call", "shell_call_output", "message"]
