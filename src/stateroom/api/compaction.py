"""`POST /v1/responses/compact`: translate, call the runtime, translate back."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.http import Json, read_body, unless_dropped
from stateroom.api.responses import principal
from stateroom.runtime.compactions import Compactions
from stateroom.runtime.runs import RunRequest
from stateroom.wire.compaction import decode_compact, render_compaction
from stateroom.wire.decoding import Bounds
from stateroom.wire.items import unpack


class CompactionApi:
    """Its handler."""

    def __init__(self, compactions: Compactions, bounds: Bounds, body_bytes: int) -> None:
        self._compactions = compactions
        self._bounds = bounds
        self._body_bytes = body_bytes

    def routes(self) -> list[Route]:
        """The path below /v1. It has to stand before `/responses/{response_id}`."""
        return [Route("/responses/compact", self.compact, methods=["POST"])]

    async def compact(self, request: Request) -> Response:
        asked = decode_compact(await read_body(request, self._body_bytes), self._bounds)
        who = principal(request)
        wanted = RunRequest(asked.settings, asked.input, asked.previous, store=False, key=who.key_id)
        work = asyncio.ensure_future(self._compactions.create(who.project, wanted))
        try:
            await unless_dropped(request, work)
        finally:
            if not work.done():
                work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            done = await work
            shown = [unpack(held.item, held.id) for held in done.output]
            return Json(render_compaction(done.id, done.created_at, shown, done.usage))
        return Response(status_code=499)  # nobody is there to read it
