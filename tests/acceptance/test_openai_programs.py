"""Programmatic tool calling as the official client drives it, against a real server, and one that dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError, BadRequestError, DefaultHttpxClient, OpenAI

from stateroom.testing.mcp_server import ScriptedMcp, served
from stateroom.testing.process import ServerProcess
from stateroom.testing.script import Call, Reply
from tests.acceptance.contract import hold_answer
from tests.acceptance.hosted import PYTHON, SHELL, kinds, of_type, told_kinds
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import check_stream, stream

PROGRAMS: Any = {"type": "programmatic_tool_calling"}
PRICE: Any = {
    "type": "function",
    "name": "price",
    "description": "The price of an article.",
    "parameters": {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]},
    "output_schema": {"type": "object", "properties": {"euros": {"type": "number"}}},
    "allowed_callers": ["programmatic"],
}
STOCK: Any = {**PRICE, "name": "stock", "allowed_callers": ["direct", "programmatic"], "output_schema": None}
TOOLS: Any = [PROGRAMS, PRICE, STOCK]
TOTAL = """
const [tea, cup] = await Promise.all([price({of: "tea"}), price({of: "cup"})]);
const left = await stock({of: "tea"});
return {sum: tea.euros + cup.euros, left};
"""
EFFECT: Any = {"type": "stateroom:probe_effect", "allowed_callers": ["programmatic"]}
PROBE = "stateroom.testing.probe_server"


def program(code: str) -> str:
    return f"call: program {json.dumps({'code': code})}"


def ask(client: OpenAI, said: Any, tools: Any = TOOLS, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=said, tools=tools, **more)


def answers(response: Any, *outputs: Any) -> list[Any]:
    """Answers to the function calls of a response, in their order."""
    return [
        {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps(output)}
        for call, output in zip(of_type(response, "function_call"), outputs, strict=True)
    ]


def result_of(response: Any) -> Any:
    [output] = of_type(response, "program_output")
    assert output.status == "completed", output.result
    return json.loads(output.result)


def carried(response: Any) -> list[Any]:
    """Its items as a client sends them back."""
    return [item.model_dump(exclude_none=True) for item in response.output]


@contextmanager
def client_of(server: ServerProcess) -> Iterator[OpenAI]:
    checked = DefaultHttpxClient(base_url=server.url, event_hooks={"response": [hold_answer]})
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=30, http_client=checked) as client:
        yield client


def test_calls_of_a_program_are_answered_side_by_side(client: OpenAI, seen: Seen) -> None:
    first = ask(client, program(TOTAL))
    assert first.status == "completed"
    assert kinds(first) == ["program", "function_call", "function_call"]
    written, tea, cup = first.output
    assert written.code == TOTAL
    assert [json.loads(call.arguments) for call in (tea, cup)] == [{"of": "tea"}, {"of": "cup"}]
    assert {(call.caller.type, call.caller.caller_id) for call in (tea, cup)} == {("program", written.call_id)}
    second = ask(client, answers(first, {"euros": 3.5}, {"euros": 8}), previous_response_id=first.id)
    assert kinds(second) == ["function_call"]
    assert second.output[0].name == "stock"
    third = ask(client, answers(second, 12), previous_response_id=second.id)
    assert kinds(third) == ["program_output", "message"]
    assert third.output[0].call_id == written.call_id
    assert result_of(third) == {"sum": 11.5, "left": "12"}
    assert [message["role"] for message in seen.messages] == ["user", "assistant", "tool"]
    assert seen.messages[2]["content"] == third.output[0].result
    assert [each["function"]["name"] for each in seen.last["tools"]] == ["program", "stock"]


def test_the_same_tool_may_be_called_by_the_model_and_by_a_program(client: OpenAI) -> None:
    direct = ask(client, 'call: stock {"of": "tea"}')
    assert kinds(direct) == ["function_call"]
    assert direct.output[0].caller is None
    refused = ask(client, "stubborn: price\nsay: fine")
    assert kinds(refused) == ["message"]
    with pytest.raises(BadRequestError, match="only programs may call"):
        ask(client, "hi", tool_choice={"type": "function", "name": "price"})
    chosen = ask(client, program("return 1"), tool_choice={"type": "programmatic_tool_calling"})
    assert kinds(chosen)[0] == "program"


@pytest.mark.parametrize("with_caller", [True, False])
def test_a_client_may_keep_the_history_itself(client: OpenAI, with_caller: bool) -> None:
    history: list[Any] = [{"role": "user", "content": program(TOTAL)}]
    outputs: list[list[Any]] = [[{"euros": 1}, {"euros": 2}], [5]]
    for given in outputs:
        response = ask(client, history, store=False)
        history += carried(response)
        for call, answer in zip(of_type(response, "function_call"), answers(response, *given), strict=True):
            history.append({**answer, "caller": call.caller.model_dump()} if with_caller else answer)
    done = ask(client, history, store=False)
    assert result_of(done) == {"sum": 3, "left": "5"}
    history += [*carried(done), {"role": "user", "content": "say: and now?"}]
    assert ask(client, history, store=False).output_text == "and now?"


def test_a_program_that_was_tampered_with_is_refused(client: OpenAI) -> None:
    history: list[Any] = [{"role": "user", "content": program(TOTAL)}]
    first = ask(client, history, store=False)
    items = carried(first)
    items[0]["code"] = "return 'mine'"
    with pytest.raises(BadRequestError) as refused:
        ask(client, [*history, *items, *answers(first, 1, 2)], store=False)
    assert refused.value.code == "invalid_fingerprint"
    with pytest.raises(BadRequestError) as lost:
        ask(client, [{**answers(first, 1, 2)[0], "caller": items[1]["caller"]}], store=False)
    assert lost.value.code == "program_not_found"
    with pytest.raises(BadRequestError) as missing:
        ask(client, answers(first, 1, 2)[:1], previous_response_id=ask(client, program(TOTAL)).id)
    assert missing.value.code == "program_calls_unanswered"


def test_a_waiting_program_can_be_forked(client: OpenAI) -> None:
    conversation = client.conversations.create()
    first = ask(
        client, program("return [await price({of: 'a'}), await price({of: 'b'})]"), conversation=conversation.id
    )
    second = ask(client, answers(first, 1), previous_response_id=first.id)
    left = ask(client, answers(second, 2), previous_response_id=second.id)
    right = ask(client, answers(second, 3), previous_response_id=second.id)
    other = ask(client, answers(first, 4), conversation=conversation.id)
    assert (result_of(left), result_of(right)) == ([1, 2], [1, 3])
    assert kinds(other) == ["function_call"]
    assert result_of(ask(client, answers(other, 5), conversation=conversation.id)) == [4, 5]


def test_a_user_who_goes_on_gives_the_program_up(client: OpenAI) -> None:
    first = ask(client, program(TOTAL))
    second = ask(client, "say: never mind", previous_response_id=first.id)
    assert kinds(second) == ["program_output", "message"]
    assert second.output[0].status == "incomplete"
    assert "given up" in second.output[0].result


def test_the_stream_shows_a_program_its_calls_and_its_result(url: str) -> None:
    events = check_stream(stream(url, {"input": program(TOTAL), "tools": TOOLS}))
    arguments = ["function_call_arguments.delta", "function_call_arguments.done"]
    item = ["output_item.added", "output_item.done"]
    call = [item[0], *arguments, item[1]]
    assert told_kinds(events) == ["created", "in_progress", *item, *call, *call, "completed"]
    response = events[-1]["response"]
    again = [
        {"type": "function_call_output", "call_id": each["call_id"], "output": '{"euros": 1}'}
        for each in response["output"][1:]
    ]
    events = check_stream(stream(url, {"input": again, "tools": TOOLS, "previous_response_id": response["id"]}))
    assert told_kinds(events) == ["created", "in_progress", *call, "completed"]
    last = [{"type": "function_call_output", "call_id": events[-1]["response"]["output"][0]["call_id"], "output": "7"}]
    body = {"input": last, "tools": TOOLS, "previous_response_id": events[-1]["response"]["id"]}
    events = check_stream(stream(url, body))
    assert told_kinds(events)[:5] == ["created", "in_progress", *item, "output_item.added"]
    assert events[2]["item"]["type"] == "program_output"
    assert events[2]["item"]["result"] == '{"sum":2,"left":"7"}'


def test_a_program_works_in_a_container(client: OpenAI) -> None:
    shell = {**SHELL, "allowed_callers": ["programmatic"]}
    code = """
        await shell({commands: ["seq 3 > numbers"]});
        const {output} = await shell({commands: ["cat numbers", "exit 3"]});
        return output.map((each) => [each.stdout, each.outcome.exit_code]);
    """
    response = ask(client, program(code), [PROGRAMS, shell])
    assert kinds(response) == ["program", *["shell_call", "shell_call_output"] * 2, "program_output", "message"]
    assert result_of(response) == [["1\n2\n3\n", 0], ["", 3]]
    owner = response.output[0].call_id
    assert {item.caller.caller_id for item in response.output[1:5]} == {owner}


def test_a_program_is_told_the_same_when_only_its_client_knows_what_was_said(client: OpenAI) -> None:
    code = """
        const told = await python({code: "print(6 * 7)"});
        const {output} = await shell({commands: ["echo to both; echo to stderr >&2"]});
        return [told, output[0].stdout + output[0].stderr, await price({of: told})];
    """
    hosted = [{**tool, "allowed_callers": ["programmatic"]} for tool in (PYTHON, SHELL)]
    history: list[Any] = [{"role": "user", "content": program(code)}]
    first = ask(client, history, [PROGRAMS, PRICE, *hosted], store=False)
    assert of_type(first, "code_interpreter_call")[0].outputs is not None
    history += [*carried(first), *answers(first, 1)]
    done = ask(client, history, [PROGRAMS, PRICE, *hosted], store=False)
    assert result_of(done) == ["42", "to both\nto stderr\n", 1]
    assert kinds(done) == ["program_output", "message"]


def test_a_waiting_program_outlives_a_compaction(client: OpenAI) -> None:
    first = ask(client, program("return await price({of: 'x'})"))
    window = client.responses.compact(model="scripted", previous_response_id=first.id)
    history = [item.model_dump(exclude_none=True) for item in window.output]
    done = ask(client, [*history, *answers(first, 7)])
    assert result_of(done) == 7


def test_the_guide_does_what_it_says(tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs/how-to/programs.md").read_text()
    [example, code] = [block.split("\n", 1)[1] for block in guide.split("```")[1::2]]
    with ModelHost() as host, ServerProcess(tmp_path / "data", backends=(host.url,)) as server:
        host.script.replies.append(Reply(calls=(Call("program", json.dumps({"code": code})),)))
        host.script.replies.append(Reply(text="Together they cost 32.50 euros."))
        said = subprocess.run(
            [sys.executable, "-c", example.replace("http://127.0.0.1:8000/v1", server.url)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert said.returncode == 0, said.stderr
    asked, result, answer = said.stdout.splitlines()
    assert asked == f"asked for {[json.dumps({'of': of}, separators=(',', ':')) for of in ('tea', 'cup', 'pot')]}"
    assert (result, answer) == ("32.5", "Together they cost 32.50 euros.")


@pytest.fixture
def mcp() -> Iterator[tuple[ScriptedMcp, Any]]:
    script = ScriptedMcp()
    with served(script.app("streamable_http")) as url:
        yield script, {"type": "mcp", "server_label": "notes", "server_url": url, "allowed_callers": ["programmatic"]}


@pytest.fixture(scope="module")
def near(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a server that may reach this machine."""
    folder = tmp_path_factory.mktemp("programs")
    environment = {"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    with (
        ServerProcess(folder / "data", backends=(model_host.url,)).start(environment=environment) as server,
        client_of(server) as client,
    ):
        yield client


