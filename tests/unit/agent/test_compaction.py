"""What stays of any context that is compacted, and what a summary without a model says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.agent import compaction
from stateroom.agent.compaction import Budget, Carried, Compacted
from stateroom.agent.context import Context
from stateroom.agent.pairs import call_id_of, is_call, is_result, waiting_calls
from stateroom.agent.tokens import estimate_item, estimate_text
from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import HOSTED_CALL

SMALL = Budget(keep=60, tail=60, summary=100)


def say(role: str, text: str) -> Item:
    return {"role": role, "content": text}


def held(items: list[Item], first: int = 0) -> list[ContextItem]:
    return [ContextItem(f"i{first + n}", item, first + n) for n, item in enumerate(items)]


def compact(context: Context, limits: Budget = SMALL, name: str = "cmp") -> ContextItem:
    """The compaction item that the runtime would make of a context now."""
    tail = compaction.tail_of(context.items, context.summary, limits.tail)
    told = Compacted("the summary", limits.keep, [each.id for each in tail])
    item = {"type": "compaction", "compacted": msgspec.to_builtins(told)}
    return ContextItem(name, item, context.source_count)


def sealed(context: Context, compacted: ContextItem) -> Item:
    """The same as a client would send it elsewhere."""
    anew, message = compaction.begin_anew(context.items, context.summary, compacted)
    at = next(n for n, each in enumerate(anew) if each is message)
    told = compaction.compacted_of(compacted.item)
    assert told is not None
    text = compaction.to_seal(compaction.carried(told, anew[:at], anew[at + 1 :], "m"))
    opened = compaction.from_sealed(text)
    assert opened is not None
    return {"type": "compaction", "compacted": msgspec.to_builtins(opened.compacted)}


def texts(context: Context) -> list[str]:
    return [compaction.text_of(each.item.get("content", each.item.get("output"))) for each in context.items]


def words(size: int) -> Any:
    return st.text("abc ", min_size=1, max_size=size)


@st.composite
def histories(draw: st.DrawFn) -> list[Item]:
    """Turns of people and models, with calls of which some are never answered, some late, some twice."""
    items: list[Item] = []
    open_calls: list[str] = []
    for n in range(draw(st.integers(1, 30))):
        kind = draw(st.sampled_from(["user", "assistant", "system", "developer", "reason", "call", "result", "hosted"]))
        text = f"{n} {draw(words(200))}"
        if kind == "reason":
            items.append({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]})
        elif kind == "call":
            open_calls.append(f"c{n}")
            items.append({"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": text})
        elif kind == "result":
            if open_calls:
                call_id = draw(st.sampled_from(open_calls))
                if draw(st.booleans()):
                    open_calls.remove(call_id)
                items.append({"type": "function_call_output", "call_id": call_id, "output": text})
        elif kind == "hosted":
            items.append(
                {"type": HOSTED_CALL, "call_id": f"h{n}", "tool": "t", "name": "t", "arguments": "{}", "output": text}
            )
        else:
            items.append(say(kind, text))
    return items


@given(histories(), histories(), st.integers(0, 400), st.integers(0, 400))
def test_what_a_compaction_leaves_keeps_the_rules(before: list[Item], after: list[Item], keep: int, tail: int) -> None:
    context = Context()
    context.extend(held(before), {})
    whole = list(context.items)
    limits = Budget(keep=keep or 1, tail=tail, summary=100)
    compacted = compact(context, limits)
    context.extend([compacted, *held(after, 100)], {})
    kept = context.items

    assert sum(each is context.summary for each in kept) == 1
    called: set[str] = set()
    stray_before = {call_id_of(each.item) for each in whole if is_result(each.item)}
    for each in kept:
        if is_call(each.item):
            called.add(call_id_of(each.item))
        elif is_result(each.item) and each.seq < 100:
            assert call_id_of(each.item) in called, "a result without its call"
    assert stray_before >= {call_id_of(each.item) for each in kept if is_result(each.item) and each.seq < 100}

    waiting = [call_id_of(each.item) for each in waiting_calls(whole)]
    assert set(waiting[-compaction.WAITING_MAX :]) <= {call_id_of(each.item) for each in kept if is_call(each.item)}

    instructing = [each for each in whole if each.item.get("role") in ("system", "developer")]
    assert [each for each in kept if each in instructing] == instructing
    users = [each for each in whole if each.item.get("role") == "user"]
    stayed = [each for each in kept if each in users]
    assert stayed == [each for each in users if each in stayed], "the order of what users said"
    if users:
        assert users[-1] in stayed
    assert len({id(each) for each in kept}) == len(kept), "nothing twice"
    assert [each for each in kept if each.seq >= 100] == [
        each for each in kept if each.id.rstrip("o").startswith("i1") and each.seq >= 100
    ]


@given(histories(), histories(), histories())
def test_a_context_that_is_built_at_once_is_the_one_that_grew(a: list[Item], b: list[Item], c: list[Item]) -> None:
    grown = Context()
    items: list[ContextItem] = []
    for number, part in enumerate((a, b, c)):
        new = held(part, 100 * number)
        grown.extend(new, {})
        compacted = compact(grown, name=f"cmp{number}")
        grown.extend([compacted], {})
        items += [*new, compacted]
    cold = Context()
    cold.extend(items, {})
    assert [(each.id, each.item) for each in cold.items] == [(each.id, each.item) for each in grown.items]
    assert grown.source_count == cold.source_count == len(items)
    assert {each.id for each in compaction.relevant(items)} >= {
        each.id for each in grown.items if each.id in {item.id for item in items}
    }


@given(histories())
def test_what_is_sealed_says_the_same_in_another_chain(before: list[Item]) -> None:
    context = Context()
    context.extend(held(before), {})
    compacted = compact(context)
    carried = sealed(context, compacted)
    here, elsewhere, replayed = context, Context(), Context()
    elsewhere.extend([ContextItem("cmp", carried, 0)], {})
    replayed.extend([*held(before), ContextItem("cmp", carried, 99)], {})
    here.extend([compacted], {})
    bare = [{name: value for name, value in each.item.items() if name != "id"} for each in here.items]
    assert [each.item for each in elsewhere.items] == bare
    assert [each.item for each in replayed.items if each.item.get("role") not in ("user",)] == [
        item for item in bare if item.get("role") not in ("user",)
    ]


def test_messages_before_a_compaction_that_it_does_not_know_stay() -> None:
    context = Context()
    context.extend(held([say("user", "old"), say("assistant", "older answer")]), {})
    carried = sealed(context, compact(context, Budget(60, 0, 100)))
    other = Context()
    other.extend(
        [
            *held([say("developer", "new rules"), say("user", "environment"), say("assistant", "noise")]),
            ContextItem("cmp", carried, 9),
        ],
        {},
    )
    assert texts(other)[:3] == ["new rules", "environment", "old"]
    assert "noise" not in texts(other)


def test_a_summary_without_a_model_tells_what_happened_and_keeps_to_its_bound() -> None:
    items = held(
        [
            say("user", "find the leak in parser.c"),
            {"type": "function_call", "call_id": "c1", "name": "read_file", "arguments": '{"path": "parser.c"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "char *line = malloc(80);"},
            say("assistant", "line is never freed"),
        ]
    )
    summary = compaction.plain_summary(items, None, lambda each: False, 400)
    assert "find the leak in parser.c" in summary
    assert 'Called read_file (c1): {"path": "parser.c"}' in summary
    assert "malloc(80)" in summary
    assert summary.index("User:") < summary.index("Called") < summary.index("Assistant:")
    long = held([say("user", f"message {n} " + "word " * 200) for n in range(50)])
    short = compaction.plain_summary(long, None, lambda each: False, 300)
    assert estimate_text(short.encode()) <= 320
    assert "message 49" in short
    assert "message 0 " not in short


@given(histories(), st.integers(100, 1000))
def test_a_summary_without_a_model_always_says_something_within_its_bound(before: list[Item], tokens: int) -> None:
    context = Context()
    context.extend(held(before), {})
    for _ in range(2):
        text = compaction.plain_summary(context.items, context.summary, lambda each: False, tokens)
        assert text
        assert estimate_text(text.encode()) <= tokens * 1.1 + 40
        context.extend([ContextItem("cmp", {"type": "compaction", "compacted": {"summary": text, "keep": 1}}, 99)], {})


def test_a_second_compaction_takes_over_the_first_ones_summary() -> None:
    context = Context()
    context.extend(held([say("user", "a"), say("assistant", "b")]), {})
    context.extend([compact(context)], {})
    text = compaction.plain_summary(context.items, context.summary, lambda each: False, 400)
    assert text.startswith("the summary")
    context.extend([compact(context, name="cmp2")], {})
    assert sum("the summary" in each for each in texts(context)) == 1


def test_a_context_begins_with_a_new_cache_and_is_rewound_to_the_old_items() -> None:
    context = Context()
    context.extend(held([say("user", "a"), say("assistant", "b")]), {})
    context.mark()
    before, cache = context.items, context.cache
    cache["encoded"] = True
    context.extend([compact(context)], {})
    assert context.items is not before
    assert cache == {"encoded": True}
    assert context.cache == {}
    context.rewind()
    assert context.items is before
    assert context.summary is None
    assert context.source_count == 2


def test_what_an_erased_compaction_brought_goes_with_it() -> None:
    context = Context()
    carried = {
        "type": "compaction",
        "compacted": {"summary": "s", "kept": [say("user", "k")], "tail": [say("user", "t")]},
    }
    context.extend([ContextItem("cmp", carried, 3), *held([say("user", "later")], 4)], {})
    context.erase({("cmp", 3)}, 1)
    assert texts(context) == ["later"]


def test_images_are_carried_in_the_tail_and_told_of_elsewhere() -> None:
    url = "data:image/png;base64," + "A" * 200
    picture = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    assert compaction.portable(picture, images=True) == picture
    told = compaction.portable(picture, images=False)
    assert told["content"][0]["type"] == "input_text"
    small = {"role": "user", "content": [{"type": "input_image", "blob": "f" * 64, "media_type": "image/png"}]}
    assert abs(estimate_item(picture) - estimate_item(small)) < 8


@pytest.mark.parametrize("text", ["", "plain reasoning", '{"stateroom":"other/1"}', "[" * 5000, '{"compacted":{}}'])
def test_what_is_no_compaction_is_not_taken_for_one(text: str) -> None:
    assert compaction.from_sealed(text) is None


def test_a_compaction_item_of_another_server_begins_nothing_anew() -> None:
    context = Context()
    context.extend(
        [*held([say("assistant", "a")]), ContextItem("cmp", {"type": "compaction", "encrypted_content": "x"})], {}
    )
    assert len(context.items) == 2
    assert context.summary is None


def test_too_much_to_be_carried_is_left_out_rather_than_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "CARRIED_MAX", 100)
    many = held([say("user", "x" * 200)])
    assert compaction.carried(Compacted("s", 5), many, many, "m") == Carried(Compacted("s", 5), "m")


def test_a_question_that_is_to_be_answered_comes_behind_the_summary_however_long_it_is() -> None:
    context = Context()
    context.extend(held([say("user", "old"), say("assistant", "answer"), say("user", "new " * 500)]), {})
    context.extend([compact(context)], {})
    assert texts(context)[-1] == "new " * 500
