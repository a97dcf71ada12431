"""Tool declarations, from the caller's words to what a model may call. What it must call is in tool_choice.py.

A model sees functions only. Custom tools become functions with one string; tools of a namespace are called
`namespace__name`, shortened where a name would be longer or stranger than models' servers allow. `ToolSet.lookup`
leads back from a function's name to the tool. Deferred tools are offered once a search has found them; at once, where
there is nothing to search with.

Hosted tools are passed in by those who run them. Some that clients declare by default are tolerated when they do not
exist here: they stay in the echo and are not offered. All others are refused. Those with item types of their own are
in hosted_tools.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item
from stateroom.journal.hosted_items import LISTING, OWN_LABEL
from stateroom.wire.decoding import validate
from stateroom.wire.hosted_tools import FUNCTIONS, PROGRAMMATIC
from stateroom.wire.mcp import effect_of, is_allowed, mcp_function, needs_approval, parse_mcp
from stateroom.wire.mcp_tools import listed_tools
from stateroom.wire.skills import SKILLS_MAX, LocalSkill
from stateroom.wire.tool_choice import choose
from stateroom.wire.tool_types import Deferred, Function, ToolRef, ToolSet

FLAT_NAME_MAX: Final = 64

_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_-]")
_TOLERATED: Final = ("web_search", "image_generation")
DECLARING: Final = ("additional_tools", "tool_search_output")
"""Types of items that bring tools along. So does a list of the tools of an MCP server, when that is declared."""

_ADVICE: Final = {
    "file_search": "Search in your own code and declare a function tool for it.",
    "mcp": "Connect to the MCP server in your own code and declare its tools as functions.",
    "code_interpreter": "Declare a function tool and run the code yourself.",
    "shell": "Declare a function tool and run the commands yourself.",
    "local_shell": "Declare a function tool and run the commands yourself.",
    "apply_patch": "Declare a custom or function tool and apply the patch yourself.",
    "tool_search": "Leave it out: deferred tools are offered to the model at once.",
}


Callers: TypeAlias = list[Literal["direct", "programmatic"]] | None


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    is_async: bool | None = msgspec.field(name="async", default=None)
    allowed_callers: Callers = None
    output_schema: dict[str, Any] | None = None


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
    allowed_callers: Callers = None


class _Namespace(msgspec.Struct):
    name: str
    tools: list[dict[str, Any]]
    description: str | None = None


class _ToolSearch(msgspec.Struct):
    execution: Literal["server", "client"] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    allowed_callers: Callers = None


class _Environment(msgspec.Struct):
    type: Literal["container_auto", "container_reference", "local"]


class _Local(msgspec.Struct):
    skills: Annotated[list[LocalSkill], msgspec.Meta(max_length=SKILLS_MAX)] | None = None


class _Shell(msgspec.Struct):
    environment: _Environment | None = None
    allowed_callers: Callers = None


class _AutoContainer(msgspec.Struct, tag_field="type", tag="auto"):
    pass


class _CodeInterpreter(msgspec.Struct):
    container: str | _AutoContainer
    allowed_callers: Callers = None


class _Mcp(msgspec.Struct):
    server_label: str
    defer_loading: bool | None = None


class _Hosted(msgspec.Struct):
    allowed_callers: Callers = None


class _Programs(msgspec.Struct):
    pass


_LEADS_AWAY: Final = frozenset(("server_url", "command", "connector_id", "tunnel_id"))
"""Any of them says where an MCP server is."""

SHAPES: Final[dict[str, type[Any]]] = {
    "function": _Function,
    "custom": _Custom,
    "namespace": _Namespace,
    "tool_search": _ToolSearch,
    "shell": _Shell,
    "apply_patch": _Shell,
    "code_interpreter": _CodeInterpreter,
    "mcp": _Mcp,
    PROGRAMMATIC: _Programs,
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
    tools = list(tools)
    table = _Table(hosted or {}, tools)
    for position, tool in enumerate(tools):
        table.declare(tool, f"tools[{position}]")
    table.patches_go_where_the_shell_is()
    table.servers_go_where_the_shell_is()
    for item in items:
        if item.get("type") == LISTING:
            table.list_tools(item)
        elif item.get("type") in DECLARING:
            for position, tool in enumerate(item["tools"]):
                table.declare(tool, f"{item['type']}.tools[{position}]", again=True)
    table.settle()
    choice, allowed = choose(table, tool_choice)
    unlisted = tuple(label for label in table.servers if label not in table.listed)
    return ToolSet(
        tuple(function for flat, function in table.functions.items() if table.lookup[flat].direct),
        choice,
        allowed,
        table.lookup,
        environments=table.environments,
        places=table.places,
        servers=table.servers,
        unlisted=unlisted,
        deferred=tuple(table.deferred.values()),
        programmatic=tuple(function for flat, function in table.functions.items() if table.lookup[flat].programmatic),
    )


class _Table:
    """Tools while they are being declared."""

    def __init__(self, hosted: Mapping[str, Function], tools: Iterable[Mapping[str, Any]]) -> None:
        self.hosted = hosted
        self.searches = "tool_search" in hosted and any(
            tool.get("type") == "tool_search" and tool.get("execution") != "client" for tool in tools
        )
        """Whether deferred tools can be searched for here."""
        self.defers = self.searches or any(tool.get("type") == "tool_search" for tool in tools)
        """Whether they can be found at all, here or by the client, and need not be offered before."""
        self.deferred: dict[tuple[str, str], Deferred] = {}
        self.environments: dict[str, Mapping[str, Any]] = {}
        self.places: dict[str, str] = {}
        self.servers: dict[str, Mapping[str, Any]] = {}
        self.listed: dict[str, Item] = {}
        """By label: what the server last said of its tools."""
        self._found: set[tuple[str, str]] = set()
        """Tools of MCP servers, by label and name, that a search has found."""
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
        elif kind in SHAPES:
            self._typed(kind, tool, path, again)
        elif kind == "local_shell":
            self._add(ToolRef("typed", kind), FUNCTIONS[kind], path, again=True)
        elif kind in self.hosted:
            validate(tool, _Hosted, path)
            self._add(_called_by(tool, ToolRef("hosted", kind)), self.hosted[kind], path, again=True)
        elif kind.startswith(_TOLERATED):
            self.absent.add(kind)
        else:
            _refuse_type(kind, path)

    def _typed(self, kind: str, tool: Mapping[str, Any], path: str, again: bool) -> None:
        """A tool with an item type of its own, carried out here or by the client."""
        if kind in ("mcp", "code_interpreter", PROGRAMMATIC) and kind not in self.hosted:
            _refuse_type(kind, path)
        validate(tool, SHAPES[kind], path)
        if kind == "mcp":
            self._server(tool, path, again)
            return
        if kind == "tool_search":
            self._search(tool, path)
            return
        if kind == PROGRAMMATIC:
            self._add(ToolRef("typed", kind), self.hosted[kind], path, again=True)
            return
        environment = _environment(tool)
        if environment is not None and environment["type"] == "local":
            validate(environment, _Local, f"{path}.environment")
        elif environment is not None:
            if kind not in self.hosted:
                _refuse_type(kind, path)
            if again:
                _refuse_brought(kind, path)
            self.environments[kind] = environment
            self.places[kind] = f"{path}.{'container' if kind == 'code_interpreter' else 'environment'}"
        ref = _called_by(tool, ToolRef("typed", kind, hosted=kind in self.environments))
        self._add(ref, FUNCTIONS[kind], path, again=True)

    def _search(self, tool: Mapping[str, Any], path: str) -> None:
        function = FUNCTIONS["tool_search"]
        if tool.get("execution") != "client":
            if self.searches:
                self._add(_called_by(tool, ToolRef("typed", "tool_search", hosted=True)), function, path, again=True)
            return
        told, parameters = (
            tool.get("description") or function.description,
            tool.get("parameters") or function.parameters,
        )
        function = Function(function.name, told, parameters)
        self._add(_called_by(tool, ToolRef("typed", "tool_search")), function, path, again=True)

    def patches_go_where_the_shell_is(self) -> None:
        """A patch tool that names no place works in the container of the request's other tools, if they have one."""
        place = self.environments.get("shell") or self.environments.get("code_interpreter")
        flat = self.names.get(("", "apply_patch"))
        if place is not None and flat is not None and "apply_patch" in self.hosted:
            self.environments.setdefault("apply_patch", place)
            self.lookup[flat] = msgspec.structs.replace(self.lookup[flat], hosted=True)

    def servers_go_where_the_shell_is(self) -> None:
        """An MCP server that is a command runs in the container of the request's other tools, or one of the run's."""
        if any(parse_mcp(tool, "tools").command for tool in self.servers.values()):
            place = self.environments.get("shell") or self.environments.get("code_interpreter")
            self.environments.setdefault("mcp", place or {"type": "container_auto"})

    def _server(self, tool: Mapping[str, Any], path: str, again: bool) -> None:
        label = tool["server_label"]
        if again:
            if not path.startswith("tool_search_output"):
                _refuse_brought("mcp", path)
            self._found.update((label, name) for name in tool.get("allowed_tools") or () if isinstance(name, str))
            return
        if label == OWN_LABEL and not _LEADS_AWAY.intersection(tool):
            return  # clients that answer approvals by server declare the one of those tools that have none
        if not label or label in self.servers or label == OWN_LABEL:
            raise InvalidRequest(
                f"'{path}.server_label' must be a name that no other server of the request has.",
                code="duplicate_server_label",
                param=f"{path}.server_label",
            )
        self.servers[label] = tool
        parse_mcp(tool, path)

    def list_tools(self, item: Item) -> None:
        """Take in what an MCP server said of its tools; what it said last counts."""
        if item["server_label"] in self.servers and not item.get("error"):
            self.listed[item["server_label"]] = item

    def is_listed(self, reference: Mapping[str, Any]) -> bool:
        """Whether it is known which tools a reference stands for."""
        label = reference.get("server_label")
        return reference.get("type") != "mcp" or label not in self.servers or label in self.listed

    def settle(self) -> None:
        """Offer the tools of MCP servers that are known by now."""
        for label, item in self.listed.items():
            server = parse_mcp(self.servers[label], "tools")
            for tool in listed_tools(item):
                if not is_allowed(server, tool):
                    continue
                name: str = tool["name"]
                told = mcp_function(label, tool)
                function = Function(flat_name(name, label), told.description, told.parameters)
                if server.defer_loading and self.defers and (label, name) not in self._found:
                    found = {"type": "mcp", "server_label": label, "allowed_tools": [name]}
                    self.deferred[label, name] = Deferred(function, found)
                else:
                    asks, effect = needs_approval(server, tool), str(effect_of(tool))
                    ref = ToolRef("mcp", name, label, needs_approval=asks, effect=effect)
                    ref = _called_by({"allowed_callers": server.allowed_callers}, ref)
                    self._add(ref, function, "tools", again=True)

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
            self._callable(inner, kind, tool["name"], place, again, tool.get("description") or "")

    def _callable(
        self, tool: Mapping[str, Any], kind: str, namespace: str, path: str, again: bool, about: str = ""
    ) -> None:
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
        ref = _called_by(tool, ToolRef("function" if kind == "function" else "custom", name, namespace, is_async))
        if kind == "function":
            told, strict = tool.get("description") or "", bool(tool.get("strict"))
            function = Function("", told, tool.get("parameters"), strict, tool.get("output_schema"))
        else:
            function = _as_function(tool)
        if tool.get("defer_loading") and self.defers and not again:
            within = {"type": "namespace", "name": namespace, "description": about, "tools": [dict(tool)]}
            named = Function(flat_name(name, namespace), function.description, function.parameters)
            self.deferred[namespace, name] = Deferred(named, within if namespace else dict(tool))
            return
        self.deferred.pop((namespace, name), None)
        if tool.get("defer_loading") and path.startswith("tool_search_output"):
            ref = msgspec.structs.replace(ref, searched=True)
        self._add(ref, function, path, again=again)

    def _add(self, ref: ToolRef, function: Function, path: str, *, again: bool) -> None:
        key = (ref.namespace, ref.name)
        flat = self.names.get(key)
        if flat is not None and not again:
            raise InvalidRequest(
                f"The tool '{ref.name}' is declared twice.", code="duplicate_tool_name", param=f"{path}.name"
            )
        if flat is None:
            flat = function.name if ref.kind in ("hosted", "typed") else flat_name(ref.name, ref.namespace)
            if flat in self.lookup:
                flat = _marked(flat, f"{ref.kind} {ref.namespace} {ref.name}")
            self.names[key] = flat
            if ref.namespace:
                self.spaces.setdefault(ref.namespace, []).append(flat)
                self._within.setdefault(ref.name, []).append(flat)
                self._joined.setdefault(f"{ref.namespace}.{ref.name}", flat)
        self.functions[flat] = msgspec.structs.replace(function, name=flat)
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


def _called_by(tool: Mapping[str, Any], ref: ToolRef) -> ToolRef:
    """The tool with who may call it: the model, unless its declaration says otherwise."""
    callers = tool.get("allowed_callers")
    if callers is None:
        return ref
    return msgspec.structs.replace(ref, direct="direct" in callers, programmatic="programmatic" in callers)


def _refuse_brought(kind: str, path: str) -> NoReturn:
    raise InvalidRequest(
        f"A tool of type '{kind}' must stand in 'tools': what an item brings along is kept as it is, secrets included.",
        code="unsupported_tool",
        param=f"{path}.type",
    )


def _environment(tool: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Where a tool is to work, in the words of the shell tool; None: nothing is said of it."""
    if tool["type"] == "code_interpreter":
        container = tool["container"]
        if isinstance(container, str):
            return {"type": "container_reference", "container_id": container}
        return {**container, "type": "container_auto"}
    environment: Mapping[str, Any] | None = tool.get("environment")
    return environment


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


def count_tools(tools: Iterable[Mapping[str, Any]]) -> int:
    """How many tools are declared, those inside namespaces counted one by one."""
    inner = [tool.get("tools") for tool in tools]
    return sum(len(held) if isinstance(held, list) else 1 for held in inner)
