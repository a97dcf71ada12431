"""The stream of a run: order, shape, and what cannot happen."""

from __future__ import annotations

import msgspec
import pytest

from stateroom.journal.entries import Item, OutputItem
from stateroom.wire.events import (
    DONE,
    ITEM_LIFE,
    RUN_LIFE,
    ImpossibleEvent,
    ResponsesRenderer,
    events_of,
    slice_events,
)
from tests.unit.wire.rendered import CALL, CUSTOM, MESSAGE, REASONING, begun, taken, types, view


def test_a_streamed_message_has_every_event_in_order() -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "Hel", None)
    renderer.text(0, "lo", None)
    item = {"role": "assistant", "content": "Hello"}
    renderer.item_closed(0, "msg_1", item)
    renderer.end(view("completed", OutputItem(0, "msg_1", item)))
    events = taken(renderer)
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    shown = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    assert events[2]["item"] == {**shown, "status": "in_progress", "content": []}
    assert events[3]["part"] == {**part, "text": ""}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    assert events[4] == {
        "type": "response.output_text.delta",
        **place,
        "delta": "Hel",
        "logprobs": [],
        "sequence_number": 4,
    }
    assert events[6] == {
        "type": "response.output_text.done",
        **place,
        "text": "Hello",
        "logprobs": [],
        "sequence_number": 6,
    }
    assert events[7]["part"] == part
    assert events[8]["item"] == shown
    assert events[9]["response"]["output"] == [shown]
    assert events[9]["response"]["usage"]["total_tokens"] == 3


def test_the_bytes_are_what_every_reader_takes() -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "a\r\nb\u2028c\u2029d\u0085e \u00e9\x00\\", None)
    frame = renderer.take()
    assert frame is not None
    for block in frame.body.split(b"\n\n")[:-1]:
        first, second = block.split(b"\n")
        assert first.startswith(b"event: ")
        assert second.startswith(b"data: {")
        data = msgspec.json.decode(second[6:])
        assert first[7:].decode() == data["type"]
    assert frame.body.endswith(b"}\n\n")
    assert len(frame.body.decode().splitlines()) == frame.body.count(b"\n")
    assert data["delta"] == "a\r\nb\u2028c\u2029d\u0085e \u00e9\x00\\"
    assert DONE == b"data: [DONE]\n\n"


def test_a_background_run_is_queued_and_then_proceeds_once() -> None:
    renderer = ResponsesRenderer(view("queued"))
    renderer.begin(view("queued"))
    renderer.proceed(view())
    renderer.proceed(view())
    events = taken(renderer)
    assert types(events) == ["created", "queued", "in_progress"]
    assert [event["response"]["status"] for event in events] == ["queued", "queued", "in_progress"]


def test_nothing_to_take_is_no_frame() -> None:
    renderer = begun()
    frame = renderer.take()
    assert frame is not None
    assert (frame.first, frame.last) == (0, 1)
    assert renderer.take() is None
    assert renderer.next_sequence == 2


def test_several_items_are_open_at_once() -> None:
    renderer = begun()
    renderer.item_opened(0, "fc_1", CALL)
    renderer.item_opened(1, "ctc_1", CUSTOM)
    renderer.arguments(0, '{"a":')
    renderer.arguments(1, "*** Be")
    renderer.arguments(0, "1}")
    renderer.item_closed(1, "ctc_1", {**CUSTOM, "input": "*** Begin"})
    renderer.item_closed(0, "fc_1", {**CALL, "arguments": '{"a":1}'})
    events = taken(renderer)[2:]
    assert [(event["output_index"], kind) for event, kind in zip(events, types(events), strict=True)] == [
        (0, "output_item.added"),
        (1, "output_item.added"),
        (0, "function_call_arguments.delta"),
        (1, "custom_tool_call_input.delta"),
        (0, "function_call_arguments.delta"),
        (1, "custom_tool_call_input.delta"),
        (1, "custom_tool_call_input.done"),
        (1, "output_item.done"),
        (0, "function_call_arguments.done"),
        (0, "output_item.done"),
    ]
    assert events[5]["delta"] == "gin"
    assert events[6]["input"] == "*** Begin"
    assert (events[8]["arguments"], events[8]["name"]) == ('{"a":1}', "f")


def test_an_item_that_comes_whole_is_streamed_all_the_same() -> None:
    renderer = begun()
    renderer.item_closed(0, "msg_1", {"role": "assistant", "content": "Hello"})
    renderer.item_closed(1, "fc_1", {**CALL, "arguments": "{}"})
    renderer.item_closed(2, "rs_1", {**REASONING, "content": [{"type": "reasoning_text", "text": "hm"}]})
    assert types(taken(renderer)[2:]) == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]


def test_an_empty_message_has_no_delta_but_all_the_rest() -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "", None)
    renderer.item_closed(0, "msg_1", {"role": "assistant", "content": ""})
    assert types(taken(renderer)[2:]) == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]


def test_text_after_a_refusal_is_another_part() -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "well", None)
    renderer.refusal(0, "no")
    renderer.text(0, "but", None)
    content = [
        {"type": "output_text", "text": "well"},
        {"type": "refusal", "refusal": "no"},
        {"type": "output_text", "text": "but"},
    ]
    renderer.item_closed(0, "msg_1", {"role": "assistant", "content": content})
    events = taken(renderer)[3:-1]
    assert [(event["content_index"], kind) for event, kind in zip(events, types(events), strict=True)] == [
        (index, kind)
        for index, name in enumerate(("output_text", "refusal", "output_text"))
        for kind in ("content_part.added", f"{name}.delta", f"{name}.done", "content_part.done")
    ]