NOTES = """
const written = await notes__write_note({text: "one"});
const read = await notes__read_note({});
return [written, read, await price({of: "x"})];
"""


@pytest.mark.parametrize("store", [True, False])
def test_approvals_are_asked_for_inside_a_program(near: OpenAI, mcp: tuple[ScriptedMcp, Any], store: bool) -> None:
    script, declared = mcp
    tools = [PROGRAMS, declared, PRICE]
    history: list[Any] = [{"role": "user", "content": program(NOTES)}]

    def go_on(response: Any, given: list[Any]) -> Any:
        history.extend([*carried(response), *given])
        said = {"previous_response_id": response.id} if store else {"store": False}
        return ask(near, given if store else history, tools, **said)

    asked = ask(near, history, tools, store=store)
    assert kinds(asked) == ["mcp_list_tools", "program", "mcp_approval_request"]
    for _ in range(2):
        request = of_type(asked, "mcp_approval_request")[0].id
        asked = go_on(asked, [{"type": "mcp_approval_response", "approval_request_id": request, "approve": True}])
    assert kinds(asked) == ["mcp_call", "function_call"]
    done = go_on(asked, answers(asked, 1))
    assert result_of(done) == ["the note is: one", "one", 1]
    assert [name for name, _ in script.calls] == ["write_note", "read_note"]


