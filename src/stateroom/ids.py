"""The only source of randomness: keys and ids.

A key is 26 characters of Crockford base 32, lower case: 48 bits of time in milliseconds, then 80 random bits
(the ULID layout), so that ids sort by age and indexes grow at their end. A response `resp_KEY` owns the ids of its
items: `msg_KEY` plus four hexadecimal digits. Input items count from 0000, output items from 8000 by output index.
An item is therefore found from its id alone, without an index row of its own.
"""

from __future__ import annotations

import os
import re
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_CHARACTERS = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))
"""A character for each random byte, none of them likelier than another."""
_HALF = 16
_HALVES = 128
_halves: list[str] = []
"""The random halves of the next keys. To ask the system for each would let another thread take over every time."""
os.register_at_fork(after_in_child=_halves.clear)  # two processes must not give out the same
_ITEM = re.compile(r"\A[a-z_]{1,24}_([0-9a-hjkmnp-tv-z]{26})([0-9a-f]{4})\Z")

_KEY = re.compile(r"\A([0-9a-hjkmnp-tv-z]{10})[0-9a-hjkmnp-tv-z]{16}\Z")

OUTPUT_BASE = 0x8000
"""Ordinal of the first output item of a run; lower ordinals are its input items."""

ORDINAL_MAX = 0xFFFF


def new_key() -> str:
    """A fresh 26-character key; unguessable (80 random bits) and sorted by creation time."""
    at, pairs = time.time_ns() // 1_000_000, _PAIRS
    return (
        f"{pairs[at >> 40]}{pairs[at >> 30 & 1023]}{pairs[at >> 20 & 1023]}{pairs[at >> 10 & 1023]}{pairs[at & 1023]}"
        f"{_random_half()}"
    )


def _random_half() -> str:
    """Sixteen random characters, which nobody is given again."""
    try:
        return _halves.pop()
    except IndexError:
        text = os.urandom(_HALF * _HALVES).translate(_CHARACTERS).decode()
        halves = [text[at : at + _HALF] for at in range(0, len(text), _HALF)]
        taken = halves.pop()
        _halves.extend(halves)
        return taken


def new_id(prefix: str) -> str:
    """`prefix_KEY`, for example `resp_01jd…`."""
    return f"{prefix}_{new_key()}"


def new_secret() -> str:
    """256 random bits as 52 characters."""
    value = int.from_bytes(os.urandom(32), "big") << 4
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(250, -1, -10)])


def chance() -> float:
    """At least 0, less than 1: for pauses that are to spread."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def item_id(prefix: str, key: str, ordinal: int) -> str:
    """The id of the `ordinal`-th item that the run or addition `key` owns."""
    return f"{prefix}_{key}{ordinal:04x}"


def parse_item_id(value: str) -> tuple[str, int] | None:
    """`(key, ordinal)` of an id made by :func:`item_id`; None for ids that clients chose."""
    match = _ITEM.match(value)
    return (match.group(1), int(match.group(2), 16)) if match else None


def key_of(identifier: str) -> str:
    """The key inside `prefix_KEY`."""
    return identifier.rsplit("_", 1)[-1]


def made_at(identifier: str) -> int:
    """When an id was made, in milliseconds since the epoch; -1 for what is none of ours."""
    match = _KEY.match(key_of(identifier))
    if match is None:
        return -1
    at = 0
    for character in match.group(1):
        at = at << 5 | _ALPHABET.index(character)
    return at


def random_padding(length: int) -> str:
    """`length` random characters, to blur the size of a streamed delta."""
    return os.urandom((length + 1) // 2).hex()[:length]
