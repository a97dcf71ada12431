"""A page of items is bounded by what it weighs."""

from __future__ import annotations

import json

from stateroom.api import item_pages
from stateroom.journal.entries import ContextItem


async def as_it_is(held: ContextItem) -> ContextItem:
    return held


def items(*sizes: int) -> list[ContextItem]:
    return [ContextItem(f"msg_{number}", {"role": "user", "content": "x" * size}) for number, size in enumerate(sizes)]


async def page(*sizes: int, more: bool = False) -> tuple[list[str], bool, str | None]:
    shown = json.loads(await item_pages.render_items(items(*sizes), more, as_it_is, ()))
    assert shown["object"] == "list"
    return [each["id"] for each in shown["data"]], shown["has_more"], shown["last_id"]


async def test_a_page_ends_where_it_is_full_and_says_that_there_is_more() -> None:
    half = item_pages.PAGE_BYTES // 2
    assert await page(half, half, 10) == (["msg_0"], True, "msg_0")
    assert await page(10, 10, 10) == (["msg_0", "msg_1", "msg_2"], False, "msg_2")
    assert await page(10, more=True) == (["msg_0"], True, "msg_0")


async def test_an_item_that_is_larger_than_a_page_is_a_page() -> None:
    assert await page(item_pages.PAGE_BYTES + 1, 1) == (["msg_0"], True, "msg_0")


async def test_an_empty_page_has_no_ends() -> None:
    assert await page() == ([], False, None)
