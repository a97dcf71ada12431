"""Which items go when a context is too long: whole turns, the oldest first, and no result without its call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stateroom.agent.pairs import call_id_of, is_call, is_result
from stateroom.agent.tokens import estimate_items
from stateroom.agent.truncation import fitted, shortened
from stateroom.journal.entries import ContextItem, Item
from tests.unit.agent.test_compaction import held, histories, say


def call(name: str) -> list[Item]:
    return [
        {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": name, "output": f"result of {name} " * 20},
    ]


TURNS = held(
    [
        say("system", "be kind"),
        *[say("user", "q1"), *call("a"), say("assistant", "a1")],
        *[say("user", "q2"), *call("b"), say("assistant", "a2")],
        *[say("user", "q3"), *call("c"), *call("d")],
    ]
)


def said(items: list[ContextItem] | None) -> list[str]:
    assert items is not None
    return [str(each.item.get("content", each.item.get("call_id"))) for each in items]


def test_whole_turns_go_and_no_more_of_them_than_must() -> None:
    whole = estimate_items(TURNS)
    assert said(fitted(TURNS, whole - 1)) == ["be kind", "q2", "b", "b", "a2", "q3", "c", "c", "d", "d"]
    assert fitted(TURNS, whole) is None


def test_in_the_newest_turn_the_oldest_steps_go_and_the_question_stays() -> None:
    assert said(fitted(TURNS, 1)) == ["be kind", "q3", "d", "d"]


def test_the_summary_of_a_compaction_stays() -> None:
    summary = ContextItem("cmp", say("user", "so far"), 0)
    items = [summary, *TURNS]
    assert fitted(items, 1, pinned=summary) == [summary, TURNS[0], TURNS[9], *TURNS[-2:]]


def test_an_estimate_that_is_known_to_be_high_lets_more_stay() -> None:
    whole = estimate_items(TURNS)
    assert fitted(TURNS, whole // 2 + 1, scale=0.5) is None


def test_a_late_result_goes_with_its_call() -> None:
    made, result = call("late")
    items = held([say("user", "q1"), made, say("user", "q2"), result, say("assistant", "done")])
    assert said(shortened(items)) == ["q2", "done"]


@given(histories(), st.integers(0, 2000))
def test_truncating_keeps_the_rules(history: list[Item], tokens: int) -> None:
    items = held(history)
    left = fitted(items, tokens)
    if left is None:
        return
    assert len(left) < len(items)
    assert [each for each in items if each in left] == left
    calls = {call_id_of(each.item) for each in left if is_call(each.item)}
    strays = {call_id_of(each.item) for each in items if is_result(each.item)} - {
        call_id_of(each.item) for each in items if is_call(each.item)
    }
    assert {call_id_of(each.item) for each in left if is_result(each.item)} <= calls | strays
    for role in ("system", "developer"):
        assert [each for each in items if each.item.get("role") == role] == [
            each for each in left if each.item.get("role") == role
        ]
    users = [each for each in items if each.item.get("role") == "user"]
    assert not users or users[-1] in left
