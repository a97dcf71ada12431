"""Placeholders become secrets on the way out, and secrets placeholders on the way in.

On the way out in the values of headers, also inside the base64 of `Authorization: Basic`; bodies and URLs are not
touched. On the way in wherever a server shows a secret as it is, as JSON or a URL would write it, or as the `Basic`
text that was sent; not where it shows it in any other form (reversed, hashed, compressed).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from html import escape
from typing import Final, TypeAlias
from urllib.parse import quote, quote_plus

from stateroom.workspaces.egress.policy import Secret

Headers: TypeAlias = list[tuple[bytes, bytes]]

MASKED_FROM: Final = 8
"""Bytes. A shorter secret is not looked for in answers: it would be found where it is not meant."""

_UNTOUCHED: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"})
_LOOKED_FOR: Final = 4
"""Bytes of a secret's beginning that are looked for, before all of it is compared."""
_TRIES: Final = 16
_BASIC: Final = re.compile(rb"(?i)(basic[ \t]+)([a-z0-9+/=_-]+)\Z")


class Substitution:
    """The secrets of one target, as pairs of bytes."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._pairs = [(secret.placeholder.encode(), secret.value.encode()) for secret in secrets]
        self._static: dict[bytes, bytes] = {}
        for secret in secrets:
            for form in _forms(secret.value):
                if len(form) >= MASKED_FROM:
                    self._static.setdefault(form, secret.placeholder.encode())

    @property
    def is_any(self) -> bool:
        return bool(self._pairs)

    def outgoing(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[Headers, dict[bytes, bytes]]:
        """Headers with the secrets in them, and what must not come back, with what is shown in its place."""
        sent: Headers = []
        hidden = dict(self._static)
        for name, value in headers:
            lower = name.lower()
            if lower in _UNTOUCHED:
                sent.append((name, value))
                continue
            put = self._put(value)
            basic = _BASIC.match(value) if b"authorization" in lower else None
            if basic is not None and (text := self._put_basic(basic.group(2))):
                if len(text) >= MASKED_FROM:
                    hidden[text] = basic.group(2)
                put = basic.group(1) + text
            sent.append((name, put))
        return sent, hidden

    def _put(self, value: bytes) -> bytes:
        for placeholder, secret in self._pairs:
            if placeholder in value:
                value = value.replace(placeholder, secret)
        return value

    def _put_basic(self, text: bytes) -> bytes:
        """The `user:password` of a Basic header with the secret in it; empty when it has no placeholder."""
        try:
            plain = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            return b""
        put = self._put(plain)
        return base64.b64encode(put) if put != plain else b""


class Mask:
    """Replaces in a stream, whose pieces may end anywhere. Holds back what may be the beginning of a secret."""

    def __init__(self, hidden: Mapping[bytes, bytes], *, same_length: bool = False, held_from: int = 1) -> None:
        """`held_from`: bytes of a beginning that are held back; fewer go on, for who waits for each message's end."""
        self._shown = {key: b"*" * len(key) for key in hidden} if same_length else dict(hidden)
        self._keys = sorted(self._shown, key=len, reverse=True)
        self._held = b""
        self._held_from = held_from

    def whole(self, value: bytes) -> bytes:
        """A value that is complete."""
        out: list[bytes] = []
        at = 0
        for start, key in self._found(value):
            out += (value[at:start], self._shown[key])
            at = start + len(key)
        return b"".join((*out, value[at:])) if out else value

    def feed(self, data: bytes) -> bytes:
        """What may go on."""
        if not self._keys:
            return data
        data = self._held + data
        out: list[bytes] = []
        at, end = 0, len(data) - self._beginning(data)
        for start, key in self._found(data):
            if start >= end:
                break
            out += (data[at:start], self._shown[key])
            at = start + len(key)
        if at > end:
            end = len(data) - self._beginning(data[at:])
        out.append(data[at:end])
        self._held = data[end:]
        return b"".join(out)

    def finish(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return self.whole(held)

    def _found(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """What is to be replaced, from left to right; of two that begin at the same place the longer one.

        No regular expression: to make one of many secrets, for each request anew, takes seconds.
        """
        nexts = [(at, rank, key) for rank, key in enumerate(self._keys) if (at := data.find(key)) >= 0]
        heapify(nexts)
        done = 0
        while nexts:
            at, rank, key = nexts[0]
            if at >= done:
                yield at, key
                done = at + len(key)
            following = data.find(key, done)
            if following >= 0:
                heapreplace(nexts, (following, rank, key))
            else:
                heappop(nexts)

    def _beginning(self, data: bytes) -> int:
        """How many bytes at the end are the beginning of something hidden, and not all of it."""
        longest = max((_beginning_of(key, data) for key in self._keys), default=0)
        return longest if longest >= self._held_from else 0


def _beginning_of(key: bytes, data: bytes) -> int:
    """Of one. Where much at the end looks like it, more may be said: looking at all of it would take too long."""
    first = key[:_LOOKED_FOR]
    at = data.find(first, max(0, len(data) - len(key) + 1))
    for _ in range(_TRIES):
        if at < 0 or key.startswith(data[at:]):
            break
        at = data.find(first, at + 1)
    if at >= 0:
        return len(data) - at
    return next((size for size in range(min(_LOOKED_FOR, len(key)) - 1, 0, -1) if data.endswith(key[:size])), 0)


def _forms(value: str) -> set[bytes]:
    """How a server may show a secret without meaning to hide it."""
    ascii_json, json_text = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    texts = {value, ascii_json, json_text, json_text.replace("/", "\\/"), quote(value), quote(value, safe="")}
    # Many servers write these letters of JSON so, and HTML has its own way.
    texts |= {
        re.sub("[<>&]", lambda found: f"\\u{ord(found.group()):04x}", json_text),
        escape(value),
        quote_plus(value),
    }
    return {text.encode() for text in texts}
