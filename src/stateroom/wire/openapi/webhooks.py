"""Webhook endpoints and deliveries: their operations, and the shapes of their answers."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from stateroom.wire import webhooks as sent
from stateroom.wire.openapi.operations import PAGE, Body, Operation, Surface
from stateroom.wire.openapi.schemas import Time, body_of, deleted, list_of, page_of, ref, text, whole

_ONE: Final = "/v1/webhook_endpoints/{webhook_endpoint_id}"


class WebhookEndpoint(msgspec.Struct):
    """Who is told of what."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: Time
    updated_at: Time
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    signing_secret: str = ""


class WebhookDelivery(msgspec.Struct):
    """What became of telling it."""

    id: str
    object: Literal["stateroom:webhook_delivery"]
    created_at: Time
    event: dict[str, Any]
    webhook_endpoint_id: str
    status: str
    tries: int
    next_try_at: int | None
    last_answer: str | None


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Webhooks",
        about="Calls to servers of yours when a background response or a batch has ended, signed and tried again.",
        operations=(*_endpoints(), *_more()),
        shapes=(WebhookEndpoint, WebhookDelivery),
        schemas={
            "CreateWebhookEndpoint": body_of(
                sent.NewEndpoint, about={"url": "With https.", "event_types": "Of `GET /v1/webhook_event_types`."}
            ),
            "UpdateWebhookEndpoint": body_of(sent.EndpointChange),
            "RotateWebhookSecret": body_of(sent.Rotation),
            "TestWebhookEndpoint": body_of(sent.Trial),
            "WebhookEndpointList": page_of("WebhookEndpoint"),
            "WebhookDeliveryList": page_of("WebhookDelivery"),
            "DeletedWebhookEndpoint": deleted("webhook_endpoint.deleted"),
            "WebhookTest": whole(
                {
                    "object": {"const": "webhook_endpoint.test"},
                    "webhook_endpoint_id": text(),
                    "event_type": text(),
                    "status_code": {"type": "integer"},
                    "success": {"const": True},
                }
            ),
            "WebhookEventTypes": whole({"object": {"const": "list"}, "data": list_of(text())}),
        },
    )


def _endpoints() -> tuple[Operation, ...]:
    new = {"name": "mine", "url": "https://example.com/hook", "event_types": ["response.completed"]}
    return (
        Operation(
            place="POST /v1/webhook_endpoints",
            name="createWebhookEndpoint",
            summary="Create an endpoint",
            about="Its `signing_secret` is shown this once.",
            body=Body(ref("CreateWebhookEndpoint"), examples={"an endpoint": new}),
            answer=ref("WebhookEndpoint"),
            scope="write",
            makes=True,
            python="endpoint = client.webhooks.create(\n"
            '    name="mine", url="https://example.com/hook", event_types=["response.completed"]\n)',
        ),
        Operation(
            place="GET /v1/webhook_endpoints",
            name="listWebhookEndpoints",
            summary="List endpoints",
            query=PAGE,
            answer=ref("WebhookEndpointList"),
            errors=(400, 404),
            scope="read",
            python="client.webhooks.list()",
        ),
        Operation(
            place=f"GET {_ONE}",
            name="getWebhookEndpoint",
            summary="Retrieve an endpoint",
            answer=ref("WebhookEndpoint"),
            errors=(404,),
            scope="read",
        ),
        Operation(
            place=f"POST {_ONE}",
            name="updateWebhookEndpoint",
            summary="Change an endpoint",
            body=Body(ref("UpdateWebhookEndpoint"), examples={"a name": {"name": "ours"}}),
            answer=ref("WebhookEndpoint"),
            errors=(404,),
            scope="write",
        ),
        Operation(
            place=f"DELETE {_ONE}",
            name="deleteWebhookEndpoint",
            summary="Delete an endpoint",
            answer=ref("DeletedWebhookEndpoint"),
            errors=(404,),
            scope="write",
        ),
    )


def _more() -> tuple[Operation, ...]:
    return (
        Operation(
            place=f"POST {_ONE}/rotate_secret",
            name="rotateWebhookSecret",
            summary="Give an endpoint a new secret",
            body=Body(
                ref("RotateWebhookSecret"),
                required=False,
                examples={"both for a day": {"keep_old_secret_active_for_24_hours": True}},
            ),
            answer=ref("WebhookEndpoint"),
            errors=(404,),
            scope="write",
        ),
        Operation(
            place=f"POST {_ONE}/test",
            name="testWebhookEndpoint",
            summary="Send a sample to an endpoint",
            body=Body(ref("TestWebhookEndpoint"), examples={"a sample": {"event_type": "response.completed"}}),
            answer=ref("WebhookTest"),
            errors=(404,),
            scope="write",
        ),
        Operation(
            place="GET /v1/webhook_event_types",
            name="listWebhookEventTypes",
            summary="List what can be told of",
            answer=ref("WebhookEventTypes"),
            scope="read",
        ),
        Operation(
            place="GET /v1/webhook_deliveries",
            name="listWebhookDeliveries",
            summary="List deliveries and what became of them",
            query=PAGE,
            answer=ref("WebhookDeliveryList"),
            errors=(400, 404),
            scope="read",
            extension=True,
        ),
    )
