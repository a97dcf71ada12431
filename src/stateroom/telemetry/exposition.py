"""What `/metrics` says: the instruments, read when asked for, in the text format of Prometheus. It counts nothing.

The client library is imported with the first scrape: a server that nobody scrapes does not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.metrics import CommitMeter, Counter, Histogram, Histograms, Labels

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Read: TypeAlias = Callable[[], "float | Counter"]
Gauges: TypeAlias = Mapping[str, Read]
"""What is looked up, or counted elsewhere: by the name of its metric."""


class Described(msgspec.Struct, frozen=True):
    """A metric, as docs/reference/metrics.md lists it."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    Described("stateroom_build_info", "gauge", "1; the version stands in the label.", ("version",)),
    Described(
        "stateroom_http_requests",
        "counter",
        "Answered requests; a WebSocket counts when it ends, as status 101.",
        ("method", "route", "status"),
    ),
    Described(
        "stateroom_http_request_seconds", "histogram", "From a request's head to the end of its answer.", ("route",)
    ),
    Described("stateroom_http_requests_active", "gauge", "Requests that are being answered, streams included."),
    Described("stateroom_streams_active", "gauge", "Streams of events over HTTP that are being sent."),
    Described("stateroom_sockets_active", "gauge", "Open WebSockets."),
    Described(
        "stateroom_errors",
        "counter",
        "Errors by code: answered (http, socket), of runs (run), of calls to model servers (backend).",
        ("where", "code"),
    ),
    Described(
        "stateroom_runs_started",
        "counter",
        "Runs begun by this process, by how they are read; taken_up: those that an earlier process had begun.",
        ("surface", "mode", "taken_up"),
    ),
    Described(
        "stateroom_runs",
        "counter",
        "Runs (turns) that are over, by status; parked: left to the next start; given_up: not written to their end.",
        ("surface", "status"),
    ),
    Described("stateroom_run_seconds", "histogram", "From a run's begin in this process to its end.", ("surface",)),
    Described("stateroom_run_wait_seconds", "histogram", "From a run's begin until it gets a place."),
    Described(
        "stateroom_run_first_token_seconds",
        "histogram",
        "From a run's begin to the first piece of its first answer.",
        ("surface",),
    ),
    Described("stateroom_runs_active", "gauge", "Runs that are being carried out."),
    Described("stateroom_runs_waiting", "gauge", "Runs that wait for a place (`limits.runs`)."),
    Described("stateroom_events", "counter", "Events of streams that were committed and shown."),
    Described("stateroom_frames", "counter", "Batches in which they were committed."),
    Described("stateroom_backend_calls_active", "gauge", "Calls to model servers that go on.", ("backend",)),
    Described(
        "stateroom_backend_calls",
        "counter",
        "Calls to model servers, each try by itself; outcome: ok, cancelled, or the error's code.",
        ("backend", "model", "outcome"),
    ),
    Described("stateroom_backend_call_seconds", "histogram", "How long such a call took.", ("backend",)),
    Described(
        "stateroom_backend_first_token_seconds",
        "histogram",
        "From its begin to its answer's first piece.",
        ("backend",),
    ),
    Described(
        "stateroom_tokens",
        "counter",
        "Tokens of answers, as model servers report them; cached is a part of input, reasoning of output.",
        ("backend", "model", "type"),
    ),
    Described("stateroom_tool_calls", "counter", "Calls of hosted tools: ok, failed or broke.", ("tool", "outcome")),
    Described("stateroom_tool_call_seconds", "histogram", "How long such a call took.", ("tool",)),
    Described("stateroom_mcp_connections", "gauge", "Open connections to MCP servers."),
    Described("stateroom_workspaces_live", "gauge", "Workspaces that have processes (`workspaces.live`)."),
    Described(
        "stateroom_workspace_starts",
        "counter",
        "Starts of a workspace's processes; outcome: ok, or the error's code.",
        ("driver", "outcome"),
    ),
    Described("stateroom_workspace_start_seconds", "histogram", "How long one that succeeded took."),
    Described("stateroom_workspace_breaches", "counter", "Times that processes were ended for a limit of theirs."),
    Described("stateroom_workspace_commits", "counter", "Commits of files and variables to the content store."),
    Described("stateroom_workspace_commit_bytes", "counter", "Bytes of files that were new to it."),
    Described("stateroom_workspace_commit_seconds", "histogram", "How long a commit took."),
    Described("stateroom_content_bytes", "gauge", "Size of the content store on the disk."),
    Described(
        "stateroom_egress_decisions",
        "counter",
        "What sandboxes asked to reach: allowed, refused, or failed on the other side; reason as the log has it.",
        ("verdict", "reason"),
    ),
    Described("stateroom_egress_sent_bytes", "counter", "Bytes that sandboxes sent, by finished connections."),
    Described("stateroom_egress_received_bytes", "counter", "Bytes that they were sent."),
    Described("stateroom_egress_connections", "gauge", "Connections of sandboxes to the proxy."),
    Described("stateroom_journal_changes", "counter", "Changes that were handed to the journal's writer."),
    Described("stateroom_journal_failures", "counter", "Those of them that were refused or failed."),
    Described("stateroom_journal_commit_seconds", "histogram", "How long a commit took, with all that went into it."),
    Described("stateroom_journal_wait_seconds", "histogram", "How long a commit's first change had waited for it."),
    Described("stateroom_journal_waiting", "gauge", "Changes that wait for a commit."),
    Described("stateroom_context_bytes", "gauge", "Memory of the folded state of branches (estimated)."),
    Described("stateroom_batches_active", "gauge", "Batches that are being worked at."),
    Described("stateroom_webhooks_pending", "gauge", "Webhook deliveries that wait for a try, or for their next one."),
)

