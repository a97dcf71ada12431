"""A collector of traces: takes OTLP over HTTP as any of them does, and keeps the spans for the tests."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.acceptance.modelhost import until


class Collected:
    """A span."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.name: str = span.name
        self.trace_id: str = span.trace_id.hex()
        self.span_id: str = span.span_id.hex()
        self.parent_id: str = span.parent_span_id.hex()
        self.attributes = {each.key: _value(each.value) for each in span.attributes}
        self.events: list[str] = [event.name for event in span.events]
        self.links: list[tuple[str, str]] = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.failed: bool = span.status.code == 2
        self.resource = resource


class Collector:
    """Listens on a port of its own."""

    def __init__(self) -> None:
        self.spans: list[Collected] = []
        self.bodies: list[bytes] = []
        """What came in, unpacked."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, name: str, count: int = 1) -> list[Collected]:
        """The spans of a name, once there are so many. Spans come a second or two late."""
        until(lambda: len(self.named(name)) >= count, f"{count} spans {name}")
        return self.named(name)

    def named(self, name: str) -> list[Collected]:
        return [span for span in self.spans if span.name == name]

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        self.bodies.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {each.key: _value(each.value) for each in group.resource.attributes}
            self.spans += [Collected(span, resource) for scope in group.scope_spans for span in scope.spans]


def _value(held: Any) -> Any:
    kind = held.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in held.array_value.values]
    return getattr(held, kind) if kind else None
