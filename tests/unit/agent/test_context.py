"""What a model sees of a branch: extended, marked, rewound and erased, and never measured twice."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stateroom.agent.context import Context, as_model_sees
from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import HOSTED_CALL

HOSTED: Item = {"type": HOSTED_CALL, "call_id": "c", "tool": "t", "name": "n", "arguments": "{}", "output": "secret"}


def said(number: int, seq: int = 0) -> ContextItem:
    return ContextItem(f"msg_{number}", {"role": "user", "content": "x" * number}, seq)


def measured(context: Context) -> int:
    return sum(len(msgspec.json.encode(held.item)) for held in context.items)


def test_a_failed_run_is_rewound_to_where_it_began() -> None:
    context = Context()
    context.extend([said(1), said(2)], {})
    context.mark()
    cache = context.cache
    cache["encoded"] = True
    context.extend([said(3)], {})
    context.rewind()
    assert [held.id for held in context.items] == ["msg_1", "msg_2"]
    assert context.source_count == 2
    assert context.cache is cache
    assert cache == {}


def test_rewinding_to_where_it_stands_costs_no_cache() -> None:
    context = Context()
    context.extend([said(1)], {})
    context.mark()
    context.cache["encoded"] = True
    context.rewind()
    assert context.cache == {"encoded": True}


def test_erasing_what_is_not_there_costs_no_cache_and_keeps_the_mark() -> None:
    context = Context()
    context.extend([said(1), said(2)], {})
    context.mark()
    context.cache["encoded"] = True
    context.erase({("msg_9", 0)}, 0)
    assert context.cache == {"encoded": True}
    context.extend([said(3)], {})
    context.rewind()
    assert [held.id for held in context.items] == ["msg_1", "msg_2"]


def test_a_context_that_was_erased_from_is_rewound_to_nothing_and_built_anew() -> None:
    context = Context()
    context.extend([said(1), said(2)], {})
    context.mark()
    context.extend([said(3)], {})
    context.erase({("msg_1", 0)}, 1)
    assert [held.id for held in context.items] == ["msg_2", "msg_3"]
    assert context.source_count == 2
    context.rewind()
    assert (context.items, context.source_count) == ([], 0)


def test_an_erased_hosted_call_takes_its_result_along() -> None:
    context = Context()
    context.extend([said(1), ContextItem("item_1", HOSTED, 4), said(2, 5)], {})
    assert [held.item.get("type", "message") for held in context.items][1:3] == [
        "function_call",
        "function_call_output",
    ]
    context.erase({("item_1", 4)}, 1)
    assert [held.id for held in context.items] == ["msg_1", "msg_2"]
    assert "secret" not in str([held.item for held in context.items])


def test_a_call_that_is_under_way_keeps_what_it_was_given() -> None:
    context = Context()
    context.extend([said(1), said(2)], {})
    given_to_call, cache = context.items, context.cache
    context.erase({("msg_1", 0)}, 1)
    assert len(given_to_call) == 2
    assert context.cache is not cache


@given(st.lists(st.one_of(st.integers(1, 50), st.sampled_from(["mark", "rewind", "erase", "size"])), max_size=40))
def test_its_size_is_that_of_its_items_whatever_happened_to_it(steps: list[int | str]) -> None:
    context = Context()
    for step in steps:
        match step:
            case "mark":
                context.mark()
            case "rewind":
                context.rewind()
            case "erase":
                context.erase({("msg_7", 0)}, sum(held.id == "msg_7" for held in context.items))
            case "size":
                assert context.size() == measured(context)
            case int():
                context.extend([said(step)], {})
    assert context.size() == measured(context)


def test_an_image_that_is_gone_is_said_to_be() -> None:
    part = {"type": "input_image", "blob": "a" * 64, "media_type": "image/png"}
    held = ContextItem("msg_1", {"role": "user", "content": [part]})
    (shown,) = as_model_sees(held, {})
    assert "no longer available" in shown.item["content"][0]["text"]
    (shown,) = as_model_sees(held, {"a" * 64: "data:x"})
    assert shown.item["content"] == [{"type": "input_image", "image_url": "data:x"}]
