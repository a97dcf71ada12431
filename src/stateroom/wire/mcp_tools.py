"""What MCP servers say, in our words: their tools, and the errors of calls in OpenAI's shapes. Connects to nothing.

A server is not to be believed. Its schemas are cut down to what a model's server can be handed: bounded, an object, no
reference that leads out of them. Its hints about what a tool does are taken at their word for one thing only, whether a
call that a crash cut off may be made again, and for the filters in which the client names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from stateroom.journal.entries import Item

NAME_MAX: Final = 128
DESCRIPTION_MAX: Final = 16 * 1024
SCHEMA_BYTES: Final = 64 * 1024
SCHEMA_DEPTH: Final = 24
ANNOTATIONS_BYTES: Final = 4 * 1024

REQUEST_TIMED_OUT: Final = -32001
CONNECTION_CLOSED: Final = -32000
PARSE_ERROR: Final = -32700
INVALID_PARAMS: Final = -32602

_TYPES: Final = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
_NESTED: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_NESTED_MAPS: Final = ("properties", "$defs", "definitions", "patternProperties")
_NESTED_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_WORDS: Final = ("title", "description", "format")
_KEPT: Final = (
    "const",
    "default",
    "enum",
    "examples",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)
_ANYTHING: Final[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": True}


class McpTool(msgspec.Struct, frozen=True):
    """A tool of a server, as the server describes it."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = {}
    annotations: dict[str, Any] | None = None


def hints(tool: Mapping[str, Any], name: str) -> bool:
    """Whether a tool, as `mcp_list_tools` has it, says this of itself."""
    annotations = tool.get("annotations")
    return isinstance(annotations, Mapping) and annotations.get(name) is True


def list_item(label: str, tools: Iterable[McpTool], error: str | None = None) -> Item:
    """The item `mcp_list_tools`."""
    item: Item = {"type": "mcp_list_tools", "server_label": label, "tools": [_listed(tool) for tool in tools]}
    if error is not None:
        item["error"] = error
    return item


def listed_tools(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools of an item `mcp_list_tools`, each with a usable name and a sane schema.

    Whoever made it: clients replay it as input, and then it may hold anything.
    """
    found: dict[str, dict[str, Any]] = {}
    for told in item.get("tools") or ():
        if isinstance(told, Mapping):
            words = (told.get(field) for field in ("name", "description", "input_schema", "annotations"))
            tool = read_tool(*words)
            if tool is not None:
                found.setdefault(tool.name, _listed(tool))
    return list(found.values())


def read_tool(name: Any, description: Any, schema: Any, annotations: Any) -> McpTool | None:
    """A tool out of words that may be anything; None if it has no usable name."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX or not name.isprintable():
        return None
    told = description if isinstance(description, str) else ""
    return McpTool(name, _cut(told, DESCRIPTION_MAX), sane_schema(schema), _annotations(annotations))


def sane_schema(schema: Any) -> dict[str, Any]:
    """A schema of a function's parameters that is safe to hand on.

    What is no schema is left out where it stands; what is too large or too deep becomes one that allows any object.
    """
    if not isinstance(schema, dict):
        return dict(_ANYTHING)
    try:
        if len(repr(schema)) > 2 * SCHEMA_BYTES:  # looking at all of it would take long
            return dict(_ANYTHING)
        sane = _sane(schema, SCHEMA_DEPTH)
        if not isinstance(sane, dict) or len(msgspec.json.encode(sane)) > SCHEMA_BYTES:
            return dict(_ANYTHING)
    except (_TooDeep, RecursionError, TypeError, ValueError, UnicodeError):
        return dict(_ANYTHING)
    sane["type"] = "object"
    sane.setdefault("properties", {})
    return sane


def protocol_error(code: int, message: str) -> dict[str, Any]:
    """The server, or the way to it, did not keep to the protocol, or refused."""
    return {"type": "mcp_protocol_error", "code": code, "message": message}


def execution_error(content: list[dict[str, Any]]) -> dict[str, Any]:
    """The tool ran and says that it failed."""
    return {"type": "mcp_tool_execution_error", "content": content}


def http_error(status: int, message: str) -> dict[str, Any]:
    return {"type": "http_error", "code": status, "message": message}


def error_text(error: Any) -> str:
    """An error of a call in words for the model."""
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return "The tool failed."
    if error.get("type") == "mcp_tool_execution_error":
        content = error.get("content")
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else ()
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n".join(texts) or "The tool failed."
    kind = "HTTP error" if error.get("type") == "http_error" else "MCP error"
    return f"{kind} {error.get('code')}: {error.get('message')}"


def _listed(tool: McpTool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name, "input_schema": tool.input_schema}
    if tool.description:
        told["description"] = tool.description
    if tool.annotations is not None:
        told["annotations"] = tool.annotations
    return told


def _annotations(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    plain = {
        str(name): said
        for name, said in value.items()
        if isinstance(said, bool) or (isinstance(said, str) and len(said) <= 256)
    }
    return plain if plain and len(msgspec.json.encode(plain)) <= ANNOTATIONS_BYTES else None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


class _TooDeep(Exception):
    """A schema nests deeper than it may."""


def _sane(schema: Any, depth: int) -> Any:
    """A schema with nothing in it but what is one. Booleans are schemas too."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        return {}
    if depth == 0:
        raise _TooDeep
    sane: dict[str, Any] = {}
    if (types := _types(schema.get("type"))) is not None:
        sane["type"] = types
    for name in _WORDS:
        if isinstance(schema.get(name), str):
            sane[name] = _cut(schema[name], DESCRIPTION_MAX)
    sane |= {name: schema[name] for name in _KEPT if name in schema and _fits(name, schema[name])}
    for name in _NESTED:
        if isinstance(schema.get(name), dict | bool):
            sane[name] = _sane(schema[name], depth - 1)
    for name in _NESTED_MAPS:
        if isinstance(schema.get(name), dict):
            sane[name] = {str(key): _sane(inner, depth - 1) for key, inner in schema[name].items()}
    for name in _NESTED_LISTS:
        if isinstance(schema.get(name), list) and schema[name]:
            sane[name] = [_sane(inner, depth - 1) for inner in schema[name]]
    required = schema.get("required")
    if isinstance(required, list):
        sane["required"] = [name for name in required if isinstance(name, str)]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#") and len(reference) <= 512:
        sane["$ref"] = reference
    return sane


def _types(value: Any) -> str | list[str] | None:
    if isinstance(value, str):
        return value if value in _TYPES else None
    if isinstance(value, list):
        return [kind for kind in value if isinstance(kind, str) and kind in _TYPES] or None
    return None


def _fits(name: str, value: Any) -> bool:
    """Whether the value of a keyword is of the kind that the keyword has."""
    if name in ("const", "default"):
        return _shallow(value)
    if name in ("enum", "examples"):
        return isinstance(value, list) and bool(value) and _shallow(value)
    if name == "pattern":
        return isinstance(value, str) and len(value) <= 512
    if name == "uniqueItems":
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shallow(value: Any) -> bool:
    """Whether a plain value nests little enough to be handed on."""
    level = [value]
    for _ in range(SCHEMA_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return True
    return False