def test_other_items_are_added_and_done_as_they_are() -> None:
    item: Item = {"type": "web_search_call", "action": {"type": "search", "query": "q"}, "status": "in_progress"}
    renderer = begun()
    renderer.item_opened(0, "ws_1", item)
    renderer.item_closed(0, "ws_1", {"type": "web_search_call", "action": item["action"]})
    renderer.item_closed(1, "cmp_1", {"type": "compaction", "encrypted_content": "x"})
    events = taken(renderer)[2:]
    assert types(events) == ["output_item.added", "output_item.done"] * 2
    assert [event["item"].get("status") for event in events] == ["in_progress", "completed", None, None]


def test_logprobs_go_with_their_delta_and_all_with_the_end() -> None:
    first = {"token": "a", "logprob": -1.5, "top_logprobs": []}
    second = {"token": "b", "logprob": -0.5, "top_logprobs": []}
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "a", [first])
    renderer.text(0, "b", [second])
    renderer.item_closed(0, "msg_1", {"role": "assistant", "content": "ab"})
    events = taken(renderer)
    assert [event["logprobs"] for event in events if "logprobs" in event] == [[first], [second], [first, second]]


def test_padding_hides_the_length_of_deltas() -> None:
    renderer = begun(obfuscate=True)
    renderer.item_opened(0, "msg_1", MESSAGE)
    lengths = set()
    for delta in ("a", "ab", "abcdefgh", "é"):
        renderer.text(0, delta, None)
    renderer.text(0, "z", [{"token": "z", "logprob": 0.0, "top_logprobs": []}])
    for event in taken(renderer):
        if event["type"].endswith(".delta"):
            lengths.add(len(msgspec.json.encode(event["delta"])) + len(event["obfuscation"]))
    assert lengths == {16}


def test_an_abandoned_item_ends_as_incomplete_with_what_there_is() -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "Hel", None)
    renderer.item_abandoned(0)
    renderer.item_opened(1, "fc_1", CALL)
    renderer.arguments(1, '{"a')
    renderer.item_abandoned(1)
    renderer.item_opened(2, "rs_1", REASONING)
    renderer.item_abandoned(2)
    events = taken(renderer)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["status"] for item in done] == ["incomplete"] * 3
    assert done[0]["content"] == [{"type": "output_text", "text": "Hel", "annotations": [], "logprobs": []}]
    assert done[1]["arguments"] == '{"a'
    assert types(events).count("output_text.done") == types(events).count("function_call_arguments.done") == 1


@pytest.mark.parametrize(
    ("status", "last"),
    [("completed", "completed"), ("incomplete", "incomplete"), ("cancelled", "incomplete"), ("failed", "failed")],
)
def test_a_run_ends_with_one_terminal_event_and_no_open_item(status: str, last: str) -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "Hel", None)
    error = {"code": "backend_failed", "message": "It broke.", "param": None, "status": 502}
    renderer.end(view(status, error=error if status == "failed" else None))
    events = taken(renderer)
    assert types(events)[-1] == last
    assert events[-1]["response"]["status"] == status
    ends = [kind for kind in types(events) if kind in ("completed", "incomplete", "failed")]
    assert len(ends) == 1
    assert types(events).count("output_item.done") == 1
    if status == "failed":
        assert events[-2] == {
            "type": "error",
            "code": "backend_failed",
            "message": "It broke.",
            "param": None,
            "sequence_number": events[-1]["sequence_number"] - 1,
        }
        assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It broke."}
    else:
        assert "error" not in types(events)


def test_what_cannot_happen_is_refused() -> None:
    fresh = ResponsesRenderer(view())
    ended = begun()
    ended.end(view("completed"))
    with_item = begun()
    with_item.item_opened(0, "msg_1", MESSAGE)
    closed = begun()
    closed.item_closed(0, "msg_1", {"role": "assistant", "content": "x"})
    impossible = [
        lambda: fresh.item_opened(0, "msg_1", MESSAGE),
        lambda: fresh.proceed(view()),
        lambda: fresh.end(view("completed")),
        lambda: ended.begin(view()),
        lambda: ended.end(view("completed")),
        lambda: ended.text(0, "x", None),
        lambda: ended.item_closed(0, "msg_1", MESSAGE),
        lambda: with_item.begin(view()),
        lambda: with_item.item_opened(0, "msg_1", MESSAGE),
        lambda: with_item.text(1, "x", None),
        lambda: with_item.arguments(0, "x"),
        lambda: with_item.reasoning(0, "x"),
        lambda: with_item.item_closed(0, "msg_2", {"role": "assistant", "content": "x"}),
        lambda: with_item.item_abandoned(1),
        lambda: closed.text(0, "x", None),
        lambda: closed.item_opened(0, "msg_1", MESSAGE),
        lambda: closed.item_abandoned(0),
        lambda: closed.item_closed(0, "msg_1", MESSAGE),
    ]
    for act in impossible:
        with pytest.raises(ImpossibleEvent):
            act()


def test_the_life_cycles_lead_only_to_states_they_know() -> None:
    for life in (RUN_LIFE, ITEM_LIFE):
        assert {state for steps in life.values() for state in steps.values()} <= set(life)


def test_events_are_cut_off_where_a_reader_left() -> None:
    renderer = begun()
    renderer.take()
    renderer.item_closed(0, "msg_1", {"role": "assistant", "content": "Hello"})
    frame = renderer.take()
    assert frame is not None
    whole = list(events_of(frame.body))
    for after in range(frame.first - 2, frame.last + 3):
        rest = slice_events(frame.body, frame.first, after)
        assert list(events_of(rest)) == whole[max(0, after - frame.first + 1) :]
