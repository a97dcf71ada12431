"""The Models API and the health of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.http import Json
from stateroom.errors import MethodNotAllowed, NotFound
from stateroom.models.backend import Model
from stateroom.models.embedding_models import EmbeddingModels
from stateroom.models.router import Router


class ModelsApi:
    """What can be asked for, and whether the server is up."""

    def __init__(self, router: Router, embeddings: EmbeddingModels, ready: Callable[[], str]) -> None:
        self._router = router
        self._embeddings = embeddings
        self._ready = ready
        """Why the server is not ready; '' when it is."""

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/models", self.page, methods=["GET"]),
            Route("/models/{model:path}", self.retrieve, methods=["GET"]),
            Route("/models/{model:path}", self.delete, methods=["DELETE"]),
        ]

    def health_routes(self) -> list[Route]:
        """The paths for load balancers."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        models = [_shown(model) for model in (await self._models()).values()]
        return Json(msgspec.json.encode({"object": "list", "data": models}))

    async def retrieve(self, request: Request) -> Response:
        """One model; its name may hold slashes, as they are or encoded."""
        wanted = request.path_params["model"]
        found = (await self._models()).get(wanted)
        if found is None:
            text = f"The model '{wanted[:200]}' does not exist. GET /v1/models lists those that do."
            raise NotFound(text, code="model_not_found", param="model")
        return Json(msgspec.json.encode(_shown(found)))

    async def delete(self, request: Request) -> Response:
        raise MethodNotAllowed("Models are the backends' own and cannot be deleted here: change the settings instead.")

    async def _models(self) -> dict[str, Model]:
        """Those that chat, then those that make embeddings."""
        embeddings, _ = await asyncio.gather(self._embeddings.models(), self._router.refresh())
        models = {model.id: model for model in self._router.models()}
        for model in embeddings:
            models.setdefault(model.id, model)
        return models

    async def health(self, request: Request) -> Response:
        return Json(b'{"status":"ok"}')

    async def ready(self, request: Request) -> Response:
        reason = self._ready()
        if reason:
            return Json(msgspec.json.encode({"status": "unready", "reason": reason}), status_code=503)
        return Json(b'{"status":"ready"}')


def _shown(model: Model) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
    if model.context_tokens is not None:
        shown["context_window"] = model.context_tokens
    if model.dimensions is not None:
        shown["dimensions"] = model.dimensions
    if model.description:
        shown["description"] = model.description
    return shown