_OPENMETRICS: Final = "application/openmetrics-text"


class Exposition:
    """Renders the instruments of a server."""

    def __init__(self, instruments: Instruments, journal: CommitMeter, gauges: Gauges, version: str) -> None:
        self._instruments = instruments
        self._journal = journal
        self._gauges = gauges
        self._version = version
        self._process: Any = None

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type, in the format that the scraper prefers."""
        from prometheus_client.exposition import choose_encoder  # lazy: only a server that is scraped needs it

        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterable[Metric]:
        """Implements a registry of the library."""
        from prometheus_client.process_collector import ProcessCollector  # lazy: as above

        if self._process is None:
            self._process = ProcessCollector(registry=None)
        held = self._held()
        for described in METRICS:
            yield _family(described, held[described.name])
        yield from self._process.collect()

    def _held(self) -> dict[str, Any]:
        own, journal, places = self._instruments, self._journal, self._instruments.workspaces
        return {
            "stateroom_build_info": {(self._version,): 1},
            "stateroom_http_requests": own.requests,
            "stateroom_http_request_seconds": own.request_seconds,
            "stateroom_http_requests_active": own.requests_active,
            "stateroom_streams_active": own.streams_active,
            "stateroom_errors": own.errors,
            "stateroom_runs_started": own.runs_started,
            "stateroom_runs": own.runs,
            "stateroom_run_seconds": own.run_seconds,
            "stateroom_run_wait_seconds": own.run_wait_seconds,
            "stateroom_run_first_token_seconds": own.first_token_seconds,
            "stateroom_events": own.events,
            "stateroom_frames": own.frames,
            "stateroom_backend_calls_active": {(name,): count for name, count in own.backend_active.items()},
            "stateroom_backend_calls": own.backend_calls,
            "stateroom_backend_call_seconds": own.backend_seconds,
            "stateroom_backend_first_token_seconds": own.backend_first_token_seconds,
            "stateroom_tokens": own.tokens,
            "stateroom_tool_calls": own.tool_calls,
            "stateroom_tool_call_seconds": own.tool_seconds,
            "stateroom_workspace_starts": places.starts,
            "stateroom_workspace_start_seconds": places.start_seconds,
            "stateroom_workspace_breaches": places.breaches,
            "stateroom_workspace_commits": places.commits,
            "stateroom_workspace_commit_bytes": places.commit_bytes,
            "stateroom_workspace_commit_seconds": places.commit_seconds,
            "stateroom_journal_changes": journal.changes,
            "stateroom_journal_failures": journal.failures,
            "stateroom_journal_commit_seconds": journal.commit_seconds,
            "stateroom_journal_wait_seconds": journal.wait_seconds,
            **{name: read() for name, read in self._gauges.items()},
        }


def _family(described: Described, held: Any) -> Metric:
    from prometheus_client import metrics_core  # lazy: as above

    if described.type == "histogram":
        timed = metrics_core.HistogramMetricFamily(described.name, described.help, labels=described.labels)
        for labels, histogram in _histograms(held):
            timed.add_metric(labels, _buckets(histogram), histogram.sum)
        return timed
    kind = metrics_core.CounterMetricFamily if described.type == "counter" else metrics_core.GaugeMetricFamily
    counted = kind(described.name, described.help, labels=described.labels)
    for labels, value in _values(held):
        counted.add_metric(labels, value)
    return counted


def _values(held: Counter | Mapping[Labels, float] | float) -> Iterator[tuple[Labels, float]]:
    if isinstance(held, int | float):
        yield (), held
        return
    # A copy, made at once: the journal's thread and this one may add meanwhile.
    yield from dict(held.values if isinstance(held, Counter) else held).items()


def _histograms(held: Histogram | Histograms) -> Iterator[tuple[Labels, Histogram]]:
    if isinstance(held, Histogram):
        yield (), held
        return
    yield from dict(held.values).items()


def _buckets(histogram: Histogram) -> list[Any]:
    """Cumulative counts by upper bound, as the format has them."""
    total, buckets = 0, []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
