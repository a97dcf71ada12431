"""Tool declarations and tool choice, from the caller's words to what a model may call.

A model sees functions only. Custom tools become functions with one string; tools of a namespace are called
`namespace__name`, shortened where a name would be longer or stranger than models' servers allow. `ToolSet.lookup`
leads back from a function's name to the tool. Deferred tools are offered at once, so searching for tools is not needed.

Hosted tools are passed in by those who run them. Some that clients declare by default are tolerated when they do not
exist here: they stay in the echo and are not offered. All others are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NoReturn, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item
from stateroom.wire.decoding import validate

FLAT_NAME_MAX: Final = 64

Choice: TypeAlias = str | tuple[str, ...]
"""none, auto, required, or the flat names of which one must be called."""

_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_-]")
_TOLERATED: Final = ("web_search", "image_generation")
DECLARING: Final = ("additional_tools", "tool_search_output")
"""Types of items that bring tools along."""

_ADVICE: Final = {
    "file_search": "Search in your own code and declare a function tool for it.",
    "mcp": "Connect to the MCP server in your own code and declare its tools as functions.",
    "code_interpreter": "Declare a function tool and run the code yourself.",
    "shell": "Declare a function tool and run the commands yourself.",
    "local_shell": "Declare a function tool and run the commands yourself.",
    "apply_patch": "Declare a custom or function tool and apply the patch yourself.",
    "tool_search": "Leave it out: deferred tools are offered to the model at once.",
}


class Function(msgspec.Struct, frozen=True):
    """A function as the model is told of it."""

    name: str
    """Unique; at most 64 characters of A-Z, a-z, 0-9, `_` and `-`."""
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ToolRef(msgspec.Struct, frozen=True):
    """The tool behind a function's name."""

    kind: Literal["function", "custom", "hosted"]
    name: str
    """As it was declared; the tool's type when it is hosted."""
    namespace: str = ""
    is_async: bool = False


class ToolSet(msgspec.Struct, frozen=True):
    """What a model is offered and what it may and must call."""

    functions: tuple[Function, ...] = ()
    """Everything that stays in the prompt, in the order of declaration."""
    choice: Choice = "auto"
    allowed: frozenset[str] | None = None
    """The flat names that may be called at all; None: every one."""
    lookup: dict[str, ToolRef] = {}
    """From flat names to tools."""


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    is_async: bool | None = msgspec.field(name="async", default=None)


class _Grammar(msgspec.Struct, tag_field="type", tag="grammar"):
    syntax: Literal["lark", "regex"]
    definition: str


class _FreeText(msgspec.Struct, tag_field="type", tag="text"):
    pass


class _Custom(msgspec.Struct):
    name: str
    description: str | None = None
    format: _Grammar | _FreeText | None = None
    defer_loading: bool | None = None
    is_async: bool | None = msgspec.field(name="async", default=None)


class _Namespace(msgspec.Struct):
    name: str
    tools: list[dict[str, Any]]
    description: str | None = None


class _ToolSearch(msgspec.Struct):
    execution: Literal["server", "client"] | None = None


SHAPES: Final[dict[str, type[Any]]] = {
    "function": _Function,
    "custom": _Custom,
    "namespace": _Namespace,
    "tool_search": _ToolSearch,
}


def flat_name(name: str, namespace: str = "") -> str:
    """The name under which a model knows a tool. The same for the same tool at every turn."""
    full = f"{namespace}__{name}" if namespace else name
    safe = _FORBIDDEN.sub("_", full)
    if safe == full and len(full) <= FLAT_NAME_MAX:
        return full
    return _marked(safe, full)


def _marked(safe: str, full: str) -> str:
    """A name made unique by a digest of what it stands for."""
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return f"{safe[: FLAT_NAME_MAX - 9]}_{digest}"


def tool_set(
    tools: Iterable[Mapping[str, Any]],
    tool_choice: Any = "auto",
    *,
    items: Iterable[Item] = (),
    hosted: Mapping[str, Function] | None = None,
) -> ToolSet:
    """What the model may call. Raises InvalidRequest.

    `items` is the context: `additional_tools` in it add tools. `hosted` holds the tools that exist here, by type.
    """
    table = _Table(hosted or {})
    for position, tool in enumerate(tools):
        table.declare(tool, f"tools[{position}]")
    for item in items:
        if item.get("type") in DECLARING:
            for position, tool in enumerate(item["tools"]):
                table.declare(tool, f"{item['type']}.tools[{position}]", again=True)
    choice, allowed = _choose(table, tool_choice)
    return ToolSet(tuple(table.functions.values()), choice, allowed, table.lookup)


