"""The seam to hosted tools: what the runtime itself carries out when a model calls it.

A tool says beforehand what a call does to the world. On that word alone a crash is handled: a `read` or `idempotent`
call that was cut off is made again, an `effect` never is; its outcome is recorded as unknown and the model is told.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from stateroom.journal.entries import Effect


class ToolCall(msgspec.Struct, frozen=True):
    """One call of a hosted tool."""

    id: str
    """An idempotency key: the id of the call's item, the same in every attempt at it and never another call's."""
    project: str
    run_id: str
    call_id: str
    """What the model's server calls it: two calls of one run may have the same."""
    name: str
    arguments: str
    """JSON, as the model wrote it: not validated."""
    attempt: int = 1
    """Above 1 when a crash cut off an earlier attempt."""


class ToolResult(msgspec.Struct, frozen=True):
    """What the model is told."""

    output: str
    failed: bool = False


class HostedFunction(msgspec.Struct, frozen=True):
    """A function that the tool offers to the model."""

    name: str
    description: str
    parameters: dict[str, Any]


class Tool(Protocol):
    """A hosted tool, declared by clients as `{"type": TYPE, ...}`."""

    type: str
    """Prefixed `stateroom:` unless it is one of OpenAI's."""

    @property
    def function(self) -> HostedFunction:
        """What the model may call."""
        ...

    def effect(self, call: ToolCall) -> Effect:
        """What this call would do to the world."""
        ...

    async def run(self, call: ToolCall) -> ToolResult:
        """Carry it out. Ordinary failures are a failed result, not an exception."""
        ...
