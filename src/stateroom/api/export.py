"""Moving conversations and chains of responses between installations: routes that OpenAI's API does not have.

Files go out and come in as they are, in pieces, and are never whole in memory.
"""

from __future__ import annotations

from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.claims import claim
from stateroom.api.download import Download
from stateroom.api.http import Json
from stateroom.api.multipart import body_pieces
from stateroom.api.responses import principal
from stateroom.errors import InvalidRequest
from stateroom.journal.store import Index
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.moving.exports import Export, Exporter
from stateroom.runtime.moving.imports import Imported, Importer, too_large
from stateroom.wire.export import MEDIA_TYPE, result_object
from stateroom.wire.files import content_disposition


class ExportApi:
    """Handlers over the runtime."""

    def __init__(
        self, exporter: Exporter, importer: Importer, index: Index, idempotency: Idempotency, bytes_max: int
    ) -> None:
        self._exporter = exporter
        self._importer = importer
        self._index = index
        self._idempotency = idempotency
        self._bytes_max = bytes_max

    def routes(self) -> list[Route]:
        """The paths below /v1; to stand before those that take an id in the place of `import`."""
        return [
            Route("/conversations/import", self.import_, methods=["POST"]),
            Route("/conversations/{conversation_id}/export", self.conversation, methods=["GET"]),
            Route("/responses/{response_id}/export", self.response, methods=["GET"]),
        ]

    async def conversation(self, request: Request) -> Response:
        conversation_id = request.path_params["conversation_id"]
        return _download(request, await self._exporter.conversation(principal(request).project, conversation_id))

    async def response(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        return _download(request, await self._exporter.response(principal(request).project, response_id))

    async def import_(self, request: Request) -> Response:
        project, new_ids = principal(request).project, _new_ids(request)
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > self._bytes_max):
            raise too_large(self._bytes_max)
        async with self._importer.incoming(project) as incoming:
            async with aclosing(body_pieces(request)) as pieces:
                async for piece in pieces:
                    await incoming.feed(piece)
            await incoming.whole()
            async with claim(self._idempotency, request, incoming.digest.encode()) as claimed:
                made = await self._earlier(project, claimed.made)
                if made is not None:
                    return _shown(incoming.count(*made))
                return _shown(await incoming.keep(new_ids=new_ids, also=claimed.also))

    async def _earlier(self, project: str, made: str) -> tuple[str, str] | None:
        """The conversation and the last response that an idempotency key made before, if they are still there."""
        conversation, _, response = made.partition(" ")
        if conversation and await self._index.conversation(project, conversation) is not None:
            return conversation, response
        if made and not conversation and await self._index.run(project, response) is not None:
            return "", response
        return None


def _download(request: Request, export: Export) -> Response:
    answer = Download(
        request,
        export.read,
        size=export.size,
        etag=export.etag,
        disposition=content_disposition(f"{export.name}.tar"),
    )
    answer.headers["content-type"] = MEDIA_TYPE
    return answer


def _new_ids(request: Request) -> bool:
    given = request.query_params.get("ids") or "keep"
    if given not in ("keep", "new"):
        raise InvalidRequest("`ids` must be `keep` or `new`.", code="invalid_value", param="ids")
    return given == "new"


def _shown(imported: Imported) -> Response:
    return Json(
        msgspec.json.encode(
            result_object(
                conversation=imported.conversation,
                response=imported.response,
                items=imported.items,
                responses=imported.responses,
                files=imported.files,
            )
        )
    )
