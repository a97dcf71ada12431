"""A model server that speaks Chat Completions.

What goes into a request is chat_request's, what an answer means is chat_decode's, what both dialects do over HTTP is
http's. A server's peculiarities are learnt once from its answers and kept for as long as this backend lives.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from stateroom.clock import Clock
from stateroom.errors import BackendError, BackendRejected
from stateroom.models.backend import ModelCall
from stateroom.models.chat_decode import ChatDecoder
from stateroom.models.chat_request import OUTPUT_LIMIT_NEW, Dialect, encode_request, estimate_tokens
from stateroom.models.http import HttpBackend
from stateroom.models.token_counter import TokenCounter
from stateroom.settings import BackendSettings
from stateroom.telemetry.instruments import Instruments


class ChatBackend(HttpBackend[ChatDecoder]):
    """One server."""

    dialect: ClassVar[str] = "chat"
    path: ClassVar[str] = "chat/completions"

    def __init__(
        self,
        settings: BackendSettings,
        key: str | None = None,
        *,
        clock: Clock | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        super().__init__(settings, key, clock=clock, instruments=instruments)
        self.can_prefill = settings.prefill != "none"
        fixed = "" if settings.reasoning_field in ("auto", "none") else settings.reasoning_field
        self._known = Dialect(prefill=settings.prefill, reasoning_field=fixed)
        self._counter = TokenCounter(self._ask, str(self._base))

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        body = encode_request(msgspec.structs.replace(call, stream=False), self._known)
        count = await self._counter.count(body)
        return (count, True) if count is not None else (estimate_tokens(body), False)

    def _encode(self, call: ModelCall) -> bytes:
        return encode_request(call, self._known)

    def _decoder(self, call: ModelCall) -> ChatDecoder:
        return ChatDecoder(server=self.server, key=self._key)

    def _note(self, decoder: ChatDecoder) -> None:
        if decoder.reasoning_field and self.settings.reasoning_field == "auto":
            self._known.reasoning_field = decoder.reasoning_field

    def _learns(self, error: BackendError, call: ModelCall) -> bool:
        message = error.message.lower()
        known = self._known
        if not isinstance(error, BackendRejected) or error.code == "context_length_exceeded":
            return False
        if OUTPUT_LIMIT_NEW in message and "support" in message and known.output_limit != OUTPUT_LIMIT_NEW:
            known.output_limit = OUTPUT_LIMIT_NEW
            return True
        if "stream_options" in message and known.stream_options:
            known.stream_options = False
            return True
        return False
