"""Request bodies of the Responses and Conversations APIs, from bytes to records.

What happens to each parameter of `POST /v1/responses`:

- honoured: model, input, instructions, tools, tool_choice, parallel_tool_calls, previous_response_id, conversation,
  store, stream, stream_options, background, include, temperature, top_p, presence_penalty, frequency_penalty,
  max_output_tokens, max_tool_calls, top_logprobs, reasoning, text, truncation, context_management, metadata
- hints, given back as they came: user, safety_identifier, service_tier, prompt_cache_key, prompt_cache_retention,
  prompt_cache_options, access_programs, image; background_options.continuation_id is a hint, too
- refused, with a message that says so: prompt, moderation, background_options.completion_window other than soonest,
  prompt_cache_options.prewarm, image.context_compression enabled, reasoning.mode but standard

Null means absent everywhere, and unknown parameters are ignored: clients send both.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item, RunSettings
from stateroom.wire import parameters
from stateroom.wire.decoding import Bounds, decode
from stateroom.wire.items import pack
from stateroom.wire.parameters import INCLUDABLE
from stateroom.wire.tools import DECLARING, count_tools

__all__ = [
    "Bounds",
    "ConversationRequest",
    "CreateRequest",
    "ForkRequest",
    "decode_conversation",
    "decode_count",
    "decode_create",
    "decode_fork",
    "decode_items",
    "decode_metadata",
]

CONVERSATION_ITEMS_MAX: Final = 20
"""Items that one call may add to a conversation."""


class CreateRequest(msgspec.Struct, frozen=True):
    """`POST /v1/responses`, checked."""

    settings: RunSettings
    input: list[Item]
    """Packed; `item_reference` items are still to be resolved."""
    previous: str = ""
    conversation: str = ""
    background: bool = False
    stream: bool = False
    store: bool = True
    obfuscate: bool = False
    """Whether delta events are to carry padding; only when asked for."""
    generate: bool = True
    """False, over a socket only: no model is asked."""


class ConversationRequest(msgspec.Struct, frozen=True):
    """`POST /v1/conversations`, checked."""

    items: list[Item]
    metadata: dict[str, str]


class ForkRequest(msgspec.Struct, frozen=True):
    """`POST /v1/conversations/{id}/fork`: where to branch off; at its end when neither is named."""

    after_item_id: str
    response_id: str
    metadata: dict[str, str] | None
    """None: the fork takes over the conversation's own."""


_DECODE_CREATE: Final = msgspec.json.Decoder(parameters.Create)
_DECODE_COUNT: Final = msgspec.json.Decoder(parameters.Count)
_DECODE_CONVERSATION: Final = msgspec.json.Decoder(parameters.Conversation)
_DECODE_ITEMS: Final = msgspec.json.Decoder(parameters.Items)
_DECODE_UPDATE: Final = msgspec.json.Decoder(parameters.Update)
_DECODE_FORK: Final = msgspec.json.Decoder(parameters.Fork)


def decode_create(body: bytes, bounds: Bounds) -> CreateRequest:
    """The body of `POST /v1/responses`. Raises InvalidRequest."""
    return checked_create(decode(_DECODE_CREATE, body, bounds.depth), body, bounds)


def checked_create(asked: parameters.Create, body: bytes, bounds: Bounds, *, generate: bool = True) -> CreateRequest:
    """The same, decoded already. One that is not to `generate` may come without input. Raises InvalidRequest."""
    if not asked.model:
        raise _missing("model")
    _refuse_unsupported(asked)
    _check_combinations(asked)
    previous, conversation = _place(asked)
    given, compact_now = without_trigger(asked.input)
    items = pack_input(given, body, bounds)
    if generate and not items and not previous and not conversation:
        raise InvalidRequest(
            "One of 'input', 'previous_response_id' or 'conversation' must be provided.",
            code="missing_required_parameter",
            param="input",
        )
    return CreateRequest(
        settings=_settings(asked, bounds, compact_now=compact_now),
        input=items,
        previous=previous,
        conversation=conversation,
        background=bool(asked.background),
        stream=bool(asked.stream),
        store=asked.store is not False,
        obfuscate=asked.stream_options is not None and bool(asked.stream_options.include_obfuscation),
        generate=generate,
    )


def decode_count(body: bytes, bounds: Bounds) -> CreateRequest:
    """The body of `POST /v1/responses/input_tokens`; an absent model is the empty string. Raises InvalidRequest."""
    asked = decode(_DECODE_COUNT, body, bounds.depth)
    if asked.personality is not None:
        raise _unsupported("personality", "Put what it stands for into 'instructions'.")
    previous, conversation = _place(asked)
    return CreateRequest(
        settings=RunSettings(**_context(asked, bounds)),
        input=pack_input(without_trigger(asked.input)[0], body, bounds),
        previous=previous,
        conversation=conversation,
    )


