"""The seam to tracing: what is said of spans. Who records them is in otel.py, which is loaded only when configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from stateroom.telemetry.context import TraceContext

Value: TypeAlias = str | int | float | bool | Sequence[str]
Attributes: TypeAlias = Mapping[str, Value]
SpanKind: TypeAlias = Literal["server", "client", "internal"]


class Span(Protocol):
    """Something that takes time. Its attributes say what, never with which content."""

    context: TraceContext

    def event(self, name: str, attributes: Attributes) -> None:
        """Something that happened meanwhile."""
        ...

    def end(self, attributes: Attributes, *, name: str = "", error: str = "") -> None:
        """It is over. `name` replaces what it was called; `error` says why it failed, as one fixed word."""
        ...


class Tracer(Protocol):
    """Where spans are begun."""

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: TraceContext | None,
        link: TraceContext | None = None,
    ) -> Span:
        """Begin a span below `parent`; without one it begins a trace."""
        ...

    def close(self) -> None:
        """Send what is left, for a short while. Blocks."""
        ...
