"""Uploads: files that come in parts, over several requests, and become whole at once when their client says so.

A part is a record of its own, durable when its call returns, so that an upload goes on after a restart. The parts and
the upload are for an hour; the upload itself is known for a day longer, so that late clients learn what became of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from stateroom import ids
from stateroom.blobs.store import BlobMissing, Blobs
from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import Fact, RecordDropped
from stateroom.runtime.files.files import File, Files, Incoming, new_file_id
from stateroom.runtime.records import Held, Records

COLLECTION: Final = "upload"
PARTS: Final = "upload_part"
LIFE_SECONDS: Final = 3_600
KEPT_SECONDS: Final = 24 * 3_600
"""How long it is known what became of an upload."""


class UploadState(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of the collection `upload`."""

    filename: str
    purpose: str
    mime_type: str
    bytes: int
    """That were announced."""
    until: int
    """When it expires, in milliseconds since the epoch."""
    expires_after: int | None = None
    """Of the file, in seconds."""
    status: str = "pending"
    file: str = ""
    """Id of what it became."""
    asked: str = ""
    """Hash of what it was completed with."""


class PartState(msgspec.Struct, frozen=True):
    """State of the collection `upload_part`."""

    upload: str
    bytes: int
    digest: str


class _HasPart(msgspec.Struct, frozen=True):
    """Noted of an upload: there may be a part by this id."""

    part: str


class Upload(msgspec.Struct, frozen=True):
    """An upload as it stands."""

    id: str
    state: UploadState
    created_at: int
    """Milliseconds since the epoch."""
    file: File | None = None


class Part(msgspec.Struct, frozen=True):
    id: str
    upload: str
    created_at: int
    """Milliseconds since the epoch."""


