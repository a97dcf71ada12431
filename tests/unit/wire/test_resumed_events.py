"""Any stream of a run: well-formed whatever happens, and gone on with after a crash as if there had been none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.journal.entries import Frame, Item, OpenItem, OutputItem
from stateroom.wire.events import ImpossibleEvent, ResponsesRenderer, events_of
from tests.unit.wire.rendered import CALL, CUSTOM, MESSAGE, REASONING, begun, taken, types, view

Op = tuple[str, int, str]
ops: st.SearchStrategy[list[Op]] = st.lists(
    st.tuples(
        st.sampled_from(["open", "text", "text", "refusal", "close", "close", "abandon", "frame"]),
        st.integers(0, 3),
        st.sampled_from(["a", "é\n", "\u2028", " token", "🦊"]),
    ),
    max_size=30,
)
SKELETONS = [MESSAGE, REASONING, CALL, CUSTOM]


class Script:
    """Applies operations to a renderer as a correct runtime would, and remembers what was said."""

    def __init__(self) -> None:
        self.said: dict[int, list[tuple[str, str]]] = {}
        self.closed: set[int] = set()
        self.output: list[OutputItem] = []

    def apply(self, renderer: ResponsesRenderer, op: Op) -> None:
        what, index, delta = op
        is_open = index in self.said and index not in self.closed
        if what == "open" and index not in self.said and index not in self.closed:
            self.said[index] = []
            renderer.item_opened(index, f"item_{index}", SKELETONS[index])
        elif what in ("text", "refusal") and is_open:
            self.say(renderer, index, "refusal" if what == "refusal" and index == 0 else "text", delta)
        elif what == "close" and index not in self.closed:
            if not is_open:
                self.said[index] = [("text", delta)]
            item = self.finished(index)
            self.closed.add(index)
            self.output.append(OutputItem(index, f"item_{index}", item))
            renderer.item_closed(index, f"item_{index}", item)
        elif what == "abandon" and is_open:
            self.closed.add(index)
            renderer.item_abandoned(index)

    def say(self, renderer: ResponsesRenderer, index: int, kind: str, delta: str) -> None:
        self.said[index].append((kind, delta))
        if kind == "refusal":
            renderer.refusal(index, delta)
        elif index == 0:
            renderer.text(index, delta, None)
        elif index == 1:
            renderer.reasoning(index, delta)
        else:
            renderer.arguments(index, delta)

    def finished(self, index: int) -> Item:
        if index == 0:
            parts: list[dict[str, Any]] = []
            for kind, delta in self.said[0]:
                field = "refusal" if kind == "refusal" else "text"
                if not parts or field not in parts[-1]:
                    parts.append({"type": "refusal" if kind == "refusal" else "output_text", field: ""})
                parts[-1][field] += delta
            return {"role": "assistant", "content": parts}
        text = "".join(delta for _, delta in self.said[index])
        if index == 1:
            return {**REASONING, "content": [{"type": "reasoning_text", "text": text}]}
        return {**SKELETONS[index], "arguments" if index == 2 else "input": text}


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Every added has its done, deltas add up to their done, and nothing of an item comes outside of it."""
    items: dict[int, str] = {}
    texts: dict[tuple[int, int], str] = {}
    for event in events:
        kind = event["type"].removeprefix("response.")
        index = event.get("output_index")
        if index is None:
            continue
        place = (index, event.get("content_index", -1))
        if kind == "output_item.added":
            assert index not in items
            items[index] = event["item"]["id"]
        elif kind == "output_item.done":
            assert items[index] == event["item"]["id"]
            assert not [key for key in texts if key[0] == index]
            items[index] = "done"
        elif kind == "content_part.added":
            texts[place] = ""
        elif kind.endswith(".delta"):
            assert items[index] == event["item_id"]
            texts[place] = texts.get(place, "") + event["delta"]
        elif kind == "content_part.done":
            part = event["part"]
            assert texts.pop(place) == part.get("text", part.get("refusal"))
        elif kind.endswith(".done"):
            whole = event.get("text", event.get("refusal", event.get("arguments", event.get("input"))))
            assert texts.get(place, "") == whole
            if event.get("content_index") is None:
                texts.pop(place, None)
    assert set(items.values()) <= {"done"}
    assert not texts


def frames_of(script: list[Op]) -> Iterator[tuple[list[Frame], int, Script]]:
    """The frames of a run that follows a script: after each frame, and at its end."""
    renderer, state, frames = begun(), Script(), []
    for position, op in enumerate([*script, ("frame", 0, "")]):
        if op[0] != "frame":
            state.apply(renderer, op)
        elif (frame := renderer.take()) is not None:
            frames.append(frame)
            yield list(frames), position, state
    output = sorted(state.output, key=lambda one: one.index)
    renderer.end(view("completed", *output))
    frame = renderer.take()
    assert frame is not None
    yield [*frames, frame], -1, state


