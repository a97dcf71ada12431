"""What is told of reasoning, as events: piece by piece or whole, and gone on with after a crash."""

from __future__ import annotations

from typing import Any

import pytest

from stateroom.wire.events import ImpossibleEvent, ResponsesRenderer
from tests.unit.wire.rendered import MESSAGE, REASONING, begun, taken, types, view

ADDED, DELTA = "reasoning_summary_part.added", "reasoning_summary_text.delta"
TEXT_DONE, PART_DONE = "reasoning_summary_text.done", "reasoning_summary_part.done"


def parts(*texts: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in texts]}


def opened() -> ResponsesRenderer:
    renderer = begun()
    renderer.item_opened(0, "rs_1", REASONING)
    renderer.take()
    return renderer


def test_a_summary_is_streamed_and_ends_with_its_item() -> None:
    renderer = opened()
    renderer.summary(0, 0, "I ")
    renderer.summary(0, 0, "thought.")
    renderer.item_closed(0, "rs_1", parts("I thought."))
    events = taken(renderer)
    assert types(events) == [ADDED, DELTA, DELTA, TEXT_DONE, PART_DONE, "output_item.done"]
    assert [event.get("summary_index") for event in events[:-1]] == [0] * 5
    assert events[3]["text"] == "I thought."
    assert events[4]["part"] == {"type": "summary_text", "text": "I thought."}
    assert events[5]["item"]["summary"] == [{"type": "summary_text", "text": "I thought."}]


def test_the_next_summary_ends_the_one_before() -> None:
    renderer = opened()
    renderer.summary(0, 0, "one")
    renderer.summary(0, 1, "two")
    renderer.item_closed(0, "rs_1", parts("one", "two"))
    assert types(taken(renderer)) == [*[ADDED, DELTA, TEXT_DONE, PART_DONE] * 2, "output_item.done"]


def test_what_was_not_streamed_is_made_up_for() -> None:
    renderer = opened()
    renderer.summary(0, 0, "on")
    renderer.item_closed(0, "rs_1", parts("one", "two"))
    events = taken(renderer)
    assert types(events) == [
        ADDED,
        DELTA,
        DELTA,
        TEXT_DONE,
        PART_DONE,
        ADDED,
        DELTA,
        TEXT_DONE,
        PART_DONE,
        events[-1]["type"].removeprefix("response."),
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["on", "e", "two"]


def test_an_abandoned_item_keeps_what_was_told_of_it() -> None:
    renderer = opened()
    renderer.summary(0, 0, "on")
    renderer.item_abandoned(0)
    events = taken(renderer)
    assert types(events) == [ADDED, DELTA, TEXT_DONE, PART_DONE, "output_item.done"]
    assert events[-1]["item"]["summary"] == [{"type": "summary_text", "text": "on"}]
    assert events[-1]["item"]["status"] == "incomplete"


def test_a_renderer_that_is_restored_goes_on_where_the_summary_stopped() -> None:
    straight, cut = begun(), begun()
    for renderer in (straight, cut):
        renderer.item_opened(0, "rs_1", REASONING)
        renderer.summary(0, 0, "one")
        renderer.summary(0, 1, "tw")
    frame = cut.take()
    assert frame is not None
    restored, (item,) = ResponsesRenderer.restore(view(), [frame])
    assert (item.index, item.type, item.text) == (0, "reasoning", "")
    first = straight.take()
    assert first is not None
    for renderer in (straight, restored):
        renderer.summary(0, 1, "o")
        renderer.item_closed(0, "rs_1", parts("one", "two"))
    assert taken(restored) == taken(straight)


@pytest.mark.parametrize(("index", "part"), [(0, 1), (1, 0), (2, 0)])
def test_summaries_that_cannot_be_are_a_bug_of_the_caller(index: int, part: int) -> None:
    renderer = opened()
    renderer.item_opened(1, "msg_1", MESSAGE)
    with pytest.raises(ImpossibleEvent):
        renderer.summary(index, part, "x")


def test_a_summary_that_ended_cannot_go_on() -> None:
    renderer = opened()
    renderer.summary(0, 0, "one")
    renderer.summary(0, 1, "two")
    with pytest.raises(ImpossibleEvent):
        renderer.summary(0, 0, "more")