class Uploads:
    """The uploads of all projects."""

    def __init__(self, records: Records, files: Files, blobs: Blobs) -> None:
        self._records = records
        self._uploads = records.collection(COLLECTION, UploadState)
        self._parts = records.collection(PARTS, PartState)
        self._files = files
        self._blobs = blobs
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(
        self,
        project: str,
        *,
        filename: str,
        purpose: str,
        mime_type: str,
        size: int,
        expires_after: int | None,
        upload_id: str = "",
        also: Sequence[Fact] = (),
    ) -> Upload:
        """A new upload. `also` is committed with it."""
        upload_id = upload_id or ids.new_id("upload")
        until = self._records.now() + LIFE_SECONDS * 1000
        state = UploadState(filename, purpose, mime_type, size, until, expires_after)
        held = await self._uploads.create(project, upload_id, state, expires_at=until + KEPT_SECONDS * 1000, also=also)
        return Upload(held.id, state, held.created_at)

    async def get(self, project: str, upload_id: str) -> Upload:
        """Raises NotFound."""
        return await self._shown(await self._held(project, upload_id))

    async def check_pending(self, project: str, upload_id: str) -> None:
        """Raises NotFound, or InvalidRequest when it takes no more parts."""
        self._check_pending(await self._held(project, upload_id))

    async def add_part(
        self, project: str, upload_id: str, incoming: Incoming, *, part_id: str = "", also: Sequence[Fact] = ()
    ) -> Part:
        """Keep what has come in as a part. Raises NotFound, InvalidRequest, StorageError."""
        part_id = part_id or new_part_id()
        state = PartState(upload_id, incoming.size, await incoming.finish())
        async with self._lock(project, upload_id):
            held = await self._held(project, upload_id)
            self._check_pending(held)
            await self._uploads.note(project, upload_id, _HasPart(part_id))
            part = await self._parts.create(
                project, part_id, state, expires_at=held.state.until, blobs=[state.digest], also=also
            )
        incoming.kept = True
        return Part(part.id, upload_id, part.created_at)

    async def part(self, project: str, upload_id: str, part_id: str) -> Part:
        """Raises NotFound."""
        held = await self._held_part(project, upload_id, part_id, "part_id")
        return Part(held.id, upload_id, held.created_at)

    async def complete(self, project: str, upload_id: str, part_ids: Sequence[str], md5: str) -> Upload:
        """Make a file of these parts in this order; the same request again gives the same answer.

        Raises NotFound, InvalidRequest, StorageError; the upload is as before then, and can be completed yet.
        """
        asked = hashlib.sha256(msgspec.json.encode([part_ids, md5])).hexdigest()
        async with self._lock(project, upload_id):
            held = await self._held(project, upload_id)
            if held.state.status == "completed" and held.state.asked == asked:
                return await self._shown(held)
            self._check_pending(held)
            parts = await self._named_parts(project, upload_id, part_ids)
            _check_size(held.state.bytes, [part.state.bytes for part in parts])
            async with self._files.incoming() as incoming:
                await self._join(parts, incoming, md5)
                file_id = new_file_id()
                state = held.state
                made = await self._files.prepare(
                    incoming,
                    file_id=file_id,
                    filename=state.filename,
                    purpose=state.purpose,
                    expires_after=state.expires_after,
                )
                state = msgspec.structs.replace(state, status="completed", file=file_id, asked=asked)
                all_parts = await self._all_parts(project, upload_id)
                changed = await self._uploads.update(
                    project, upload_id, lambda _: state, also=(made, *_dropped(all_parts))
                )
                if changed is None:
                    raise upload_not_found(upload_id)
                incoming.kept = True
            await self._erase_parts(project, all_parts)
            return await self._shown(changed)

    async def cancel(self, project: str, upload_id: str) -> Upload:
        """Let go of it and its parts; once more does nothing. Raises NotFound, InvalidRequest."""
        async with self._lock(project, upload_id):
            held = await self._held(project, upload_id)
            if held.state.status != "cancelled":
                self._check_pending(held)
                state = msgspec.structs.replace(held.state, status="cancelled")
                all_parts = await self._all_parts(project, upload_id)
                changed = await self._uploads.update(project, upload_id, lambda _: state, also=_dropped(all_parts))
                if changed is None:
                    raise upload_not_found(upload_id)
                held = changed
                await self._erase_parts(project, all_parts)
            return await self._shown(held)

    async def _join(self, parts: Sequence[Held[PartState]], incoming: Incoming, md5: str) -> None:
        whole = hashlib.md5(usedforsecurity=False)
        for part in parts:
            try:
                async for chunk in self._blobs.chunks(part.state.digest):
                    whole.update(chunk)
                    await incoming.write(chunk)
            except BlobMissing:
                raise _expired() from None
        if md5 and whole.hexdigest() != md5.lower():
            raise InvalidRequest(
                f"The parts have the MD5 {whole.hexdigest()} together, not the one that was given. "
                "Are all parts named, in their order?",
                code="md5_mismatch",
                param="md5",
            )

    async def _named_parts(self, project: str, upload_id: str, part_ids: Sequence[str]) -> list[Held[PartState]]:
        if len(set(part_ids)) != len(part_ids):
            raise InvalidRequest("A part is named twice.", code="invalid_value", param="part_ids")
        return [
            await self._held_part(project, upload_id, part_id, f"part_ids[{number}]")
            for number, part_id in enumerate(part_ids)
        ]

    async def _held_part(self, project: str, upload_id: str, part_id: str, param: str) -> Held[PartState]:
        held = await self._parts.get(project, part_id)
        if held is None or held.state.upload != upload_id:
            message = f"Part with id '{part_id[:256]}' not found in this upload."
            raise NotFound(message, code="upload_part_not_found", param=param)
        return held

    async def _all_parts(self, project: str, upload_id: str) -> list[str]:
        """Ids of all parts there may be, named in the end or not."""
        notes = await self._uploads.notes(project, upload_id)
        return [msgspec.json.decode(note, type=_HasPart).part for note in notes]

    async def _erase_parts(self, project: str, part_ids: Sequence[str]) -> None:
        """Erase parts whose drop is committed. What a crash leaves of them goes at the next start."""
        for part_id in part_ids:
            await self._parts.drop(project, part_id)

    async def _held(self, project: str, upload_id: str) -> Held[UploadState]:
        held = await self._uploads.get(project, upload_id)
        if held is None:
            raise upload_not_found(upload_id)
        return held

    def _check_pending(self, held: Held[UploadState]) -> None:
        if held.state.status != "pending":
            message = f"The upload is {held.state.status} already."
            raise InvalidRequest(message, code="upload_not_pending", param="upload_id")
        if held.state.until <= self._records.now():
            raise _expired()

    async def _shown(self, held: Held[UploadState]) -> Upload:
        state, file = held.state, None
        if state.status == "pending" and state.until <= self._records.now():
            state = msgspec.structs.replace(state, status="expired")
        if state.file:
            try:
                file = await self._files.get(held.project, state.file)
            except NotFound:
                file = None  # it was deleted since
        return Upload(held.id, state, held.created_at, file)

    def _lock(self, project: str, upload_id: str) -> asyncio.Lock:
        lock = self._locks.get((project, upload_id))
        if lock is None:
            lock = self._locks[project, upload_id] = asyncio.Lock()
        return lock


def new_part_id() -> str:
    return ids.new_id("part")


def upload_not_found(upload_id: str) -> NotFound:
    """Missing and foreign look the same."""
    return NotFound(f"Upload with id '{upload_id[:256]}' not found.", code="upload_not_found", param="upload_id")


def _dropped(part_ids: Sequence[str]) -> tuple[Fact, ...]:
    """Dropped in the commit that has no use for them any more: no crash can come in between."""
    return tuple(RecordDropped(PARTS, part_id) for part_id in part_ids)


def _check_size(announced: int, sizes: Sequence[int]) -> None:
    if sum(sizes) != announced:
        raise InvalidRequest(
            f"The parts have {sum(sizes)} bytes together; the upload was announced with {announced}.",
            code="upload_size_mismatch",
            param="part_ids",
        )


def _expired() -> InvalidRequest:
    message = f"The upload has expired: it was not completed within {LIFE_SECONDS // 60} minutes. Begin a new one."
    return InvalidRequest(message, code="upload_expired", param="upload_id")
