"""Reasoning as clients carry it for us: what is sealed in `encrypted_content`, and what comes back of it. Pure.

Reasoning that we made ourselves is its text. Reasoning of a server that seals its own also holds, under `upstream`,
what has to go back there as it came: it is wrapped, never shown, so that nobody but this installation hands it on.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_MARK: Final = "\0"
"""Begins what is more than a text."""


class _Carried(msgspec.Struct, omit_defaults=True):
    text: str = ""
    summary: list[dict[str, Any]] = []
    upstream: dict[str, Any] = {}


def to_carry(text: str, summary: list[dict[str, Any]], upstream: dict[str, Any] | None) -> str:
    """What is to be sealed."""
    if upstream is None and not text.startswith(_MARK):
        return text
    return _MARK + msgspec.json.encode(_Carried(text, summary, upstream or {})).decode()


def from_carried(carried: str) -> dict[str, Any]:
    """The fields that the opened text gives a packed reasoning item."""
    if not carried.startswith(_MARK):
        return {"content": reasoning_content(carried)}
    try:
        held = msgspec.json.decode(carried[len(_MARK) :], type=_Carried)
    except (ValueError, RecursionError):
        return {"content": reasoning_content(carried)}
    fields: dict[str, Any] = {"summary": held.summary}
    if held.text:
        fields["content"] = reasoning_content(held.text)
    if held.upstream:
        fields["upstream"] = held.upstream
    return fields


def reasoning_content(text: str) -> list[dict[str, str]]:
    return [{"type": "reasoning_text", "text": text}]
