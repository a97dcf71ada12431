"""Everything that is counted, in one place, and the tracer if there is one. Parts are handed this and add to it."""

from __future__ import annotations

from stateroom.telemetry.metrics import Counter, Histogram, Histograms, WorkspaceMeter
from stateroom.telemetry.spans import Tracer


class Instruments:
    """The instruments of one server. What each of them means is said in exposition.py, where they are read."""

    __slots__ = (
        "backend_active",
        "backend_calls",
        "backend_first_token_seconds",
        "backend_seconds",
        "errors",
        "events",
        "first_token_seconds",
        "frames",
        "request_seconds",
        "requests",
        "requests_active",
        "run_seconds",
        "run_wait_seconds",
        "runs",
        "runs_started",
        "streams_active",
        "tokens",
        "tool_calls",
        "tool_seconds",
        "tracer",
        "workspaces",
    )

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.tracer = tracer
        self.requests = Counter()
        self.request_seconds = Histograms()
        self.requests_active = 0
        self.streams_active = 0
        self.errors = Counter()
        self.runs_started = Counter()
        self.runs = Counter()
        self.run_seconds = Histograms()
        self.run_wait_seconds = Histogram()
        self.first_token_seconds = Histograms()
        self.backend_active: dict[str, int] = {}
        self.backend_calls = Counter()
        self.backend_seconds = Histograms()
        self.backend_first_token_seconds = Histograms()
        self.tokens = Counter()
        self.tool_calls = Counter()
        self.tool_seconds = Histograms()
        self.workspaces = WorkspaceMeter()
        self.events = 0
        self.frames = 0
