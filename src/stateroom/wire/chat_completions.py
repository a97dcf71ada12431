"""Chat completions as OpenAI's API shows them: from our records to encoded JSON.

What is absent is left out and never null, except for what OpenAI's own answers always hold: `content`, `refusal` and
`logprobs`. Reasoning is given as `reasoning_content`, which clients of open models know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.journal.entries import Item, RunView, Usage
from stateroom.wire.chat_completions_messages import reasoning_text, refused, show_call, show_messages, spoken

ENCODE: Final = msgspec.json.Encoder().encode
CALLS: Final = frozenset(("function_call", "custom_tool_call"))

_PREFIX: Final = "chatcmpl-"
_STYLE: Final = "chat"
_TIERS: Final = {"auto": "default", "fast": "priority"}
_NO_USAGE: Final = Usage()


class ChatStyle(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a completion is to be written; kept with the run's settings."""

    legacy: bool = False
    """Calls in `function_call`, as before there were tools."""
    logprobs: bool = False
    usage: bool = False
    """A stream ends with the usage."""
    choice: int = 0
    """The number of this choice, where a completion has several: each is a run of its own."""
    id: str = ""
    """The id that they have in common; empty: the run's own."""
    created: int = 0
    """In seconds; 0: the run's own."""

    def written_to(self, echo: dict[str, Any]) -> dict[str, Any]:
        """The settings' echo with this style in it."""
        style = msgspec.to_builtins(self)
        return {**echo, _STYLE: style} if style else echo


def style_of(view: RunView) -> ChatStyle:
    """How the run's completion is to be written."""
    held = view.settings.echo.get(_STYLE)
    return msgspec.convert(held, ChatStyle) if held else ChatStyle()


def completion_id(run_id: str) -> str:
    """The id of a completion from the id of its run."""
    return _PREFIX + ids.key_of(run_id)


def run_id(identifier: str) -> str:
    """The id of the run behind a completion; an id that no run has when it cannot be one of ours."""
    return f"resp_{identifier.removeprefix(_PREFIX)}" if identifier.startswith(_PREFIX) else ""


def head_of(view: RunView, kind: str) -> dict[str, Any]:
    """What every object about a completion begins with."""
    style, settings = style_of(view), view.settings
    head: dict[str, Any] = {
        "id": style.id or completion_id(view.id),
        "object": kind,
        "created": style.created or view.created_at // 1000,
        "model": settings.served or settings.model,
    }
    tier = settings.echo.get("service_tier")
    if tier is not None:
        head["service_tier"] = _TIERS.get(tier, tier)
    return head


def completion_object(views: Sequence[RunView]) -> dict[str, Any]:
    """A completion, of which each run is a choice."""
    first = views[0]
    shown = head_of(first, "chat.completion")
    shown["choices"] = [_choice(view, number) for number, view in enumerate(views)]
    shown["usage"] = usage_object([view.usage or _NO_USAGE for view in views])
    metadata = first.settings.echo.get("metadata")
    if metadata is not None:
        shown["metadata"] = metadata
    return shown


def render_completion(views: Sequence[RunView]) -> bytes:
    """The same as JSON."""
    return ENCODE(completion_object(views))


def _choice(view: RunView, number: int) -> dict[str, Any]:
    style = style_of(view)
    items = [output.item for output in view.output]
    logprobs = [one for item in items for one in logprobs_of(item)] if style.logprobs else []
    return {
        "index": number,
        "message": message_object(items, legacy=style.legacy),
        "logprobs": {"content": logprobs, "refusal": None} if style.logprobs else None,
        "finish_reason": finish_reason(view),
    }


def message_object(items: Sequence[Item], *, legacy: bool = False) -> dict[str, Any]:
    """The assistant's message that a run's output is."""
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "message":
            texts.append(spoken(item))
            refusals.append(refused(item))
        elif kind == "reasoning":
            thoughts.append(reasoning_text(item))
        elif kind in CALLS:
            calls.append(show_call(item))
    text, refusal = "".join(texts), "".join(refusals)
    said = text if text or not (calls or refusal) else None
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": refusal or None, "annotations": []}
    if any(thoughts):
        message["reasoning_content"] = "\n\n".join([thought for thought in thoughts if thought])
    if calls and legacy:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return message


def logprobs_of(item: Item) -> list[Any]:
    """Those of a message's tokens."""
    content = item.get("content")
    if item.get("type", "message") != "message" or not isinstance(content, list):
        return []
    return [one for part in content for one in part.get("logprobs") or ()]


def finish_reason(view: RunView) -> str:
    """Why the answer ended, in a word that SDKs know."""
    if view.status == "incomplete":
        return "content_filter" if view.reason == "content_filter" else "length"
    if any(output.item.get("type") in CALLS for output in view.output):
        return "function_call" if style_of(view).legacy else "tool_calls"
    return "stop"


def usage_object(usages: Sequence[Usage]) -> dict[str, Any]:
    """Token counts. Several choices have read the same prompt, which is counted once."""
    prompt, output = usages[0].input, sum(usage.output for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.reasoning for usage in usages),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def render_deleted_completion(identifier: str) -> bytes:
    """The answer to the deletion of a stored completion."""
    return ENCODE({"object": "chat.completion.deleted", "id": identifier, "deleted": True})


def stored_messages(identifier: str, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The messages that a stored completion was given, each with an id. Images have to be in place."""
    return [
        {"id": f"{identifier}-{number}", "content_parts": None, "refusal": None, **message}
        for number, message in enumerate(show_messages(items))
    ]