@given(ops)
def test_any_run_is_well_formed(script: list[Op]) -> None:
    *_, (frames, _, _) = frames_of(script)
    events = [msgspec.json.decode(data) for frame in frames for data in events_of(frame.body)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [frame.first for frame in frames] == [0, *(frame.last + 1 for frame in frames[:-1])]
    assert frames[-1].last == len(events) - 1
    assert types(events)[:2] == ["created", "in_progress"]
    assert types(events)[-1] == "completed"
    check_nesting(events)


@given(ops)
def test_a_run_cut_off_after_any_frame_goes_on_with_the_same_bytes(script: list[Op]) -> None:
    *_, (whole, _, final) = frames_of(script)
    last = view("completed", *sorted(final.output, key=lambda one: one.index))
    for frames, position, _ in frames_of(script):
        if position < 0:
            continue
        renderer, opened = ResponsesRenderer.restore(view(), frames)
        assert renderer.next_sequence == frames[-1].last + 1
        state = Script()
        spare = begun()
        for op in script[:position]:
            if op[0] != "frame":
                state.apply(spare, op)
        assert [item.index for item in opened] == sorted(set(state.said) - state.closed)
        for item in opened:
            visible = [delta for kind, delta in state.said[item.index] if kind == "text"]
            assert item.text == "".join(visible)
            assert item.type == SKELETONS[item.index].get("type", "message")
        rest = []
        for op in script[position:]:
            if op[0] != "frame":
                state.apply(renderer, op)
            elif (frame := renderer.take()) is not None:
                rest.append(frame)
        renderer.end(last)
        ending = renderer.take()
        assert ending is not None
        bodies = b"".join(frame.body for frame in [*frames, *rest, ending])
        assert bodies == b"".join(frame.body for frame in whole)


def test_a_restored_run_keeps_its_stage() -> None:
    queued = ResponsesRenderer(view("queued"))
    queued.begin(view("queued"))
    frame = queued.take()
    assert frame is not None
    again, opened = ResponsesRenderer.restore(view(), [frame])
    assert opened == []
    again.proceed(view())
    assert types(taken(again)) == ["in_progress"]
    fresh, _ = ResponsesRenderer.restore(view(), [])
    fresh.begin(view())
    assert types(taken(fresh)) == ["created", "in_progress"]
    ended = begun()
    ended.end(view("cancelled"))
    frame = ended.take()
    assert frame is not None
    over, _ = ResponsesRenderer.restore(view("cancelled"), [frame])
    assert over.stage == "ended"


def test_a_restored_run_knows_which_items_are_closed() -> None:
    renderer = begun()
    renderer.item_closed(0, "msg_1", {"role": "assistant", "content": "x"})
    frame = renderer.take()
    assert frame is not None
    again, _ = ResponsesRenderer.restore(view(), [frame])
    with pytest.raises(ImpossibleEvent, match="closed"):
        again.item_opened(0, "msg_1", MESSAGE)


def test_frames_with_a_gap_are_not_gone_on_from() -> None:
    renderer = begun()
    first = renderer.take()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.take()
    renderer.text(0, "x", None)
    third = renderer.take()
    assert first is not None
    assert third is not None
    with pytest.raises(ImpossibleEvent, match="follows"):
        ResponsesRenderer.restore(view(), [first, third])


def test_an_open_item_is_described_for_the_runtime() -> None:
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "Hel", None)
    renderer.text(0, "lo", None)
    frame = renderer.take()
    assert frame is not None
    _, opened = ResponsesRenderer.restore(view(), [frame])
    assert opened == [OpenItem(0, "message", "Hello")]


def test_an_open_item_keeps_its_log_probabilities() -> None:
    logprobs = [{"token": text, "logprob": -0.5, "top_logprobs": []} for text in ("Hel", "lo")]
    renderer = begun()
    renderer.item_opened(0, "msg_1", MESSAGE)
    renderer.text(0, "Hel", logprobs[:1])
    renderer.text(0, "lo", logprobs[1:])
    frame = renderer.take()
    assert frame is not None
    restored, opened = ResponsesRenderer.restore(view(), [frame])
    assert opened == [OpenItem(0, "message", "Hello", logprobs)]
    restored.item_abandoned(0)
    events = taken(restored)
    assert types(events) == ["output_text.done", "content_part.done", "output_item.done"]
    assert events[0]["logprobs"] == events[1]["part"]["logprobs"] == logprobs
    assert events[2]["item"]["content"][0]["logprobs"] == logprobs


def test_a_stream_that_was_cut_off_in_the_output_of_a_command_goes_on() -> None:
    """Its deltas are objects, not texts."""
    renderer = begun()
    output: Item = {"type": "shell_call_output", "call_id": "c1", "output": []}
    renderer.item_opened(0, "sho_1", output)
    renderer.printed(0, 0, "half a li", "")
    frame = renderer.take()
    assert frame is not None
    restored, left_open = ResponsesRenderer.restore(view(), [frame])
    assert [(item.index, item.type) for item in left_open] == [(0, "shell_call_output")]
    restored.item_abandoned(0)
    events = taken(restored)
    assert types(events) == ["output_item.done"]
    assert events[0]["sequence_number"] == frame.last + 1
    assert events[0]["item"]["status"] == "incomplete"
