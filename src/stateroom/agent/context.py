"""What a model sees of a branch: its items in the model's terms, extended as the branch grows. Pure.

The context keeps a `cache` for the backend's dialect to hold the encoded history in. As long as the context only grows
at its end, a turn pays for its own items; anything else starts it anew and costs time only.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from stateroom.agent.steps import HOSTED_CALL
from stateroom.journal.entries import ContextItem, Item

NOT_FOR_MODELS = frozenset({"item_reference", "additional_tools", "configuration_update", "compaction_trigger"})
"""Item types that steer a run and are no part of what the model reads."""


class Context:
    """The items that a model sees, and the dialect's cache over them."""

    def __init__(self) -> None:
        self.items: list[ContextItem] = []
        self.cache: dict[str, Any] = {}
        self.source_count = 0
        """How many items of the branch are in it."""
        self._mark: tuple[int, int] | None = (0, 0)
        self._measured = (0, 0)
        """How many items were measured, and their size."""

    def extend(self, items: Sequence[ContextItem], images: Mapping[str, str]) -> None:
        """Add branch items; `images` gives the data URL of each blob that they refer to."""
        self.source_count += len(items)
        for held in items:
            self.items.extend(as_model_sees(held, images))

    def size(self) -> int:
        """Bytes of its items as JSON. Only what was added since the last time is measured."""
        count, size = self._measured
        for held in self.items[count:]:
            size += len(msgspec.json.encode(held.item))
        self._measured = (len(self.items), size)
        return size

    def mark(self) -> None:
        """Remember this point for `rewind`."""
        self._mark = (len(self.items), self.source_count)

    def rewind(self) -> None:
        """Drop what came since the mark, as after a run that failed."""
        if self._mark is None:
            self.items, self.source_count = [], 0
            self._start_anew()
            return
        count, source = self._mark
        if len(self.items) != count:
            del self.items[count:]
            self._start_anew()
        self.source_count = source

    def erase(self, gone: Container[tuple[str, int]], source_count: int) -> None:
        """Forget items, by id and seq; a call that is under way keeps what it was given."""
        kept = [held for held in self.items if not _is_of(held, gone)]
        if source_count or len(kept) != len(self.items):
            self.items, self.cache = kept, {}
            self.source_count -= source_count
            self._measured = (0, 0)
            self._mark = None

    def _start_anew(self) -> None:
        self.cache.clear()
        self._measured = (0, 0)


def _is_of(held: ContextItem, ids: Container[tuple[str, int]]) -> bool:
    """Whether it stands for one of these branch items; the result of a hosted call goes by its id and an `o`."""
    return (held.id, held.seq) in ids or (held.id[-1:] == "o" and (held.id[:-1], held.seq) in ids)


def as_model_sees(held: ContextItem, images: Mapping[str, str]) -> Iterator[ContextItem]:
    """The item in the model's terms: hosted calls become a call and its result, images become data URLs."""
    kind = held.item.get("type", "message")
    if kind in NOT_FOR_MODELS:
        return
    if kind == HOSTED_CALL:
        call_id = held.item["call_id"]
        arguments = held.item.get("arguments", "")
        yield ContextItem(
            held.id,
            {"type": "function_call", "call_id": call_id, "name": held.item["name"], "arguments": arguments},
            held.seq,
        )
        output = held.item.get("output", "")
        yield ContextItem(
            held.id + "o", {"type": "function_call_output", "call_id": call_id, "output": output}, held.seq
        )
        return
    if any(blob_digests([held.item])):
        yield ContextItem(held.id, _with_images(held.item, images), held.seq)
        return
    yield held


def blob_digests(items: Iterable[Item]) -> Iterator[str]:
    """The blobs that the parts of these items refer to."""
    for item in items:
        for field in ("content", "output"):
            parts = item.get(field)
            if isinstance(parts, list):
                for part in parts:
                    if isinstance(part, dict) and "blob" in part:
                        yield part["blob"]


def _with_images(item: Item, images: Mapping[str, str]) -> Item:
    changed = dict(item)
    for field in ("content", "output"):
        parts = item.get(field)
        if isinstance(parts, list):
            changed[field] = [_with_image(part, images) for part in parts]
    return changed


def _with_image(part: Any, images: Mapping[str, str]) -> Any:
    if not isinstance(part, dict) or "blob" not in part:
        return part
    url = images.get(part["blob"])
    if url is None:
        return {"type": "input_text", "text": "[an image that is no longer available]"}
    return {**{key: value for key, value in part.items() if key not in ("blob", "media_type")}, "image_url": url}
