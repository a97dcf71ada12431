"""A model server that speaks Responses, used as if it had no memory: the whole history goes along, and nothing is kept.

What goes into a request is responses_request's, what an answer means is responses_decode's, what both dialects do over
HTTP is http's. Why it is used statelessly is in docs/why/backends.md.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from stateroom.clock import Clock
from stateroom.errors import BackendError, BackendRejected
from stateroom.models.backend import ModelCall
from stateroom.models.chat_request import estimate_tokens
from stateroom.models.http import HttpBackend
from stateroom.models.responses_decode import ResponsesDecoder
from stateroom.models.responses_request import LEAST_OUTPUT, Dialect, encode_count, encode_request, unseal
from stateroom.settings import BackendSettings
from stateroom.telemetry.instruments import Instruments

ESTIMATED: Final = "x-stateroom-token-count"
"""With this header another Stateroom says that it could not count, either."""

_SEALED: Final = re.compile(r"encrypted[_ ]content", re.IGNORECASE)
_REASONING: Final = re.compile(r"'reasoning'|\breasoning (item|content)|\brs_|item\['content'\]", re.IGNORECASE)


class ResponsesBackend(HttpBackend[ResponsesDecoder]):
    """One server."""

    dialect: ClassVar[str] = "responses"
    path: ClassVar[str] = "responses"

    def __init__(
        self,
        settings: BackendSettings,
        key: str | None = None,
        *,
        clock: Clock | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        super().__init__(settings, key, clock=clock, instruments=instruments)
        self._known = Dialect(self.name)
        self._counts = True
        """Whether it counts tokens, as far as is known."""

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        body = encode_count(call, self._known)
        if self._counts:
            try:
                held, headers = await self._ask_with_headers("POST", self._url("responses/input_tokens"), body)
            except BackendRejected:
                return estimate_tokens(body), False  # of this call alone: the next one may be to its liking
            except BackendError as error:
                self._counts = error.code != "backend_misconfigured"
                return estimate_tokens(body), False
            count = held.get("input_tokens") if isinstance(held, dict) else None
            if isinstance(count, int) and count > 0:
                return (count, True) if ESTIMATED not in headers else (max(count, estimate_tokens(body)), False)
        return estimate_tokens(body), False

    def _encode(self, call: ModelCall) -> bytes:
        return encode_request(call, self._known)

    def _decoder(self, call: ModelCall) -> ResponsesDecoder:
        limit = call.max_output_tokens
        return ResponsesDecoder(server=self.server, origin=self.name, key=self._key, limit=limit)

    def _learns(self, error: BackendError, call: ModelCall) -> bool:
        if not isinstance(error, BackendRejected) or error.code == "context_length_exceeded":
            return False
        known, said = self._known, f"{error.code} {error.message}"
        sealed = bool(_SEALED.search(said))
        if "allowed_tools" in said and not isinstance(call.tool_choice, str) and known.allowed_tools:
            known.allowed_tools = False
            return True
        if "max_output_tokens" in said and (call.max_output_tokens or LEAST_OUTPUT) < LEAST_OUTPUT > known.least_output:
            known.least_output = LEAST_OUTPUT
            return True
        if (sealed and "support" not in said) or _REASONING.search(said):
            # It cannot open what it sealed (it has another key now, or another model), or wants reasoning otherwise:
            # this context goes on without.
            return unseal(call)
        if sealed and call.model not in known.unsealing:
            known.unsealing.add(call.model)
            return True
        return False
