"""The Uploads API, for files that come in parts: translate, check access, call the runtime, translate back."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom import ids
from stateroom.api.claims import claim
from stateroom.api.files import shown_file
from stateroom.api.http import Json, read_body
from stateroom.api.multipart import read_form
from stateroom.api.responses import principal
from stateroom.errors import NotFound
from stateroom.runtime.files.files import Files, file_too_large
from stateroom.runtime.files.uploads import Part, Upload, Uploads, new_part_id
from stateroom.runtime.idempotency import Idempotency
from stateroom.settings import Limits
from stateroom.wire.files import clean_filename, decode_completion, decode_new_upload, part_object, upload_object


class UploadsApi:
    """Handlers over the runtime."""

    def __init__(self, uploads: Uploads, files: Files, idempotency: Idempotency, limits: Limits) -> None:
        self._uploads = uploads
        self._files = files
        self._idempotency = idempotency
        self._limits = limits

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/uploads", self.create, methods=["POST"]),
            Route("/uploads/{upload_id}/parts", self.add_part, methods=["POST"]),
            Route("/uploads/{upload_id}/complete", self.complete, methods=["POST"]),
            Route("/uploads/{upload_id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        project = principal(request).project
        body = await read_body(request, self._limits.body_bytes)
        asked = decode_new_upload(body, self._limits.depth, self._limits.upload_bytes)
        filename = clean_filename(asked.filename, "filename")
        async with claim(self._idempotency, request, body) as claimed:
            if claimed.made:
                with suppress(NotFound):
                    return _shown(await self._uploads.get(project, claimed.made))
            upload_id = ids.new_id("upload")
            made = await self._uploads.create(
                project,
                filename=filename,
                purpose=asked.purpose,
                mime_type=asked.mime_type,
                size=asked.bytes,
                expires_after=None if asked.expires_after is None else asked.expires_after.seconds,
                upload_id=upload_id,
                also=claimed.also(upload_id),
            )
        return _shown(made)

    async def add_part(self, request: Request) -> Response:
        project, upload_id = principal(request).project, _id(request)
        await self._uploads.check_pending(project, upload_id)
        bytes_max = self._limits.upload_part_bytes
        async with self._files.incoming() as incoming:
            form = await read_form(
                request,
                file="data",
                bytes_max=bytes_max,
                too_large=file_too_large(bytes_max, "data", "limits.upload_part_bytes"),
                write=incoming.write,
            )
            form.named("data")
            async with claim(self._idempotency, request, incoming.digest.encode()) as claimed:
                if claimed.made:
                    with suppress(NotFound):
                        return _shown_part(await self._uploads.part(project, upload_id, claimed.made))
                part_id = new_part_id()
                part = await self._uploads.add_part(
                    project, upload_id, incoming, part_id=part_id, also=claimed.also(part_id)
                )
        return _shown_part(part)

    async def complete(self, request: Request) -> Response:
        body = await read_body(request, self._limits.body_bytes)
        asked = decode_completion(body, self._limits.depth)
        return _shown(
            await self._uploads.complete(principal(request).project, _id(request), asked.part_ids, asked.md5 or "")
        )

    async def cancel(self, request: Request) -> Response:
        return _shown(await self._uploads.cancel(principal(request).project, _id(request)))


def _id(request: Request) -> str:
    identifier: str = request.path_params["upload_id"]
    return identifier


def _shown(upload: Upload) -> Response:
    state = upload.state
    return Json(
        msgspec.json.encode(
            upload_object(
                id=upload.id,
                filename=state.filename,
                purpose=state.purpose,
                bytes=state.bytes,
                status=state.status,
                created_at=upload.created_at,
                expires_at=state.until,
                file=None if upload.file is None else shown_file(upload.file),
            )
        )
    )


def _shown_part(part: Part) -> Response:
    return Json(msgspec.json.encode(part_object(id=part.id, upload_id=part.upload, created_at=part.created_at)))
