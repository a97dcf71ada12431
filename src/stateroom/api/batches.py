"""The Batches API: translate, check access, call the runtime, translate back."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom import ids
from stateroom.api.claims import claim
from stateroom.api.http import Json, listed, read_body
from stateroom.api.responses import principal
from stateroom.errors import NotFound
from stateroom.runtime.batches.batches import Batches
from stateroom.runtime.batches.state import Batch
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.records import Held
from stateroom.wire.batches import batch_object, decode_new_batch

BODY_BYTES = 64 * 1024


class BatchesApi:
    """Handlers over the runtime."""

    def __init__(self, batches: Batches, idempotency: Idempotency) -> None:
        self._batches = batches
        self._idempotency = idempotency

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/batches", self.create, methods=["POST"]),
            Route("/batches", self.page, methods=["GET"]),
            Route("/batches/{batch_id}", self.retrieve, methods=["GET"]),
            Route("/batches/{batch_id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await read_body(request, BODY_BYTES)
        asked = decode_new_batch(body)
        who = principal(request)
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                with suppress(NotFound):
                    return _json(_shown(await self._batches.get(who.project, claimed.made)))
            batch_id = ids.new_id("batch")
            held = await self._batches.create(
                who.project, asked, batch_id=batch_id, key=who.key_id, also=claimed.also(batch_id)
            )
        return _json(_shown(held))

    async def retrieve(self, request: Request) -> Response:
        return _json(_shown(await self._batches.get(principal(request).project, request.path_params["batch_id"])))

    async def page(self, request: Request) -> Response:
        project = principal(request).project
        return await listed(request.query_params, partial(self._batches.page, project), _shown)

    async def cancel(self, request: Request) -> Response:
        return _json(_shown(await self._batches.cancel(principal(request).project, request.path_params["batch_id"])))


def _json(value: dict[str, Any]) -> Response:
    return Json(msgspec.json.encode(value))


def _shown(held: Held[Batch]) -> dict[str, Any]:
    state = held.state
    return batch_object(
        id=held.id,
        endpoint=state.endpoint,
        model=state.model,
        errors=state.errors,
        input_file_id=state.input_file_id,
        status=state.status,
        output_file_id=state.output_file_id,
        error_file_id=state.error_file_id,
        times={
            "created_at": held.created_at,
            "in_progress_at": state.in_progress_at,
            "expires_at": state.expires_at,
            "finalizing_at": state.finalizing_at,
            "completed_at": state.completed_at,
            "failed_at": state.failed_at,
            "expired_at": state.expired_at,
            "cancelling_at": state.cancelling_at,
            "cancelled_at": state.cancelled_at,
        },
        total=state.total,
        completed=state.completed,
        failed=state.failed,
        usage=state.usage,
        metadata=state.metadata,
    )
