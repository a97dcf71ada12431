"""Items of a kind that a dialect has no shape for, told in general: as a call, as its result, as both, or as a text.

Whatever was said once has to reach the model in some way, or the next answer contradicts it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from stateroom.journal.entries import Item
from stateroom.wire.chat_parts import arguments_object, encode, image_part, part_text, plain_text

_NOT_ARGUMENTS: Final = frozenset({"type", "id", "call_id", "status", "name", "output", "error", "outputs", "results"})
"""What of a call that servers carry out themselves was not asked of it."""


class Told(NamedTuple):
    """What of an item is told; nothing when all of it is empty."""

    call_id: str = ""
    name: str | None = None
    """What was called; None: there is no call."""
    arguments: str = ""
    output: Any = None
    """What the call gave; None: nothing is known of that."""
    text: str = ""


def told_in_general(kind: str, item: Item, item_id: str) -> Told:
    """How an item of this kind is told."""
    call_id = item.get("call_id")
    if kind.endswith("_output") and isinstance(call_id, str):
        return Told(call_id, output=_output(item))
    if not kind.endswith("_call"):
        return Told(text=plain_text(item.get("content")) or plain_text(item.get("summary")) or part_text(item))
    done = _hosted_result(item)
    if not isinstance(call_id, str) and done is None:
        return Told()
    given = item.get("arguments")
    if given is None:
        given = {field: value for field, value in item.items() if field not in _NOT_ARGUMENTS}
    name = str(item.get("name") or kind.removesuffix("_call"))
    return Told(call_id if isinstance(call_id, str) else item_id, name, arguments_object(given), done)


def _output(item: Item) -> Any:
    """What the output item of any kind of call gives."""
    for field in ("output", "tools", "status"):
        if item.get(field) is not None:
            return item[field]
    return ""


def _hosted_result(item: Item) -> Any:
    """What a call that the server carried out itself gave; None when nothing is known of it."""
    for field in ("output", "error", "outputs", "results"):
        value = item.get(field)
        if value is not None:
            return value if isinstance(value, str) or _has_image(value) else encode(value).decode()
    return None


def _has_image(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) and image_part(part) for part in value)
