"""Counters stay small whatever they are fed, and the text of `/metrics` is what its readers expect."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from stateroom.telemetry.exposition import METRICS, Exposition
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.metrics import OTHER, SERIES_MAX, CommitMeter, Counter, Histogram, Histograms, code_label

GAUGES = (
    "stateroom_sockets_active",
    "stateroom_runs_active",
    "stateroom_runs_waiting",
    "stateroom_journal_waiting",
    "stateroom_context_bytes",
    "stateroom_webhooks_pending",
    "stateroom_batches_active",
    "stateroom_mcp_connections",
    "stateroom_workspaces_live",
    "stateroom_content_bytes",
    "stateroom_egress_decisions",
    "stateroom_egress_sent_bytes",
    "stateroom_egress_received_bytes",
    "stateroom_egress_connections",
)


def exposition(instruments: Instruments, meter: CommitMeter | None = None) -> Exposition:
    return Exposition(instruments, meter or CommitMeter(), dict.fromkeys(GAUGES, lambda: 7), "1.2.3")


def scraped(shown: Exposition, accept: str = "") -> dict[str, Metric]:
    body, _ = shown.render(accept)
    read = read_openmetrics if "openmetrics" in accept else read_text
    families: Iterable[Metric] = read(body.decode())
    return {family.name: family for family in families}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [sample for family in families.values() for sample in family.samples]
    (found,) = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
    return float(found)


def test_more_label_values_than_there_may_be_are_counted_together() -> None:
    counter, timed = Counter(), Histograms()
    for number in range(SERIES_MAX + 100):
        counter.add((str(number), "x"))
        timed.observe((str(number),), 1.0)
    assert len(counter.values) == SERIES_MAX + 1
    assert counter.values[(OTHER, OTHER)] == 100
    assert len(timed.values) == SERIES_MAX + 1
    assert sum(timed.values[(OTHER,)].counts) == 100


def test_a_value_is_counted_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.11, 1.0, 1.01, 99.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 2, 2]
    assert histogram.sum == pytest.approx(101.22)


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("context_length_exceeded", "context_length_exceeded"),
        ("rate.limit", "rate.limit"),
        ("", OTHER),
        ("Bearer sk-secret", OTHER),
        ("a" * 65, OTHER),
        ("ключ", OTHER),
    ],
)
def test_a_code_is_a_label_only_when_it_is_a_plain_word(code: str, label: str) -> None:
    assert code_label(code) == label


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "application/openmetrics-text; version=1.0.0"])
def test_every_metric_is_shown_and_no_other_of_ours(accept: str) -> None:
    shown = scraped(exposition(Instruments()), accept)
    kinds = {name: family.type for name, family in shown.items() if name.startswith("stateroom_")}
    assert kinds == {metric.name: metric.type for metric in METRICS}
    assert shown["process_resident_memory_bytes"].samples[0].value > 0


def test_what_was_counted_is_what_is_shown() -> None:
    instruments, meter = Instruments(), CommitMeter()
    instruments.requests.add(("POST", "/v1/responses", "200"), 3)
    instruments.run_seconds.observe(("responses",), 0.3)
    instruments.events = 11
    instruments.backend_active["b"] = 2
    meter.changes = 5
    meter.commit_seconds.observe(0.0002)
    shown = scraped(exposition(instruments, meter))
    assert value(shown, "stateroom_http_requests_total", method="POST", route="/v1/responses", status="200") == 3
    assert value(shown, "stateroom_events_total") == 11
    assert value(shown, "stateroom_run_seconds_bucket", surface="responses", le="0.25") == 0
    assert value(shown, "stateroom_run_seconds_bucket", surface="responses", le="0.5") == 1
    assert value(shown, "stateroom_run_seconds_bucket", surface="responses", le="+Inf") == 1
    assert value(shown, "stateroom_run_seconds_sum", surface="responses") == 0.3
    assert value(shown, "stateroom_backend_calls_active", backend="b") == 2
    assert value(shown, "stateroom_journal_changes_total") == 5
    assert value(shown, "stateroom_journal_commit_seconds_count") == 1
    assert value(shown, "stateroom_runs_waiting") == 7
    assert value(shown, "stateroom_build_info", version="1.2.3") == 1


def test_a_scrape_beside_a_thread_that_counts_breaks_neither() -> None:
    instruments, over = Instruments(), threading.Event()

    def count() -> None:
        number = 0
        while not over.is_set():
            instruments.errors.add(("run", f"code_{number % 400}"))
            instruments.run_seconds.observe((f"surface_{number % 400}",), 1.0)
            number += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        shown = exposition(instruments)
        for _ in range(20):
            scraped(shown)
    finally:
        over.set()
        thread.join()
