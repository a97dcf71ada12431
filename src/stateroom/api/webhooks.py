"""Webhook endpoints: who is told of what, and what became of it."""

from __future__ import annotations

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
from stateroom.errors import InvalidRequest
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.records import Held
from stateroom.runtime.webhook_endpoints import EVENT_TYPES, Endpoint
from stateroom.runtime.webhooks import Delivery, Webhooks
from stateroom.wire.webhooks import (
    decode_endpoint_change,
    decode_new_endpoint,
    decode_rotation,
    decode_trial,
    shown_endpoint,
)

BODY_BYTES = 64 * 1024


class WebhooksApi:
    """Handlers over the runtime."""

    def __init__(self, webhooks: Webhooks, idempotency: Idempotency) -> None:
        self._webhooks = webhooks
        self._idempotency = idempotency

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        one = "/webhook_endpoints/{webhook_endpoint_id}"
        return [
            Route("/webhook_event_types", self.event_types, methods=["GET"]),
            Route("/webhook_endpoints", self.create, methods=["POST"]),
            Route("/webhook_endpoints", self.page, methods=["GET"]),
            Route(one, self.retrieve, methods=["GET"]),
            Route(one, self.update, methods=["POST"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/rotate_secret", self.rotate, methods=["POST"]),
            Route(f"{one}/test", self.test, methods=["POST"]),
            Route("/webhook_deliveries", self.deliveries, methods=["GET"]),
        ]

    async def event_types(self, request: Request) -> Response:
        return _json({"object": "list", "data": list(EVENT_TYPES)})

    async def create(self, request: Request) -> Response:
        body = await read_body(request, BODY_BYTES)
        asked = decode_new_endpoint(body)
        project = principal(request).project
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                message = (
                    f"This key has made webhook endpoint '{claimed.made}' already, whose secret is not shown again. "
                    "Rotate its secret to get a new one."
                )
                raise InvalidRequest(message, code="secret_already_shown", param="Idempotency-Key")
            key = ids.new_id("whe")
            held, secret = await self._webhooks.endpoints.create(
                project,
                name=asked.name,
                url=asked.url,
                event_types=asked.event_types,
                key=key,
                also=claimed.also(key),
            )
        return _json(_shown(held, secret))

    async def page(self, request: Request) -> Response:
        project = principal(request).project
        return await listed(request.query_params, partial(self._webhooks.endpoints.page, project), _shown)

    async def retrieve(self, request: Request) -> Response:
        return _json(_shown(self._webhooks.endpoints.get(principal(request).project, _id(request))))

    async def update(self, request: Request) -> Response:
        asked = decode_endpoint_change(await read_body(request, BODY_BYTES))
        held = await self._webhooks.endpoints.update(
            principal(request).project, _id(request), name=asked.name, url=asked.url, event_types=asked.event_types
        )
        return _json(_shown(held))

    async def delete(self, request: Request) -> Response:
        await self._webhooks.endpoints.delete(principal(request).project, _id(request))
        return _json({"id": _id(request), "object": "webhook_endpoint.deleted", "deleted": True})

    async def rotate(self, request: Request) -> Response:
        asked = decode_rotation(await read_body(request, BODY_BYTES))
        held, secret = await self._webhooks.endpoints.rotate(
            principal(request).project, _id(request), keep_old=bool(asked.keep_old_secret_active_for_24_hours)
        )
        return _json(_shown(held, secret))

    async def test(self, request: Request) -> Response:
        asked = decode_trial(await read_body(request, BODY_BYTES))
        status = await self._webhooks.test(principal(request).project, _id(request), asked.event_type)
        return _json(
            {
                "object": "webhook_endpoint.test",
                "webhook_endpoint_id": _id(request),
                "event_type": asked.event_type,
                "status_code": status,
                "success": True,
            }
        )

    async def deliveries(self, request: Request) -> Response:
        project = principal(request).project
        return await listed(request.query_params, partial(self._webhooks.deliveries, project), _shown_delivery)


def _id(request: Request) -> str:
    endpoint_id: str = request.path_params["webhook_endpoint_id"]
    return endpoint_id


def _json(value: dict[str, Any]) -> Response:
    return Json(msgspec.json.encode(value))


def _shown(held: Held[Endpoint], secret: str = "") -> dict[str, Any]:
    state = held.state
    return shown_endpoint(
        held.id,
        held.created_at,
        state.updated_at,
        name=state.name,
        url=state.url,
        event_types=state.event_types,
        hint=state.hint,
        secret=secret,
    )


def _shown_delivery(held: Held[Delivery]) -> dict[str, Any]:
    state = held.state
    return {
        "id": held.id,
        "object": "stateroom:webhook_delivery",
        "created_at": state.at // 1000,
        "event": {"id": state.event, "type": state.type, "data": {"id": state.subject}},
        "webhook_endpoint_id": state.endpoint,
        "status": state.status,
        "tries": state.tries,
        "next_try_at": state.next_at // 1000 if state.next_at else None,
        "last_answer": state.answer or None,
    }
