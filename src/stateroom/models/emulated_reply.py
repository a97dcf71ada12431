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

_ANSWER: Final = re.compile(r'\s*(?:`{3}(?:json)?\s*)?\{\s*"answer"\s*:\s*')
_CALL: Final = re.compile(r'\s*(?:`{3}(?:json)?\s*)?\{\s*"tool"\s*:')
_BEGINNING: Final = re.compile(r'\s*(?:`{1,3}(?:j(?:so?)?|json)?\s*)?(?:\{\s*(?:"(?:[a-z]{0,6}(?:"\s*(?::\s*)?)?)?)?)?')
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
        self._depth = 0
        self._quoted = False

    def feed(self, text: str) -> str:
        """The text of the answer that this piece makes known."""
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

    def end(self) -> tuple[str, Call | None, bool]:
        """At the end of the reply: the text that was still held back, the call, and whether there is either."""
        if self._mode in ("text", "json", "end") or (self._mode == "plain" and self._answer != "none"):
            return "", None, True
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
        elif not _BEGINNING.fullmatch(self._held):
            self._mode = "plain"

    def _read_text(self) -> str:
        """Decode as much of a JSON string as is there, up to its closing quote."""
        said = ""
        while self._held:
            found = _PIECES.match(self._held)
            assert found is not None
            piece, rest = found[0], self._held[found.end() :]
            if not rest or _CUT_ESCAPE.fullmatch(rest):
                if high := _HIGH.search(piece):  # half a character: its other half may come
                    piece, rest = piece[: high.start(1)], high[1] + rest
                self._held = rest
                return said + _decoded(piece)
            said += _decoded(piece)
            if rest[0] == '"':
                self._mode, self._held = "end", ""
                return said
            said += rest[0]  # a backslash that begins no escape
            self._held = rest[1:]
        return said

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
        if not isinstance(value, dict) or value.get("tool") not in self._names:
            return None
        arguments = value.get("arguments", {})
        return Call(value["tool"], _encode(arguments).decode()) if isinstance(arguments, dict) else None


def _escaped(text: str, at: int) -> bool:
    return (at - len(text[:at].rstrip("\\"))) % 2 == 1


def _decoded(piece: str) -> str:
    """The text of the inside of a JSON string; halves of surrogate pairs become U+FFFD."""
    if "\\" not in piece:
        return piece
    text: str = json.loads(f'"{piece}"', strict=False)
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
