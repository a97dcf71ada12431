"""How what a tool gave becomes the outcome of its call, and the item of its result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from stateroom.agent.hosted import ending
from stateroom.journal.entries import Item, ToolOutcome
from stateroom.journal.hosted_items import caller_of
from stateroom.tools.tool import ToolResult


def settled(item: Item, result: ToolResult, *, unknown: bool = False) -> tuple[ToolOutcome, Item | None]:
    """The outcome of a call, and the item of its result where such calls have one."""
    if result.fields is not None or result.item is not None:
        return ToolOutcome(-1, result.output, result.failed, unknown, result.fields or {}), result.item
    fields, own = ending(item, result.output, failed=result.failed, unknown=unknown)
    told = result.output if own is None and not fields.get("outputs") else ""
    if item.get("type") == "stateroom:tool_call":
        fields = {}
    elif own is not None or fields:
        told = ""
    return ToolOutcome(-1, told, result.failed, unknown, fields), own


def called_by(call: Item, result: Item) -> Item:
    """The result of a call, with the program that made it."""
    return {**result, "caller": call["caller"]} if caller_of(call) else result


def with_images(result: ToolResult, images: Sequence[dict[str, Any]]) -> ToolResult:
    """What a tool gave, with the images among its outputs."""
    fields = result.fields or {}
    return msgspec.structs.replace(result, fields={**fields, "outputs": [*fields.get("outputs", ()), *images]})
