"""Spans on OpenTelemetry. The only module that knows the library; loaded only when traces are configured."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, TraceState

from stateroom.settings import TelemetrySettings
from stateroom.telemetry.context import TraceContext
from stateroom.telemetry.spans import Attributes, SpanKind

CLOSE_SECONDS: Final = 3.0
"""How long the last spans may take to be sent when the server stops."""

_KINDS: Final = {"server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT, "internal": trace.SpanKind.INTERNAL}


def send_to(settings: TelemetrySettings, environment: Mapping[str, str]) -> TracerProvider:
    """A provider that sends spans to a collector. What the settings leave open is read from the standard variables."""
    attributes = {"service.version": version("stateroom")}
    if not environment.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "stateroom"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces" if settings.otlp_endpoint else None
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


class OtelSpan:
    """Implements `spans.Span`."""

    __slots__ = ("_span", "context")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        held = span.get_span_context()
        flags = f"{int(held.trace_flags):02x}"
        state = held.trace_state.to_header() if held.trace_state else ""
        self.context = TraceContext(f"{held.trace_id:032x}", f"{held.span_id:016x}", flags, state, own=True)

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, dict(attributes))

    def end(self, attributes: Attributes, *, name: str = "", error: str = "") -> None:
        span = self._span
        if name:
            span.update_name(name)
        span.set_attributes(dict(attributes))
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class OtelTracer:
    """Implements `spans.Tracer`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("stateroom", version("stateroom"))

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: TraceContext | None,
        link: TraceContext | None = None,
    ) -> OtelSpan:
        # The context is given, never taken from the library's own: that one is the embedding program's.
        context = trace.set_span_in_context(NonRecordingSpan(_context(parent)), Context()) if parent else Context()
        links = [Link(_context(link), {"stateroom.link": "taken_up"})] if link is not None else None
        span = self._tracer.start_span(name, context, _KINDS[kind], dict(attributes), links)
        return OtelSpan(span)

    def close(self) -> None:
        # Not by a thread that the interpreter waits for: a collector that is gone must not hold up the stop.
        closing = threading.Thread(target=self._provider.shutdown, name="stateroom-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def _context(held: TraceContext) -> SpanContext:
    return SpanContext(
        int(held.trace_id, 16),
        int(held.span_id, 16),
        is_remote=not held.own,
        trace_flags=TraceFlags(int(held.flags, 16) & 1),
        trace_state=TraceState.from_header([held.state]) if held.state else None,
    )
