"""The messages of a WebSocket: what clients send, and what they are sent."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest, TooMany
from stateroom.journal.entries import OutputItem
from stateroom.wire.decoding import Bounds
from stateroom.wire.sockets import (
    SteerRequest,
    decode_message,
    decode_steer,
    error_event,
    lane_of,
    read_envelope,
    required_input,
    socket_events,
    steer_failed,
    steer_items,
)

BOUNDS = Bounds()
NAMES = st.from_regex(r"\A[A-Za-z0-9_.-]{1,256}\Z")


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event)) for event in events
    )


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=4), max_size=5), NAMES
)
def test_events_are_what_a_stream_has_with_the_lane_in_each(fields: list[dict[str, Any]], lane: str) -> None:
    events = [{"type": "response.x", **{f"_{name}": value for name, value in each.items()}} for each in fields]
    bare = socket_events(sse(*events), "")
    assert [json.loads(event) for event in bare] == events
    named = socket_events(sse(*events), lane)
    assert [json.loads(event) for event in named] == [{**event, "stream_id": lane} for event in events]


def test_the_flat_error_of_a_failed_run_is_left_out() -> None:
    body = sse({"type": "error", "code": "x"}, {"type": "response.failed"}, {"type": "errors", "code": "x"})
    assert [json.loads(event)["type"] for event in socket_events(body, "a")] == ["response.failed", "errors"]


@given(NAMES)
def test_lanes_have_the_names_that_clients_give_them(name: str) -> None:
    assert lane_of(read_envelope(msgspec.json.encode({"type": "t", "stream_id": name}), 64)) == name


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "a\n", "x" * 257, 1, 1.5, True, [], {}])
def test_other_names_of_lanes_are_refused(name: Any) -> None:
    envelope = read_envelope(msgspec.json.encode({"type": "t", "stream_id": name}), 64)
    with pytest.raises(InvalidRequest) as refusal:
        lane_of(envelope)
    assert refusal.value.code == "invalid_stream_id"


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_nonsense_is_refused_with_a_word(body: bytes) -> None:
    for read in (
        lambda: read_envelope(body, 64),
        lambda: decode_message(body, BOUNDS),
        lambda: decode_steer(body, BOUNDS),
    ):
        with suppress(InvalidRequest):
            read()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["type", "role", "content", "text", "image_url", "id"]), inner)
        ),
        max_leaves=8,
    )
)
def test_only_messages_of_the_user_can_be_said(said: Any) -> None:
    request = SteerRequest("resp_1", msgspec.Raw(msgspec.json.encode(said)))
    try:
        items = steer_items(request, BOUNDS)
    except InvalidRequest as refusal:
        items, code = [], refusal.code
    else:
        code = ""
    assert code == ("" if items else "invalid_input")
    assert all(item["role"] == "user" and "id" not in item for item in items)


def test_a_message_is_a_request_that_streams() -> None:
    said = {"type": "response.create", "model": "m", "input": "x", "stream_options": {"include_obfuscation": True}}
    asked = decode_message(msgspec.json.encode(said), BOUNDS)
    assert (asked.stream, asked.store, asked.obfuscate, asked.generate) == (True, True, True, True)
    warm = {"type": "response.create", "model": "m", "generate": False}
    asked = decode_message(msgspec.json.encode(warm), BOUNDS)
    assert (asked.generate, asked.input) == (False, [])


def test_errors_say_when_to_try_again() -> None:
    event = json.loads(error_event(TooMany("Later.", retry_after=3.0, code="too_many_requests"), "a"))
    assert event == {
        "type": "error",
        "status": 429,
        "error": {
            "message": "Later.",
            "type": "rate_limit_error",
            "param": None,
            "code": "too_many_requests",
            "headers": {"retry-after": "3"},
        },
        "stream_id": "a",
    }


def test_what_was_said_is_given_back_as_it_came() -> None:
    body = b'{"type":"response.steer","previous_response_id":"resp_1","input":[{"role":"user",  "content":"x"}]}'
    event = steer_failed(4, decode_steer(body, BOUNDS), InvalidRequest("No.", code="invalid_input"), "")
    assert json.loads(event) == {
        "type": "response.steer.failed",
        "error": {"code": "invalid_input", "message": "No.", "type": "invalid_request_error"},
        "steer": {"previous_response_id": "resp_1", "input": [{"role": "user", "content": "x"}]},
        "sequence_number": 4,
    }


def test_a_client_owes_a_result_for_each_of_its_calls() -> None:
    output = [
        OutputItem(0, "msg", {"role": "assistant", "content": "x"}),
        OutputItem(1, "fc", {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}),
        OutputItem(2, "ctc", {"type": "custom_tool_call", "call_id": "b", "name": "sh", "input": "ls"}),
    ]
    assert required_input(output) == [
        {"type": "function_call_output", "call_id": "a", "name": "look"},
        {"type": "custom_tool_call_output", "call_id": "b"},
    ]
