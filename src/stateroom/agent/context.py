"""What a model sees of a branch: its items in the model's terms, extended as the branch grows. Pure.

The context keeps a `cache` for the backend's dialect to hold the encoded history in. As long as the context only grows
at its end, a turn pays for its own items; anything else starts it anew and costs time only. A compaction item starts it
anew with the little that `agent.compaction` leaves of it; whoever holds the items and the cache from before keeps them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from stateroom.agent.compaction import begin_anew, compacted_of, owner_of
from stateroom.agent.hosted import as_function
from stateroom.agent.pairs import call_id_of, is_result
from stateroom.agent.programs import carried_items
from stateroom.agent.tokens import estimate_item
from stateroom.journal.entries import BLOB_FIELDS, PART_FIELDS, ContextItem, Item
from stateroom.journal.hosted_items import caller_of

NOT_FOR_MODELS = frozenset({"item_reference", "additional_tools", "configuration_update", "compaction_trigger"})
"""Item types that steer a run and are no part of what the model reads."""


class _Mark(msgspec.Struct, frozen=True, gc=False):
    """A point to rewind to."""

    items: list[ContextItem]
    count: int
    source_count: int
    summary: ContextItem | None
    truncated: bool


class Context:
    """The items that a model sees, and the dialect's cache over them."""

    def __init__(self) -> None:
        self.items: list[ContextItem] = []
        self.cache: dict[str, Any] = {}
        self.source_count = 0
        """How many items of the branch are in it."""
        self.summary: ContextItem | None = None
        """The message that the latest compaction left; None as long as there was none."""
        self.truncated = False
        """Its oldest items were left out for a caller who said `truncation: auto`."""
        self.tokens_fixed = 0
        """What its last call had beside the items (instructions, tools), as an estimate."""
        self._mark: _Mark | None = _Mark(self.items, 0, 0, None, False)
        self._measured = (0, 0)
        """How many items were measured, and their size."""
        self._weighed = (0, 0)
        """How many items were weighed, and the estimate of their tokens."""
        self._nested: set[str] = set()
        """Ids of calls that programs made: what they were answered is the programs' and not the model's."""
        self._counted: tuple[int, int, int, int] | None = None
        """Items when it was last counted, their estimate, what the count was, and what of it was no items."""

    def extend(self, items: Sequence[ContextItem], images: Mapping[str, str]) -> None:
        """Add branch items; `images` gives what a model sees of each of their `shown_blobs`."""
        self.source_count += len(items)
        for held in items:
            if self._is_nested(held.item):
                continue
            if compacted_of(held.item) is None:
                self.items.extend(as_model_sees(held, images))
            else:
                self._nested.update(call_id_of(item) for item in carried_items(held.item) if caller_of(item))
                left, self.summary = begin_anew(self.items, self.summary, held)
                self._begin_with(left)

    def _is_nested(self, item: Item) -> bool:
        """Whether it is a program's call, or the answer to one: the program's result is what the model sees of it."""
        if caller_of(item):
            self._nested.add(call_id_of(item))
            return True
        return bool(self._nested) and is_result(item) and call_id_of(item) in self._nested

    def truncate(self, left: list[ContextItem]) -> None:
        """Go on with what is left when the oldest items are left out."""
        self._begin_with(left)
        self.truncated = True

    def restart(self) -> None:
        """Forget everything: it is to be extended from the beginning of the branch."""
        self.source_count, self.summary, self.truncated = 0, None, False
        self._begin_with([])
        self._mark = None

    def _begin_with(self, items: list[ContextItem]) -> None:
        self.items, self.cache = items, {}
        self._forget_measures()

    def note_count(self, tokens: int, fixed: int) -> None:
        """Its tokens were counted, `fixed` of them (by an estimate) for what is beside the items."""
        self._counted = (len(self.items), self.estimate(), tokens, fixed)

    def estimate(self) -> int:
        """The tokens of its items, estimated on the high side. Only what was added since the last time is weighed."""
        count, tokens = self._weighed
        for held in self.items[count:]:
            tokens += estimate_item(held.item)
        self._weighed = (len(self.items), tokens)
        return tokens

    def tokens(self, fixed: int) -> tuple[int, int]:
        """The tokens of a call with these items and so much beside them, and how many of them were really counted."""
        estimate = self.estimate()
        if self._counted is None:
            return estimate + fixed, 0
        _, weight, tokens, counted_fixed = self._counted
        return tokens + estimate - weight + max(0, fixed - counted_fixed), tokens

    def scale(self, fixed: int) -> float:
        """What an estimated token really counts, as far as that is known."""
        if self._counted is None:
            return 1.0
        _, weight, tokens, counted_fixed = self._counted
        return min(1.0, tokens / max(1, weight + counted_fixed))

    def size(self) -> int:
        """Bytes of its items as JSON. Only what was added since the last time is measured."""
        count, size = self._measured
        for held in self.items[count:]:
            size += len(msgspec.json.encode(held.item))
        self._measured = (len(self.items), size)
        return size

    def mark(self) -> None:
        """Remember this point for `rewind`."""
        self._mark = _Mark(self.items, len(self.items), self.source_count, self.summary, self.truncated)

    def rewind(self) -> None:
        """Drop what came since the mark, as after a run that failed."""
        mark = self._mark
        if mark is None:
            self.restart()
            return
        if self.items is not mark.items:
            self.items, self.cache = mark.items, {}
            del self.items[mark.count :]
            self._forget_measures()
        elif len(self.items) != mark.count:
            del self.items[mark.count :]
            self.cache.clear()
            self._forget_measures()
        self.source_count, self.summary, self.truncated = mark.source_count, mark.summary, mark.truncated

    def erase(self, gone: Container[tuple[str, int]], source_count: int) -> None:
        """Forget items, by id and seq; a call that is under way keeps what it was given."""
        kept = [held for held in self.items if not _is_of(held, gone)]
        if source_count or len(kept) != len(self.items):
            self.items, self.cache = kept, {}
            self.source_count -= source_count
            self._forget_measures()
            self._mark = None

    def _forget_measures(self) -> None:
        self._measured = self._weighed = (0, 0)
        self._counted = None


