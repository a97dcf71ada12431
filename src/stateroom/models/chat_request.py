"""A model call as the body of a chat completion request: encoded fragments and a few options, joined once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from stateroom.agent.tokens import estimate_json
from stateroom.models.backend import FunctionSpec, ModelCall
from stateroom.wire.chat_history import ChatHistory

OUTPUT_LIMIT: Final = "max_tokens"
"""Every open server takes this older name; some do not know `max_completion_tokens`."""

OUTPUT_LIMIT_NEW: Final = "max_completion_tokens"
"""What OpenAI's reasoning models insist on; used once a server has said so."""

_encode = msgspec.json.Encoder().encode


class Dialect(msgspec.Struct):
    """What is known of one server: from its settings, or learnt from what it answered."""

    prefill: str = "none"
    reasoning_field: str = ""
    """Under which name earlier reasoning goes back; empty: it does not."""
    output_limit: str = OUTPUT_LIMIT
    stream_options: bool = True
    """Whether it takes `stream_options`, and with it gives the usage of a stream."""


def history(call: ModelCall, dialect: Dialect) -> ChatHistory:
    """The encoded history of the call's context, brought up to date; kept in the context's cache."""
    held = call.cache.get("chat:history")
    field = dialect.reasoning_field
    if not isinstance(held, ChatHistory) or held.reasoning_field != field or not held.continues(call.items):
        held = call.cache["chat:history"] = ChatHistory(reasoning_field=field)
    held.extend(call.items)
    return held


def encode_request(call: ModelCall, dialect: Dialect) -> bytes:
    """The body of POST /chat/completions."""
    options = _options(call, dialect)
    functions, choice = _tools(call)
    if functions:
        options |= choice
    parts: list[bytes | bytearray] = [b'{"model":', _encode(call.model), b',"messages":[']
    parts += history(call, dialect).fragments(call.instructions, call.prefill)
    parts.append(b"]")
    if functions:
        parts += (b',"tools":', encoded_tools(functions, call.cache, "chat:tools", _tool))
    if options:
        parts += (b",", _encode(options)[1:-1])
    parts.append(b"}")
    return b"".join(parts)


def _options(call: ModelCall, dialect: Dialect) -> dict[str, Any]:
    given = {
        "temperature": call.temperature,
        "top_p": call.top_p,
        "presence_penalty": call.presence_penalty,
        "frequency_penalty": call.frequency_penalty,
        dialect.output_limit: call.max_output_tokens,
        "stop": list(call.stop) or None,
        "seed": call.seed,
        "reasoning_effort": call.reasoning_effort,
        "verbosity": call.verbosity,
        "service_tier": call.service_tier,
        "user": call.user,
        "prompt_cache_key": call.prompt_cache_key,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if call.format is not None:
        options["response_format"] = _response_format(call.format)
    if call.top_logprobs is not None:
        options["logprobs"] = True
        options["top_logprobs"] = call.top_logprobs
    if call.prefill and dialect.prefill == "continue_final_message":
        options["continue_final_message"] = True
        options["add_generation_prompt"] = False
    if call.extra is not None:
        options |= call.extra
    if call.stream:
        options["stream"] = True
        if dialect.stream_options:
            options["stream_options"] = {"include_usage": True}
    return options


def _response_format(format: dict[str, Any]) -> dict[str, Any]:
    kind = format.get("type")
    if kind != "json_schema":
        return {"type": kind}
    schema = {name: value for name, value in format.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": {"name": "answer", **schema}}


def _tools(call: ModelCall) -> tuple[list[FunctionSpec] | tuple[FunctionSpec, ...], dict[str, Any]]:
    """The functions to declare, and the options that steer their use.

    The dialect can name one function that must be called. When one of several must be, only those are declared.
    """
    functions: Any = call.functions
    choice = call.tool_choice
    options: dict[str, Any] = {} if call.parallel_tool_calls else {"parallel_tool_calls": False}
    if isinstance(choice, str):
        if choice != "auto":
            options["tool_choice"] = choice
    elif len(choice) == 1:
        options["tool_choice"] = {"type": "function", "function": {"name": choice[0]}}
    else:
        functions = [function for function in functions if function.name in choice]
        options["tool_choice"] = "required"
    return functions, options


def encoded_tools(
    functions: Sequence[FunctionSpec],
    cache: dict[str, Any],
    name: str,
    shape: Callable[[FunctionSpec], dict[str, Any]],
) -> bytes:
    """The declarations, encoded again only when they are other objects than in the context's last call.

    `name` is where they stand in the cache, `shape` what a dialect makes of each.
    """
    held = cache.get(name)
    if held is not None and len(held[0]) == len(functions) and all(map(_is, held[0], functions)):
        encoded: bytes = held[1]
        return encoded
    encoded = _encode([shape(function) for function in functions])
    cache[name] = (tuple(functions), encoded)
    return encoded


def _is(one: object, other: object) -> bool:
    return one is other


def _tool(function: FunctionSpec) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": function.name}
    if function.description:
        declared["description"] = function.description
    declared["parameters"] = function.parameters or {"type": "object", "properties": {}}
    if function.strict:
        declared["strict"] = True
    return {"type": "function", "function": declared}


def estimate_tokens(body: bytes) -> int:
    """A count on the high side for a request body, for servers that cannot count."""
    return estimate_json(body) + 32