class _Table:
    """Tools while they are being declared."""

    def __init__(self, hosted: Mapping[str, Function]) -> None:
        self.hosted = hosted
        self.functions: dict[str, Function] = {}
        self.lookup: dict[str, ToolRef] = {}
        self.names: dict[tuple[str, str], str] = {}
        """From namespace and name to the flat name."""
        self.spaces: dict[str, list[str]] = {}
        """The flat names of each namespace."""
        self._within: dict[str, list[str]] = {}
        """From a name without its namespace to the flat names that it may mean."""
        self._joined: dict[str, str] = {}
        """From `namespace.name` to the flat name."""
        self.absent: set[str] = set()
        """Types that were declared and tolerated, but do not exist here."""

    def declare(self, tool: Mapping[str, Any], path: str, *, again: bool = False) -> None:
        """Take one declaration. `again` lets it replace an earlier one of the same name."""
        kind = tool.get("type")
        if not isinstance(kind, str):
            code = "missing_required_parameter" if kind is None else "invalid_type"
            raise InvalidRequest(f"'{path}.type' must be a string.", code=code, param=f"{path}.type")
        if kind in ("function", "custom"):
            self._callable(tool, kind, "", path, again)
        elif kind == "namespace":
            self._namespace(tool, path, again)
        elif kind in self.hosted:
            self._add(ToolRef("hosted", kind), self.hosted[kind], path, again=True)
        elif kind == "tool_search":
            validate(tool, _ToolSearch, path)
            if tool.get("execution") == "client":
                _refuse_type(kind, path)
        elif kind.startswith(_TOLERATED):
            self.absent.add(kind)
        else:
            _refuse_type(kind, path)

    def _namespace(self, tool: Mapping[str, Any], path: str, again: bool) -> None:
        validate(tool, _Namespace, path)
        if not tool["name"]:
            raise InvalidRequest(f"'{path}.name' is empty.", code="invalid_value", param=f"{path}.name")
        for position, inner in enumerate(tool["tools"]):
            place = f"{path}.tools[{position}]"
            kind = inner.get("type")
            if kind not in ("function", "custom"):
                raise InvalidRequest(
                    f"'{place}.type' must be 'function' or 'custom'.", code="invalid_value", param=f"{place}.type"
                )
            self._callable(inner, kind, tool["name"], place, again)

    def _callable(self, tool: Mapping[str, Any], kind: str, namespace: str, path: str, again: bool) -> None:
        if kind == "function" and "name" not in tool and isinstance(tool.get("function"), dict):
            raise InvalidRequest(
                f"Missing required parameter: '{path}.name'. In the Responses API, 'name', 'description' and"
                " 'parameters' stand beside 'type', not inside 'function'.",
                code="missing_required_parameter",
                param=f"{path}.name",
            )
        validate(tool, SHAPES[kind], path)
        name: str = tool["name"]
        if not name:
            raise InvalidRequest(f"'{path}.name' is empty.", code="invalid_value", param=f"{path}.name")
        is_async = bool(tool.get("async"))
        if kind == "function":
            ref = ToolRef("function", name, namespace, is_async)
            function = Function("", tool.get("description") or "", tool.get("parameters"), bool(tool.get("strict")))
        else:
            ref = ToolRef("custom", name, namespace, is_async)
            function = _as_function(tool)
        self._add(ref, function, path, again=again)

    def _add(self, ref: ToolRef, function: Function, path: str, *, again: bool) -> None:
        key = (ref.namespace, ref.name)
        flat = self.names.get(key)
        if flat is not None and not again:
            raise InvalidRequest(
                f"The tool '{ref.name}' is declared twice.", code="duplicate_tool_name", param=f"{path}.name"
            )
        if flat is None:
            flat = function.name if ref.kind == "hosted" else flat_name(ref.name, ref.namespace)
            if flat in self.lookup:
                flat = _marked(flat, f"{ref.kind} {ref.namespace} {ref.name}")
            self.names[key] = flat
            if ref.namespace:
                self.spaces.setdefault(ref.namespace, []).append(flat)
                self._within.setdefault(ref.name, []).append(flat)
                self._joined.setdefault(f"{ref.namespace}.{ref.name}", flat)
        self.functions[flat] = Function(flat, function.description, function.parameters, function.strict)
        self.lookup[flat] = ref

    def find(self, name: str, namespace: str | None, kind: str) -> str | None:
        """The flat name of a tool that a tool choice names in one of the ways in which clients do."""
        if namespace is not None:
            found = self.names.get((namespace, name))
        else:
            within = self._within.get(name, [])
            found = self.names.get(("", name)) or (name if name in self.lookup else None)
            found = found or self._joined.get(name) or (within[0] if len(within) == 1 else None)
        return found if found is not None and self.lookup[found].kind == kind else None


def _refuse_type(kind: str, path: str) -> NoReturn:
    shown = kind if len(kind) <= 64 else kind[:64] + "…"
    advice = _ADVICE.get(kind, "Declare a function tool instead.")
    raise InvalidRequest(
        f"This server has no hosted tool of type '{shown}'. {advice}", code="unsupported_tool", param=f"{path}.type"
    )


def _as_function(tool: Mapping[str, Any]) -> Function:
    """A custom tool for models that only know functions: free text goes through one string."""
    description = tool.get("description") or ""
    wanted = tool.get("format") or {}
    hint = "The input of the tool, as plain text."
    if wanted.get("type") == "grammar":
        hint = f"The input of the tool. It must match this {wanted['syntax']} grammar:\n{wanted['definition']}"
    parameters = {
        "type": "object",
        "properties": {"input": {"type": "string", "description": hint}},
        "required": ["input"],
        "additionalProperties": False,
    }
    return Function("", description, parameters)


