"""Files that a request shows to a model: by id, by URL or in the request itself. PDFs and texts become text.

What the model reads of a file is kept beside the reference: a run sees the same for ever, and nothing is read twice.
It goes with the run. Deleting the file itself changes nothing that was said with it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from functools import partial
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from stateroom.access.outbound import OutboundGuard
from stateroom.blobs.hold import BlobHold, HeldBlobs
from stateroom.blobs.store import BlobMissing, Blobs
from stateroom.errors import InvalidRequest
from stateroom.runtime.files.documents import HEAD_BYTES, Content, Documents, as_told, image_type, of_bytes
from stateroom.runtime.files.files import File, Files, file_not_found
from stateroom.settings import Limits
from stateroom.wire.files import clean_filename

SOURCES: Final = ("file_id", "file_url", "file_data")


class FileBudget:
    """What the files of one request may take together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files = 0
        self._text = 0
        self.seconds = limits.file_seconds
        """Left for reading."""

    def begin(self, param: str) -> None:
        """One more has to be fetched or read. Raises InvalidRequest when there were too many."""
        self._files += 1
        if self._files > self._limits.file_inputs:
            message = f"A request may have at most {self._limits.file_inputs} files read (`limits.file_inputs`)."
            raise InvalidRequest(message, code="too_many_files", param=param)

    def add_text(self, size: int, param: str) -> None:
        """Raises InvalidRequest when there is too much of it."""
        self._text += size
        if self._text > self._limits.body_bytes:
            message = (
                f"The files have more than {self._limits.body_bytes} bytes of text together (`limits.body_bytes`)."
            )
            raise InvalidRequest(message, code="input_too_large", param=param)


class FileInputs:
    """Resolves what parts of an input say of files."""

    def __init__(
        self,
        files: Files,
        documents: Documents,
        blobs: Blobs,
        held: HeldBlobs,
        guard: OutboundGuard,
        limits: Limits,
    ) -> None:
        self._files = files
        self._documents = documents
        self._blobs = blobs
        self._held = held
        self._guard = guard
        self._limits = limits

    async def image(self, project: str, file_id: str, param: str) -> tuple[bytes, str]:
        """The bytes and the media type of an image by its file's id. Raises NotFound, InvalidRequest."""
        file = await self._files.get_named(project, file_id, param)
        if file.bytes > self._limits.image_bytes:
            message = f"The image is larger than {self._limits.image_bytes} bytes (`limits.image_bytes`)."
            raise InvalidRequest(message, code="image_file_too_large", param=param)
        data = await self._blobs.get(file.digest)
        if data is None:
            raise file_not_found(file_id, param)
        media_type = image_type(data[:HEAD_BYTES])
        if media_type is None:
            message = "The file is not a PNG, JPEG, GIF or WebP image. Send documents as `input_file`."
            raise InvalidRequest(message, code="unsupported_image_media_type", param=param)
        return data, media_type

    async def part(
        self, project: str, part: dict[str, Any], path: str, budget: FileBudget, *, hold: BlobHold | None
    ) -> dict[str, Any]:
        """An `input_file` with its text: beside it as a blob, or in its place when nothing is to be stored.

        Raises InvalidRequest, NotFound, TooMany.
        """
        given = [name for name in SOURCES if part.get(name)]
        if not given:
            wanted = ", ".join(f"'{name}'" for name in SOURCES)
            message = f"'{path}' needs one of {wanted}."
            raise InvalidRequest(message, code="missing_required_parameter", param=path)
        if len(given) > 1:
            message = f"'{path}' may have one of {' and '.join(map(repr, given))} only."
            raise InvalidRequest(message, code="mutually_exclusive_parameters", param=path)
        param = f"{path}.{given[0]}"
        with self._held.hold() as reading:
            kept: dict[str, Any] = {}
            if part.get("file_id"):
                text = await self._by_id(project, part, param, budget, reading)
            elif part.get("file_url"):
                text = await self._by_url(project, part, param, budget)
            else:
                text, kept = await self._by_data(project, part, param, budget, hold)
            budget.add_text(len(text), param)
            if hold is None:
                return {"type": "input_text", "text": text}
            bare = {name: value for name, value in part.items() if name != "file_data"}
            return {**bare, **kept, "text_blob": await hold.put(text.encode())}

    async def _by_id(
        self, project: str, part: dict[str, Any], param: str, budget: FileBudget, reading: BlobHold
    ) -> str:
        file = await self._files.get_named(project, part["file_id"], param)
        if file.text and await reading.keep(file.text):
            known = await self._blobs.get(file.text)
            if known is not None:
                return known.decode()
        if not await reading.keep(file.digest):
            raise file_not_found(file.id, param)
        budget.begin(param)
        try:
            text = await self._read(project, self._content(file), file.filename, param, budget)
        except BlobMissing:
            raise file_not_found(file.id, param) from None
        await self._files.note_text(project, file.id, await reading.put(text.encode()))
        return text

    async def _by_url(self, project: str, part: dict[str, Any], param: str, budget: FileBudget) -> str:
        budget.begin(param)
        url: str = part["file_url"]
        fetched = await self._guard.fetch_whole(url, param=param, accept="*/*")
        name = part.get("filename") or unquote(urlsplit(url).path.rsplit("/", 1)[-1])[:255]
        return await self._read(project, of_bytes(fetched.data, fetched.charset), name, param, budget)

    async def _by_data(
        self, project: str, part: dict[str, Any], param: str, budget: FileBudget, hold: BlobHold | None
    ) -> tuple[str, dict[str, Any]]:
        budget.begin(param)
        data, media_type = _decode(part["file_data"], param)
        charset = media_type.partition("charset=")[2].split(";")[0].strip("\"' ")
        text = await self._read(project, of_bytes(data, charset), part.get("filename") or "", param, budget)
        if hold is None:
            return text, {}
        # What was sent comes back as it was: with the head of its data URL, if it had one.
        kept = {"media_type": media_type} if part["file_data"].startswith("data:") else {}
        return text, {**kept, "data_blob": await hold.put(data)}

    async def _read(self, project: str, content: Content, name: str, param: str, budget: FileBudget) -> str:
        clock = asyncio.get_running_loop().time
        began = clock()
        text = await self._documents.text(project, content, param=param, seconds=budget.seconds)
        budget.seconds -= clock() - began
        return as_told(clean_filename(name, param), text)

    def _content(self, file: File) -> Content:
        return Content(file.bytes, file.digest, partial(self._files.read, file))


def _decode(given: str, param: str) -> tuple[bytes, str]:
    """The bytes of base64 or of a data URL, and what stands before `;base64` in the latter. Raises InvalidRequest."""
    media_type, body = "", given
    if given.startswith("data:"):
        head, separator, body = given.partition(",")
        media_type = head[len("data:") :].removesuffix(";base64")
        if not separator or not head.endswith(";base64") or len(media_type) > 255:
            message = "Data URLs must have the form data:application/pdf;base64,...."
            raise InvalidRequest(message, code="invalid_file_data", param=param)
    try:
        return base64.b64decode(body, validate=True), media_type
    except (binascii.Error, ValueError):
        raise InvalidRequest("The file is not valid base64.", code="invalid_file_data", param=param) from None
