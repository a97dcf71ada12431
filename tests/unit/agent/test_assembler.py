"""From deltas to items: what closes when, and what a listener is told."""

from __future__ import annotations

from typing import Any

from stateroom.agent.assembler import Assembler, CallShape
from stateroom.journal.entries import Item, OpenItem

KEY = "01m81nb0fb5ts032anen7hy8hq"


class Heard:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def item_opened(self, index: int, item_id: str, item: Item) -> None:
        self.said.append(("opened", index))

    def text(self, index: int, delta: str, logprobs: list[Any] | None) -> None:
        self.said.append(("text", index, delta))

    def refusal(self, index: int, delta: str) -> None:
        self.said.append(("refusal", index, delta))

    def reasoning(self, index: int, delta: str) -> None:
        self.said.append(("reasoning", index, delta))

    def summary(self, index: int, part: int, delta: str) -> None:
        self.said.append(("summary", index, part, delta))

    def arguments(self, index: int, delta: str) -> None:
        self.said.append(("arguments", index, delta))

    def item_closed(self, index: int, item_id: str, item: Item) -> None:
        self.said.append(("closed", index, item))


def shape_of(name: str) -> CallShape | None:
    if name == "forbidden":
        return None
    return CallShape(
        lambda call_id, arguments: {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    )


def assembler(heard: Heard | None = None, resumed: OpenItem | None = None) -> Assembler:
    return Assembler(KEY, 0, shape_of=shape_of, listener=heard, resumed=resumed)


def test_reasoning_closes_when_text_begins_and_text_when_a_call_begins() -> None:
    heard = Heard()
    building = assembler(heard)
    building.reason("hm")
    building.text("hi")
    building.call(0, "c1", "f", "{}", None)
    building.end("stop", None)
    assert [(said[0], said[1]) for said in heard.said] == [
        ("opened", 0),
        ("reasoning", 0),
        ("closed", 0),
        ("opened", 1),
        ("text", 1),
        ("closed", 1),
        ("opened", 2),
        ("arguments", 2),
        ("closed", 2),
    ]
    assert [record.finish for record in building.take()] == ["", "", "stop"]


def test_interleaved_calls_stay_apart() -> None:
    building = assembler()
    building.call(0, "a", "f", '{"x":', None)
    building.call(1, "b", "g", '{"y":', None)
    building.call(0, "", "", "1}", None)
    building.call(1, "", "", "2}", None)
    building.end("stop", None)
    assert [(record.item["name"], record.item["arguments"]) for record in building.take()] == [
        ("f", '{"x":1}'),
        ("g", '{"y":2}'),
    ]


def test_an_empty_answer_is_an_empty_message() -> None:
    building = assembler()
    building.end("stop", None)
    (record,) = building.take()
    assert record.item == {"role": "assistant", "content": ""}


def test_a_call_that_must_not_be_made_leaves_nothing_behind() -> None:
    heard = Heard()
    building = assembler(heard)
    building.call(0, "a", "forbidden", "{}", None)
    assert heard.said == []
    assert building.refused_calls == ["forbidden"]
    assert building.calls == 0


def test_an_item_that_a_crash_cut_off_goes_on_under_its_index() -> None:
    heard = Heard()
    building = assembler(heard, OpenItem(0, "message", "Hello, "))
    building.text("world")
    building.end("stop", None)
    (record,) = building.take()
    assert record.index == 0
    assert record.item["content"] == "Hello, world"
    assert heard.said[0] == ("text", 0, "world")


def test_log_probabilities_from_before_a_crash_stay_with_their_text() -> None:
    building = assembler(None, OpenItem(0, "message", "Hello, ", [{"token": "Hello, "}]))
    building.text("world", [{"token": "world"}])
    building.end("stop", None)
    (record,) = building.take()
    logprobs = [{"token": "Hello, "}, {"token": "world"}]
    assert record.item["content"] == [{"type": "output_text", "text": "Hello, world", "logprobs": logprobs}]


def test_an_answer_cut_short_leaves_incomplete_items() -> None:
    building = assembler()
    building.text("half")
    building.end("length", None)
    (record,) = building.take()
    assert record.item["status"] == "incomplete"
    assert record.finish == "length"


def test_a_refused_call_does_not_end_the_text_around_it() -> None:
    heard = Heard()
    building = assembler(heard)
    building.text("well")
    building.call(0, "a", "forbidden", "{}", None)
    building.text(", no")
    building.end("stop", None)
    (record,) = building.take()
    assert record.item["content"] == "well, no"
    assert [said[0] for said in heard.said] == ["opened", "text", "text", "closed"]


def test_the_keys_of_refused_calls_may_come_again_with_another_try() -> None:
    building = assembler()
    building.call(0, "a", "forbidden", "{}", None)
    assert building.begun
    building.forget_refused()
    assert not building.begun
    building.call(0, "b", "f", '{"x": 1}', None)
    building.end("stop", None)
    (record,) = building.take()
    assert record.item == {"type": "function_call", "call_id": "b", "name": "f", "arguments": '{"x": 1}'}


def test_a_call_has_a_size_even_without_arguments() -> None:
    building = assembler()
    for number in range(10):
        building.call(number, f"call_{number}", "f", "", None)
    assert building.size >= 10 * len("call_0f")
