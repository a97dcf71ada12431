"""What a run's model is offered, and the tools that stand behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

Choice: TypeAlias = str | tuple[str, ...]
"""none, auto, required, or the flat names of which one must be called."""


class Function(msgspec.Struct, frozen=True):
    """A function as the model is told of it."""

    name: str
    """Unique; at most 64 characters of A-Z, a-z, 0-9, `_` and `-`."""
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False
    output_schema: dict[str, Any] | None = None
    """What it answers with, where that is declared: for programs."""


class ToolRef(msgspec.Struct, frozen=True):
    """The tool behind a function's name."""

    kind: Literal["function", "custom", "hosted", "typed", "mcp"]
    """typed: its calls have an item type of their own. hosted: they have the one of all such tools of this server."""
    name: str
    """As it was declared; the tool's type when it is hosted or typed."""
    namespace: str = ""
    """The label of its server, for a tool of an MCP server."""
    is_async: bool = False
    hosted: bool = False
    """Of a typed tool: the runtime carries it out, not the client."""
    needs_approval: bool = False
    """Of a tool of an MCP server: the client is asked before it is called."""
    effect: str = "effect"
    """Of a tool of an MCP server: what it says it does to the world."""
    direct: bool = True
    """The model may call it."""
    programmatic: bool = False
    """Programs that the model writes may call it."""
    searched: bool = False
    """A search has found it. Of a tool without a namespace, calls then have its own name as theirs."""


class Deferred(msgspec.Struct, frozen=True):
    """A tool that a model is not offered before a search has found it."""

    function: Function
    declaration: Mapping[str, Any]
    """What a search that finds it gives."""


class ToolSet(msgspec.Struct, frozen=True):
    """What a model is offered and what it may and must call."""

    functions: tuple[Function, ...] = ()
    """Everything that stays in the prompt, in the order of declaration."""
    choice: Choice = "auto"
    allowed: frozenset[str] | None = None
    """The flat names that may be called at all; None: every one."""
    lookup: dict[str, ToolRef] = {}
    """From flat names to tools."""
    environments: dict[str, Mapping[str, Any]] = {}
    """By type of the tools that work in a container: which one their declarations ask for."""
    places: dict[str, str] = {}
    """By the same types: where in the request it is asked for."""
    servers: dict[str, Mapping[str, Any]] = {}
    """MCP servers by label: their declarations."""
    unlisted: tuple[str, ...] = ()
    """Those of them whose tools are not known yet."""
    deferred: tuple[Deferred, ...] = ()
    programmatic: tuple[Function, ...] = ()
    """What programs may call, in the order of declaration."""
