"""Idempotency keys: whatever is sent again under its key makes nothing again, whoever died in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest

from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ServerProcess, quiet_port
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import Answer, get, post, respond, send


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"key of {request.node.name}"


def create(url: str, key: str, body: Any, path: str = "/responses") -> Answer:
    asked = {"model": "scripted", **body} if path == "/responses" else body
    return send(url, "POST", path, asked, headers={"Idempotency-Key": key})


def test_a_response_is_made_once_and_answered_alike(url: str, key: str, seen: Seen) -> None:
    first, second = (create(url, key, {"input": "say: once"}) for _ in range(2))
    assert first.status == 200
    assert first.body == second.body
    assert len(seen.requests) == 1


def test_without_a_key_everything_is_made_anew(url: str, seen: Seen) -> None:
    assert respond(url, {"input": "hello"})["id"] != respond(url, {"input": "hello"})["id"]
    assert len(seen.requests) == 2


def test_another_request_under_the_same_key_is_refused(url: str, key: str) -> None:
    assert create(url, key, {"input": "say: one"}).status == 200
    for path, body in (
        ("/responses", {"input": "say: two"}),
        ("/responses", {"input": "say: one", "store": False}),
        ("/conversations", {}),
        ("/responses?x=1", {"model": "scripted", "input": "say: one"}),
    ):
        refused = create(url, key, body, path)
        assert (refused.status, refused.error["code"]) == (400, "idempotency_conflict")


@pytest.mark.parametrize("bad", ["", " ", "k" * 257, "schl\xfcssel"])
def test_what_is_no_key_is_refused_and_not_ignored(url: str, bad: str) -> None:
    refused = create(url, bad, {"input": "hello"})
    assert (refused.status, refused.error["param"]) == (400, "Idempotency-Key")


def test_a_stream_is_replayed_from_its_beginning(url: str, key: str, seen: Seen) -> None:
    body = {"input": "say: one two three", "stream": True}
    first, second = create(url, key, body), create(url, key, body)
    assert first.headers["content-type"].startswith("text/event-stream")
    assert first.body == second.body
    assert first.body.endswith(b"data: [DONE]\n\n")
    assert len(seen.requests) == 1


def test_a_stream_that_goes_on_has_a_second_reader(url: str, key: str, seen: Seen, model_host: ModelHost) -> None:
    body = {"input": f"say: one two three\ngate: {key.replace(' ', '-')} 1", "stream": True}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(create, url, key, body)
        seen.wait(1)
        second = pool.submit(create, url, key, body)
        model_host.open_gate(key.replace(" ", "-"))
        assert first.result(10).body == second.result(10).body
    assert len(seen.requests) == 1


def test_whoever_asks_again_while_it_is_made_waits_for_the_same(url: str, key: str, seen: Seen) -> None:
    body = {"input": "slow: 20\nchunks: 20"}
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(create, url, key, body) for _ in range(8)]
        assert len({answer.result(10).body for answer in answers}) == 1
    assert len(seen.requests) == 1


def test_a_background_response_is_found_again_at_any_stage(
    url: str, key: str, seen: Seen, model_host: ModelHost
) -> None:
    gate = key.replace(" ", "-")
    body = {"input": f"gate: {gate}\nsay: later", "background": True}
    first = create(url, key, body).json
    assert create(url, key, body).json["id"] == first["id"]
    model_host.open_gate(gate)
    until(lambda: get(url, f"/responses/{first['id']}")["status"] == "completed", "it has ended")
    again = create(url, key, body).json
    assert (again["id"], again["status"]) == (first["id"], "completed")
    assert len(seen.requests) == 1


def test_a_request_that_was_refused_may_be_sent_again_under_its_key(url: str, key: str) -> None:
    body = {"input": "hello", "previous_response_id": "resp_missing"}
    assert create(url, key, body).error["code"] == "previous_response_not_found"
    assert create(url, key, {"input": "hello"}).status == 200


def test_what_failed_before_it_did_anything_is_tried_again(url: str, key: str, seen: Seen) -> None:
    body = {"input": "fail: 400\nsay: never"}
    first, second = create(url, key, body), create(url, key, body)
    assert first.status == second.status == 400
    assert len(seen.requests) == 2


def test_an_unstored_response_answers_for_its_key_from_memory(url: str, key: str, seen: Seen) -> None:
    for options in ({}, {"stream": True}):
        body = {"input": "say: fleeting", "store": False, **options}
        named = f"{key} {options}"
        assert create(url, named, body).body == create(url, named, body).body
    assert len(seen.requests) == 2


def test_conversations_items_and_forks_are_made_once(url: str, key: str) -> None:
    made = [create(url, key, {"metadata": {"a": "b"}}, "/conversations") for _ in range(2)]
    assert made[0].status == 200
    assert made[0].body == made[1].body
    place = f"/conversations/{made[0].json['id']}"
    items = {"items": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]}
    added = [create(url, f"{key} items", items, f"{place}/items") for _ in range(2)]
    assert added[0].body == added[1].body
    assert len(added[0].json["data"]) == 2
    assert len(get(url, f"{place}/items")["data"]) == 2
    forks = [create(url, f"{key} fork", {}, f"{place}/fork") for _ in range(2)]
    assert forks[0].body == forks[1].body
    assert forks[0].json["id"] != made[0].json["id"]
    chain = respond(url, {"input": "hello"})["id"]
    chains = [create(url, f"{key} chain", {}, f"/responses/{chain}/fork") for _ in range(2)]
    assert chains[0].body == chains[1].body


def test_a_turn_of_a_conversation_is_taken_once(url: str, key: str, seen: Seen) -> None:
    conversation = post(url, "/conversations", {})["id"]
    body = {"input": "say: once", "conversation": conversation}
    assert create(url, key, body).body == create(url, key, body).body
    assert len(get(url, f"/conversations/{conversation}/items")["data"]) == 2
    respond(url, {"input": "say: on", "conversation": conversation})
    assert len(seen.requests) == 2


def test_a_key_is_forgotten_with_what_it_made(url: str, key: str, seen: Seen) -> None:
    first = create(url, key, {"input": "say: gone"}).json
    assert send(url, "DELETE", f"/responses/{first['id']}").status == 200
    second = create(url, key, {"input": "say: gone"}).json
    assert second["id"] != first["id"]
    conversation = create(url, f"{key} c", {}, "/conversations").json
    assert send(url, "DELETE", f"/conversations/{conversation['id']}").status == 200
    assert create(url, f"{key} c", {}, "/conversations").json["id"] != conversation["id"]


@pytest.fixture
def mortal(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that can be told to die at a point; not started yet."""
    module = "stateroom.testing.probe_server"
    process = ServerProcess(tmp_path / "data", backends=(model_host.url,), port=quiet_port(), module=module)
    try:
        yield process
    finally:
        if process.process is not None:
            process.kill()


