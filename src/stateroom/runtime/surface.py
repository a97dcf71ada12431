"""The seam to the surfaces: what the runtime needs of somebody's wire format, and no more.

A run is handed its surface's renderer at the start, and again when it is resumed. The runtime calls it with neutral
facts and commits the bytes that it takes out; what those bytes say it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stateroom.agent.assembler import CallShape, Listener
from stateroom.journal.entries import Frame, Item, OpenItem, RunSettings, RunView
from stateroom.models.backend import FunctionSpec


class Renderer(Listener, Protocol):
    """From run state and deltas to numbered, encoded events."""

    def begin(self, view: RunView) -> None: ...
    def proceed(self, view: RunView) -> None: ...
    def item_abandoned(self, index: int) -> None: ...
    def end(self, view: RunView) -> None: ...

    def take(self) -> Frame | None:
        """Everything since the last take; None when nothing happened."""
        ...


class ToolPlan(Protocol):
    """What a run's model may call and must call."""

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

    def shape_of(self, name: str) -> CallShape | None:
        """How a call by this name is written as an item; None when there is no such function."""
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
        """The tools of a run. Raises InvalidRequest."""
        ...


class NoTools:
    """The plan of a run without tools."""

    functions: Sequence[FunctionSpec] = ()
    choice: str | tuple[str, ...] = "none"
    allowed: frozenset[str] | None = None

    def shape_of(self, name: str) -> CallShape | None:
        return None
