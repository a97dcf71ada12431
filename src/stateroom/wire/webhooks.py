"""Webhook endpoints as OpenAI's clients send and see them."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from stateroom.wire.decoding import decode

_DEPTH: Final = 8

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2_048)]
EventTypes = Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]


class NewEndpoint(msgspec.Struct, frozen=True):
    name: Name
    url: Url
    event_types: EventTypes


class EndpointChange(msgspec.Struct, frozen=True):
    """None: as it is."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class Rotation(msgspec.Struct, frozen=True):
    keep_old_secret_active_for_24_hours: bool | None = False


class Trial(msgspec.Struct, frozen=True):
    event_type: str


_NEW: Final = msgspec.json.Decoder(NewEndpoint)
_CHANGE: Final = msgspec.json.Decoder(EndpointChange)
_ROTATION: Final = msgspec.json.Decoder(Rotation)
_TRIAL: Final = msgspec.json.Decoder(Trial)


def decode_new_endpoint(body: bytes) -> NewEndpoint:
    """Raises InvalidRequest."""
    return decode(_NEW, body, _DEPTH)


def decode_endpoint_change(body: bytes) -> EndpointChange:
    """Raises InvalidRequest."""
    return decode(_CHANGE, body, _DEPTH)


def decode_rotation(body: bytes) -> Rotation:
    """Raises InvalidRequest."""
    return decode(_ROTATION, body or b"{}", _DEPTH)


def decode_trial(body: bytes) -> Trial:
    """Raises InvalidRequest."""
    return decode(_TRIAL, body, _DEPTH)


def shown_endpoint(
    endpoint_id: str,
    created_at: int,
    updated_at: int,
    *,
    name: str,
    url: str,
    event_types: tuple[str, ...],
    hint: str,
    secret: str = "",
) -> dict[str, Any]:
    """Times are in milliseconds. The secret stands in it only when it is new."""
    shown: dict[str, Any] = {
        "id": endpoint_id,
        "object": "webhook_endpoint",
        "created_at": created_at // 1000,
        "updated_at": updated_at // 1000,
        "name": name,
        "url": url,
        "event_types": list(event_types),
        "signing_secret_hint": f"whsec_…{hint}",
    }
    if secret:
        shown["signing_secret"] = secret
    return shown
