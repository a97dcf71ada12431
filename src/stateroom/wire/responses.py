"""Runs, conversations and lists as OpenAI's API shows them: from our records to encoded JSON.

A Response object is mostly an echo of the run's settings. `ResponseTemplate` encodes that part once; what changes
between `response.created` and `response.completed` is filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from stateroom.journal.entries import RunSettings, RunView, Usage
from stateroom.wire.declared_secrets import SEALED
from stateroom.wire.items import Resolver, unpack, withheld

ENCODE: Final = msgspec.json.Encoder().encode
ENDED: Final = frozenset(("completed", "incomplete", "failed", "cancelled"))

ERROR_CODES: Final = frozenset(
    (
        "server_error",
        "rate_limit_exceeded",
        "invalid_prompt",
        "data_residency_mismatch",
        "bio_policy",
        "misalignment_policy_violation",
        "vector_store_timeout",
        "invalid_image",
        "invalid_image_format",
        "invalid_base64_image",
        "invalid_image_url",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "invalid_image_mode",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "failed_to_download_image",
        "image_file_not_found",
    )
)
"""What `error.code` of a Response may be; the SDKs know no others."""

INCOMPLETE_REASONS: Final = frozenset(("max_output_tokens", "max_messages", "content_filter", "steered"))

_TIERS: Final = {"auto": "default", "fast": "priority"}
_NO_USAGE: Final = Usage()
_ALWAYS_ECHOED: Final[dict[str, Any]] = {
    "metadata": {},
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "service_tier": "default",
}


class ResponseTemplate:
    """A run's Response object, with the part that never changes already encoded."""

    __slots__ = ("_head", "_tail")

    def __init__(self, view: RunView) -> None:
        self._head = b'{"id":%b,"object":"response","created_at":%d,"status":' % (
            ENCODE(view.id),
            view.created_at // 1000,
        )
        self._tail = b"," + ENCODE(_constant(view))[1:]

    def render(
        self, view: RunView, encoded: Mapping[int, bytes] | None = None, resolve: Resolver | None = None
    ) -> bytes:
        """The whole object. `encoded` holds output items that are already JSON, by output index."""
        completed = view.status == "completed" and view.ended_at
        return b"".join(
            (
                self._head,
                ENCODE(view.status),
                b',"completed_at":%d,"error":' % (view.ended_at // 1000)
                if completed
                else b',"completed_at":null,"error":',
                ENCODE(error_of(view)) if view.error is not None else b"null",
                b',"incomplete_details":',
                ENCODE({"reason": incomplete_reason(view)}) if view.status == "incomplete" else b"null",
                b',"usage":',
                render_usage(view.usage or _NO_USAGE) if view.status in ENDED else b"null",
                b',"output":[',
                b",".join(_output(view, encoded or {}, resolve)),
                b"]",
                self._tail,
            )
        )


def render_response(view: RunView, resolve: Resolver | None = None, *, include: Sequence[str] = ()) -> bytes:
    """A run as a Response object. `include`: what is to be shown besides what its own request asked for."""
    if include:
        settings = msgspec.structs.replace(view.settings, include=[*view.settings.include, *include])
        view = msgspec.structs.replace(view, settings=settings)
    return ResponseTemplate(view).render(view, resolve=resolve)


def _output(view: RunView, encoded: Mapping[int, bytes], resolve: Resolver | None) -> list[bytes]:
    include = view.settings.include
    return [
        encoded.get(output.index) or ENCODE(withheld(unpack(output.item, output.id, resolve), include))
        for output in view.output
    ]


def render_usage(usage: Usage) -> bytes:
    return (
        b'{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d,"cache_write_tokens":0},'
        b'"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":%d},"total_tokens":%d}'
        % (usage.input, usage.cached, usage.output, usage.reasoning, usage.input + usage.output)
    )


def error_of(view: RunView) -> dict[str, Any]:
    """`error` of a failed run: a code that SDKs know, and our message."""
    error = view.error or {}
    code = error.get("code")
    if code not in ERROR_CODES:
        status = error.get("status") or 500
        code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if 400 <= status < 500 else "server_error"
    return {"code": code, "message": error.get("message") or "The run failed."}


def incomplete_reason(view: RunView) -> str:
    """Why a run is incomplete, in a word that SDKs know."""
    return view.reason if view.reason in INCOMPLETE_REASONS else "max_output_tokens"


def _constant(view: RunView) -> dict[str, Any]:
    """Everything about a run that stays as it is from its first event to its last."""
    settings = view.settings
    echo = {**_ALWAYS_ECHOED, **settings.echo}
    echo["service_tier"] = _TIERS.get(echo["service_tier"], echo["service_tier"])
    return {
        "model": settings.served or settings.model,
        "instructions": settings.instructions,
        "previous_response_id": view.previous or None,
        "conversation": {"id": view.conversation} if view.conversation else None,
        "background": view.background,
        "store": view.stored,
        "tools": [_show_tool(tool) for tool in settings.tools],
        "tool_choice": settings.tool_choice,
        "parallel_tool_calls": settings.parallel_tool_calls,
        "max_tool_calls": settings.max_tool_calls,
        "max_output_tokens": settings.max_output_tokens,
        "temperature": _or(settings.temperature, 1.0),
        "top_p": _or(settings.top_p, 1.0),
        "presence_penalty": _or(settings.presence_penalty, 0.0),
        "frequency_penalty": _or(settings.frequency_penalty, 0.0),
        "top_logprobs": _or(settings.top_logprobs, 0),
        "truncation": settings.truncation,
        "reasoning": settings.reasoning,
        "text": _show_text(settings),
        **echo,
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _show_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A declaration as readers of Response objects expect it: functions always have these four fields."""
    if SEALED in tool:
        tool = {name: value for name, value in tool.items() if name != SEALED}
    if tool.get("type") == "function":
        return {"description": None, "parameters": None, **tool, "strict": bool(tool.get("strict"))}
    return tool


def _show_text(settings: RunSettings) -> dict[str, Any]:
    given = settings.text or {}
    shown = given.get("format") or {"type": "text"}
    if shown["type"] == "json_schema":
        shown = {"description": None, **shown, "strict": bool(shown.get("strict"))}
    return {"format": shown, "verbosity": given.get("verbosity") or "medium"}


def render_list(data: Sequence[dict[str, Any]], has_more: bool) -> bytes:
    """A page of objects that have ids."""
    return ENCODE(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": has_more,
        }
    )


def render_encoded_list(data: Sequence[tuple[str, bytes]], has_more: bool) -> bytes:
    """The same for objects that are JSON already, each with its id."""
    ends = {"first_id": data[0][0] if data else None, "last_id": data[-1][0] if data else None, "has_more": has_more}
    return b'{"object":"list","data":[%b],%b' % (b",".join([encoded for _, encoded in data]), ENCODE(ends)[1:])


def render_deleted_response(identifier: str) -> bytes:
    """The answer to the deletion of a response."""
    return ENCODE({"id": identifier, "object": "response", "deleted": True})


def conversation_object(identifier: str, created_at: int, metadata: Mapping[str, str]) -> dict[str, Any]:
    """A conversation; `created_at` is in milliseconds."""
    return {
        "id": identifier,
        "object": "conversation",
        "created_at": created_at // 1000,
        "metadata": dict(metadata),
    }


def render_conversation(identifier: str, created_at: int, metadata: Mapping[str, str]) -> bytes:
    """A conversation as JSON; `created_at` is in milliseconds."""
    return ENCODE(conversation_object(identifier, created_at, metadata))


def render_deleted_conversation(identifier: str) -> bytes:
    """The answer to the deletion of a conversation."""
    return ENCODE({"id": identifier, "object": "conversation.deleted", "deleted": True})


def render_input_tokens(count: int) -> bytes:
    """The answer of `POST /v1/responses/input_tokens`."""
    return ENCODE({"object": "response.input_tokens", "input_tokens": count})
