"""A Responses server's bytes as deltas: whatever the cuts, however little it streams, whatever else it sends."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateroom.errors import BackendBusy, BackendError, BackendFailed, BackendRejected
from stateroom.journal.entries import Usage
from stateroom.models.backend import (
    Delta,
    Finished,
    ItemDelta,
    ReasoningDelta,
    RefusalDelta,
    SummaryDelta,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.responses_decode import ResponsesDecoder
from stateroom.testing.backend_conformance import calls_of, text_of
from stateroom.testing.script import Call, ChatRequest, Message, Reply
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.script_responses import ResponsesAnswer, ResponsesRequest

DONE: dict[str, Any] = {"type": "response.completed", "response": {"status": "completed", "incomplete_details": None}}


def sse(*events: Any) -> bytes:
    return "".join([f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]).encode()


def decoder(**options: Any) -> ResponsesDecoder:
    return ResponsesDecoder(server="The server", origin="here", **options)


def decode(data: bytes, cuts: tuple[int, ...] = ()) -> list[Delta]:
    made = decoder()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    deltas = [delta for i in range(len(edges) - 1) for delta in made.feed(data[edges[i] : edges[i + 1]])]
    if made.failure is not None:
        raise made.failure
    return deltas + made.end()


def stream(*events: Any) -> list[Delta]:
    return decode(sse(*events, DONE))


def answer(reply: Reply, **quirks: Any) -> ResponsesAnswer:
    asked = ChatRequest([Message("user", "x")], stream=True, logprobs=True, top_logprobs=1)
    return ResponsesAnswer(reply, ResponsesRequest(asked, sealed=True), Quirks(**quirks), 1)


def written(reply: Reply, **quirks: Any) -> bytes:
    made = answer(reply, **quirks)
    return b"".join([*made.events(), *made.closing()])


def call(**fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}", **fields}


def added(item: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def ended(item: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 0, "delta": text, **more}


def message(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content, **more}


REPLY = Reply(
    text="Grüße, Welt 🦊\n and more",
    reasoning="first this then that",
    summary="I thought.",
    calls=(Call("look", '{"at": "sea"}'), Call("go", "{}", {"thought_signature": "abc"})),
)

replies = st.builds(
    Reply,
    text=st.text(max_size=40),
    reasoning=st.text(max_size=20),
    summary=st.text(max_size=20),
    refusal=st.sampled_from(["", "", "No, I will not."]),
    calls=st.lists(st.builds(Call, st.just("look"), st.just('{"a": [1, 2, "\u2028"]}')), max_size=3).map(tuple),
    finish=st.sampled_from(["", "length", "content_filter"]),
)
quirks = st.fixed_dictionaries(
    {
        "crlf": st.booleans(),
        "comments": st.booleans(),
        "space": st.booleans(),
        "done": st.booleans(),
        "whole_items": st.booleans(),
        "whole_calls": st.booleans(),
        "hidden_reasoning": st.booleans(),
    }
)


@given(reply=replies, quirk=quirks, cuts=st.lists(st.integers(0, 10_000), max_size=12).map(tuple))
@settings(max_examples=200)
def test_any_split_of_the_bytes_gives_the_same_deltas(
    reply: Reply, quirk: dict[str, bool], cuts: tuple[int, ...]
) -> None:
    data = written(reply, **quirk)
    assert decode(data, cuts) == decode(data)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_one_byte_at_a_time_gives_the_same_deltas_for_every_line_end(end: bytes) -> None:
    data = written(REPLY)
    torn = data.replace(b"\n", end)
    assert decode(torn, tuple(range(len(torn)))) == decode(data)


@given(reply=replies, quirk=quirks)
def test_what_is_said_does_not_depend_on_how_much_is_streamed(reply: Reply, quirk: dict[str, bool]) -> None:
    def told(deltas: list[Delta]) -> list[Any]:
        kinds = (TextDelta, RefusalDelta, ReasoningDelta, SummaryDelta)
        texts = ["".join([delta.text for delta in deltas if isinstance(delta, kind)]) for kind in kinds]
        items = [delta.item for delta in deltas if isinstance(delta, ItemDelta) and delta.done]
        return [*texts, items, calls_of(deltas), deltas[-1]]

    hidden = quirk["hidden_reasoning"]
    whole = decoder().whole(answer(reply, hidden_reasoning=hidden).whole())
    assert told(decode(written(reply, **quirk))) == told(whole)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["type", "delta", "item", "output_index", "response", "error", "summary_index", "logprobs"]
            ),
            st.one_of(
                st.none(),
                st.integers(-2, 2),
                st.text(max_size=5),
                st.sampled_from(
                    [
                        "response.output_text.delta",
                        "response.output_item.added",
                        "response.output_item.done",
                        "response.function_call_arguments.delta",
                        "response.reasoning_summary_text.delta",
                        "response.completed",
                        "response.failed",
                        "error",
                    ]
                ),
                st.recursive(
                    st.sampled_from([None, 1, "message", "reasoning", "function_call", "x"]),
                    lambda inner: st.one_of(
                        st.lists(inner, max_size=2),
                        st.dictionaries(
                            st.sampled_from(
                                ["type", "content", "summary", "text", "arguments", "name", "output", "usage", "status"]
                            ),
                            inner,
                            max_size=4,
                        ),
                    ),
                    max_leaves=8,
                ),
            ),
            max_size=5,
        ),
        max_size=6,
    )
)
def test_events_of_any_shape_are_deltas_or_an_error_of_ours(events: list[dict[str, Any]]) -> None:
    data = "".join([f"data: {json.dumps(event)}\n\n" for event in events]).encode()
    with contextlib.suppress(BackendError):
        decode(data)


def test_a_plain_answer_is_its_pieces_and_an_end() -> None:
    deltas = stream(added(message("")), said("Hel"), said("lo"), ended(message("Hello")))
    item = {"type": "message", "role": "assistant"}
    assert deltas == [TextDelta("Hel"), TextDelta("lo"), ItemDelta(item, "here"), Finished("stop")]


def test_a_call_comes_with_its_name_first_and_its_arguments_in_pieces() -> None:
    piece = {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"a"'}
    rest = {**piece, "delta": ":1}"}
    deltas = stream(added(call(arguments="")), piece, rest, ended(call(arguments='{"a":1}')))
    assert deltas[0] == ToolCallDelta(0, "c1", "look")
    assert calls_of(deltas) == [("c1", "look", '{"a":1}')]


def test_arguments_that_come_only_at_the_end_are_given_then() -> None:
    assert calls_of(stream(added(call(arguments="")), ended(call(arguments='{"a":1}')))) == [("c1", "look", '{"a":1}')]


def test_a_call_without_arguments_gets_an_empty_object() -> None:
    assert calls_of(stream(added(call(arguments="")), ended(call(arguments="")))) == [("c1", "look", "{}")]


def test_a_call_without_an_id_gets_one_and_two_with_the_same_id_are_told_apart() -> None:
    one, two = call(call_id=None, id=None), call(call_id=None, id=None)
    calls = calls_of(stream(ended(one, 0), ended(two, 1), ended(call(), 2), ended(call(id="fc_9"), 3)))
    assert len({call_id for call_id, _, _ in calls}) == 4


def test_unknown_fields_of_a_call_come_back_verbatim() -> None:
    deltas = stream(ended(call(thought_signature="abc")))
    assert [delta.extra for delta in deltas if isinstance(delta, ToolCallDelta) and delta.extra] == [
        {"thought_signature": "abc"}
    ]


def test_items_of_a_server_that_gives_every_one_the_index_0_are_told_apart() -> None:
    calls = calls_of(
        stream(
            added(call(arguments="")),
            ended(call(arguments='{"a":1}')),
            added(call(id="fc_2", call_id="c2", arguments="")),
            ended(call(id="fc_2", call_id="c2", arguments='{"b":1}')),
        )
    )
    assert calls == [("c1", "look", '{"a":1}'), ("c2", "look", '{"b":1}')]


def test_events_without_an_index_belong_to_the_item_that_was_begun_last() -> None:
    events = [added(message("")), said("Hel"), said("lo"), ended(message("Hello"))]
    bare = [{name: value for name, value in event.items() if name != "output_index"} for event in events]
    assert text_of(stream(*bare)) == "Hello"


def test_an_item_that_ends_twice_is_given_out_once() -> None:
    assert text_of(stream(added(message("")), ended(message("Hello")), ended(message("Hello")))) == "Hello"


def test_a_response_that_comes_whole_at_the_end_of_its_stream_is_read_there() -> None:
    whole = {"status": "completed", "output": [message("Hello"), call()]}
    deltas = decode(sse({"type": "response.completed", "response": whole}))
    assert (text_of(deltas), calls_of(deltas)) == ("Hello", [("c1", "look", "{}")])


def test_reasoning_ends_with_what_its_server_sealed_in_it() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    deltas = stream(added({**item, "encrypted_content": ""}), ended(item))
    assert deltas[:-1] == [
        ItemDelta({"type": "reasoning", "summary": []}, "here", done=False),
        ItemDelta(item, "here"),
    ]


def test_summaries_are_told_apart_by_their_numbers() -> None:
    piece = {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "one"}
    deltas = stream(piece, {**piece, "summary_index": 1, "delta": "two"})
    assert deltas[:-1] == [SummaryDelta("one", 0), SummaryDelta("two", 1)]


def test_the_server_is_thinking_while_a_reasoning_item_is_open() -> None:
    made = decoder()
    assert not made.thinking
    made.feed(sse(added({"type": "reasoning", "id": "rs_1", "summary": []})))
    assert made.thinking
    made.feed(sse(ended({"type": "reasoning", "id": "rs_1", "summary": []})))
    assert not made.thinking


def test_messages_say_which_phase_they_belong_to() -> None:
    deltas = stream(added(message("", phase="commentary")), ended(message("hm", phase="commentary")))
    items = [(delta.item.get("phase"), delta.done) for delta in deltas if isinstance(delta, ItemDelta)]
    assert items == [("commentary", False), ("commentary", True)]


def test_items_that_the_server_dealt_with_itself_are_passed_on_and_those_that_ask_for_something_are_not() -> None:
    compaction = {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}
    hosted = {"type": "stateroom:tool_call", "call_id": "c", "tool": "shell", "name": "shell", "arguments": "{}"}
    deltas = stream(ended(compaction, 0), ended(hosted, 1), ended({"type": "shell_call", "call_id": "c"}, 2))
    assert deltas[:-1] == [ItemDelta(compaction, "here")]


def test_log_probabilities_come_in_one_shape() -> None:
    given = {"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "e", "logprob": -1.0}]}
    delta = stream(said("é", logprobs=[given]))[0]
    top = {"token": "e", "bytes": [101], "logprob": -1.0}
    assert delta == TextDelta("é", [{"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [top]}])


def test_usage_says_what_was_cached_and_what_was_reasoning() -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    deltas = decode(sse(said("x"), {"type": "response.completed", "response": {"status": "completed", "usage": usage}}))
    assert deltas[-1] == Finished("stop", Usage(10, 7, 4, 3))


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": "steered"}, "length"),
        (None, "length"),
    ],
)
def test_an_incomplete_answer_says_why(details: Any, reason: str) -> None:
    response = {"status": "incomplete", "incomplete_details": details}
    assert decode(sse(said("x"), {"type": "response.incomplete", "response": response}))[-1] == Finished(reason)


@pytest.mark.parametrize(("more", "reason"), [({}, "length"), ({"incomplete_details": None}, "stop")])
def test_a_server_that_knows_no_incomplete_answers_is_measured_by_its_usage(more: dict[str, Any], reason: str) -> None:
    made = decoder(limit=4)
    usage = {"input_tokens": 1, "output_tokens": 4}
    made.feed(sse({"type": "response.completed", "response": {"status": "completed", "usage": usage, **more}}))
    assert made.end()[-1] == Finished(reason, Usage(1, 4))


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        ({"type": "error", "code": "server_error", "message": "Oh no."}, BackendFailed, "Oh no."),
        ({"type": "error", "error": {"code": "rate_limit_exceeded", "message": "Slowly."}}, BackendBusy, "Slowly."),
        ({"type": "error", "code": "context_length_exceeded", "message": "Too long."}, BackendRejected, "Too long."),
        ({"type": "error", "code": "invalid_prompt", "message": "Not so."}, BackendRejected, "Not so."),
        (
            {"type": "response.failed", "response": {"status": "failed", "error": {"code": "x", "message": "No."}}},
            BackendFailed,
            "No.",
        ),
        ({"type": "response.failed", "response": {"status": "failed", "error": None}}, BackendFailed, "gave up"),
        ({"type": "response.cancelled", "response": {"status": "cancelled"}}, BackendFailed, "cancelled"),
        ({"type": "response.failed", "response": None}, BackendFailed, "failed"),
    ],
)
def test_an_error_inside_the_stream_comes_behind_what_was_said(
    event: Any, kind: type[BackendError], words: str
) -> None:
    made = decoder()
    assert made.feed(sse(said("x"), event, said("never"))) == [TextDelta("x")]
    assert isinstance(made.failure, kind)
    assert words in made.failure.message
    with pytest.raises(kind):
        made.end()


def test_errors_do_not_tell_the_key() -> None:
    made = decoder(key="s3cret")
    made.feed(sse({"type": "error", "code": "invalid_x", "message": "The key s3cret is wrong."}))
    assert made.failure is not None
    assert "s3cret" not in made.failure.message


def test_a_stream_that_ends_without_an_ending_broke_off() -> None:
    with pytest.raises(BackendFailed, match="broke off"):
        decode(sse(said("x")) + b"data: [DONE]\n\n")


@pytest.mark.parametrize("data", [b"data: nonsense\n\n", b"data: [1]\n\n", b'data: {"type":\n\n', b"data: 5\n\n"])
def test_what_is_no_event_is_an_error(data: bytes) -> None:
    made = decoder()
    made.feed(data)
    assert made.failure is not None
    assert made.failure.code == "backend_bad_answer"


@pytest.mark.parametrize("body", [b"nonsense", b"[]", b'{"object":"response"}', b'{"output":5}'])
def test_a_whole_answer_that_is_no_response_is_an_error(body: bytes) -> None:
    with pytest.raises(BackendFailed) as caught:
        decoder().whole(body)
    assert caught.value.code == "backend_bad_answer"


@pytest.mark.parametrize("status", ["failed", "cancelled", "in_progress", "queued"])
def test_a_whole_response_that_is_not_over_or_failed_is_an_error(status: str) -> None:
    with pytest.raises(BackendFailed):
        decoder().whole(json.dumps({"status": status, "output": []}).encode())
