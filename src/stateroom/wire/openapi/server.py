"""Models, the health of the server, and what describes it: operations, and the shapes of their answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stateroom.wire.openapi.operations import Operation, Surface
from stateroom.wire.openapi.schemas import OWN, list_of, one_of, ref, text, whole


class Model(msgspec.Struct, omit_defaults=True):
    """What can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_window: Annotated[int, msgspec.Meta(extra_json_schema=OWN)] = 0
    dimensions: Annotated[int, msgspec.Meta(extra_json_schema=OWN)] = 0
    description: Annotated[str, msgspec.Meta(extra_json_schema=OWN)] = ""


def model_surface() -> Surface:
    """Models."""
    return Surface(
        name="Models",
        about="What the backends serve, as of now.",
        operations=(
            Operation(
                place="GET /v1/models",
                name="listModels",
                summary="List the models",
                about="Those that chat, then those that make embeddings.",
                answer=whole({"object": {"const": "list"}, "data": list_of(ref("Model"))}),
                scope="read",
                python="for model in client.models.list():\n    print(model.id)",
            ),
            Operation(
                place="GET /v1/models/{model}",
                name="getModel",
                summary="Retrieve a model",
                answer=ref("Model"),
                errors=(404,),
                scope="read",
                python="client.models.retrieve(model.id)",
            ),
            Operation(
                place="DELETE /v1/models/{model}",
                name="deleteModel",
                summary="Refused: models are the backends' own",
                answered="Never.",
                errors=(405,),
                scope="write",
            ),
        ),
        shapes=(Model,),
    )


def server_surface() -> Surface:
    """The server itself."""
    return Surface(
        name="Server",
        about="For load balancers, and for whoever wants to know what there is. None of it tells of anybody's data.",
        operations=(
            Operation(
                place="GET /health",
                name="getHealth",
                summary="Whether the process answers",
                answer=whole({"status": {"const": "ok"}}),
                scope="none",
                extension=True,
            ),
            Operation(
                place="GET /ready",
                name="getReady",
                summary="Whether requests are welcome",
                answer=whole({"status": {"const": "ready"}}),
                others={503: whole({"status": one_of("unready"), "reason": text()})},
                scope="none",
                extension=True,
            ),
            Operation(
                place="GET /metrics",
                name="getMetrics",
                summary="Figures for Prometheus",
                media={"text/plain": text(), "application/openmetrics-text": text()},
                scope="admin",
                extension=True,
            ),
            Operation(
                place="GET /openapi.json",
                name="getOpenApi",
                summary="This document",
                answer={"type": "object"},
                scope="none",
                extension=True,
            ),
            Operation(
                place="GET /docs",
                name="getDocs",
                summary="This document as a page",
                media={"text/html": text()},
                scope="none",
                extension=True,
            ),
        ),
    )