def _is_of(held: ContextItem, ids: Container[tuple[str, int]]) -> bool:
    """Whether it stands for one of these branch items; the result of a hosted call goes by its id and an `o`."""
    if (held.id, held.seq) in ids or (held.id[-1:] == "o" and (held.id[:-1], held.seq) in ids):
        return True
    return "/" in held.id and (owner_of(held.id), held.seq) in ids


def as_model_sees(held: ContextItem, images: Mapping[str, str]) -> Iterator[ContextItem]:
    """The item in the model's terms: hosted calls become a call and its result, images data URLs, files texts."""
    kind = held.item.get("type", "message")
    if kind in NOT_FOR_MODELS:
        return
    told = as_function(held)
    if told is not None:
        yield from told
        return
    if any(blob_digests([held.item])):
        yield ContextItem(held.id, _with_images(held.item, images), held.seq)
        return
    yield held


BY_REFERENCE: Final = (*BLOB_FIELDS, "media_type")
"""Fields of a part that are not its sender's."""

TEXT_OF: Final = "text of "
"""Before the digest of a text among what a model sees: the same bytes may be an image elsewhere."""


def blob_digests(items: Iterable[Item]) -> Iterator[str]:
    """The blobs that the parts of these items refer to."""
    for item in items:
        for field in PART_FIELDS:
            parts = item.get(field)
            if isinstance(parts, list):
                for part in parts:
                    if isinstance(part, dict):
                        yield from [part[name] for name in BLOB_FIELDS if name in part]


def shown_blobs(item: Item) -> Iterator[tuple[str, str, str]]:
    """What has to be read of an item for a model: under which name, which blob, and its media type ('' for a text)."""
    for field in ("content", "output"):
        parts = item.get(field)
        if isinstance(parts, list):
            for part in parts:
                if isinstance(part, dict) and "blob" in part:
                    yield part["blob"], part["blob"], part.get("media_type") or "application/octet-stream"
                if isinstance(part, dict) and "text_blob" in part:
                    yield TEXT_OF + part["text_blob"], part["text_blob"], ""


def _with_images(item: Item, images: Mapping[str, str]) -> Item:
    changed = dict(item)
    for field in ("content", "output"):
        parts = item.get(field)
        if isinstance(parts, list):
            changed[field] = [_with_image(part, images) for part in parts]
    return changed


def _with_image(part: Any, images: Mapping[str, str]) -> Any:
    if isinstance(part, dict) and "text_blob" in part:
        return {"type": "input_text", "text": images.get(TEXT_OF + part["text_blob"], "[a file that is gone]")}
    if not isinstance(part, dict) or "blob" not in part:
        return part
    url = images.get(part["blob"])
    if url is None:
        return {"type": "input_text", "text": "[an image that is no longer available]"}
    return {**{key: value for key, value in part.items() if key not in BY_REFERENCE}, "image_url": url}
