"""An answer on its way in: read in pieces, each within its time, with one timer for all of them."""

from __future__ import annotations

import asyncio
import math

import aiohttp

from stateroom.errors import BackendFailed, BackendTimeout
from stateroom.models.chat_errors import from_transport


class Incoming:
    """The body of a response, once its head is there. To be closed, which drops the connection unless it is done."""

    def __init__(self, response: aiohttp.ClientResponse, server: str) -> None:
        self.response = response
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._until = math.inf
        """When to give up; never while nobody reads."""
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf
        """When the timer goes off; uvloop's handles for times that are almost now cannot tell."""
        self._ran_out = False

    async def chunk(self, seconds: float) -> bytes:
        """What has come in since the last read; empty at the end. Raises BackendError."""
        if seconds <= 0:
            raise self._silence(seconds)  # also when more has come in: a flood of nothing must end, too
        self._until = until = self._loop.time() + seconds
        if self._timer is None or self._timer_at > until:
            self._set(until)
        try:
            data = await self.response.content.readany()
            self._until = math.inf
        except (aiohttp.ClientError, OSError) as error:
            if self._ran_out:
                raise self._silence(seconds) from None
            raise from_transport(error, server=self._server, connect_seconds=0.0) from error
        if not data and self._ran_out:
            raise self._silence(seconds)
        return data

    async def whole(self, limit: int, seconds: float, *, total: float = math.inf) -> bytes:
        """The whole body, each piece of it in so many seconds and all of it in `total`.

        Raises BackendError, and BackendFailed when it is longer than the limit.
        """
        pieces: list[bytes] = []
        size = 0
        end = self._loop.time() + total
        while True:
            try:
                piece = await self.chunk(min(seconds, end - self._loop.time()))
            except BackendTimeout:
                if self._loop.time() < end:
                    raise
                raise BackendTimeout(f"{self._server} did not end its answer within {total:.3g} s.") from None
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BackendFailed(f"{self._server} answered more than {limit} bytes.", code="backend_bad_answer")

    def close(self) -> None:
        """Let go of it."""
        if self._timer is not None:
            self._timer.cancel()
        self.response.close()

    def _set(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = until
        self._timer = self._loop.call_at(until, self._look)

    def _look(self) -> None:
        # Every chunk moves the time on; the timer follows only when it goes off.
        self._timer = None
        if self._loop.time() < self._until:
            if self._until is not math.inf:
                self._set(self._until)
            return
        self._ran_out = True
        self.response.close()

    def _silence(self, seconds: float) -> BackendTimeout:
        return BackendTimeout(f"{self._server} went silent for {max(0.0, seconds):g} s in its answer.")
