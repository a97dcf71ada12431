"""Whether traces are recorded, and where they go: as the settings or the standard `OTEL_*` variables say.

The tracing library is an extra. It is loaded only when something is configured.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

from stateroom.errors import StateroomError
from stateroom.settings import TelemetrySettings
from stateroom.telemetry.spans import Tracer

log = logging.getLogger("stateroom.telemetry")

_URL: Final = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def start_tracing(settings: TelemetrySettings, environment: Mapping[str, str]) -> Tracer | None:
    """The tracer, or None when nothing is configured. Raises StateroomError."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = any(environment.get(name) for name in _ENDPOINTS) and environment.get("OTEL_TRACES_EXPORTER") != "none"
    if not settings.otlp_endpoint and not named:
        return None
    if settings.otlp_endpoint and not _URL.fullmatch(settings.otlp_endpoint):
        raise StateroomError("`telemetry.otlp_endpoint` must be a base URL such as http://collector:4318.")
    try:
        from stateroom.telemetry.otel import OtelTracer, send_to  # lazy: an extra, and only a server that traces pays
    except ImportError:
        remedy = "Traces need the extra `otel`: pip install 'stateroom[otel]'."
        if settings.otlp_endpoint:
            raise StateroomError(f"`telemetry.otlp_endpoint` is set. {remedy}") from None
        # The variables may be there for all programs of a machine.
        log.warning("tracing.unavailable OTEL_EXPORTER_OTLP_ENDPOINT is set. %s", remedy)
        return None
    return OtelTracer(send_to(settings, environment))
