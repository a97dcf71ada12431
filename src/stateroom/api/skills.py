"""The Skills API: translate, check access, call the runtime, translate back."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.claims import claim
from stateroom.api.download import Download
from stateroom.api.http import Json, page_of, read_body, slice_page
from stateroom.api.multipart import Form, read_files
from stateroom.api.responses import principal
from stateroom.blobs.store import BlobMissing
from stateroom.errors import NotFound
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.skills.receiving import Receiving
from stateroom.runtime.skills.refusals import too_many_files, upload_too_large, version_not_found
from stateroom.runtime.skills.skills import Skill, Skills, Version, new_skill_id, version_id_of
from stateroom.settings import Limits
from stateroom.wire.files import content_disposition
from stateroom.wire.responses import render_list
from stateroom.wire.skills import (
    decode_default_version,
    deleted_skill,
    deleted_version,
    read_default,
    read_version,
    skill_object,
    version_object,
)

_FILES: Final = re.compile(r"files(?:\[[0-9]{0,6}\])?")
"""Clients name the fields of a folder `files[]`, `files[0]` or `files`."""


class SkillsApi:
    """Handlers over the runtime."""

    def __init__(self, skills: Skills, idempotency: Idempotency, limits: Limits) -> None:
        self._skills = skills
        self._idempotency = idempotency
        self._limits = limits

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        version = "/skills/{skill_id}/versions/{version}"
        return [
            Route("/skills", self.create, methods=["POST"]),
            Route("/skills", self.page, methods=["GET"]),
            Route("/skills/{skill_id}", self.retrieve, methods=["GET"]),
            Route("/skills/{skill_id}", self.update, methods=["POST"]),
            Route("/skills/{skill_id}", self.delete, methods=["DELETE"]),
            Route("/skills/{skill_id}/content", self.content, methods=["GET"]),
            Route("/skills/{skill_id}/versions", self.create_version, methods=["POST"]),
            Route("/skills/{skill_id}/versions", self.versions, methods=["GET"]),
            Route(version, self.retrieve_version, methods=["GET"]),
            Route(version, self.delete_version, methods=["DELETE"]),
            Route(version + "/content", self.version_content, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        project, skills = principal(request).project, self._skills
        async with skills.receiving() as received:
            await self._read(request, received)
            bundle = await received.pack()
            async with claim(self._idempotency, request, bundle.digest.encode()) as claimed:
                if claimed.made:
                    with suppress(NotFound):
                        return _shown(await skills.get(project, claimed.made))
                skill_id = new_skill_id()
                made = await skills.create(project, received, bundle, skill_id=skill_id, also=claimed.also(skill_id))
        return _shown(made)

    async def page(self, request: Request) -> Response:
        asked = page_of(request.query_params)
        found, more = await self._skills.page(
            principal(request).project,
            after=asked.after,
            before=asked.before,
            limit=asked.limit,
            descending=asked.descending,
        )
        return Json(render_list([_skill(skill) for skill in found], more))

    async def retrieve(self, request: Request) -> Response:
        return _shown(await self._skills.get(principal(request).project, _id(request)))

    async def update(self, request: Request) -> Response:
        body = await read_body(request, self._limits.body_bytes)
        asked = decode_default_version(body, self._limits.depth)
        project, number = principal(request).project, read_version(asked)
        return _shown(await self._skills.set_default(project, _id(request), number, asked=asked))

    async def delete(self, request: Request) -> Response:
        await self._skills.delete(principal(request).project, _id(request))
        return Json(msgspec.json.encode(deleted_skill(_id(request))))

    async def content(self, request: Request) -> Response:
        skill = await self._skills.get(principal(request).project, _id(request))
        return self._download(request, skill.default)

    async def create_version(self, request: Request) -> Response:
        project, skill_id, skills = principal(request).project, _id(request), self._skills
        await skills.numbers(project, skill_id)
        async with skills.receiving() as received:
            form = await self._read(request, received)
            default = read_default(form.fields)
            bundle = await received.pack()
            said = msgspec.json.encode([bundle.digest, default])
            async with claim(self._idempotency, request, said) as claimed:
                if claimed.made:
                    for number in await skills.numbers(project, skill_id):
                        if version_id_of(skill_id, number) == claimed.made:
                            return _shown_version(await skills.version(project, skill_id, number))
                made = await skills.add_version(project, skill_id, received, bundle, default=default, also=claimed.also)
        return _shown_version(made)

    async def versions(self, request: Request) -> Response:
        project, skill_id = principal(request).project, _id(request)
        numbers = await self._skills.numbers(project, skill_id)
        entries = [_Numbered(version_id_of(skill_id, number), number) for number in numbers]
        some, more = slice_page(entries, page_of(request.query_params))
        found = await self._skills.some_versions(project, skill_id, [each.number for each in some])
        return Json(render_list([_version(version) for version in found], more))

    async def retrieve_version(self, request: Request) -> Response:
        return _shown_version(await self._version(request))

    async def delete_version(self, request: Request) -> Response:
        asked: str = request.path_params["version"]
        number = read_version(asked)
        version_id = await self._skills.delete_version(principal(request).project, _id(request), number, asked=asked)
        return Json(msgspec.json.encode(deleted_version(version_id, number)))

    async def version_content(self, request: Request) -> Response:
        return self._download(request, await self._version(request))

    async def _read(self, request: Request, received: Receiving) -> Form:
        limits = self._limits
        form = await read_files(
            request,
            file=_FILES,
            # Twice as many as a skill may have: what macOS adds does not count in the end.
            files_max=2 * limits.skill_files,
            too_many=too_many_files(limits.skill_files),
            bytes_max=limits.skill_bytes,
            too_large=upload_too_large(limits.skill_bytes),
            begin=received.begin,
            write=received.write,
        )
        form.named("files")
        return form

    async def _version(self, request: Request) -> Version:
        asked: str = request.path_params["version"]
        project, number = principal(request).project, read_version(asked)
        return await self._skills.version(project, _id(request), number, asked=asked)

    def _download(self, request: Request, version: Version) -> Response:
        return Download(
            request,
            partial(self._content, version),
            size=version.state.size,
            etag=f'"{version.state.digest}"',
            disposition=content_disposition(f"{version.state.name}.zip"),
        )

    async def _content(self, version: Version, first: int, last: int | None) -> Any:
        try:
            async for piece in self._skills.read(version, first=first, last=last):
                yield piece
        except BlobMissing:  # deleted since it was looked up
            raise version_not_found(version.state.skill, str(version.state.number)) from None


class _Numbered(msgspec.Struct, frozen=True):
    id: str
    number: int


def _id(request: Request) -> str:
    identifier: str = request.path_params["skill_id"]
    return identifier


def _skill(skill: Skill) -> dict[str, Any]:
    return skill_object(
        id=skill.id,
        name=skill.default.state.name,
        description=skill.default.state.description,
        created_at=skill.created_at,
        default_version=skill.state.default,
        latest_version=skill.state.versions[-1],
    )


def _version(version: Version) -> dict[str, Any]:
    state = version.state
    return version_object(
        id=version.id,
        skill_id=state.skill,
        version=state.number,
        name=state.name,
        description=state.description,
        created_at=version.created_at,
    )


def _shown(skill: Skill) -> Response:
    return Json(msgspec.json.encode(_skill(skill)))


def _shown_version(version: Version) -> Response:
    return Json(msgspec.json.encode(_version(version)))
