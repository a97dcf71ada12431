"""Watching runs: what is counted and traced of each. It reads and never decides; a run goes the same way without it."""

from __future__ import annotations

import logging
from typing import Any

from stateroom.clock import Clock, SystemClock
from stateroom.journal.entries import RunSettings
from stateroom.models.watch import usage_attributes
from stateroom.runtime.live import LiveRun
from stateroom.telemetry.context import current_request, current_trace
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.metrics import code_label
from stateroom.telemetry.spans import Tracer, Value

log = logging.getLogger("stateroom.runtime")


class RunWatch:
    """Told by the dispatcher when a run begins, gets its place, and is over."""

    def __init__(self, instruments: Instruments | None = None, clock: Clock | None = None) -> None:
        self._instruments = instruments or Instruments()
        self._clock: Clock = clock or SystemClock()

    def began(self, run: LiveRun) -> None:
        """In the task of who asked for it, if somebody did just now."""
        run.since = self._clock.monotonic()
        started = run.state.started
        mode = "background" if started.background else "stream" if started.frames else "whole"
        self._instruments.runs_started.add((started.surface, mode, "yes" if run.taken_up else "no"))
        asked = current_request.get()
        if asked is not None and not run.taken_up:
            asked.run_id = run.id
        if self._instruments.tracer is not None:
            run.writer.span = _span(self._instruments.tracer, run)

    def placed(self, run: LiveRun) -> None:
        """In the run's own task, which from here on works for it."""
        self._instruments.run_wait_seconds.observe(self._clock.monotonic() - run.since)
        span = run.writer.span
        current_trace.set(span.context if span is not None else run.trace)

    def ended(self, run: LiveRun) -> None:
        """Whatever came of it: a run without an end was parked, or given up."""
        instruments, state = self._instruments, run.state
        surface, ended = state.started.surface, state.ended
        status = ended.status if ended is not None else "given_up" if run.failure is not None else "parked"
        seconds = self._clock.monotonic() - run.since
        instruments.runs.add((surface, status))
        instruments.run_seconds.observe((surface,), seconds)
        if run.first_at:
            instruments.first_token_seconds.observe((surface,), run.first_at - run.since)
        code = ""
        if run.failure is not None:
            code = code_label(run.failure.code)
            instruments.errors.add(("run", code))
        if run.writer.span is not None:
            run.writer.span.end(_outcome(run, status), error=code if status in ("failed", "given_up") else "")
            run.writer.span = None
        if log.isEnabledFor(logging.DEBUG):
            log.debug("run.ended run_id=%s status=%s seconds=%.3f code=%s", run.id, status, seconds, code)


def _span(tracer: Tracer, run: LiveRun) -> Any:
    started, settings = run.state.started, run.settings
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "stateroom",
        "gen_ai.request.model": settings.model,
        "gen_ai.response.id": run.id,
        "stateroom.surface": started.surface,
        "stateroom.project": run.project,
        "stateroom.background": started.background,
        **_asked(settings),
    }
    if settings.served:
        attributes["gen_ai.response.model"] = settings.served
    if started.conversation:
        attributes["gen_ai.conversation.id"] = started.conversation
    if started.key:
        attributes["stateroom.key.id"] = started.key
    if run.taken_up:
        attributes["stateroom.taken_up"] = True
    # One that a crash cut off belongs to the trace of its request, and says by the link that it came after a break.
    link = run.trace if run.taken_up else None
    return tracer.start("invoke_agent", "internal", attributes, parent=run.trace, link=link)


def _asked(settings: RunSettings) -> dict[str, Value]:
    format_ = ((settings.text or {}).get("format") or {}).get("type")
    asked: dict[str, Value | None] = {
        "gen_ai.output.type": "json" if format_ in ("json_schema", "json_object") else "text",
        "gen_ai.request.temperature": settings.temperature,
        "gen_ai.request.top_p": settings.top_p,
        "gen_ai.request.max_tokens": settings.max_output_tokens,
        "gen_ai.request.seed": settings.seed,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _outcome(run: LiveRun, status: str) -> dict[str, Value]:
    state = run.state
    outcome: dict[str, Value] = {"stateroom.run.status": status, "stateroom.run.answers": state.answers}
    reason = (state.ended.reason if state.ended is not None else "") or state.finish
    if reason:
        outcome["gen_ai.response.finish_reasons"] = [reason]
    used = (state.ended.usage if state.ended is not None else None) or state.usage
    return outcome if used is None else {**outcome, **usage_attributes(used)}
