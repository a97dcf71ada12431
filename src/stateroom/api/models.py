"""The Models API and the health of the server."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.http import Json
from stateroom.errors import NotFound
from stateroom.models.backend import Model
from stateroom.models.router import Router


class ModelsApi:
    """What can be asked for, and whether the server is up."""

    def __init__(self, router: Router, ready: Callable[[], str]) -> None:
        self._router = router
        self._ready = ready
        """Why the server is not ready; '' when it is."""

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/models", self.page, methods=["GET"]),
            Route("/models/{model:path}", self.retrieve, methods=["GET"]),
        ]

    def health_routes(self) -> list[Route]:
        """The paths for load balancers."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        await self._router.refresh()
        models = [_shown(model) for model in self._router.models()]
        return Json(msgspec.json.encode({"object": "list", "data": models}))

    async def retrieve(self, request: Request) -> Response:
        wanted = request.path_params["model"]
        await self._router.refresh()
        for model in self._router.models():
            if model.id == wanted:
                return Json(msgspec.json.encode(_shown(model)))
        raise NotFound(f"The model '{wanted}' does not exist.", code="model_not_found", param="model")

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
    if model.description:
        shown["description"] = model.description
    return shown
