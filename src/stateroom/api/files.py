"""The Files API: translate, check access, call the runtime, translate back."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.claims import claim
from stateroom.api.download import Download
from stateroom.api.http import Json
from stateroom.api.multipart import read_form
from stateroom.api.responses import principal
from stateroom.blobs.store import BlobMissing
from stateroom.errors import InvalidRequest, NotFound
from stateroom.runtime.files.files import File, Files, file_not_found, file_too_large, new_file_id
from stateroom.runtime.idempotency import Idempotency
from stateroom.wire.files import (
    clean_filename,
    content_disposition,
    deleted_file,
    file_object,
    read_new_file,
)
from stateroom.wire.responses import render_list

PAGE_MAX = 10_000


class FilesApi:
    """Handlers over the runtime."""

    def __init__(self, files: Files, idempotency: Idempotency) -> None:
        self._files = files
        self._idempotency = idempotency

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [
            Route("/files", self.create, methods=["POST"]),
            Route("/files", self.page, methods=["GET"]),
            Route("/files/{file_id}", self.retrieve, methods=["GET"]),
            Route("/files/{file_id}", self.delete, methods=["DELETE"]),
            Route("/files/{file_id}/content", self.content, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        project, files = principal(request).project, self._files
        async with files.incoming() as incoming:
            form = await read_form(
                request,
                file="file",
                bytes_max=files.bytes_max,
                too_large=file_too_large(files.bytes_max),
                write=incoming.write,
            )
            asked = read_new_file(form.fields)
            filename = clean_filename(form.named("file"), "file")
            said = msgspec.json.encode([incoming.digest, filename, asked.purpose, asked.expires_after])
            async with claim(self._idempotency, request, said) as claimed:
                if claimed.made:
                    with suppress(NotFound):
                        return _shown(await files.get(project, claimed.made))
                file_id = new_file_id()
                made = await files.keep(
                    project,
                    incoming,
                    filename=filename,
                    purpose=asked.purpose,
                    expires_after=asked.expires_after,
                    file_id=file_id,
                    also=claimed.also(file_id),
                )
        return _shown(made)

    async def page(self, request: Request) -> Response:
        query = request.query_params
        limit = query.get("limit") or str(PAGE_MAX)
        if not re.fullmatch(r"[0-9]{1,5}", limit) or not 1 <= int(limit) <= PAGE_MAX:
            raise InvalidRequest(f"`limit` must be a number from 1 to {PAGE_MAX}.", code="invalid_value", param="limit")
        order = query.get("order") or "desc"
        if order not in ("asc", "desc"):
            raise InvalidRequest("`order` must be `asc` or `desc`.", code="invalid_value", param="order")
        found = await self._files.page(
            principal(request).project,
            after=query.get("after") or "",
            before=query.get("before") or "",
            limit=int(limit),
            descending=order == "desc",
            purpose=query.get("purpose") or "",
        )
        return Json(render_list([shown_file(file) for file in found[: int(limit)]], len(found) > int(limit)))

    async def retrieve(self, request: Request) -> Response:
        return _shown(await self._files.get(principal(request).project, _id(request)))

    async def delete(self, request: Request) -> Response:
        await self._files.delete(principal(request).project, _id(request))
        return Json(msgspec.json.encode(deleted_file(_id(request))))

    async def content(self, request: Request) -> Response:
        file = await self._files.get(principal(request).project, _id(request))
        return Download(
            request,
            partial(self._read, file),
            size=file.bytes,
            etag=f'"{file.digest}"',
            disposition=content_disposition(file.filename),
        )

    async def _read(self, file: File, first: int, last: int | None) -> Any:
        try:
            async for piece in self._files.read(file, first=first, last=last):
                yield piece
        except BlobMissing:  # deleted since it was looked up
            raise file_not_found(file.id) from None


def shown_file(file: File) -> dict[str, Any]:
    """A file as OpenAI shows one."""
    return file_object(
        id=file.id,
        filename=file.filename,
        purpose=file.purpose,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
    )


def _id(request: Request) -> str:
    identifier: str = request.path_params["file_id"]
    return identifier


def _shown(file: File) -> Response:
    return Json(msgspec.json.encode(shown_file(file)))
