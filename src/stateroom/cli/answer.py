"""One streamed answer, shown as it comes and read on over broken connections and dead servers.

The promise of the stream is checked on the way: sequence numbers go up by one, whatever happens to the connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from stateroom.cli.client import Client, Refused, ServerDown, segment
from stateroom.cli.failure import CommandFailed
from stateroom.cli.terminal import Flow, Waiting, safe, say

PATIENCE_SECONDS = 120.0
"""How long a dead server is waited for."""

_ENDINGS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_COMING_BACK = frozenset({502, 503, 504})
_BEGINNINGS = frozenset({"response.created", "response.queued", "response.in_progress"})


class Answer:
    """A response on its way."""

    def __init__(self, client: Client, identifier: str = "") -> None:
        self.id = identifier
        self.final: Any = None
        """The whole response, once it has ended."""
        self.text = ""
        self._client = client
        self._last = -1
        self._lost_at = 0.0
        self._item_broke = False
        self._flow = Flow()
        self._thoughts = Flow(style="dim", err=True)
        self._waiting = Waiting()

    def ask(self, body: Mapping[str, Any]) -> None:
        """Start a response and show it to its end."""
        self._waiting.begin()
        try:
            self._follow(self._client.stream("POST", "/responses", {**body, "background": True, "stream": True}))
        finally:
            self._waiting.end()

    def read(self) -> None:
        """Show a response that was started before, from its beginning to its end."""
        self._follow(self._rest())

    def stop(self) -> None:
        """Cancel it."""
        if self.id and self.final is None:
            self._client.call("POST", f"/responses/{segment(self.id)}/cancel", {})

    def _follow(self, events: Iterator[Any]) -> None:
        pause = 0.1
        while self.final is None:
            seen = self._last
            try:
                for event in events:
                    self._take(event)
            except ServerDown as failure:
                self._lost(failure)
            except Refused as refusal:
                if not self._lost_at or refusal.status not in _COMING_BACK:
                    raise
            else:
                if self.final is None:
                    self._lost(CommandFailed("The stream ended before the answer did."))
            if self.final is None:
                pause = 0.1 if self._last > seen else min(pause * 2, 1.0)
                time.sleep(pause)
                events = self._rest()

    def _rest(self) -> Iterator[Any]:
        query = {"stream": "true", "starting_after": self._last if self._last >= 0 else None}
        return self._client.stream("GET", f"/responses/{segment(self.id)}", query=query)

    def _lost(self, failure: CommandFailed) -> None:
        if not self.id:
            raise failure
        if not self._lost_at:
            self._lost_at = time.monotonic()
            self._waiting.end()
            say("\n[the connection is lost; waiting for the server]", style="yellow", err=True)
        elif time.monotonic() - self._lost_at > PATIENCE_SECONDS:
            raise CommandFailed(
                f"The server did not come back within {PATIENCE_SECONDS:.0f} seconds.",
                remedy=f"The answer is kept. Later: stateroom chat --resume {self.id}",
            )

    def _take(self, event: Any) -> None:
        kind, number = event.get("type", ""), event.get("sequence_number", -1)
        if number <= self._last:
            return
        if number != self._last + 1 and kind != "error":
            raise CommandFailed(
                f"The stream of {self.id} jumps from event {self._last} to {number}: events are missing."
            )
        self._last = number
        if self._lost_at:
            say(f"[resumed after {time.monotonic() - self._lost_at:.1f} s]", style="yellow", err=True)
            self._lost_at = 0.0
            self._flow.start_anew()
        if kind not in _BEGINNINGS:
            self._waiting.end()
        self._show(kind, event)

    def _show(self, kind: str, event: Any) -> None:
        match kind:
            case "response.output_text.delta" | "response.refusal.delta":
                self.text += event["delta"]
                self._flow.write(safe(event["delta"]))
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                self._thoughts.write(safe(event["delta"]))
            case "response.reasoning_text.done" | "response.reasoning_summary_text.done":
                say(err=True)
                self._thoughts.start_anew()
            case "response.output_item.done":
                self._item_broke = event["item"].get("status") == "incomplete"
            case "response.output_item.added" if self.text:
                say()
                self._flow.start_anew()
                if self._item_broke:
                    say("[it was interrupted there; the model begins again]", style="yellow", err=True)
            case "response.created":
                self.id = event["response"]["id"]
            case "error":
                raise CommandFailed(f"{event.get('message', 'The stream failed')} ({event.get('code') or 'no code'})")
            case _ if kind in _ENDINGS:
                self.final = event["response"]
                say()
