"""A model call as the body of a Responses request, to a server that is to keep nothing: fragments and options. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.models.backend import FunctionSpec, ModelCall
from stateroom.models.chat_request import encoded_tools
from stateroom.models.responses_history import ResponsesHistory

SEALED_REASONING: Final = "reasoning.encrypted_content"
LEAST_OUTPUT: Final = 16
"""Below this OpenAI's API refuses a limit of output tokens, and with it those that follow it closely."""

LOGPROBS: Final = "message.output_text.logprobs"

_UNSEALED: Final = "responses:unsealed"

_encode = msgspec.json.Encoder().encode


class Dialect(msgspec.Struct):
    """What is known of one server: learnt from what it answered."""

    origin: str
    """The backend's name, by which reasoning that came from it is known again."""
    unsealing: set[str] = msgspec.field(default_factory=set)
    """Models of which it refuses to seal reasoning."""
    least_output: int = 1
    """The smallest limit of output tokens that it takes."""
    allowed_tools: bool = True
    """Whether it takes a choice among several tools."""


def unseal(call: ModelCall) -> bool:
    """Send this context's sealed reasoning no more; False when that was so already."""
    if call.cache.get(_UNSEALED):
        return False
    call.cache[_UNSEALED] = True
    return True


def history(call: ModelCall, origin: str) -> ResponsesHistory:
    """The encoded history of the call's context, brought up to date; kept in the context's cache."""
    held = call.cache.get("responses:history")
    sealed = not call.cache.get(_UNSEALED)
    if not (
        isinstance(held, ResponsesHistory)
        and (held.origin, held.sealed) == (origin, sealed)
        and held.continues(call.items)
    ):
        held = call.cache["responses:history"] = ResponsesHistory(origin, sealed=sealed)
    held.extend(call.items)
    return held


def encode_request(call: ModelCall, dialect: Dialect) -> bytes:
    """The body of POST /responses."""
    options = _context(call, dialect)
    options["store"] = False
    include = [] if call.model in dialect.unsealing else [SEALED_REASONING]
    if call.top_logprobs is not None:
        options["top_logprobs"] = call.top_logprobs
        include.append(LOGPROBS)
    if include:
        options["include"] = include
    given = {
        "temperature": call.temperature,
        "top_p": call.top_p,
        "presence_penalty": call.presence_penalty,
        "frequency_penalty": call.frequency_penalty,
        "max_output_tokens": call.max_output_tokens and max(call.max_output_tokens, dialect.least_output),
        "service_tier": call.service_tier,
        "user": call.user,
        "prompt_cache_key": call.prompt_cache_key,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    if call.extra is not None:
        options |= call.extra
    if call.stream:
        options["stream"] = True
    return _body(call, dialect, options)


def encode_count(call: ModelCall, dialect: Dialect) -> bytes:
    """The body of POST /responses/input_tokens: only what decides the model's input."""
    return _body(call, dialect, _context(call, dialect))


def _body(call: ModelCall, dialect: Dialect, options: dict[str, Any]) -> bytes:
    parts: list[bytes | bytearray] = [b'{"model":', _encode(call.model), b',"input":[']
    parts += history(call, dialect.origin).fragments()
    parts.append(b"]")
    if functions := _declared(call, dialect):
        parts += (b',"tools":', encoded_tools(functions, call.cache, "responses:tools", _tool))
    if options:
        parts += (b",", _encode(options)[1:-1])
    parts.append(b"}")
    return b"".join(parts)


def _context(call: ModelCall, dialect: Dialect) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if call.instructions:
        options["instructions"] = call.instructions
    if call.functions:
        if (choice := _choice(call, dialect)) != "auto":
            options["tool_choice"] = choice
        if not call.parallel_tool_calls:
            options["parallel_tool_calls"] = False
    reasoning = {"effort": call.reasoning_effort, "summary": call.reasoning_summary}
    text = {"format": call.format, "verbosity": call.verbosity}
    for name, held in (("reasoning", reasoning), ("text", text)):
        if given := {field: value for field, value in held.items() if value is not None}:
            options[name] = given
    return options


def _choice(call: ModelCall, dialect: Dialect) -> Any:
    choice = call.tool_choice
    if isinstance(choice, str):
        return choice
    if len(choice) == 1:
        return {"type": "function", "name": choice[0]}
    if not dialect.allowed_tools:
        return "required"
    return {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": n} for n in choice]}


def _declared(call: ModelCall, dialect: Dialect) -> list[FunctionSpec]:
    """All functions; only those that may be called when that is the one way to say so."""
    choice = call.tool_choice
    if isinstance(choice, str) or len(choice) == 1 or dialect.allowed_tools:
        return list(call.functions)
    return [function for function in call.functions if function.name in choice]


def _tool(function: FunctionSpec) -> dict[str, Any]:
    """Always with `strict`: left out it is no in some servers and yes in others."""
    declared: dict[str, Any] = {"type": "function", "name": function.name}
    if function.description:
        declared["description"] = function.description
    declared["parameters"] = function.parameters or {"type": "object", "properties": {}}
    declared["strict"] = function.strict
    return declared
