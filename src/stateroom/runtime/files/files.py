"""Files: bytes with a name and a purpose, kept as a blob and known by a record. They come and go in pieces.

The same bytes are kept once, however many files have them. A blob goes with the last thing that needs it, be that a
file or what a run has seen of one. A file whose time has come is missing from then on, whenever it is swept.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Final, Self

import msgspec

from stateroom import ids
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs, BlobWriter
from stateroom.errors import InvalidRequest, NotFound, TooLarge
from stateroom.journal.entries import Fact
from stateroom.journal.store import Index
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.records import Held, Records

COLLECTION: Final = "file"
BATCH_SECONDS: Final = 30 * 24 * 3_600
"""How long files for batches are kept when nothing else is asked for."""
_PAGE: Final = 500
"""Files that are looked through at a time for those of one purpose."""


class FileState(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of the collection `file`."""

    filename: str
    purpose: str
    bytes: int
    digest: str
    """Of its content."""
    text: str = ""
    """Digest of what models read of it, once one has."""


class File(msgspec.Struct, frozen=True):
    """A file as it stands."""

    id: str
    filename: str
    purpose: str
    bytes: int
    digest: str
    text: str
    """Digest of what models read of it; '' while none has."""
    created_at: int
    """Milliseconds since the epoch."""
    expires_at: int
    """The same; 0: never."""


class Incoming:
    """Bytes on their way into a blob. Leaving the block without `kept` leaves nothing of them behind."""

    def __init__(self, blobs: Blobs, held: HeldBlobs, index: Index) -> None:
        self._blobs = blobs
        self._held = held
        self._index = index
        self._hold = held.hold()
        self._writer: BlobWriter = self._hold.writer()
        self._finished = ""
        self.kept = False
        """Something refers to the blob now, or it is not for us to say."""

    @property
    def size(self) -> int:
        return self._writer.size

    @property
    def digest(self) -> str:
        """Of the bytes so far."""
        return self._finished or self._writer.digest

    async def write(self, data: bytes) -> None:
        """Raises StorageFull."""
        await self._writer.write(data)

    async def finish(self) -> str:
        """Keep the bytes as a blob, until the block is left or something refers to it; its digest."""
        if not self._finished:
            self._finished = await self._writer.finish()
        return self._finished

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._writer.abort()
        finally:
            self._hold.__exit__(kind, error, trace)
        digest = self._finished
        if digest and not self.kept and not await self._index.blob_in_use(digest) and not self._held.is_held(digest):
            await self._blobs.delete(digest)


