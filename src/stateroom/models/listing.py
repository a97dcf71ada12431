"""What a server's list of its models says, in whichever of the usual shapes. Pure."""

from __future__ import annotations

from typing import Any

from stateroom.models.backend import Model


def read_models(held: Any) -> list[Model]:
    """The models in an answer of GET /models, with their context length where the server tells it."""
    listed = held.get("data", held.get("models")) if isinstance(held, dict) else held
    models: list[Model] = []
    for one in listed if isinstance(listed, list) else ():
        name = (one.get("id") or one.get("name")) if isinstance(one, dict) else None
        if isinstance(name, str) and name:
            created = one.get("created")
            owner = one.get("owned_by")
            models.append(
                Model(
                    id=name,
                    owned_by=owner if isinstance(owner, str) and owner else "stateroom",
                    created=created if isinstance(created, int) else 0,
                    context_tokens=_context_tokens(one),
                )
            )
    return models


def _context_tokens(one: dict[str, Any]) -> int | None:
    meta = one.get("meta")
    places = [one, meta] if isinstance(meta, dict) else [one]
    for name in ("max_model_len", "context_length", "context_window", "n_ctx", "n_ctx_train"):
        for place in places:
            value = place.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None