def _choose(table: _Table, given: Any) -> tuple[Choice, frozenset[str] | None]:
    """`tool_choice` in flat names: what must happen, and what may."""
    if given is None or given in ("auto", "none"):
        return given or "auto", None
    if given == "required":
        _need_callable(table.lookup)
        return "required", None
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise InvalidRequest(
            "'tool_choice' must be 'none', 'auto', 'required' or an object with a 'type'.",
            code="invalid_value",
            param="tool_choice",
        )
    if given["type"] == "allowed_tools":
        return _allowed(table, given)
    names = tuple(_named(table, given, "tool_choice"))
    if not names:
        _refuse_absent(given["type"], "tool_choice")
    return names, None


def _allowed(table: _Table, given: dict[str, Any]) -> tuple[Choice, frozenset[str]]:
    mode, tools = given.get("mode"), given.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidRequest(
            "'tool_choice.mode' must be 'auto' or 'required'.", code="invalid_value", param="tool_choice.mode"
        )
    if not isinstance(tools, list):
        raise InvalidRequest("'tool_choice.tools' must be an array.", code="invalid_type", param="tool_choice.tools")
    allowed: set[str] = set()
    told: set[tuple[str, ...]] = set()
    for position, reference in enumerate(tools):
        place = _place(reference)
        if place not in told:  # a namespace that is named over and over costs what it costs once
            allowed.update(_named(table, reference, f"tool_choice.tools[{position}]"))
            told.add(place)
    if mode == "required":
        _need_callable(allowed)
    return mode, frozenset(allowed)


def _place(reference: Any) -> tuple[str, ...]:
    fields = ("type", "name", "namespace")
    return tuple(repr(reference.get(field)) for field in fields) if isinstance(reference, dict) else ("",)


def _named(table: _Table, reference: Any, path: str) -> Iterator[str]:
    """The flat names a reference to a tool stands for; none for a tolerated tool that does not exist here."""
    kind = reference.get("type") if isinstance(reference, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest(f"'{path}' must be an object with a 'type'.", code="invalid_type", param=path)
    name, namespace = reference.get("name"), reference.get("namespace")
    if kind in ("function", "custom"):
        if not isinstance(name, str):
            raise InvalidRequest(f"'{path}.name' must be a string.", code="invalid_type", param=f"{path}.name")
        flat = table.find(name, namespace if isinstance(namespace, str) else None, kind)
        if flat is None:
            raise InvalidRequest(
                f"'{path}' names the {kind} tool '{name[:64]}', which is not declared in 'tools'.",
                code="invalid_value",
                param=path,
            )
        yield flat
    elif kind == "namespace":
        found = table.spaces.get(name) if isinstance(name, str) else None
        if not found:
            raise InvalidRequest(
                f"'{path}' names a namespace that is not declared in 'tools'.", code="invalid_value", param=path
            )
        yield from found
    elif ("", kind) in table.names and table.lookup[table.names["", kind]].kind == "hosted":
        yield table.names["", kind]
    elif kind not in table.absent:
        raise InvalidRequest(
            f"'{path}' names the tool '{kind[:64]}', which is not declared in 'tools'.",
            code="invalid_value",
            param=path,
        )


def _need_callable(names: Iterable[str]) -> None:
    if not any(True for _ in names):
        raise InvalidRequest(
            "'tool_choice' requires a tool call, but no tool that can be called here is declared.",
            code="unsupported_tool",
            param="tool_choice",
        )


def _refuse_absent(kind: str, path: str) -> NoReturn:
    raise InvalidRequest(
        f"'{path}' asks for '{kind[:64]}', which this server does not have.", code="unsupported_tool", param=path
    )


def count_tools(tools: Iterable[Mapping[str, Any]]) -> int:
    """How many tools are declared, those inside namespaces counted one by one."""
    inner = [tool.get("tools") for tool in tools]
    return sum(len(held) if isinstance(held, list) else 1 for held in inner)


def build_call_item(ref: ToolRef, call_id: str, arguments: str) -> Item:
    """The packed item of a call that the model made of a function or custom tool."""
    if ref.kind == "hosted":
        raise ValueError(f"{ref.name} is a hosted tool: its item is made by the tool")
    item: Item = {"type": "function_call", "call_id": call_id, "name": ref.name}
    if ref.kind == "custom":
        item["type"] = "custom_tool_call"
        item["input"] = custom_input(arguments)
    else:
        item["arguments"] = arguments
    if ref.namespace:
        item["namespace"] = ref.namespace
    if ref.is_async:
        item["async"] = True
    return item


def custom_input(arguments: str) -> str:
    """The text for a custom tool out of the arguments of the function it was shown as.

    Models do not always keep to the schema: a bare JSON string, or text that is no JSON at all, is taken as it is.
    """
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments
    if isinstance(value, dict) and isinstance(value.get("input"), str):
        return str(value["input"])
    return value if isinstance(value, str) else arguments
