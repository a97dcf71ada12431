"""Steering a response over a WebSocket, in all the forms that the `openai` package knows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.socket_wire import Socket, final_of, opened
from tests.acceptance.wire import get, output_text, post, told

FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def socket(url: str) -> Iterator[Socket]:
    with opened(url) as socket:
        yield socket


def begin(socket: Socket, said: str, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """A response of which three words have come, and its events so far."""
    socket.create(said, **fields)
    events = [socket.next()]
    while sum(event["type"].endswith(".delta") for event in events) < 3:
        events.append(socket.next())
    return events[0]["response"]["id"], events


@pytest.mark.parametrize("lane", [None, "named"])
@pytest.mark.parametrize("store", [True, False])
def test_a_response_that_is_steered_ends_and_a_successor_takes_the_message_in(
    socket: Socket, url: str, seen: Seen, store: bool, lane: str | None
) -> None:
    named = {"stream_id": lane} if lane else {}
    fields = {"instructions": "Be brief.", "metadata": {"a": "b"}, "store": store, **named}
    identifier, events = begin(socket, "gate: never 3\nmy cat is Tom\nsay: one two three four", **fields)
    socket.steer(identifier, "what is my cat?")
    accepted = socket.next()
    assert accepted["type"] == "response.steer.accepted"
    assert accepted["steer"]["previous_response_id"] == identifier
    assert accepted.get("stream_id") == lane
    steered = final_of(events + socket.until_end(), lane)
    assert (steered["status"], steered["incomplete_details"]) == ("incomplete", {"reason": "steered"})
    assert output_text(steered) == "one two three"
    successor = final_of(socket.until_end(), lane)
    assert (successor["status"], successor["previous_response_id"]) == ("completed", identifier)
    assert output_text(successor) == "Your cat is Tom."
    assert (successor["instructions"], successor["metadata"], successor["store"]) == ("Be brief.", {"a": "b"}, store)
    assert told(seen.messages)[-2:] == [("assistant", "one two three"), ("user", "what is my cat?")]
    if store:
        assert get(url, f"/responses/{identifier}")["incomplete_details"] == {"reason": "steered"}
        assert get(url, f"/responses/{successor['id']}") == successor
    after = socket.respond("echo", previous_response_id=successor["id"], store=store, **named)
    assert output_text(after).startswith("5 messages")


def test_messages_may_hold_text_and_images(socket: Socket, seen: Seen) -> None:
    identifier, _ = begin(socket, "gate: never 3\nsay: one two three four")
    pixel = "data:image/png;base64,iVBORw0KGgo="
    content = [{"type": "input_text", "text": "say: seen"}, {"type": "input_image", "image_url": pixel}]
    socket.steer(
        identifier, [{"type": "message", "role": "user", "content": content}, {"role": "user", "content": "say: seen"}]
    )
    assert socket.until("response.steer.accepted")
    socket.until_end()
    assert output_text(final_of(socket.until_end())) == "seen"
    assert seen.messages[-2]["content"][1]["image_url"]["url"] == pixel


def test_what_was_accepted_waits_for_the_results_that_the_client_owes(socket: Socket, seen: Seen) -> None:
    socket.create("gate: owes 1\ncall: look {}\nsay: thanks", tools=[FUNCTION], stream_id="a")
    events = socket.until("response.output_item.added")
    identifier = events[0]["response"]["id"]
    socket.steer(identifier, "be quick")
    socket.steer(identifier, "and polite")
    accepted = [event for event in socket.until("response.steer.accepted") if "steer" in event]
    accepted += socket.until("response.steer.accepted")[-1:]
    seen._host.open_gate("owes")
    socket.until("response.completed")
    pending = [socket.next(), socket.next()]
    for held, event in zip(accepted, pending, strict=True):
        assert event["type"] == "response.steer.pending"
        assert event["reason"] == "waiting_for_required_input"
        assert event["steer"] == held["steer"]
        assert event["stream_id"] == "a"
    [stub] = pending[0]["required_input"]
    assert (stub["type"], stub["name"]) == ("function_call_output", "look")
    socket.create([{**stub, "output": "a tree"}], previous_response_id=identifier, stream_id="a", tools=[FUNCTION])
    assert final_of(socket.until_end(), "a")["status"] == "completed"
    assert [text for role, text in told(seen.messages) if role == "user"][-2:] == ["be quick", "and polite"]
    assert any(role == "tool" for role, _ in told(seen.messages))


def test_what_cannot_be_steered_is_told_with_the_input_given_back(socket: Socket, url: str) -> None:
    done = socket.respond("say: hello", stream_id="a")
    foreign = post(url, "/responses", {"model": "scripted", "input": "x"})
    socket.create("fail: 400 no")
    failed = socket.until_end()[-1]["response"]
    conversation = post(url, "/conversations", {})
    bound, _ = begin(socket, "gate: never 3\nsay: one two three four", conversation=conversation["id"], stream_id="b")
    compacting = {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}
    compacted, _ = begin(socket, "gate: never 3\nsay: one two three four", stream_id="c", **compacting)
    for identifier, code, lane in (
        (done["id"], "response_already_completed", "a"),
        (failed["id"], "response_not_active", None),
        (foreign["id"], "response_not_found", None),
        ("resp_missing", "response_not_found", None),
        (bound, "steering_not_supported", "b"),
        (compacted, "steering_not_supported", "c"),
    ):
        socket.steer(identifier, "stop")
        event = socket.next()
        assert event["type"] == "response.steer.failed"
        assert (event["error"]["code"], event["error"]["type"]) == (code, "invalid_request_error")
        assert event["steer"] == {"previous_response_id": identifier, "input": "stop"}
        assert event.get("stream_id") == lane


@pytest.mark.parametrize(
    "said",
    [
        "",
        [],
        7,
        None,
        {"role": "user", "content": "x"},
        [{"role": "system", "content": "x"}],
        [{"type": "function_call_output", "call_id": "c", "output": "x"}],
        [{"role": "user", "content": "x", "id": "msg_1"}],
        [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}],
        [{"role": "user", "content": [{"type": "input_image"}]}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,?"}]}],
    ],
)
def test_what_cannot_be_said_is_refused_and_the_response_goes_on(url: str, seen: Seen, said: Any) -> None:
    gate = f"said-{zlib.crc32(repr(said).encode())}"
    with opened(url) as socket:
        identifier, events = begin(socket, f"gate: {gate} 3\nsay: one two three four")
        socket.send({"type": "response.steer", "previous_response_id": identifier, "input": said})
        refused = socket.connection.recv(10)
        assert '"response.steer.failed"' in str(refused)
        assert '"invalid_input"' in str(refused)
        seen._host.open_gate(gate)
        assert output_text(final_of(events + socket.until_end())) == "one two three four"


def test_a_response_is_steered_so_often_and_no_more(socket: Socket) -> None:
    # A call that was begun is made whole: the response goes on while it is steered.
    socket.create("gate: never 1\ncall: look {}", tools=[FUNCTION])
    events = socket.until("response.output_item.added")
    identifier = events[0]["response"]["id"]
    for _ in range(16):
        socket.steer(identifier, "x")
        assert socket.next()["type"] == "response.steer.accepted"
    socket.steer(identifier, "x")
    assert socket.next()["error"]["code"] == "too_many_pending_steers"


def test_what_a_failed_response_was_told_is_given_back(socket: Socket, seen: Seen) -> None:
    socket.create('gate: fails 1\nfail_after: 2\ncalls: [{"name": "look"}, {"name": "look"}]', tools=[FUNCTION])
    events = socket.until("response.output_item.added")
    identifier = events[0]["response"]["id"]
    socket.steer(identifier, "stop")
    accepted = socket.until("response.steer.accepted")[-1]
    seen._host.open_gate("fails")
    socket.until("response.failed")
    event = socket.next()
    assert event["type"] == "response.steer.failed"
    assert event["error"]["code"] == "successor_creation_failed"
    assert event["steer"] == {**accepted["steer"], "input": "stop"}


def test_what_waits_for_a_response_that_is_not_kept_any_more_is_given_back(socket: Socket, seen: Seen) -> None:
    socket.create("gate: evicted 1\ncall: look {}", tools=[FUNCTION], store=False)
    events = socket.until("response.output_item.added")
    identifier = events[0]["response"]["id"]
    socket.steer(identifier, "be quick")
    socket.until("response.steer.accepted")
    seen._host.open_gate("evicted")
    socket.until("response.steer.pending")
    socket.create([{"type": "nonsense"}], previous_response_id=identifier, store=False)
    assert socket.error()["status"] == 400
    event = socket.next()
    assert (event["type"], event["error"]["code"]) == ("response.steer.failed", "successor_creation_failed")
    assert event["steer"]["input"] == "be quick"


def test_a_message_that_was_accepted_survives_a_kill(model_host: ModelHost, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server:
        with opened(server.url) as socket:
            # The call is begun and never made whole: the response cannot end before the server is gone.
            socket.create("gate: never 1\nmy cat is Tom\ncall: look {}", tools=[FUNCTION])
            events = socket.until("response.output_item.added")
            identifier = events[0]["response"]["id"]
            socket.steer(identifier, "what is my cat?")
            socket.until("response.steer.accepted")
            server.kill()
        server.start()

        def ended() -> Any:
            held = get(server.url, "/responses")["data"]
            return held if len(held) == 2 and held[0]["status"] == "completed" else None

        successor, steered = until(ended, "the successor ends")
        assert steered["id"] == identifier
        assert (steered["status"], steered["incomplete_details"]) == ("incomplete", {"reason": "steered"})
        assert successor["previous_response_id"] == identifier
        assert output_text(successor) == "Your cat is Tom."