def test_a_refused_approval_is_an_exception_in_the_program(near: OpenAI, mcp: tuple[ScriptedMcp, Any]) -> None:
    script, declared = mcp
    code = "try { return await notes__write_note({text: 'x'}) } catch (error) { return [error.name, error.message] }"
    asked = ask(near, program(code), [PROGRAMS, declared])
    request = of_type(asked, "mcp_approval_request")[0].id
    answer = {"type": "mcp_approval_response", "approval_request_id": request, "approve": False, "reason": "no"}
    done = ask(near, [answer], [PROGRAMS, declared], previous_response_id=asked.id)
    assert result_of(done) == ["ToolError", "The user refused this call. Reason: no"]
    assert script.calls == []


EFFECTS = """
const said = [await probe_effect({token: "a"})];
const told = await price({of: "x"});
for (const token of ["b", "c"]) {
  try { said.push(await probe_effect({token})) } catch (error) { said.push(error.message.slice(0, 33)) }
}
return [told, ...said];
"""
UNKNOWN = "The outcome of this call is unkno"
KILLED: dict[str, tuple[str, list[str]]] = {
    # where it dies in the second segment, and what its calls gave
    "before the first of its calls is begun": ("before_intent:1", ["did b", "did c"]),
    "in the middle of a call": ("mid_effect:1", [UNKNOWN, "did c"]),
    "after a call, before its outcome": ("before_outcome:1", [UNKNOWN, "did c"]),
    "between two calls": ("after_outcome:1", ["did b", "did c"]),
    "in the middle of the last": ("mid_effect:2", ["did b", UNKNOWN]),
    "after the last, before its own end": ("after_outcome:2", ["did b", "did c"]),
}


