"""Calls and their results among a context's items: which belongs to which, and which still waits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stateroom.journal.entries import ContextItem, Item


def call_id_of(item: Item) -> str:
    """The id that ties a call to its result; '' for other items."""
    call_id = item.get("call_id")
    return call_id if isinstance(call_id, str) else ""


def is_result(item: Item) -> bool:
    return bool(call_id_of(item)) and str(item.get("type", "")).endswith("_output")


def is_call(item: Item) -> bool:
    return bool(call_id_of(item)) and not is_result(item)


def waiting_calls(items: Iterable[ContextItem]) -> list[ContextItem]:
    """Calls whose result has not come, in order. A call id that is used again stands for the later call."""
    waiting: dict[str, ContextItem] = {}
    for held in items:
        if is_result(held.item):
            waiting.pop(call_id_of(held.item), None)
        elif is_call(held.item):
            waiting.pop(call_id_of(held.item), None)
            waiting[call_id_of(held.item)] = held
    return list(waiting.values())


def without_strays(items: Sequence[ContextItem]) -> list[ContextItem]:
    """The items without results whose call does not come before them."""
    called: set[str] = set()
    kept = []
    for held in items:
        if is_call(held.item):
            called.add(call_id_of(held.item))
        elif is_result(held.item) and call_id_of(held.item) not in called:
            continue
        kept.append(held)
    return kept
