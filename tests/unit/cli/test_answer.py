"""A streamed answer that the client command reads over broken connections."""

from __future__ import annotations

import pytest

from stateroom.cli.answer import Answer
from stateroom.cli.client import Client, Refused, ServerDown
from stateroom.cli.failure import CommandFailed
from tests.unit.cli.script_server import Events, Reply, serving, story


def test_an_answer_is_shown_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Events(story("Hel", "lo"))) as script:
        answer = Answer(Client(script.url))
        answer.ask({"model": "m", "input": "hi"})
    assert capsys.readouterr().out == "Hello\n"
    assert (answer.id, answer.text, answer.final["status"]) == ("resp_1", "Hello", "completed")
    assert script.requests[0].body == {"model": "m", "input": "hi", "background": True, "stream": True}


@pytest.mark.parametrize("seen", [1, 2, 3, 5])
def test_a_broken_stream_is_read_on_from_the_last_event_seen(seen: int, capsys: pytest.CaptureFixture[str]) -> None:
    events = story("a", "b", "c")
    with serving(Events(events[:seen], broken=True), Events(events[seen:])) as script:
        answer = Answer(Client(script.url))
        answer.ask({})
    assert capsys.readouterr().out == "abc\n"
    assert script.requests[1].path == f"/v1/responses/resp_1?stream=true&starting_after={seen - 1}"


def test_a_stream_that_stops_early_without_an_error_is_read_on_too(capsys: pytest.CaptureFixture[str]) -> None:
    events = story("a", "b")
    with serving(Events(events[:3]), Reply({"error": {"message": "starting"}}, 503), Events(events[3:])) as script:
        Answer(Client(script.url)).ask({})
    assert capsys.readouterr().out == "ab\n"


def test_events_that_come_twice_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    events = story("a", "b", "c")
    with serving(Events(events[:4], broken=True), Events(events[1:])) as script:
        Answer(Client(script.url)).ask({})
    assert capsys.readouterr().out == "abc\n"


def test_a_gap_in_the_numbers_is_reported_and_not_papered_over() -> None:
    events = story("a", "b", "c")
    script = serving(Events(events[:3], broken=True), Events(events[4:]))
    with script as server, pytest.raises(CommandFailed, match="events are missing"):
        Answer(Client(server.url)).ask({})


def test_a_connection_that_breaks_before_the_answer_has_an_id_is_an_error() -> None:
    with serving(Events([], broken=True)) as script, pytest.raises(CommandFailed):
        Answer(Client(script.url)).ask({})


def test_a_refusal_is_shown_with_its_code_and_request_id() -> None:
    body = {"error": {"message": "No such model.", "type": "invalid_request_error", "code": "model_not_found"}}
    with serving(Reply(body, 404)) as script, pytest.raises(Refused) as caught:
        Answer(Client(script.url)).ask({})
    assert caught.value.message == "No such model. (model_not_found, HTTP 404, req_1)"


def test_a_response_that_vanished_while_the_server_was_down_ends_the_wait() -> None:
    script = serving(Events(story("a")[:2], broken=True), Reply({"error": {"message": "gone"}}, 404))
    with script as server, pytest.raises(Refused, match="gone"):
        Answer(Client(server.url)).ask({})


def test_a_running_response_is_read_from_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Events(story("late"))) as script:
        Answer(Client(script.url), "resp_1").read()
    assert script.requests[0].path == "/v1/responses/resp_1?stream=true"
    assert capsys.readouterr().out == "late\n"


def test_an_answer_that_begins_again_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    events = story("cut ", "whole")
    item = {"type": "message", "id": "msg_2"}
    again = [
        {"type": "response.output_item.done", "output_index": 0, "item": {"type": "message", "status": "incomplete"}},
        {"type": "response.output_item.added", "output_index": 1, "item": item},
    ]
    numbered = [{**event, "sequence_number": at} for at, event in enumerate([*events[:3], *again, *events[3:]])]
    with serving(Events(numbered)) as script:
        Answer(Client(script.url)).ask({})
    captured = capsys.readouterr()
    assert captured.out == "cut \nwhole\n"
    assert "begins again" in captured.err


def test_what_a_model_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Events(story("\x1b]0;title\x07red\x1b[31m", "\x9b2J\r\n\tend"))) as script:
        Answer(Client(script.url)).ask({})
    assert capsys.readouterr().out == "]0;titlered[31m2J\n\tend\n"


def test_cancelling_goes_to_the_response_that_is_running() -> None:
    with serving(Reply({"id": "resp_1"})) as script:
        answer = Answer(Client(script.url), "resp_1")
        answer.stop()
    assert (script.requests[0].method, script.requests[0].path) == ("POST", "/v1/responses/resp_1/cancel")


def test_no_server_at_all_says_how_to_start_one() -> None:
    with serving() as script:
        url = script.url
    with pytest.raises(ServerDown) as caught:
        Client(url).call("GET", "/models")
    assert url in caught.value.message
    assert "stateroom serve" in caught.value.remedy
