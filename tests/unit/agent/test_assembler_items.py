"""Items of servers that speak in items: begun and ended by them, shown as ours, kept so that they can go back."""

from __future__ import annotations

from typing import Any

from stateroom.agent.assembler import CALLS_MAX, Assembler, CallShape
from stateroom.agent.carried import from_carried, to_carry
from stateroom.journal.entries import Item
from tests.unit.agent.test_assembler import KEY, Heard, shape_of

REASONING: Item = {"type": "reasoning", "summary": []}
SEALED: Item = {"type": "reasoning", "id": "rs_up", "summary": [], "encrypted_content": "gAAA", "status": None}
MESSAGE: Item = {"type": "message", "role": "assistant"}


def assembler(heard: Heard | None = None, **options: Any) -> Assembler:
    return Assembler(KEY, 0, shape_of=shape_of, listener=heard, **options)


def items(building: Assembler) -> list[Item]:
    building.end("stop", None)
    return [record.item for record in building.take()]


def test_sealed_reasoning_without_a_word_is_an_item() -> None:
    building = assembler()
    building.item(REASONING, "up", done=False)
    building.item(SEALED, "up", done=True)
    building.text("hi")
    upstream = {"at": "up", "id": "rs_up", "encrypted_content": "gAAA"}
    assert items(building) == [
        {"type": "reasoning", "summary": [], "upstream": upstream},
        {"role": "assistant", "content": "hi"},
    ]


def test_reasoning_that_ended_is_not_gone_on_with() -> None:
    building = assembler()
    building.summarise("one", 0)
    building.item({**SEALED, "summary": [{"type": "summary_text", "text": "one"}]}, "up", done=True)
    building.reason("more")
    building.item({"type": "reasoning", "id": "rs_2"}, "up", done=True)
    first, second = items(building)
    assert first["summary"] == [{"type": "summary_text", "text": "one"}]
    assert first["upstream"]["id"] == "rs_up"
    assert second["content"] == [{"type": "reasoning_text", "text": "more"}]
    assert second["upstream"] == {"at": "up", "id": "rs_2"}


def test_what_was_shown_otherwise_than_it_came_is_kept_as_it_came() -> None:
    building = assembler()
    building.reason("ab")
    content = [{"type": "reasoning_text", "text": "a"}, {"type": "reasoning_text", "text": "b"}]
    building.item({**SEALED, "content": content}, "up", done=True)
    (item,) = items(building)
    assert item["content"] == [{"type": "reasoning_text", "text": "ab"}]
    assert item["upstream"]["content"] == content


def test_summaries_are_told_as_they_come_to_those_who_listen() -> None:
    heard = Heard()
    building = assembler(heard)
    for part, delta in [(0, "a"), (0, "b"), (3, "c")]:
        building.summarise(delta, part)
    (item,) = items(building)
    assert [said[1:] for said in heard.said if said[0] == "summary"] == [(0, 0, "a"), (0, 0, "b"), (0, 1, "c")]
    assert [part["text"] for part in item["summary"]] == ["ab", "c"]


def test_messages_keep_their_phase_and_stay_apart() -> None:
    building = assembler()
    building.item({**MESSAGE, "phase": "commentary"}, "up", done=False)
    building.text("hm")
    building.item({**MESSAGE, "phase": "commentary"}, "up", done=True)
    building.text("so")
    building.item(MESSAGE, "up", done=True)
    assert items(building) == [
        {"role": "assistant", "content": "hm", "phase": "commentary"},
        {"role": "assistant", "content": "so"},
    ]


def test_an_answer_whose_last_item_has_ended_gets_no_empty_message() -> None:
    building = assembler()
    building.text("hi")
    building.item(MESSAGE, "up", done=True)
    assert building.take() == []
    assert items(building) == [{"role": "assistant", "content": "hi"}]


def test_what_the_server_dealt_with_itself_is_passed_on_whole() -> None:
    heard = Heard()
    building = assembler(heard)
    building.item({"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}, "up", done=True)
    building.text("hi")
    compaction, _ = items(building)
    assert compaction == {"type": "compaction", "encrypted_content": "x", "upstream": {"at": "up", "id": "cmp_1"}}
    assert [said[0] for said in heard.said] == ["opened", "closed", "opened", "text", "closed"]


def test_a_call_closes_reasoning_and_both_are_kept() -> None:
    building = assembler()
    building.item(SEALED, "up", done=True)
    building.call(0, "c1", "f", "{}", None)
    assert [item["type"] for item in items(building)] == ["reasoning", "function_call"]


def test_a_flood_of_items_is_cut_off() -> None:
    building = assembler()
    for _ in range(CALLS_MAX + 1):
        building.item(REASONING, "up", done=False)
    assert building.is_over(10**9)
    assert len(items(building)) == CALLS_MAX


def test_an_answer_of_which_an_item_came_is_begun() -> None:
    building = assembler()
    assert not building.begun
    building.item(REASONING, "up", done=False)
    assert building.begun


def test_what_is_sealed_gives_back_what_the_server_is_to_get() -> None:
    building = assembler(seal=lambda text: f"sealed:{text}")
    building.summarise("I thought.")
    building.item({**SEALED, "summary": [{"type": "summary_text", "text": "I thought."}]}, "up", done=True)
    (item,) = items(building)
    sealed = item["encrypted_content"]
    assert sealed.startswith("sealed:")
    assert from_carried(sealed.removeprefix("sealed:")) == {"summary": item["summary"], "upstream": item["upstream"]}


def test_plain_reasoning_is_carried_as_its_text_whatever_it_begins_with() -> None:
    assert to_carry("hm", [], None) == "hm"
    for text in ("hm", "\0hm", '\0{"text":"x"}'):
        carried = from_carried(to_carry(text, [], None))
        assert carried["content"] == [{"type": "reasoning_text", "text": text}]
    assert from_carried("\0no json")["content"][0]["text"] == "\0no json"


def test_reasoning_that_led_to_a_forbidden_call_does_not_go_back() -> None:
    building = assembler()
    building.item(SEALED, "up", done=True)
    building.call(0, "c1", "forbidden", "{}", None)
    building.forget_refused()
    building.call(0, "c2", "f", "{}", None)
    assert "upstream" not in items(building)[0]


def test_calls_may_still_not_be_made_that_are_forbidden() -> None:
    def none(name: str) -> CallShape | None:
        return None

    building = Assembler(KEY, 0, shape_of=none, listener=None)
    building.item(SEALED, "up", done=True)
    building.call(0, "c1", "f", "{}", None)
    assert [item["type"] for item in items(building)] == ["reasoning"]
