"""Which dialect a server speaks: as its settings say, or found out by asking it once.

Asking costs one empty request beside the first question for its models. What the server says is believed for as long
as this backend lives; a server that cannot tell yet is asked again, and taken for a chat server until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from stateroom.clock import Clock, SystemClock
from stateroom.models.backend import Backend, Delta, Model, ModelCall
from stateroom.models.chat import ChatBackend
from stateroom.models.emulation import ToolEmulation
from stateroom.models.responses import ResponsesBackend
from stateroom.settings import BackendSettings
from stateroom.telemetry.instruments import Instruments

ASK_AGAIN_SECONDS: Final = 5.0
"""How long a server that could not tell is let alone."""


def server_backend(settings: BackendSettings, key: str | None, instruments: Instruments | None = None) -> Backend:
    """The backend for a model server with these settings."""
    if settings.dialect == "chat":
        return ChatBackend(settings, key, instruments=instruments)
    if settings.dialect == "responses":
        return ResponsesBackend(settings, key, instruments=instruments)
    return ProbedBackend(settings, key, instruments=instruments)


def dialect_of(backend: Backend) -> str:
    """What a backend speaks with its server; empty for one that has none, and where that is not known yet."""
    spoken = backend.inner if isinstance(backend, ToolEmulation) else backend
    if isinstance(spoken, ProbedBackend):
        return spoken.dialect if spoken.known else ""
    return spoken.dialect if isinstance(spoken, ChatBackend | ResponsesBackend) else ""


class ProbedBackend:
    """A server that is spoken to in Responses if it has that route, else in chat completions."""

    def __init__(
        self,
        settings: BackendSettings,
        key: str | None = None,
        *,
        clock: Clock | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._chat = ChatBackend(settings, key, clock=clock, instruments=instruments)
        self._responses = ResponsesBackend(settings, key, clock=clock, instruments=instruments)
        self._spoken: ChatBackend | ResponsesBackend = self._chat
        self.name = self._chat.name
        self.can_prefill = False
        self.known = False
        """Whether the server has told."""
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    @property
    def dialect(self) -> str:
        return self._spoken.dialect

    async def models(self) -> list[Model]:
        models, _ = await asyncio.gather(self._chat.models(), self._decide())
        return models

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        await self._decide()
        async with aclosing(self._spoken.generate(call)) as answer:
            async for batch in answer:
                yield batch

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        await self._decide()
        return await self._spoken.count_tokens(call)

    async def close(self) -> None:
        await asyncio.gather(self._chat.close(), self._responses.close())

    async def _decide(self) -> None:
        """Ask the server what it has, unless that is known or was asked just now."""
        if self.known:
            return
        async with self._asking:
            if self.known or self._clock.monotonic() - self._asked_at < ASK_AGAIN_SECONDS:
                return
            serves = await self._responses.serves()
            self._asked_at = self._clock.monotonic()
            if serves is not None:
                self.known = True
                self._spoken = self._responses if serves else self._chat
                self.can_prefill = self._spoken.can_prefill
