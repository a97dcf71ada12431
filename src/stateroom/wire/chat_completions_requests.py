"""Request bodies of the Chat Completions API, from bytes to what the runtime is asked.

What happens to each parameter of `POST /v1/chat/completions`:

- honoured: model, messages, stream, stream_options, store, n, temperature, top_p, presence_penalty, frequency_penalty,
  max_tokens, max_completion_tokens, stop, seed, logit_bias, logprobs, top_logprobs, tools, tool_choice,
  parallel_tool_calls, functions, function_call, response_format, reasoning_effort, verbosity, metadata
- hints, for the model's server or for nobody: user, safety_identifier, service_tier, prompt_cache_key,
  prompt_cache_retention, prompt_cache_options, prediction, web_search_options
- refused, with a message that says so: audio, moderation, modalities other than text, n above 1 together with store,
  prompt_cache_options.prewarm

Null means absent everywhere, and unknown parameters are ignored: clients send both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from stateroom.errors import InvalidRequest, StateroomError
from stateroom.journal.entries import Item, RunSettings
from stateroom.wire import chat_completions_parameters as shapes
from stateroom.wire.chat_completions import ChatStyle
from stateroom.wire.chat_completions_messages import Messages, check_sizes, unsupported
from stateroom.wire.decoding import Bounds, decode, validate

_ALLOWED: Final = "tool_choice.allowed_tools.tools"
_LOGPROBS: Final = "message.output_text.logprobs"
_DECODE_CREATE: Final = msgspec.json.Decoder(shapes.Create)
_DECODE_UPDATE: Final = msgspec.json.Decoder(shapes.Update)
_INPUT: Final = re.compile(r"\binput\[(\d+)\]")
_RESPONSES_ONLY: Final = frozenset(
    ("shell", "local_shell", "apply_patch", "code_interpreter", "mcp", "tool_search", "programmatic_tool_calling")
)
_TOOL: Final = re.compile(r"\Atools\[(\d+)\]\.(?=name|description|parameters|format|strict)")


class ChatRequest(msgspec.Struct, frozen=True):
    """`POST /v1/chat/completions`, checked."""

    settings: RunSettings
    input: list[Item]
    places: list[str]
    """Where each item of the input stands in the request."""
    style: ChatStyle
    """How the answer is to be written; it is part of `settings`."""
    choices: int = 1
    include_usage: bool = False
    stream: bool = False
    store: bool = False
    obfuscate: bool = False


def decode_chat(body: bytes, bounds: Bounds) -> ChatRequest:
    """The body of `POST /v1/chat/completions`. Raises InvalidRequest."""
    asked = decode(_DECODE_CREATE, body, bounds.depth)
    if not asked.model:
        raise _missing("model")
    _refuse_unsupported(asked)
    _check_combinations(asked)
    messages = _messages(asked, body, bounds)
    options = asked.stream_options or shapes.StreamOptions()
    choices = asked.n or 1
    style = ChatStyle(
        legacy=asked.functions is not None,
        logprobs=bool(asked.logprobs),
        usage=bool(options.include_usage) and choices == 1,
    )
    return ChatRequest(
        settings=_settings(asked, style, bounds),
        input=messages.items,
        places=messages.places,
        style=style,
        choices=choices,
        include_usage=bool(options.include_usage),
        stream=bool(asked.stream),
        store=bool(asked.store),
        obfuscate=bool(options.include_obfuscation),
    )


def decode_update(body: bytes, bounds: Bounds) -> dict[str, str]:
    """The body of `POST /v1/chat/completions/{id}`: the new metadata. Raises InvalidRequest."""
    return decode(_DECODE_UPDATE, body, bounds.depth).metadata or {}


def _messages(asked: shapes.Create, body: bytes, bounds: Bounds) -> Messages:
    given = asked.messages
    if given is None:
        raise _missing("messages")
    if not given:
        raise InvalidRequest(
            "'messages' is empty: send at least one message.", code="array_below_min_length", param="messages"
        )
    if len(given) > bounds.items:
        raise InvalidRequest(
            f"'messages' holds {len(given)} messages; at most {bounds.items} are allowed in a request"
            " (`limits.items`).",
            code="array_above_max_length",
            param="messages",
        )
    messages = Messages(bounds)
    for position, message in enumerate(given):
        messages.add(message, position)
    if len(body) > bounds.item_bytes:
        check_sizes(messages.items, messages.places, bounds)
    return messages


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)


def _refuse_unsupported(asked: shapes.Create) -> None:
    if asked.audio is not None:
        raise unsupported("audio", "This server makes text only.")
    if asked.modalities is not None and any(kind != "text" for kind in asked.modalities):
        raise unsupported("modalities", "This server makes text only: use ['text'], or leave it out.")
    if asked.moderation is not None:
        raise unsupported("moderation", "Moderate before and after the request.")
    if asked.prompt_cache_options is not None and asked.prompt_cache_options.prewarm:
        raise unsupported("prompt_cache_options.prewarm", "Send the request itself.")
    if asked.store and (asked.n or 1) > 1:
        raise unsupported("n", "Of a stored completion there is one choice: leave out 'store', or ask several times.")


def _check_combinations(asked: shapes.Create) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest(
            "'stream_options' is only allowed with 'stream': true.", code="invalid_value", param="stream_options"
        )
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise _not_both("max_tokens", "max_completion_tokens")
    if asked.functions is not None and asked.tools:
        raise _not_both("functions", "tools")
    if asked.function_call is not None and asked.tool_choice is not None:
        raise _not_both("function_call", "tool_choice")
    if asked.function_call is not None and asked.functions is None:
        raise InvalidRequest(
            "'function_call' is only allowed with 'functions'.", code="invalid_value", param="function_call"
        )
    if asked.top_logprobs and not asked.logprobs:
        raise InvalidRequest(
            "'top_logprobs' is only allowed with 'logprobs': true.", code="invalid_value", param="top_logprobs"
        )


def _not_both(older: str, newer: str) -> InvalidRequest:
    return InvalidRequest(f"Use '{newer}' or '{older}', not both.", code="mutually_exclusive_parameters", param=older)


def _settings(asked: shapes.Create, style: ChatStyle, bounds: Bounds) -> RunSettings:
    if asked.functions is not None:
        tools, choice = _legacy_tools(asked)
    else:
        tools, choice = _tools(asked.tools or [], bounds), _tool_choice(asked.tool_choice)
    text: dict[str, Any] = {}
    if (format_ := _format(asked.response_format)) is not None:
        text["format"] = format_
    if asked.verbosity is not None:
        text["verbosity"] = asked.verbosity
    return RunSettings(
        model=asked.model or "",
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False and not style.legacy,
        temperature=asked.temperature,
        top_p=asked.top_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        max_output_tokens=asked.max_completion_tokens or asked.max_tokens,
        top_logprobs=asked.top_logprobs,
        reasoning=None if asked.reasoning_effort is None else {"effort": asked.reasoning_effort},
        text=text or None,
        include=[_LOGPROBS] if asked.logprobs else [],
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        seed=asked.seed,
        logit_bias=asked.logit_bias or None,
        echo=_echo(asked, style),
    )


def _echo(asked: shapes.Create, style: ChatStyle) -> dict[str, Any]:
    echo: dict[str, Any] = {}
    if asked.metadata:
        echo["metadata"] = asked.metadata
    for name in ("user", "safety_identifier", "service_tier", "prompt_cache_key"):
        value = getattr(asked, name)
        if value is not None:
            echo[name] = value
    return style.written_to(echo)


def _format(given: shapes.TextFormat | shapes.ObjectFormat | shapes.JsonSchemaFormat | None) -> dict[str, Any] | None:
    if isinstance(given, shapes.ObjectFormat):
        return {"type": "json_object"}
    if isinstance(given, shapes.JsonSchemaFormat):
        return {"type": "json_schema", **msgspec.to_builtins(given.json_schema)}
    return None


def _legacy_tools(asked: shapes.Create) -> tuple[list[dict[str, Any]], Any]:
    tools = [
        {"type": "function", **_given(name=one.name, description=one.description, parameters=one.parameters)}
        for one in asked.functions or ()
    ]
    choice = asked.function_call
    if isinstance(choice, shapes.NamedFunction):
        return tools, {"type": "function", "name": choice.name}
    return tools, choice or "auto"


def _tools(given: Sequence[Mapping[str, Any]], bounds: Bounds) -> list[dict[str, Any]]:
    if len(given) > bounds.tools:
        raise InvalidRequest(
            f"'tools' holds {len(given)} tools; at most {bounds.tools} are allowed (`limits.tools`).",
            code="array_above_max_length",
            param="tools",
        )
    return [_tool(tool, f"tools[{position}]") for position, tool in enumerate(given)]


def _tool(tool: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A declaration in the words of the Responses API, which the runtime knows. Other types are judged there."""
    kind = tool.get("type")
    if kind == "function":
        validate(tool, shapes.FunctionTool, path)
        held = tool["function"]
        fields = {name: held.get(name) for name in ("name", "description", "parameters", "strict")}
        return {"type": "function", **_given(**fields)}
    if kind == "custom":
        validate(tool, shapes.CustomTool, path)
        held = tool["custom"]
        wanted = held.get("format")
        if wanted is not None and wanted["type"] == "grammar":
            grammar = wanted["grammar"]
            wanted = {"type": "grammar", "syntax": grammar["syntax"], "definition": grammar["definition"]}
        return {
            "type": "custom",
            **_given(name=held["name"], description=held.get("description"), format=wanted),
        }
    if kind in _RESPONSES_ONLY:
        message = f"Chat completions have no items for tools of type '{kind}' ('{path}'). Use /v1/responses."
        raise InvalidRequest(message, code="unsupported_tool", param=f"{path}.type")
    return dict(tool)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _tool_choice(given: str | dict[str, Any] | None) -> Any:
    """The choice in the words of the Responses API. Strings are judged by the runtime."""
    if given is None or isinstance(given, str):
        return given or "auto"
    if given.get("type") != "allowed_tools":
        return _named_tool(given, "tool_choice")
    validate(given.get("allowed_tools"), shapes.AllowedTools, "tool_choice.allowed_tools")
    allowed = given["allowed_tools"]
    named = [_named_tool(tool, f"{_ALLOWED}[{number}]") for number, tool in enumerate(allowed["tools"])]
    return {"type": "allowed_tools", "mode": allowed["mode"], "tools": named}


