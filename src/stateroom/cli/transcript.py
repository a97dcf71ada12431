"""Items of the API as lines that a person reads."""

from __future__ import annotations

from typing import Any

import msgspec

from stateroom.cli.terminal import one_line, safe, say

_COLOURS = {"user": "cyan", "assistant": "green", "system": "yellow", "developer": "yellow"}


def speaker_and_text(item: Any) -> tuple[str, str]:
    """Who speaks in an item, and what."""
    kind = item.get("type", "message")
    if kind == "message":
        return item.get("role", "?"), content_text(item.get("content"))
    if kind in ("function_call", "custom_tool_call"):
        return "call", f"{item.get('name', '?')}({item.get('arguments', item.get('input', ''))})"
    if kind in ("function_call_output", "custom_tool_call_output"):
        return "result", content_text(item.get("output"))
    if kind == "reasoning":
        return "reasoning", content_text(item.get("content") or item.get("summary"))
    return kind, msgspec.json.encode({key: value for key, value in item.items() if key != "id"}).decode()


def content_text(content: Any) -> str:
    """The text of a content, with a word for each part that is none."""
    if isinstance(content, str):
        return content
    return "\n".join(_part(part) for part in content or [])


def _part(part: Any) -> str:
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str):
            return str(part[key])
    return f"[{part.get('type', 'part')}]"


def output_text(response: Any) -> str:
    """What the assistant said in a response."""
    spoken = (speaker_and_text(item) for item in response.get("output") or [])
    return "\n".join(text for speaker, text in spoken if speaker == "assistant")


def show_item(item: Any, *, ids: bool = True) -> None:
    speaker, text = speaker_and_text(item)
    say(speaker, style=f"bold {_COLOURS.get(speaker, 'dim')}", end="")
    state = item.get("status", "")
    notes = [item.get("id", "") if ids else "", state if state not in ("", "completed") else ""]
    say("  " + "  ".join(note for note in notes if note) if any(notes) else "", style="dim")
    say("\n".join(f"  {line}" if line else "" for line in safe(text).split("\n")))


def tokens(usage: Any) -> str:
    return f"{usage['input_tokens']} in, {usage['output_tokens']} out" if usage else ""


def preview(response: Any) -> str:
    error = response.get("error")
    return one_line(error.get("message", "") if error else output_text(response))