class Files:
    """The files of all projects."""

    def __init__(self, records: Records, blobs: Blobs, held: HeldBlobs, *, bytes_max: int) -> None:
        self._records = records
        self._files = records.collection(COLLECTION, FileState)
        self._blobs = blobs
        self._held = held
        self.bytes_max = bytes_max
        """Of one file that comes in one piece."""

    def incoming(self) -> Incoming:
        """For bytes of which it shows at their end what becomes of them."""
        return Incoming(self._blobs, self._held, self._records.index)

    async def add(
        self,
        project: str,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after: int | None = None,
        file_id: str = "",
        also: Sequence[Fact] = (),
    ) -> File:
        """A new file of these bytes, durable when this returns. Raises TooLarge, StorageError.

        `expires_after` is in seconds; without it files for batches are kept for 30 days and others for ever. What is
        `also` given is committed with it. The caller closes `chunks`.
        """
        async with self.incoming() as incoming:
            async for chunk in chunks:
                if incoming.size + len(chunk) > self.bytes_max:
                    raise file_too_large(self.bytes_max)
                await incoming.write(chunk)
            return await self.keep(
                project,
                incoming,
                filename=filename,
                purpose=purpose,
                expires_after=expires_after,
                file_id=file_id,
                also=also,
            )

    async def keep(
        self,
        project: str,
        incoming: Incoming,
        *,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
        file_id: str = "",
        also: Sequence[Fact] = (),
    ) -> File:
        """The same for bytes that have come in. Leave the block of `incoming` afterwards, whatever came of this."""
        file_id = file_id or new_file_id()
        state = FileState(filename, purpose, incoming.size, await incoming.finish())
        expires_at = self._expiry(purpose, expires_after)
        held = await self._files.create(project, file_id, state, expires_at=expires_at, blobs=[state.digest], also=also)
        incoming.kept = True
        return _shown(held)

    async def prepare(
        self, incoming: Incoming, *, file_id: str, filename: str, purpose: str, expires_after: int | None
    ) -> Fact:
        """The entry that makes a file by this new id, for somebody else's commit."""
        state = FileState(filename, purpose, incoming.size, await incoming.finish())
        expires_at = self._expiry(purpose, expires_after)
        return self._files.put(file_id, state, expires_at=expires_at, blobs=[state.digest])

    async def get(self, project: str, file_id: str) -> File:
        """Raises NotFound."""
        return await self.get_named(project, file_id, "file_id")

    async def get_named(self, project: str, file_id: str, param: str) -> File:
        """The same for a file that a request names at this place."""
        held = await self._files.get(project, file_id)
        if held is None or self._is_over(held):
            raise file_not_found(file_id, param)
        return _shown(held)

    async def page(
        self,
        project: str,
        *,
        after: str = "",
        before: str = "",
        limit: int = 10_000,
        descending: bool = True,
        purpose: str = "",
    ) -> list[File]:
        """By age, one more than `limit` when there are more. Raises InvalidRequest on unknown cursors."""
        await check_cursors(partial(self._files.get, project), "file", after=after, before=before)
        found: list[File] = []
        while len(found) <= limit:
            some = await self._files.page(project, after=after, before=before, limit=_PAGE, descending=descending)
            found += [
                _shown(held)
                for held in some[:_PAGE]
                if (not purpose or held.state.purpose == purpose) and not self._is_over(held)
            ]
            if len(some) <= _PAGE:
                break
            after = some[_PAGE - 1].id
        return found[: limit + 1]

    async def chunks(
        self, project: str, file_id: str, *, first: int = 0, last: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Its bytes from `first` to `last` (inclusive; None: the end), in pieces. Raises NotFound.

        What is deleted meanwhile is read to its end by whoever has begun.
        """
        file = await self.get(project, file_id)
        async with aclosing(self.read(file, first=first, last=last)) as pieces:
            async for piece in pieces:
                yield piece

    def read(self, file: File, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """The same of a file that was got before. Raises StorageError when it is gone."""
        return self._blobs.chunks(file.digest, first=first, last=last)

    async def lines(self, project: str, file_id: str, *, line_bytes: int) -> AsyncGenerator[bytes, None]:
        """Its lines, without what ends them. Raises NotFound, and InvalidRequest at a line that is longer."""
        rest = b""
        number = 0
        async with aclosing(self.chunks(project, file_id)) as pieces:
            async for piece in pieces:
                *whole, rest = (rest + piece).split(b"\n") if b"\n" in piece else (rest + piece,)
                for line in whole:
                    number += 1
                    _check_line(line, number, line_bytes)
                    yield line.removesuffix(b"\r")
                _check_line(rest, number + 1, line_bytes)
        if rest:
            yield rest.removesuffix(b"\r")

    async def note_text(self, project: str, file_id: str, digest: str) -> None:
        """Remember what models read of a file, a blob that the caller holds; nothing happens when the file is gone."""

        def with_text(held: Held[FileState]) -> FileState | None:
            return None if held.state.text == digest else msgspec.structs.replace(held.state, text=digest)

        held = await self._files.get(project, file_id)
        if held is not None:
            await self._files.update(project, file_id, with_text, blobs=[held.state.digest, digest])

    async def delete(self, project: str, file_id: str) -> None:
        """Erase it, and its bytes when nothing else needs them. Raises NotFound."""
        await self.get(project, file_id)
        if not await self._files.drop(project, file_id):
            raise file_not_found(file_id)

    def _expiry(self, purpose: str, expires_after: int | None) -> int:
        if expires_after is None and purpose == "batch":
            expires_after = BATCH_SECONDS
        return 0 if expires_after is None else self._records.now() + expires_after * 1000

    def _is_over(self, held: Held[FileState]) -> bool:
        return 0 < held.expires_at <= self._records.now()


def new_file_id() -> str:
    """With the dash that clients of OpenAI's API look for."""
    return f"file-{ids.new_key()}"


def file_not_found(file_id: str, param: str = "file_id") -> NotFound:
    """Missing, deleted, expired and foreign look the same."""
    return NotFound(f"File with id '{file_id[:256]}' not found.", code="file_not_found", param=param)


def file_too_large(bytes_max: int, param: str = "file", setting: str = "limits.file_bytes") -> TooLarge:
    message = f"The file is larger than {bytes_max} bytes (`{setting}`)."
    return TooLarge(message, code="file_too_large", param=param)


def _check_line(line: bytes, number: int, bytes_max: int) -> None:
    if len(line) > bytes_max:
        message = f"Line {number} of the file is longer than {bytes_max} bytes."
        raise InvalidRequest(message, code="line_too_long")


def _shown(held: Held[FileState]) -> File:
    state = held.state
    return File(
        held.id,
        state.filename,
        state.purpose,
        state.bytes,
        state.digest,
        state.text,
        held.created_at,
        held.expires_at,
    )