def _named_tool(given: Mapping[str, Any], path: str) -> dict[str, Any]:
    kind = given.get("type")
    if kind in ("function", "custom"):
        validate(given.get(kind), shapes.NamedTool, f"{path}.{kind}")
        return {"type": kind, "name": given[kind]["name"]}
    return dict(given)


def in_chat_words(error: StateroomError, asked: ChatRequest | None = None) -> StateroomError:
    """The error, in whose message and param the request is spoken of as its caller wrote it."""
    error.message = _reworded(error.message, asked)
    if error.param is not None:
        error.param = _param(error.param, asked)
    return error


def _reworded(text: str, asked: ChatRequest | None) -> str:
    text = text.replace("`text.format`", "`response_format`").replace("'tool_choice.tools[", f"'{_ALLOWED}[")
    if asked is None:
        return text
    return _INPUT.sub(lambda found: _place(asked, found), text)


def _param(param: str, asked: ChatRequest | None) -> str:
    if param == "input":
        return "messages"
    if param.startswith("text.format"):
        return "response_format" + param.removeprefix("text.format").replace(".schema", ".json_schema.schema")
    if param.startswith("tool_choice.tools"):
        return _ALLOWED + param.removeprefix("tool_choice.tools")
    if asked is None:
        return param
    declared = _TOOL.match(param)
    if declared is not None:
        kind = asked.settings.tools[int(declared.group(1))].get("type")
        if asked.style.legacy:
            return "functions" + param.removeprefix("tools")
        return f"tools[{declared.group(1)}].{kind}.{param[declared.end() :]}"
    return _INPUT.sub(lambda found: _place(asked, found), param)


def _place(asked: ChatRequest, found: re.Match[str]) -> str:
    position = int(found.group(1))
    return asked.places[position] if position < len(asked.places) else found.group(0)
