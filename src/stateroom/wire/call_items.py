"""The items of calls that a model made of function and custom tools."""

from __future__ import annotations

import msgspec

from stateroom.journal.entries import Item
from stateroom.wire.tool_types import ToolRef


def build_call_item(ref: ToolRef, call_id: str, arguments: str) -> Item:
    """The packed item of a call that the model made of a function or custom tool."""
    if ref.kind in ("hosted", "typed", "mcp"):
        raise ValueError(f"{ref.name} is a hosted tool: its item is made elsewhere")
    item: Item = {"type": "function_call", "call_id": call_id, "name": ref.name}
    if ref.kind == "custom":
        item["type"] = "custom_tool_call"
        item["input"] = custom_input(arguments)
    else:
        item["arguments"] = arguments
    if namespace := ref.namespace or (ref.name if ref.searched else ""):
        item["namespace"] = namespace
    if ref.is_async:
        item["async"] = True
    return item


def custom_input(arguments: str) -> str:
    """The text for a custom tool out of the arguments of the function it was shown as.

    Models do not always keep to the schema: a bare JSON string, or text that is no JSON at all, is taken as it is.
    """
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments
    if isinstance(value, dict) and isinstance(value.get("input"), str):
        return str(value["input"])
    return value if isinstance(value, str) else arguments