@pytest.mark.parametrize("point", ["before_start:1", "after_start:1", "after_item:1", "before_end:1", "after_end:1"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_crash_between_commit_and_answer_makes_no_second_response(
    mortal: ServerProcess, key: str, seen: Seen, point: str, streamed: bool
) -> None:
    body = {"input": "say: survives", "stream": streamed}
    mortal.start(environment={KILL_AT: point})
    create_while_it_lives(mortal.url, key, body)
    assert mortal.wait() == -9
    mortal.start()
    again = create(mortal.url, key, body)
    assert again.status == 200
    assert b"survives" in again.body
    assert create(mortal.url, key, body).body == again.body
    assert len(get(mortal.url, "/responses")["data"]) == 1
    if point in ("after_item:1", "after_end:1"):
        assert len(seen.requests) == 1  # what the model had said was committed


def test_a_crash_makes_no_second_conversation(mortal: ServerProcess, key: str) -> None:
    for number, point in enumerate(("after_conversation:1", "before_conversation:1")):
        mortal.start(environment={KILL_AT: point})
        create_while_it_lives(mortal.url, f"{key} {number}", {}, "/conversations")
        assert mortal.wait() == -9
        mortal.start()
        first = create(mortal.url, f"{key} {number}", {}, "/conversations").json
        assert create(mortal.url, f"{key} {number}", {}, "/conversations").json == first
        assert len(get(mortal.url, "/conversations")["data"]) == number + 1
        mortal.kill()


def test_a_stream_that_a_crash_cut_off_is_read_whole_under_its_key(mortal: ServerProcess, key: str, seen: Seen) -> None:
    body = {"input": "chunks: 20\nslow: 20", "stream": True}
    mortal.start(environment={KILL_AT: "mid_stream:6"})
    cut = create_while_it_lives(mortal.url, key, body)
    assert mortal.wait() == -9
    mortal.start()
    whole = create(mortal.url, key, body)
    assert cut.count(b"response.output_text.delta") > 0
    assert whole.body.startswith(cut)
    assert b"response.completed" in whole.body


def create_while_it_lives(url: str, key: str, body: Any, path: str = "/responses") -> bytes:
    """As much of the answer as comes before the server dies, cut to whole events."""
    asked = {"model": "scripted", **body} if path == "/responses" else body
    read = b""
    with suppress(OSError, HTTPException), closing(HTTPConnection(url.split("/")[2], timeout=30)) as connection:
        headers = {"Idempotency-Key": key, "content-type": "application/json"}
        connection.request("POST", f"/v1{path}", json.dumps(asked), headers)
        response = connection.getresponse()
        while piece := response.read1():
            read += piece
    return read[: read.rfind(b"\n\n") + 2]
