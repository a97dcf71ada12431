"""The seam to hosted tools: what the runtime itself carries out when a model calls it.

A tool says beforehand what a call does to the world. On that word alone a crash is handled: a `read` or `idempotent`
call that was cut off is made again, an `effect` never is; its outcome is recorded as unknown and the model is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from stateroom.journal.entries import Effect, Item


class ToolCall(msgspec.Struct, frozen=True):
    """One call of a hosted tool."""

    id: str
    """An idempotency key: the id of the call's item, the same in every attempt at it and never another call's."""
    project: str
    run_id: str
    call_id: str
    """What the model's server calls it: two calls of one run may have the same."""
    name: str
    """As the model knows the tool."""
    arguments: str
    """JSON, as the model wrote it: not validated. Empty where the item has it in fields of its own."""
    attempt: int = 1
    """Above 1 when a crash cut off an earlier attempt."""
    item: Item = {}
    """The call's item, packed."""
    declaration: Mapping[str, Any] = {}
    """Of the MCP server whose tool it is, secrets included."""
    workspace: Callable[[], Awaitable[Any]] | None = None
    """Opens the container (a `workspaces.live.workspace.Workspace`) that the call works in."""


class ToolResult(msgspec.Struct, frozen=True):
    """What came of it."""

    output: str = ""
    """What the model is told, where `fields` and `item` do not say it."""
    failed: bool = False
    unknown: bool = False
    """Nobody can say whether it took effect."""
    fields: dict[str, Any] | None = None
    """What the call's item gains."""
    item: Item | None = None
    """The item of the result, for tools that have one."""
    images: tuple[bytes, ...] = ()
    """PNG: they join `fields["outputs"]`."""


class HostedFunction(msgspec.Struct, frozen=True):
    """A function that the tool offers to the model."""

    name: str
    description: str
    parameters: dict[str, Any]


Printed = Callable[[int, str, str], None]
"""Told what a command says while it runs: the position of the command in its call, stdout, stderr."""


class Tool(Protocol):
    """A hosted tool, declared by clients as `{"type": TYPE, ...}`."""

    type: str
    """Prefixed `stateroom:` unless it is one of OpenAI's."""

    @property
    def function(self) -> HostedFunction | None:
        """What the model may call; None for types whose functions are known elsewhere."""
        ...

    def effect(self, call: ToolCall) -> Effect:
        """What this call would do to the world."""
        ...

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        """Carry it out. Ordinary failures are a failed result, not an exception."""
        ...