@pytest.mark.parametrize("where", KILLED)
def test_no_call_is_repeated_wherever_the_server_dies(model_host: ModelHost, tmp_path: Path, where: str) -> None:
    point, expected = KILLED[where]
    effects = tmp_path / "effects"
    environment = {"STATEROOM_TEST_EFFECTS": str(effects)}
    tools = [PROGRAMS, PRICE, EFFECT]
    process = ServerProcess(
        tmp_path / "data", backends=(model_host.url,), module=PROBE, environment=environment, port=0
    )
    with process.start(), OpenAI(base_url=process.url, api_key="x", max_retries=0) as client:
        first = ask(client, program(EFFECTS), tools)
        process.kill()  # while it waits
    with (
        process.start(environment={"STATEROOM_TEST_KILL_AT": point}),
        OpenAI(base_url=process.url, api_key="x") as client,
    ):
        more = {"previous_response_id": first.id, "background": True, "stream": True}
        response_id = cut_off(ask(client, answers(first, 9), tools, **more))
        process.wait()
    with process.start(), OpenAI(base_url=process.url, api_key="x", max_retries=0) as client:
        retrieve = client.responses.retrieve
        until(lambda: retrieve(response_id).status == "completed", "the run went on")
        done = retrieve(response_id)
        assert result_of(done) == [9, "did a", *expected]
        assert kinds(done)[-2:] == ["program_output", "message"]
        events: list[Any] = list(retrieve(response_id, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        ended = [event.item.id for event in events if event.type == "response.output_item.done"]
        assert len(ended) == len(set(ended))
        assert {item.id for item in done.output} <= set(ended)
    begun = [line.split()[2] for line in effects.read_text().splitlines() if line.startswith("begin")]
    assert len(begun) == len(set(begun)) == 3


def cut_off(events: Any) -> str:
    """Read a stream until its server dies; the response's id."""
    response_id = ""
    try:
        for event in events:
            response_id = response_id or event.response.id
    except APIConnectionError:
        return response_id
    raise AssertionError("the server lives")


WAITS = """
let said;
try { said = await probe_effect({token: "a"}) } catch (error) { said = error.message.slice(0, 33) }
return [said, await price({of: "x"})];
"""


@pytest.mark.parametrize(
    "point", ["after_item:1", "before_intent:1", "after_effect:1", "after_outcome:1", "before_end:1"]
)
def test_a_program_comes_to_wait_although_its_server_dies(model_host: ModelHost, tmp_path: Path, point: str) -> None:
    effects = tmp_path / "effects"
    environment = {"STATEROOM_TEST_EFFECTS": str(effects)}
    tools = [PROGRAMS, PRICE, EFFECT]
    process = ServerProcess(tmp_path / "data", backends=(model_host.url,), module=PROBE, environment=environment)
    with (
        process.start(environment={"STATEROOM_TEST_KILL_AT": point}),
        OpenAI(base_url=process.url, api_key="x", max_retries=0) as client,
    ):
        response_id = cut_off(ask(client, program(WAITS), tools, background=True, stream=True))
        process.wait()
    with process.start(), OpenAI(base_url=process.url, api_key="x", max_retries=0) as client:
        retrieve = client.responses.retrieve
        until(lambda: retrieve(response_id).status == "completed", "the run went on")
        first = retrieve(response_id)
        assert kinds(first) == ["program", "stateroom:tool_call", "function_call"]
        begun = effects.read_text().splitlines()
        assert len([line for line in begun if line.startswith("begin")]) == 1
        done = ask(client, answers(first, 9), tools, previous_response_id=first.id)
        assert result_of(done) == [UNKNOWN if point == "after_effect:1" else "did a", 9]
