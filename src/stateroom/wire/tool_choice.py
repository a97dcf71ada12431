"""`tool_choice`, from the caller's words to the names of what must and what may be called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, Protocol

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item
from stateroom.wire.tool_types import Choice, ToolRef


class Declared(Protocol):
    """The tools of a request, as `wire.tools` has them."""

    lookup: dict[str, ToolRef]
    names: dict[tuple[str, str], str]
    spaces: dict[str, list[str]]
    servers: dict[str, Mapping[str, Any]]
    listed: dict[str, Item]
    absent: set[str]

    def find(self, name: str, namespace: str | None, kind: str) -> str | None: ...

    def is_listed(self, reference: Mapping[str, Any]) -> bool: ...


def choose(table: Declared, given: Any) -> tuple[Choice, frozenset[str] | None]:
    """`tool_choice` in flat names: what must happen, and what may."""
    if given is None or given in ("auto", "none"):
        return given or "auto", None
    if given == "required":
        _need_callable(table, [name for name, ref in table.lookup.items() if ref.direct])
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
    if not names and not table.is_listed(given):
        return "auto", None  # it is looked at again when the server has said which tools it has
    if not names:
        _refuse_absent(given["type"], "tool_choice")
    if not any(table.lookup[name].direct for name in names):
        raise InvalidRequest(
            "'tool_choice' names a tool that only programs may call (`allowed_callers`).",
            code="invalid_value",
            param="tool_choice",
        )
    return names, None


def _allowed(table: Declared, given: dict[str, Any]) -> tuple[Choice, frozenset[str]]:
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
        _need_callable(table, allowed)
    return mode, frozenset(allowed)


def _place(reference: Any) -> tuple[str, ...]:
    fields = ("type", "name", "namespace", "server_label")
    return tuple(repr(reference.get(field)) for field in fields) if isinstance(reference, dict) else ("",)


def _named(table: Declared, reference: Any, path: str) -> Iterator[str]:
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
    elif ("", kind) in table.names and table.lookup[table.names["", kind]].kind in ("hosted", "typed"):
        yield table.names["", kind]
    elif kind == "mcp" and (label := reference.get("server_label")) in table.servers:
        wanted = [flat for (space, each), flat in table.names.items() if space == label and name in (None, each)]
        if not wanted and label in table.listed:
            raise InvalidRequest(
                f"'{path}' names a tool that the MCP server '{label[:64]}' does not have.",
                code="invalid_value",
                param=path,
            )
        yield from wanted
    elif kind not in table.absent:
        raise InvalidRequest(
            f"'{path}' names the tool '{kind[:64]}', which is not declared in 'tools'.",
            code="invalid_value",
            param=path,
        )


def _need_callable(table: Declared, names: Iterable[str]) -> None:
    if not any(True for _ in names) and table.servers.keys() <= table.listed.keys():
        raise InvalidRequest(
            "'tool_choice' requires a tool call, but no tool that can be called here is declared.",
            code="unsupported_tool",
            param="tool_choice",
        )


def _refuse_absent(kind: str, path: str) -> NoReturn:
    raise InvalidRequest(
        f"'{path}' asks for '{kind[:64]}', which this server does not have.", code="unsupported_tool", param=path
    )