def decode_conversation(body: bytes, bounds: Bounds) -> ConversationRequest:
    """The body of `POST /v1/conversations`, which may be empty. Raises InvalidRequest."""
    asked = decode(_DECODE_CONVERSATION, body or b"{}", bounds.depth)
    return ConversationRequest(_added(asked.items or [], body, bounds), asked.metadata or {})


def decode_items(body: bytes, bounds: Bounds) -> list[Item]:
    """The body of `POST /v1/conversations/{id}/items`: its items, packed. Raises InvalidRequest."""
    asked = decode(_DECODE_ITEMS, body, bounds.depth)
    check_include(asked.include or [])
    return _added(asked.items, body, bounds)


def decode_metadata(body: bytes, bounds: Bounds) -> dict[str, str]:
    """The body of `POST /v1/conversations/{id}`: the new metadata. Raises InvalidRequest."""
    return decode(_DECODE_UPDATE, body, bounds.depth).metadata or {}


def decode_fork(body: bytes, bounds: Bounds) -> ForkRequest:
    """The body of `POST /v1/conversations/{id}/fork`, which may be empty. Raises InvalidRequest."""
    asked = decode(_DECODE_FORK, body or b"{}", bounds.depth)
    if asked.after_item_id and asked.response_id:
        raise InvalidRequest(
            "Name 'after_item_id' or 'response_id', not both.", code="invalid_value", param="response_id"
        )
    return ForkRequest(asked.after_item_id or "", asked.response_id or "", asked.metadata)


def check_include(include: list[str], param: str = "include") -> None:
    """Refuse values that OpenAI's API does not know, in bodies and in query strings."""
    for index, value in enumerate(include):
        if value not in INCLUDABLE:
            raise InvalidRequest(
                f"'{value[:64]}' cannot be included. Known values: {', '.join(sorted(INCLUDABLE))}.",
                code="invalid_value",
                param=f"{param}[{index}]",
            )


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)


