"""The seam to the surfaces: what the runtime needs of somebody's wire format, and no more.

A run is handed its surface's renderer at the start, and again when it is resumed. The runtime calls it with neutral
facts and commits the bytes that it takes out; what those bytes say it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from stateroom.agent.assembler import CallShape, Listener
from stateroom.journal.entries import Frame, Item, OpenItem, RunSettings, RunView, WorkspaceAt
from stateroom.models.backend import FunctionSpec
from stateroom.tools.program.contract import ProgramTool


class Renderer(Listener, Protocol):
    """From run state and deltas to numbered, encoded events."""

    def begin(self, view: RunView) -> None: ...
    def proceed(self, view: RunView) -> None: ...
    def item_abandoned(self, index: int) -> None: ...
    def printed(self, index: int, command: int, stdout: str, stderr: str) -> None: ...
    def end(self, view: RunView) -> None: ...

    def take(self) -> Frame | None:
        """Everything since the last take; None when nothing happened."""
        ...


class ToolPlan(Protocol):
    """What a run's model may call and must call."""

    told: str
    """What the model is told besides its instructions. To be filled in before it is asked."""
    base: WorkspaceAt | None
    """How the container was left with which it goes on. To be filled in with `containers`."""
    fingerprint: Callable[[str], str]
    """Makes the fingerprint of a program from its code. To be filled in before the model is asked."""

    @property
    def functions(self) -> Sequence[FunctionSpec]:
        """Everything that stays in the prompt."""
        ...

    @property
    def choice(self) -> str | tuple[str, ...]:
        """none, auto, required, or the names of which one must be called."""
        ...

    @property
    def allowed(self) -> frozenset[str] | None:
        """A hard constraint on what may be called; None: no constraint."""
        ...

    @property
    def environments(self) -> Mapping[str, Mapping[str, Any]]:
        """By type of the hosted tools that work in a container: which one is asked for."""
        ...

    @property
    def places(self) -> Mapping[str, str]:
        """By the same types: where in the request that is said; a type that works where another does has none."""
        ...

    @property
    def containers(self) -> dict[str, str]:
        """By the same types: which one it is. To be filled in before a call is made."""
        ...

    @property
    def servers(self) -> Mapping[str, Mapping[str, Any]]:
        """MCP servers by label: their declarations, secrets included."""
        ...

    @property
    def unlisted(self) -> Sequence[str]:
        """Those of them whose tools are not known yet."""
        ...

    @property
    def deferred(self) -> Sequence[DeferredTool]:
        """Tools that are offered only once a search has found them."""
        ...

    @property
    def programmatic(self) -> Sequence[ProgramTool]:
        """What programs may call."""
        ...

    def nested(self, name: str, call_id: str, arguments: str) -> Item | None:
        """The item of a call that a program makes, as if the model had made it; None when programs may not."""
        ...

    def name_of(self, label: str, name: str) -> str:
        """Under which name the model knows a tool of an MCP server; '' when it does not."""
        ...

    def shape_of(self, name: str) -> CallShape | None:
        """How a call by this name is written as an item; None when there is no such function."""
        ...


class DeferredTool(Protocol):
    """One of them."""

    @property
    def function(self) -> Any:
        """Its name, description and parameters."""
        ...

    @property
    def declaration(self) -> Mapping[str, Any]:
        """What a search that finds it gives."""
        ...


class Surface(Protocol):
    """One API family over the runtime."""

    name: str
    one_off: bool
    """Its runs stand alone: none is continued, no stream is read again, and one that failed leaves nothing."""

    def renderer(self, view: RunView, *, obfuscate: bool) -> Renderer: ...

    def restore(self, view: RunView, frames: Sequence[Frame], *, obfuscate: bool) -> tuple[Renderer, list[OpenItem]]:
        """The renderer as it stood after these committed frames, and the items that they left open."""
        ...

    def plan(self, settings: RunSettings, items: Sequence[Item]) -> ToolPlan:
        """The tools of a run, whose settings hold the secrets of declarations in clear. Raises InvalidRequest."""
        ...


class NoTools:
    """The plan of a run without tools."""

    functions: Sequence[FunctionSpec] = ()
    choice: str | tuple[str, ...] = "none"
    allowed: frozenset[str] | None = None
    environments: Mapping[str, Mapping[str, Any]] = {}
    places: Mapping[str, str] = {}
    servers: Mapping[str, Mapping[str, Any]] = {}
    unlisted: Sequence[str] = ()
    deferred: Sequence[DeferredTool] = ()
    programmatic: Sequence[ProgramTool] = ()

    def __init__(self) -> None:
        self.containers: dict[str, str] = {}
        self.told = ""
        self.base: WorkspaceAt | None = None
        self.fingerprint: Callable[[str], str] = lambda code: ""

    def name_of(self, label: str, name: str) -> str:
        return ""

    def nested(self, name: str, call_id: str, arguments: str) -> Item | None:
        return None

    def shape_of(self, name: str) -> CallShape | None:
        return None
