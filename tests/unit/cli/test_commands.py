"""The command line as a whole: help, exit codes, and what each command says and asks of the server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from stateroom.addresses import is_loopback
from stateroom.cli.main import main
from stateroom.cli.serve import Progress, banner
from stateroom.serving import ServerInfo
from tests.unit.cli.script_server import Events, Reply, serving, story

COMMANDS = [
    ["serve"],
    ["chat"],
    ["doctor"],
    *([verb] for verb in ("verify", "backup", "restore", "rebuild")),
    *(["responses", verb] for verb in ("list", "show", "fork", "cancel", "delete")),
    *(["conversations", verb] for verb in ("list", "show", "fork", "delete")),
]
HEAVY = ("aiohttp", "apsw", "cryptography", "jsonschema_rs", "openai", "rich", "starlette", "uvicorn", "xllamacpp")
MESSAGE = {"type": "message", "role": "user", "id": "msg_0", "content": [{"type": "input_text", "text": "hi"}]}
ANSWER = {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "yo\nho"}]}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "created_at": 1700000000,
    "model": "m",
    "output": [ANSWER],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
CONVERSATION = {"id": "conv_1", "object": "conversation", "created_at": 1700000000, "metadata": {"topic": "sea"}}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # a closure
    monkeypatch.chdir(tmp_path)
    for name in ("STATEROOM_URL", "STATEROOM_API_KEY", "STATEROOM_MODEL", "STATEROOM_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, typed: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return run


def listed(*entries: object) -> Reply:
    return Reply({"object": "list", "data": list(entries), "has_more": False, "last_id": None})


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_every_command_has_help(run, command: Sequence[str]) -> None:
    outcome = run(*command, "--help")
    assert outcome.code == 0
    assert "Usage: stateroom" in outcome.out


@pytest.mark.parametrize("option", ["host", "port", "data", "backend", "backend-key-env", "config"])
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_the_options_of_the_server_name_their_variables(
    run, command: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    variable = "STATEROOM_BACKENDS" if option == "backend" else f"STATEROOM_{option.replace('-', '_').upper()}"
    text = run(command, "--help").out
    assert f"--{option} " in text
    assert variable in text


def test_help_loads_nothing_heavy() -> None:
    probe = f"import sys, stateroom.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_version_is_that_of_the_package(run) -> None:
    from importlib.metadata import version

    assert run("--version").out == f"stateroom {version('stateroom')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing"],
        ["serve", "--porto", "1"],
        ["serve", "--port", "eight"],
        ["serve", "--port", "70000"],
        ["serve", "--config", "missing.toml"],
        ["serve", "--backend", "nonsense"],
        ["serve", "--backend-key-env", "KEY"],
        ["serve", "--host", "0.0.0.0"],
        ["responses", "show"],
        ["responses", "list", "--limit", "0"],
        ["conversations", "fork", "conv_1", "--after", "a", "--response", "b"],
        ["chat", "--conversation", "a", "--resume", "b"],
        ["chat", "--url", "ftp://x"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_or_setting_is_exit_code_2_without_a_traceback(run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.err.strip()
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com", ""])
def test_an_address_that_others_can_reach_is_refused_while_there_are_no_keys(run, host: str) -> None:
    assert not is_loopback(host)
    if host:
        outcome = run("serve", "--host", host)
        assert outcome.code == 2
        assert "without an access key" in outcome.err
        assert "stateroom keys create --name NAME --data" in outcome.err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "command", [["responses", "list"], ["conversations", "show", "conv_1"], ["chat"]], ids=" ".join
)
def test_without_a_server_a_command_says_how_to_start_one(run, command: list[str]) -> None:
    with serving() as script:
        url = script.url
    outcome = run(*command, "--url", url)
    assert outcome.code == 1
    assert "stateroom serve" in outcome.err


def test_an_error_of_the_server_is_shown_with_its_code(run) -> None:
    with serving(Reply({"error": {"message": "No such response.", "code": "not_found"}}, 404)) as script:
        outcome = run("responses", "show", "resp_x", "--url", script.url)
    assert (outcome.code, outcome.out) == (1, "")
    assert "No such response. (not_found, HTTP 404" in outcome.err


def test_a_base_url_without_its_version_is_told_so(run) -> None:
    unknown = {"error": {"message": "Unknown request URL: GET /responses.", "code": "unknown_url"}}
    with serving(Reply(unknown, 404)) as script:
        outcome = run("responses", "list", "--url", script.url.removesuffix("/v1"))
    assert outcome.code == 1
    assert f"--url {script.url}" in outcome.err


def test_responses_are_listed_as_lines_that_other_programs_can_read(run) -> None:
    failed = {**RESPONSE, "id": "resp_2", "status": "failed", "output": [], "error": {"message": "it\nbroke"}}
    with serving(listed(RESPONSE, failed)) as script:
        outcome = run("responses", "list", "--url", script.url)
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert [(line[0], line[1], line[3], line[4]) for line in lines] == [
        ("resp_1", "completed", "m", "yo ho"),
        ("resp_2", "failed", "m", "it broke"),
    ]
    assert script.requests[0].path == "/v1/responses?order=desc&limit=20"


def test_lists_come_as_json_on_demand(run) -> None:
    with serving(listed(RESPONSE), listed(CONVERSATION)) as script:
        assert json.loads(run("responses", "list", "--json", "--url", script.url).out) == [RESPONSE]
        assert json.loads(run("conversations", "list", "--json", "--url", script.url).out) == [CONVERSATION]


def test_a_response_is_shown_with_its_input_and_output(run) -> None:
    with serving(Reply(RESPONSE), listed(MESSAGE)) as script:
        outcome = run("responses", "show", "resp_1", "--url", script.url)
    for part in ("completed", "3 in, 2 out", "user  msg_0\n  hi\n", "assistant  msg_1\n  yo\n  ho\n"):
        assert part in outcome.out


def test_a_conversation_is_shown_with_its_items(run) -> None:
    with serving(Reply(CONVERSATION), listed(MESSAGE, ANSWER)) as script:
        outcome = run("conversations", "show", "conv_1", "--url", script.url)
    assert "topic=sea" in outcome.out
    assert outcome.out.index("user  msg_0") < outcome.out.index("assistant  msg_1")
    with serving(Reply(CONVERSATION), listed(MESSAGE)) as script:
        shown = json.loads(run("conversations", "show", "conv_1", "--json", "--url", script.url).out)
    assert shown == {**CONVERSATION, "items": [MESSAGE]}


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (["responses", "fork", "resp_1"], "POST", "/v1/responses/resp_1/fork", {}),
        (["responses", "cancel", "resp_1"], "POST", "/v1/responses/resp_1/cancel", {}),
        (["responses", "delete", "resp_1"], "DELETE", "/v1/responses/resp_1", None),
        (["conversations", "delete", "conv_1"], "DELETE", "/v1/conversations/conv_1", None),
        (["conversations", "fork", "conv_1"], "POST", "/v1/conversations/conv_1/fork", {}),
        (
            ["conversations", "fork", "conv_1", "--after", "msg_1"],
            "POST",
            "/v1/conversations/conv_1/fork",
            {"after_item_id": "msg_1"},
        ),
        (
            ["conversations", "fork", "conv_1", "--response", "resp_1"],
            "POST",
            "/v1/conversations/conv_1/fork",
            {"response_id": "resp_1"},
        ),
    ],
)
def test_each_change_is_one_request(run, arguments: list[str], method: str, path: str, body: object) -> None:
    with serving(Reply({"id": "new_1", "status": "done"})) as script:
        outcome = run(*arguments, "--url", script.url)
    assert outcome.code == 0
    assert [(request.method, request.path, request.body) for request in script.requests] == [(method, path, body)]


def test_a_fork_prints_the_new_id_alone_so_that_it_can_be_piped(run) -> None:
    with serving(Reply(CONVERSATION)) as script:
        outcome = run("responses", "fork", "resp_1", "--url", script.url)
    assert outcome.out == "conv_1\n"
    assert f"stateroom chat --conversation conv_1 --url {script.url}" in outcome.err


def test_a_server_that_commands_ask_by_themselves_is_not_named_again(run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Reply(CONVERSATION)) as script:
        monkeypatch.setenv("STATEROOM_URL", script.url)
        outcome = run("responses", "fork", "resp_1")
    assert outcome.err.endswith("stateroom chat --conversation conv_1\n")


MODELS = Reply({"object": "list", "data": [{"id": "tiny"}]})


def test_piped_lines_are_turns_of_one_chain_and_answers_alone_go_to_standard_output(run) -> None:
    with serving(MODELS, Events(story("one")), Events(story("two"))) as script:
        outcome = run("chat", "--url", script.url, "--instructions", "be brief", typed="first\n\nsecond\n")
    assert (outcome.code, outcome.out) == (0, "one\ntwo\n")
    bodies = [request.body for request in script.requests[1:]]
    assert [(body["input"], body.get("previous_response_id")) for body in bodies] == [
        ("first", None),
        ("second", "resp_1"),
    ]
    assert all(body["model"] == "tiny" and body["instructions"] == "be brief" for body in bodies)
    assert "stateroom chat --resume resp_1" in outcome.err


def test_a_chat_in_a_conversation_sends_its_id(run) -> None:
    replies = (Reply(CONVERSATION), listed(ANSWER, MESSAGE), Events(story("one")))
    with serving(*replies) as script:
        outcome = run("chat", "--url", script.url, "--model", "m", "--conversation", "conv_1", typed="hello\n")
    assert outcome.out.endswith("one\n")
    assert script.requests[2].body["conversation"] == "conv_1"
    assert "previous_response_id" not in script.requests[2].body


def test_a_chat_takes_up_a_response_that_is_still_being_written(run) -> None:
    running = {**RESPONSE, "status": "in_progress", "output": []}
    replies = (Reply(running), listed(MESSAGE), Events(story("the rest")), Events(story("next")))
    with serving(*replies) as script:
        outcome = run("chat", "--url", script.url, "--model", "m", "--resume", "resp_1", typed="go on\n")
    assert "the rest\nnext\n" in outcome.out
    assert script.requests[2].path == "/v1/responses/resp_1?stream=true"
    assert script.requests[3].body["previous_response_id"] == "resp_1"


def test_a_fork_within_a_chat_goes_on_in_the_new_conversation(run) -> None:
    replies = (Events(story("one")), Reply({**CONVERSATION, "id": "conv_9"}), Events(story("two")))
    with serving(*replies) as script:
        run("chat", "--url", script.url, "--model", "m", typed="first\n/fork\nsecond\n/quit\nnever\n")
    assert script.requests[1].path == "/v1/responses/resp_1/fork"
    assert script.requests[2].body["conversation"] == "conv_9"
    assert len(script.requests) == 3


def test_a_failed_answer_makes_a_piped_chat_fail(run) -> None:
    events = story("x", status="failed")
    events[-1]["response"] = {**events[-1]["response"], "error": {"code": "server_error", "message": "out of luck"}}
    with serving(Events(events)) as script:
        outcome = run("chat", "--url", script.url, "--model", "m", typed="hello\n")
    assert outcome.code == 1
    assert "out of luck (server_error)" in outcome.err


def test_the_banner_says_so_when_no_model_server_has_answered() -> None:
    info = ServerInfo("http://127.0.0.1:8123/v1", "some/data", [], "normal", embedded=False)
    text = [line for line, _ in banner(info)]
    assert any("stateroom doctor" in line for line in text)
    assert max(map(len, text)) < 80


def test_progress_before_the_banner_is_told_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.hold()
    progress.show("Fetching: 1 of 93 MB")
    progress.show("Fetching: 2 of 93 MB")
    assert capsys.readouterr().err == ""
    progress.settle()
    progress.show("Starting")
    assert capsys.readouterr().err.splitlines() == ["Fetching: 2 of 93 MB", "Starting"]


def test_the_banner_says_where_what_and_how() -> None:
    info = ServerInfo("http://127.0.0.1:8123/v1", "some/data", ["a", "b"], "full", embedded=True)
    text = "\n".join(line for line, _ in banner(info))
    for part in (
        "http://127.0.0.1:8123/v1",
        str(Path("some/data").resolve()),
        "a, b",
        "smoke-test",
        "power loss",
        "from openai import OpenAI",
        'client = OpenAI(base_url="http://127.0.0.1:8123/v1", api_key="unused")',
        "export OPENAI_BASE_URL=http://127.0.0.1:8123/v1 OPENAI_API_KEY=unused",
    ):
        assert part in text
