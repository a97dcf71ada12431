"""The Embeddings API: translate, ask the embedding model, translate back. Nothing of it is stored."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.access.rates import Rates
from stateroom.api.http import Json, read_body, unless_dropped
from stateroom.api.responses import principal
from stateroom.errors import InvalidRequest
from stateroom.models.embedding_models import EmbeddingModels
from stateroom.wire.embeddings import EmbeddingBounds, decode_embedding, render_embeddings


class EmbeddingsApi:
    """The handler."""

    def __init__(self, models: EmbeddingModels, rates: Rates, bounds: EmbeddingBounds, body_bytes: int) -> None:
        self._models = models
        self._rates = rates
        self._bounds = bounds
        self._body_bytes = body_bytes

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [Route("/embeddings", self.create, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        asked = decode_embedding(await read_body(request, self._body_bytes), self._bounds)
        asker = principal(request)
        self._rates.begin(asker.project, asker.key_id)
        tokens = 0
        making = asyncio.ensure_future(
            self._models.embed(
                asked.model, asked.inputs, base64=asked.base64, dimensions=asked.dimensions, user=asked.user
            )
        )
        try:
            if not await unless_dropped(request, making):
                raise InvalidRequest("The client went away.", code="client_disconnected")
            made = making.result()
            tokens = made.tokens
        finally:
            making.cancel()  # the model need not finish what nobody waits for
            self._rates.end(asker.project, asker.key_id, tokens)
        return Json(render_embeddings(made.vectors, made.model, made.tokens))
