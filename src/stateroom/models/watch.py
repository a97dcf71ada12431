"""Watching the calls of model servers: what is counted and traced of each try, and the trace headers it is sent with.

It reads the clock and the answer's last piece, and never changes either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yarl import URL

from stateroom.clock import Clock
from stateroom.journal.entries import Usage
from stateroom.models.backend import Delta, Finished
from stateroom.telemetry.context import current_trace
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.metrics import code_label
from stateroom.telemetry.spans import Span, Value

CANCELLED = "cancelled"
"""Outcome of a call whose answer nobody wanted to the end."""


class CallWatch:
    """One try."""

    __slots__ = ("_backend", "_began", "_clock", "_instruments", "_model", "_span", "first_at", "headers", "last")

    def __init__(
        self,
        instruments: Instruments,
        clock: Clock,
        *,
        backend: str,
        model: str,
        server: URL,
        operation: str = "chat",
        stream: bool = False,
    ) -> None:
        self._instruments = instruments
        self._clock = clock
        self._backend = backend
        self._model = model
        self._began = clock.monotonic()
        self._span: Span | None = None
        self.first_at = 0.0
        """When the first piece came; to be set by who sees it."""
        self.last: Sequence[Delta] = ()
        """The latest pieces; to be set by who sees them."""
        self.headers: Mapping[str, str] = {}
        """What the request is to carry."""
        active = instruments.backend_active
        active[backend] = active.get(backend, 0) + 1
        trace = current_trace.get()
        if instruments.tracer is not None:
            attributes: dict[str, Value] = {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "openai",  # the format of what is exchanged, whoever made the server
                "gen_ai.request.model": model,
                "gen_ai.request.stream": stream,
                "server.address": server.host or "",
                "server.port": server.port or 0,
                "stateroom.backend": backend,
            }
            self._span = instruments.tracer.start(f"{operation} {model}", "client", attributes, parent=trace)
            trace = self._span.context
        if trace is not None:
            self.headers = trace.outgoing()

    def end(self, outcome: str = "") -> None:
        """It is over: with an error of that code, or, without one, as its last pieces say."""
        instruments, backend, now = self._instruments, self._backend, self._clock.monotonic()
        instruments.backend_active[backend] -= 1
        finished = self.last[-1] if self.last and isinstance(self.last[-1], Finished) else None
        label = code_label(outcome) if outcome else "ok" if finished is not None else CANCELLED
        instruments.backend_calls.add((backend, self._model, label))
        instruments.backend_seconds.observe((backend,), now - self._began)
        if self.first_at:
            instruments.backend_first_token_seconds.observe((backend,), self.first_at - self._began)
        used = finished.usage if finished is not None else None
        if used is not None:
            self._count(used)
        if outcome and outcome != CANCELLED:
            instruments.errors.add(("backend", label))
        if self._span is not None:
            self._end_span(self._span, label, finished)

    def through(self, outcome: str) -> None:
        """The same for an answer that has no pieces."""
        if not outcome:
            self.last = (Finished("stop"),)
        self.end(outcome)

    def _count(self, used: Usage) -> None:
        tokens, backend, model = self._instruments.tokens, self._backend, self._model
        tokens.add((backend, model, "input"), used.input)
        tokens.add((backend, model, "output"), used.output)
        if used.cached:
            tokens.add((backend, model, "cached"), used.cached)
        if used.reasoning:
            tokens.add((backend, model, "reasoning"), used.reasoning)

    def _end_span(self, span: Span, label: str, finished: Finished | None) -> None:
        attributes: dict[str, Value] = {"gen_ai.response.model": self._model}
        if self.first_at:
            attributes["gen_ai.response.time_to_first_chunk"] = self.first_at - self._began
        if finished is not None:
            attributes["gen_ai.response.finish_reasons"] = [finished.reason]
            if finished.usage is not None:
                attributes |= usage_attributes(finished.usage)
        span.end(attributes, error="" if label == "ok" else label)


def usage_attributes(used: Usage) -> dict[str, Value]:
    """Token counts as the conventions name them."""
    return {
        "gen_ai.usage.input_tokens": used.input,
        "gen_ai.usage.output_tokens": used.output,
        "gen_ai.usage.cache_read.input_tokens": used.cached,
        "gen_ai.usage.reasoning.output_tokens": used.reasoning,
    }
