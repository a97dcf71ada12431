"""Tracing is there when it is configured, and costs nothing when it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stateroom.errors import StateroomError
from stateroom.settings import TelemetrySettings
from stateroom.telemetry.spans import Tracer
from stateroom.telemetry.tracing import start_tracing

CLOSED = "http://127.0.0.1:9"


def close(tracer: Tracer | None) -> None:
    assert tracer is not None
    tracer.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": CLOSED, "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": CLOSED, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert start_tracing(TelemetrySettings(), environment) is None


def test_the_settings_or_the_standard_variables_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    close(start_tracing(TelemetrySettings(otlp_endpoint=CLOSED), {}))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", CLOSED)
    close(start_tracing(TelemetrySettings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": CLOSED}))


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://user:pass@collector", "http://a b"])
def test_an_endpoint_that_cannot_be_is_told_at_the_start(endpoint: str) -> None:
    with pytest.raises(StateroomError, match=r"telemetry\.otlp_endpoint"):
        start_tracing(TelemetrySettings(otlp_endpoint=endpoint), {})


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_server_loads_neither_library_before_it_needs_it() -> None:
    loaded = run(
        "import sys, stateroom.serving\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'prometheus_client')])"
    )
    assert loaded == "[]"


def test_without_the_extra_the_settings_are_refused_and_the_variables_are_passed_over() -> None:
    said = run(
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from stateroom.errors import StateroomError\n"
        "from stateroom.settings import TelemetrySettings\n"
        "from stateroom.telemetry.tracing import start_tracing\n"
        f"print(start_tracing(TelemetrySettings(), {{'OTEL_EXPORTER_OTLP_ENDPOINT': {CLOSED!r}}}))\n"
        "try:\n"
        f"    start_tracing(TelemetrySettings(otlp_endpoint={CLOSED!r}), {{}})\n"
        "except StateroomError as error:\n"
        "    print(error.message)\n"
    )
    assert said.splitlines() == [
        "None",
        "`telemetry.otlp_endpoint` is set. Traces need the extra `otel`: pip install 'stateroom[otel]'.",
    ]
