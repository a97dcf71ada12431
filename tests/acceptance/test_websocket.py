"""The Responses API over a WebSocket: requests, lanes, chains that live with their connection, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.socket_wire import ENDS, Socket, final_of, opened
from tests.acceptance.wire import get, output_text, post, read_stream, send

FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def socket(url: str) -> Iterator[Socket]:
    with opened(url) as socket:
        yield socket


def open_gate(seen: Seen, name: str) -> None:
    seen._host.open_gate(name)


def test_a_response_comes_as_the_events_of_a_stream(socket: Socket, url: str) -> None:
    response = socket.respond("say: hello", metadata={"a": "b"})
    assert output_text(response) == "hello"
    assert response["store"] is True
    held = get(url, f"/responses/{response['id']}")
    assert held == response
    assert read_stream(url, "GET", f"/responses/{response['id']}?stream=true")[-1]["response"] == response


def test_what_clients_send_beside_the_parameters_is_tolerated(socket: Socket) -> None:
    for extra in ({"stream": True}, {"stream": False}, {"background": False}, {"client_metadata": {"x": "y"}}):
        assert socket.respond("say: hello", **extra)["status"] == "completed"
    obfuscated = {"include_obfuscation": True}
    socket.create("say: hello", stream_options=obfuscated)
    assert any(event.get("obfuscation") for event in socket.until_end())


def test_events_of_a_named_lane_carry_its_name_and_others_carry_none(socket: Socket) -> None:
    socket.respond("say: one")
    socket.respond("say: two", stream_id="a.B-c_9")
    socket.respond("say: three", stream_id="x" * 256)
    socket.create([{"type": "nonsense"}], stream_id="a.B-c_9")
    assert socket.error()["stream_id"] == "a.B-c_9"


def test_requests_of_one_lane_go_one_after_the_other(socket: Socket, seen: Seen) -> None:
    socket.create("gate: fifo\nsay: first", stream_id="one")
    socket.create("say: second", stream_id="one")
    socket.create("say: other", stream_id="two")
    first: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    while not other or other[-1]["type"] not in ENDS:
        event = socket.next()
        (first if event["stream_id"] == "one" else other).append(event)
    assert output_text(final_of(other, "two")) == "other"
    assert len(seen.requests) == 2
    open_gate(seen, "fifo")
    assert output_text(final_of(first + socket.until_end(), "one")) == "first"
    assert output_text(final_of(socket.until_end(), "one")) == "second"


def test_lanes_interleave_and_stay_apart(socket: Socket) -> None:
    names = [f"lane-{number}" for number in range(8)]
    for name in names:
        socket.create(f"slow: 2\nsay: {' '.join([name] * 30)}", stream_id=name)
    events: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    order = []
    while any(not held or held[-1]["type"] not in ENDS for held in events.values()):
        event = socket.next()
        events[event["stream_id"]].append(event)
        order.append(event["stream_id"])
    for name in names:
        assert output_text(final_of(events[name], name)) == " ".join([name] * 30)
    assert order != sorted(order), "nothing was sent at the same time"


def test_sixteen_responses_go_on_and_further_ones_wait(socket: Socket, seen: Seen) -> None:
    for number in range(17):
        socket.create(f"gate: sixteen-{number}\nsay: done {number}", stream_id=f"lane-{number}")
    created = set()
    while len(created) < 16:
        event = socket.next()
        if event["type"] == "response.created":
            created.add(event["stream_id"])
    seen.wait(16)
    assert created == {f"lane-{number}" for number in range(16)}
    assert len(seen.requests) == 16
    open_gate(seen, "sixteen-3")
    while socket.next().get("stream_id") != "lane-16":
        pass
    seen.wait(17)
    for number in range(17):
        open_gate(seen, f"sixteen-{number}")


def test_too_many_waiting_requests_are_refused(socket: Socket, seen: Seen) -> None:
    socket.create("gate: socket-crowd\nsay: x")
    socket.until("response.created")  # it waits no more
    for _ in range(65):
        socket.create("gate: socket-crowd\nsay: x")
    refusal = next(event for event in iter(socket.next, None) if event["type"] == "error")
    assert (refusal["status"], refusal["error"]["code"]) == (429, "too_many_requests")
    assert refusal["error"]["headers"] == {"retry-after": "1"}
    open_gate(seen, "socket-crowd")
    assert sum(socket.until_end()[-1]["type"] == "response.completed" for _ in range(65)) == 65


def test_a_connection_has_so_many_lanes(socket: Socket) -> None:
    for number in range(32):
        socket.respond("say: x", stream_id=f"lane-{number}", generate=False)
    socket.create("say: x", stream_id="one-more")
    refusal = socket.error()
    assert refusal["error"]["code"] == "websocket_stream_limit_reached"
    assert refusal["stream_id"] == "one-more"
    socket.respond("say: x", stream_id="lane-0")
    socket.respond("say: x")


def test_a_warm_up_prepares_a_chain_without_asking_the_model(socket: Socket, url: str, seen: Seen) -> None:
    for store in (True, False):
        before = len(seen.requests)
        warm = socket.respond("my name is Ada", generate=False, store=store, instructions="Be brief.")
        assert (warm["status"], warm["output"], warm["usage"]["total_tokens"]) == ("completed", [], 0)
        assert len(seen.requests) == before
        response = socket.respond("what is my name?", previous_response_id=warm["id"], store=store)
        assert output_text(response) == "Your name is Ada."
    empty = socket.respond([], generate=False)
    assert socket.respond("say: hello", previous_response_id=empty["id"])["status"] == "completed"
    prewarmed = socket.respond("hello", prompt_cache_options={"prewarm": True})
    assert prewarmed["output"] == []
    held = send(url, "GET", f"/responses/{prewarmed['id']}/input_items").json
    assert held["data"][0]["content"][0]["text"] == "hello"


def test_an_unstored_chain_lives_on_its_connection_and_nowhere_else(socket: Socket, url: str) -> None:
    first = socket.respond("my name is Ada", store=False)
    second = socket.respond("my cat is Tom", store=False, previous_response_id=first["id"])
    third = socket.respond("what is my name?", store=False, previous_response_id=second["id"], stream_id="other")
    assert output_text(third) == "Your name is Ada."
    assert third["store"] is False
    forked = socket.respond("what is my cat?", store=False, previous_response_id=first["id"])
    assert output_text(forked) == "I do not know your cat."
    assert send(url, "GET", f"/responses/{first['id']}").status == 404
    over_http = send(url, "POST", "/responses", {"model": "m", "input": "x", "previous_response_id": first["id"]})
    assert over_http.error["code"] == "previous_response_not_found"
    with opened(url) as other:
        other.create("x", store=False, previous_response_id=first["id"])
        refusal = other.error()
        assert (refusal["status"], refusal["error"]["code"]) == (400, "previous_response_not_found")
        assert refusal["error"]["param"] == "previous_response_id"
        assert other.respond("say: hello")["status"] == "completed"
    socket.create("x", store=True, previous_response_id=first["id"], stream_id="durable")
    assert socket.error()["error"]["code"] == "previous_response_not_found"
    assert get(url, "/responses?limit=100")["data"] is not None


def test_a_stored_chain_goes_on_over_any_connection(socket: Socket, url: str) -> None:
    first = post(url, "/responses", {"model": "scripted", "input": "my name is Ada"})
    second = socket.respond("my cat is Tom", previous_response_id=first["id"])
    with opened(url) as other:
        third = other.respond("what is my name?", previous_response_id=second["id"])
        assert output_text(third) == "Your name is Ada."
        unstored = other.respond("what is my cat?", previous_response_id=third["id"], store=False)
        assert output_text(unstored) == "Your cat is Tom."
    last = post(
        url, "/responses", {"model": "scripted", "input": "what is my cat?", "previous_response_id": third["id"]}
    )
    assert output_text(last) == "Your cat is Tom."


@pytest.mark.parametrize("failure", [{"said": [{"type": "nonsense"}]}, {"said": "fail: 500 no"}])
def test_a_continuation_that_fails_costs_its_own_lane_the_parent(socket: Socket, failure: dict[str, Any]) -> None:
    first = socket.respond("my name is Ada", store=False, stream_id="own")
    chained = {"store": False, "previous_response_id": first["id"]}
    socket.create(failure["said"], stream_id="other", **chained)
    assert socket.until_end()[-1]["type"] in ("error", "response.failed")
    assert socket.respond("what is my name?", stream_id="own", **chained)["status"] == "completed"
    socket.create(failure["said"], stream_id="own", **chained)
    assert socket.until_end()[-1]["type"] in ("error", "response.failed")
    socket.create("what is my name?", stream_id="own", **chained)
    assert socket.error()["error"]["code"] == "previous_response_not_found"
    assert socket.respond("say: hello", stream_id="own")["status"] == "completed"


def test_a_run_that_fails_ends_with_one_event(socket: Socket) -> None:
    socket.create("fail_after: 2\nsay: one two three four")
    events = socket.until_end()
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert socket.respond("say: hello")["status"] == "completed"


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[]", "invalid_type", None),
        ("[" * 100_000, "json_too_deep", None),
        (b'{"type": "response.create"}', "invalid_json", None),
        ({"type": "response.cancel"}, "invalid_value", "type"),
        ({}, "invalid_value", "type"),
        ({"type": "response.create", "input": "x"}, "missing_required_parameter", "model"),
        ({"type": "response.create", "model": "m"}, "missing_required_parameter", "input"),
        ({"type": "response.create", "model": "m", "input": "x", "stream_id": ""}, "invalid_stream_id", "stream_id"),
        ({"type": "response.create", "model": "m", "input": "x", "stream_id": 7}, "invalid_stream_id", "stream_id"),
        ({"type": "response.create", "model": "m", "input": "x", "stream_id": "ü"}, "invalid_stream_id", "stream_id"),
        (
            {"type": "response.create", "model": "m", "input": "x", "stream_id": "x" * 257},
            "invalid_stream_id",
            "stream_id",
        ),
        (
            {"type": "response.create", "model": "m", "input": "x", "background": True},
            "unsupported_parameter",
            "background",
        ),
        ({"type": "response.create", "model": "m", "input": "x", "generate": "no"}, "invalid_type", "generate"),
        (
            {"type": "response.create", "model": "m", "input": "x", "temperature": 9},
            "decimal_above_max_value",
            "temperature",
        ),
        ({"type": "response.steer", "input": "x"}, "missing_required_parameter", "previous_response_id"),
    ],
)
def test_what_is_wrong_with_a_message_is_told_and_the_connection_goes_on(
    socket: Socket, message: Any, code: str, param: str | None
) -> None:
    socket.send(message)
    refusal = socket.error()
    assert (refusal["status"], refusal["error"]["code"], refusal["error"]["param"]) == (400, code, param)
    assert socket.respond("say: hello")["status"] == "completed"


def test_a_message_that_is_not_utf_8_ends_the_connection(socket: Socket) -> None:
    frame = Frame(Opcode.TEXT, b'{"type": "\xff"}').serialize(mask=True)
    socket.connection.socket.sendall(frame)
    with pytest.raises(ConnectionClosed) as closed:
        socket.next()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007


def test_a_message_in_fragments_is_put_together(socket: Socket) -> None:
    text = json.dumps({"type": "response.create", "model": "scripted", "input": "say: " + "ü" * 50})
    socket.connection.send(text[at : at + 7] for at in range(0, len(text), 7))
    assert output_text(final_of(socket.until_end())) == "ü" * 50


def test_a_message_that_is_too_large_is_told_so_and_ends_the_connection(model_host: ModelHost, tmp_path: Path) -> None:
    bound = {"STATEROOM_LIMITS__BODY_BYTES": "100000"}
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=bound) as server,
        opened(server.url) as socket,
    ):
        assert socket.respond("say: hello " + "x" * 90_000)["status"] == "completed"
        socket.create("x" * 200_000)
        refusal = socket.error()
        assert (refusal["status"], refusal["error"]["code"]) == (413, "request_too_large")
        with pytest.raises(ConnectionClosed) as closed:
            socket.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_a_large_message_is_taken(socket: Socket) -> None:
    assert output_text(socket.respond("say: " + "x" * 1_500_000)) == "x" * 1_500_000


def test_unpaired_characters_and_line_separators_survive(socket: Socket) -> None:
    text = 'one\u2028two\u2029three\u0085 \\ " 🦉'
    assert output_text(socket.respond(f"say: {text}", stream_id="a")) == text


def test_a_refused_handshake_says_why(url: str) -> None:
    for path, options, status, code in (
        ("/conversations", {}, 404, "unknown_url"),
        ("/responses", {"origin": "https://elsewhere.example"}, 403, "foreign_origin"),
        ("/responses", {"additional_headers": {"Host": "elsewhere.example"}}, 403, "foreign_origin"),
    ):
        with pytest.raises(InvalidStatus) as refused, opened(url, path, **options):
            pass
        answer = refused.value.response
        assert answer.status_code == status
        error = json.loads(answer.body or b"")["error"]
        assert error["code"] == code
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-websocket-version": "13"}, 400),
        ({"sec-websocket-version": "8", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}, 400),
        ({"sec-websocket-version": "13", "sec-websocket-key": "short"}, 400),
        ({"sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "x": "y" * 20_000}, 400),
    ],
)
def test_a_broken_handshake_is_answered_in_the_shape_of_every_error(
    url: str, headers: dict[str, str], status: int
) -> None:
    answer = send(url, "GET", "/responses", headers={"upgrade": "websocket", "connection": "Upgrade", **headers})
    assert answer.status == status
    assert answer.error["code"] == "invalid_handshake"


def test_an_upgrade_that_is_no_websocket_is_an_ordinary_request(url: str) -> None:
    headers = {"upgrade": "websocket", "connection": "Upgrade"}
    posted = send(url, "POST", "/responses", {"model": "scripted", "input": "say: hi"}, headers=headers)
    assert posted.status in (200, 400)
    assert send(url, "GET", "/responses", headers={"upgrade": "h2c", "connection": "Upgrade"}).status == 200


def test_a_key_is_asked_for_and_can_be_withdrawn(model_host: ModelHost, tmp_path: Path) -> None:
    from tests.acceptance.test_keys import make, run  # lazy: its fixtures are not wanted here

    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server:
        made = make(server.data, "--name", "till")
        reader = make(server.data, "--scopes", "read")
        for headers, status, code in (
            ({}, 401, "missing_api_key"),
            ({"Authorization": "Bearer sk-wrong"}, 401, "invalid_api_key"),
            ({"Authorization": f"Bearer {reader['key']}"}, 403, "insufficient_scope"),
        ):
            with pytest.raises(InvalidStatus) as refused, opened(server.url, additional_headers=headers):
                pass
            assert refused.value.response.status_code == status
            assert json.loads(refused.value.response.body or b"")["error"]["code"] == code
        foreign = {"Authorization": f"Bearer {make(server.data, '--project', 'other')['key']}"}
        with (
            opened(server.url, additional_headers={"Authorization": f"Bearer {made['key']}"}) as socket,
            opened(server.url, additional_headers=foreign) as stranger,
        ):
            own = socket.respond("say: hello")["id"]
            stranger.create("what was said?", previous_response_id=own)
            assert stranger.error()["error"]["code"] == "previous_response_not_found"
            stranger.create([{"type": "item_reference", "id": own.replace("resp_", "msg_") + "0000"}])
            assert stranger.error()["error"]["code"] == "item_not_found"
            stranger.steer(own, "x")
            assert stranger.next()["error"]["code"] == "response_not_found"
            assert run("revoke", made["id"], data=server.data).returncode == 0
            socket.create("say: hello")
            refusal = socket.error()
            assert (refusal["status"], refusal["error"]["code"]) == (401, "invalid_api_key")


def test_pings_are_answered_and_the_connection_is_not_compressed(url: str) -> None:
    with opened(url, compression="deflate") as socket:
        assert socket.connection.ping().wait(10)
        assert socket.connection.response is not None
        assert "sec-websocket-extensions" not in socket.connection.response.headers
        assert socket.connection.response.headers["x-request-id"].startswith("req_")


def test_a_dropped_connection_loses_no_stored_run_and_ends_an_unstored_one(url: str, seen: Seen) -> None:
    dropped = seen._host.script.dropped
    with opened(url) as socket:
        socket.create("gate: drop-a 2\nsay: one two three four", stream_id="stored")
        socket.create("gate: drop-b 2\nsay: one two three four", stream_id="unstored", store=False)
        ids_ = {}
        deltas = 0
        while deltas < 4 or len(ids_) < 2:
            event = socket.next()
            if event["type"] == "response.created":
                ids_[event["stream_id"]] = event["response"]["id"]
            deltas += event["type"] == "response.output_text.delta"
        socket.connection.socket.shutdown(SHUT_RDWR)
    until(lambda: seen._host.script.dropped == dropped + 1, "the unstored run's model is hung up on")
    open_gate(seen, "drop-a")
    stored = ids_["stored"]
    held = until(lambda: (h := get(url, f"/responses/{stored}"))["status"] == "completed" and h, "the run ends")
    assert output_text(held) == "one two three four"
    assert send(url, "GET", f"/responses/{ids_['unstored']}").status == 404
    events = read_stream(url, "GET", f"/responses/{stored}?stream=true")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_client_that_reads_nothing_holds_nobody_up_and_misses_nothing(url: str, seen: Seen) -> None:
    with opened(url) as slow, opened(url) as quick:
        for number in range(4):
            slow.create("chunks: 4000", stream_id=f"lane-{number}", stream_options={"include_obfuscation": True})
        seen.wait(4)
        for _ in range(3):
            assert quick.respond("say: hello")["status"] == "completed"
        until(lambda: seen._host.script.answered >= 4, "the runs end without their reader")
        events: dict[str, list[dict[str, Any]]] = {}
        while len([held for held in events.values() if held[-1]["type"] in ENDS]) < 4:
            event = slow.next()
            events.setdefault(event["stream_id"], []).append(event)
        for lane, held in events.items():
            assert len(output_text(final_of(held, lane)).split()) == 4000
