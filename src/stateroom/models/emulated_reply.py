"""Reads the JSON that a model was made to reply with, piece by piece: text at once, a call when it is whole. Pure.

    {"answer": "text"}    {"answer": <JSON>}    {"tool": "name", "arguments": {...}}

The reply of a server that did not keep to the schema is taken for plain text, if text is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec

from stateroom.errors import BackendFailed

HELD_MAX: Final = 4 * 1024 * 1024
"""Characters of a reply that are kept until a call is whole."""

BEGINNING_MAX: Final = 1_000
"""Characters in which a reply must have shown what it is."""

_ANSWER: Final = re.compile(r'(?:`{3}(?:json)?\s*)?\{\s*"answer"\s*:\s*')
_CALL: Final = re.compile(r'(?:`{3}(?:json)?\s*)?\{\s*"tool"\s*:')
_BEGINNING: Final = re.compile(r'(?:`{1,3}(?:j(?:so?)?|json)?\s*)?(?:\{\s*(?:"(?:[a-z]{0,6}(?:"\s*(?::\s*)?)?)?)?)?')
"""What may still become either of them."""
_PIECES: Final = re.compile(r'(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_CUT_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_HIGH: Final = re.compile(r"(?:(?<!\\)(?:\\\\)*)(\\u[dD][89abAB][0-9a-fA-F]{2})\Z")

_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, frozen=True):
    """A call that the model made."""

    name: str
    arguments: str
    """JSON of an object."""


class ReplyReader:
    """Reads one reply."""

    def __init__(self, names: Collection[str], answer: Literal["text", "json", "none"]) -> None:
        self._names = names
        self._answer = answer
        self._mode: Literal["begin", "text", "json", "call", "plain", "end"] = "begin"
        self._held = ""
        """What has come and is not yet read."""
        self._kept: list[str] = []
        """The same, of what is read only when it is whole."""
        self._size = 0
        """Characters that came to nothing so far."""
        self._depth = 0
        self._quoted = False

    def feed(self, text: str) -> str:
        """The text of the answer that this piece makes known. Raises BackendFailed when a call gets too long."""
        if self._mode in ("call", "end") or (self._mode == "plain" and self._answer == "none"):
            self._keep(text)
            return ""
        self._held += text
        if self._mode == "begin":
            self._begin()
        match self._mode:
            case "text":
                return self._read_text()
            case "json":
                return self._read_json()
            case "plain" if self._answer != "none":
                said, self._held = self._held, ""
                return said
            case "end":
                self._held = ""
        return ""

    def _keep(self, text: str) -> None:
        if self._mode != "end":
            self._kept.append(text)
        self._size += len(text)
        if self._size > HELD_MAX:
            message = (
                f"The model said more than {HELD_MAX} characters that are neither an answer nor a whole tool call."
            )
            raise BackendFailed(message, code="tool_call_unreadable")

    def end(self) -> tuple[str, Call | None, bool]:
        """At the end of the reply: the text that was still held back, the call, and whether there is either."""
        if self._mode in ("text", "json", "end") or (self._mode == "plain" and self._answer != "none"):
            return "", None, True
        self._held += "".join(self._kept)
        if not self._held.strip() and self._answer != "none":
            return "", None, True
        value, whole = _first_object(self._held)
        call = self._as_call(value)
        if call is not None:
            return "", call, True
        if whole and self._answer != "none":
            return self._held, None, True
        return "", None, whole

    def _begin(self) -> None:
        """Find out what the reply is, once enough of it has come."""
        self._size += len(self._held)
        self._held = self._held.lstrip()
        self._size -= len(self._held)
        if self._answer != "none" and (found := _ANSWER.match(self._held)):
            rest = self._held[found.end() :]
            if not rest:
                return
            self._mode = "json"
            if self._answer == "text":
                self._mode = "text" if rest[0] == '"' else "plain"
                rest = rest[1:] if rest[0] == '"' else self._held
            self._held = rest
        elif _CALL.match(self._held):
            self._mode = "call"
        elif len(self._held) + self._size > BEGINNING_MAX or not _BEGINNING.fullmatch(self._held):
            self._mode = "plain"

    def _read_text(self) -> str:
        """Decode as much of a JSON string as is there, up to its closing quote."""
        held, self._held = self._held, ""
        said: list[str] = []
        at = 0
        while at < len(held):
            found = _PIECES.match(held, at)
            assert found is not None
            piece, at = found[0], found.end()
            if at == len(held) or _CUT_ESCAPE.fullmatch(held, at):
                if high := _HIGH.search(piece):  # half a character: its other half may come
                    piece, self._held = piece[: high.start(1)], high[1]
                self._held += held[at:]
                said.append(_decoded(piece))
                break
            said.append(_decoded(piece))
            if held[at] == '"':
                self._mode = "end"
                break
            said.append(held[at])  # a backslash that begins no escape
            at += 1
        return "".join(said)

    def _read_json(self) -> str:
        """Pass on a JSON value up to its end, which is where it closes or the object around it does."""
        for at, mark in enumerate(self._held):
            if self._quoted:
                if mark == '"' and not _escaped(self._held, at):
                    self._quoted = False
            elif mark == '"':
                self._quoted = True
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    said = self._held[: at + (self._depth == 0)]
                    self._mode, self._held = "end", ""
                    return said
        cut = len(self._held) - len(self._held.rstrip("\\"))
        keep = cut if self._quoted else 0
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return said

    def _as_call(self, value: Any) -> Call | None:
        name = value.get("tool") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get("arguments", {})
        return Call(name, _as_json(arguments)) if isinstance(arguments, dict) else None


def _as_json(value: Any) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return _encode(json.loads(_mended(json.dumps(value, ensure_ascii=False)))).decode()


def _escaped(text: str, at: int) -> bool:
    before = at
    while before > 0 and text[before - 1] == "\\":
        before -= 1
    return (at - before) % 2 == 1


def _decoded(piece: str) -> str:
    """The text of the inside of a JSON string; halves of surrogate pairs become U+FFFD."""
    if "\\" not in piece:
        return piece
    return _mended(json.loads(f'"{piece}"', strict=False))


def _mended(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first_object(text: str) -> tuple[Any, bool]:
    """The first JSON object in the text, and whether there is a whole value."""
    start = text.find("{")
    if start < 0:
        return None, bool(text.strip())
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)[0], True
    except (ValueError, RecursionError):
        return None, False
