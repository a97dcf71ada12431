"""How many tokens a text may have, for whoever cannot ask its model: at or above what common tokenizers make. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from stateroom.journal.entries import ContextItem, Item

IMAGE_TOKENS: Final = 2048
"""What an estimate counts for an image."""

MESSAGE_TOKENS: Final = 4
"""What a chat template puts around a message."""

_DATA_URL = re.compile(rb'"data:[^"]{64,}"')
_DIGITS: Final = b"0123456789"
_ASCII: Final = bytes(range(128))

_encode = msgspec.json.Encoder().encode


def estimate_text(text: bytes) -> int:
    """A count on the high side for a text.

    Digits are counted as a token each, other ASCII as one for three bytes or 1.4 for a word, and scripts outside
    ASCII as seven for ten bytes: at or above what the common tokenizers make of them.
    """
    digits = len(text) - len(text.translate(None, _DIGITS))
    beyond = len(text.translate(None, _ASCII))
    plain = len(text) - digits - beyond
    return int(max(plain / 3, text.count(b" ") * 1.4) + digits + beyond * 0.7)


def estimate_json(body: bytes) -> int:
    """The same for JSON that may hold images as data URLs."""
    text, images = _DATA_URL.subn(b"", body)
    return estimate_text(text) + images * IMAGE_TOKENS


def estimate_item(item: Item) -> int:
    """The same for one item. Images count alike whether they are in it or kept as blobs; texts in blobs do not."""
    if item.keys() == {"role", "content"} and type(item["content"]) is str:
        return estimate_text(item["content"].encode()) + MESSAGE_TOKENS
    images = 0
    for field in ("content", "output"):
        parts = item.get(field)
        if isinstance(parts, list) and (any(map(_is_image, parts)) or any(map(_is_elsewhere, parts))):
            images += sum(map(_is_image, parts))
            item = {**item, field: [part for part in parts if not _is_image(part) and not _is_elsewhere(part)]}
    return estimate_json(_encode(item)) + images * IMAGE_TOKENS + MESSAGE_TOKENS


def estimate_items(items: Iterable[ContextItem]) -> int:
    return sum(estimate_item(held.item) for held in items)


def _is_elsewhere(part: Any) -> bool:
    return isinstance(part, dict) and "text_blob" in part


def _is_image(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return "blob" in part or str(part.get("image_url", "")).startswith("data:")