def _unsupported(name: str, advice: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' is not supported here. {advice}", code="unsupported_parameter", param=name)


def _refuse_unsupported(asked: parameters.Create) -> None:
    """What this server cannot do is said, not dropped."""
    if asked.prompt is not None:
        raise _unsupported("prompt", "There are no stored prompts: send the text as 'instructions' and 'input'.")
    if asked.moderation is not None:
        raise _unsupported("moderation", "Moderate before and after the request.")
    options = asked.background_options
    if options is not None and options.completion_window not in (None, "soonest"):
        raise _unsupported("background_options.completion_window", "Runs start as soon as they can: use 'soonest'.")
    if asked.prompt_cache_options is not None and asked.prompt_cache_options.prewarm:
        raise _unsupported("prompt_cache_options.prewarm", "Send the request itself.")
    if asked.image is not None and asked.image.context_compression == "enabled":
        raise _unsupported("image.context_compression", "Images are never compressed here: use 'auto' or 'disabled'.")
    if asked.reasoning is not None and asked.reasoning.mode not in (None, "standard"):
        raise _unsupported("reasoning.mode", "Use 'standard', or name a larger model.")


def _check_combinations(asked: parameters.Create) -> None:
    if asked.background and asked.store is False:
        raise InvalidRequest("'background' needs 'store': true.", code="invalid_value", param="background")
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest(
            "'stream_options' is only allowed with 'stream': true.", code="invalid_value", param="stream_options"
        )
    check_include(asked.include or [])


def _place(asked: parameters.Context) -> tuple[str, str]:
    """The response and the conversation that the request goes on from; at most one of them."""
    named = asked.conversation
    conversation = (named if isinstance(named, str) else named.id) if named is not None else ""
    previous = asked.previous_response_id or ""
    if previous and conversation:
        raise InvalidRequest(
            "Use 'previous_response_id' or 'conversation', not both.",
            code="mutually_exclusive_parameters",
            param="previous_response_id",
        )
    return previous, conversation


def without_trigger(given: str | list[dict[str, Any]] | None) -> tuple[str | list[dict[str, Any]] | None, bool]:
    """The input without a `compaction_trigger`, and whether there was one. Raises InvalidRequest unless it is last."""
    if not isinstance(given, list):
        return given, False
    at = next((index for index, item in enumerate(given) if item.get("type") == "compaction_trigger"), -1)
    if at < 0:
        return given, False
    if at != len(given) - 1:
        raise InvalidRequest(
            f"'input[{at}]' is a `compaction_trigger`, which must be the last input item.",
            code="invalid_value",
            param=f"input[{at}]",
        )
    return given[:-1], True


def compact_threshold(entries: list[parameters.ContextManagement] | None) -> int:
    """Tokens from which the context is to be compacted; -1: by the model's length, 0: never. Raises InvalidRequest."""
    for index, entry in enumerate(entries or ()):
        if entry.type != "compaction" or index:
            advice = "Use one entry of type 'compaction'."
            raise _unsupported(f"context_management[{index}]", advice)
    return (entries[0].compact_threshold or -1) if entries else 0


def pack_input(given: str | list[dict[str, Any]] | None, body: bytes, bounds: Bounds) -> list[Item]:
    if given is None:
        return []
    if isinstance(given, str):
        return _packed([{"role": "user", "content": given}], "input", body, bounds)
    return _packed(given, "input", body, bounds)


def _added(given: list[dict[str, Any]], body: bytes, bounds: Bounds) -> list[Item]:
    if len(given) > CONVERSATION_ITEMS_MAX:
        raise InvalidRequest(
            f"At most {CONVERSATION_ITEMS_MAX} items can be added at a time; these are {len(given)}.",
            code="array_above_max_length",
            param="items",
        )
    return _packed(given, "items", body, bounds)


def _packed(given: list[dict[str, Any]], name: str, body: bytes, bounds: Bounds) -> list[Item]:
    if len(given) > bounds.items:
        raise InvalidRequest(
            f"'{name}' holds {len(given)} items; at most {bounds.items} are allowed in a request (`limits.items`).",
            code="array_above_max_length",
            param=name,
        )
    items = [pack(item, f"{name}[{index}]", bounds) for index, item in enumerate(given)]
    for index, item in enumerate(items):
        if item.get("type") in DECLARING:
            _check_tool_count(item["tools"], f"{name}[{index}].tools", bounds)
    if len(body) > bounds.item_bytes:
        for index, item in enumerate(items):
            if len(msgspec.json.encode(item)) > bounds.item_bytes:
                raise InvalidRequest(
                    f"'{name}[{index}]' is larger than {bounds.item_bytes} bytes (`limits.item_bytes`).",
                    code="item_too_large",
                    param=f"{name}[{index}]",
                )
    return items


def _check_tool_count(tools: list[dict[str, Any]], param: str, bounds: Bounds) -> None:
    count = count_tools(tools)
    if count > bounds.tools:
        raise InvalidRequest(
            f"'{param}' holds {count} tools; at most {bounds.tools} are allowed (`limits.tools`).",
            code="array_above_max_length",
            param=param,
        )


def _context(asked: parameters.Context, bounds: Bounds) -> dict[str, Any]:
    """The settings that decide the model's input."""
    tools = asked.tools or []
    _check_tool_count(tools, "tools", bounds)
    return {
        "model": asked.model or "",
        "instructions": asked.instructions,
        "tools": tools,
        "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "reasoning": (msgspec.to_builtins(asked.reasoning) or None) if asked.reasoning is not None else None,
        "text": (msgspec.to_builtins(asked.text) or None) if asked.text is not None else None,
        "truncation": asked.truncation or "disabled",
    }


def _settings(asked: parameters.Create, bounds: Bounds, *, compact_now: bool = False) -> RunSettings:
    return RunSettings(
        **_context(asked, bounds),
        temperature=asked.temperature,
        top_p=asked.top_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        max_output_tokens=asked.max_output_tokens,
        max_tool_calls=asked.max_tool_calls,
        top_logprobs=asked.top_logprobs,
        compact_from=compact_threshold(asked.context_management),
        compact_now=compact_now,
        include=asked.include or [],
        echo=_echo(asked),
    )


def _echo(asked: parameters.Create) -> dict[str, Any]:
    """Hints: kept to be given back."""
    echo: dict[str, Any] = {}
    if asked.metadata:
        echo["metadata"] = asked.metadata
    for name in ("user", "safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention"):
        value = getattr(asked, name)
        if value is not None:
            echo[name] = value
    if asked.access_programs is not None and asked.access_programs.cyber is not None:
        echo["access_programs"] = {"cyber": asked.access_programs.cyber}
    if asked.image is not None and asked.image.context_compression is not None:
        echo["image"] = {"context_compression": "disabled"}
    options = asked.prompt_cache_options
    if options is not None:
        echo["prompt_cache_options"] = {"mode": options.mode or "implicit", "ttl": options.ttl or "30m"}
        if options.comparison_response_id is not None:
            echo["prompt_cache_options"]["comparison_response_id"] = options.comparison_response_id
            echo["prompt_cache_diagnostics"] = {"type": "unavailable"}
    return echo
