"""A backend in this process that gives out prepared batches and keeps what it was asked, to test what wraps one."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence

from stateroom.models.backend import Delta, Finished, Model, ModelCall, TextDelta


class FakeBackend:
    """Answers each call with the next of its answers: batches of deltas, or an error to raise in the place of one."""

    def __init__(self, *answers: Sequence[Sequence[Delta] | Exception], can_prefill: bool = True) -> None:
        self.name = "fake"
        self.can_prefill = can_prefill
        self.calls: list[ModelCall] = []
        """What it was asked, oldest first."""
        self.cut_off = 0
        """Answers that their reader closed before they ended."""
        self.closed = False
        self._answers = deque(answers)

    async def models(self) -> list[Model]:
        return [Model("fake")]

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        self.calls.append(call)
        try:
            for batch in self._answers.popleft():
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except GeneratorExit:
            self.cut_off += 1
            raise

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        self.calls.append(call)
        return 7, True

    async def close(self) -> None:
        self.closed = True


def spoken(*pieces: str, reason: str = "stop") -> list[Sequence[Delta]]:
    """An answer of these pieces of text, a batch each."""
    return [*([TextDelta(piece)] for piece in pieces), [Finished(reason)]]
