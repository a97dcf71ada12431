"""Stop sequences, heeded on our side: an answer ends in front of the first of them, whatever its server makes of them.

A sequence may come in pieces. What might be the beginning of one is held back until it is clear that it is none, so
that nobody is ever shown a part of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from stateroom.models.backend import Backend, Delta, Finished, ModelCall, TextDelta


class StopCutter:
    """Cuts one text, which comes in pieces, in front of the first stop sequence in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._owed = ""
        """Text that was given out without its log probabilities: the last of its tokens was not whole."""
        self._logprobs: list[Any] = []
        """Those that are owed, and those of the text that is held back."""
        self.found = False
        """A stop sequence has come: the text has ended in front of it."""

    def feed(self, text: str, logprobs: list[Any] | None = None) -> TextDelta | None:
        """What of the text so far may be shown now; None for nothing."""
        if self.found:
            return None
        text = self._held + text
        self._logprobs += logprobs or ()
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, end = min(found)  # the one that was whole first, as if the text had come character by character
            self.found = True
            self._held = ""
            self._logprobs = within(self._logprobs, self._owed + text[:end])
            return self._shown(text[:end])
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if not keep or not self._logprobs:
            return self._shown(shown)
        self._owed += shown
        return TextDelta(shown) if shown else None

    def flush(self) -> TextDelta | None:
        """What was held back: no more text will follow at once."""
        text, self._held = self._held, ""
        return None if self.found else self._shown(text)

    def _shown(self, text: str) -> TextDelta | None:
        """The text as a delta, with all log probabilities that are there."""
        logprobs, self._logprobs, self._owed = self._logprobs, [], ""
        return TextDelta(text, logprobs or None) if text or logprobs else None


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def heeding_stops(backend: Backend, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
    """The backend's answer to a call, cut at the call's stop sequences. Raises what `Backend.generate` raises."""
    return _cut(backend, call) if call.stop else backend.generate(call)


async def _cut(backend: Backend, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
    cutter = StopCutter(call.stop)
    async with aclosing(backend.generate(call)) as batches:
        async for batch in batches:
            kept = list(_kept(batch, cutter))
            if cutter.found:
                usage = next((delta.usage for delta in batch if isinstance(delta, Finished)), None)
                yield [*kept, Finished("stop", usage)]
                return  # which hangs up on a server that goes on
            if kept:
                yield kept


def _kept(batch: Sequence[Delta], cutter: StopCutter) -> Iterator[Delta]:
    for delta in batch:
        if cutter.found:
            return
        if isinstance(delta, TextDelta):
            if (shown := cutter.feed(delta.text, delta.logprobs)) is not None:
                yield shown
            continue
        if (held := cutter.flush()) is not None:
            yield held
        yield delta


def within(logprobs: Sequence[Any], text: str) -> list[Any]:
    """Those of the tokens that lie within the text."""
    left, kept = len(text), []
    for one in logprobs:
        left -= len(one.get("token") or "")
        if left < 0:
            break
        kept.append(one)
    return kept
