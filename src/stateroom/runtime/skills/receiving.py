"""A skill on its way in: written to a file without a name, checked and packed in a thread, then kept as a blob.

The file goes with the process that has it open: no crash leaves anything of what was sent.
"""

from __future__ import annotations

import asyncio
import tempfile
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, TypeVar

import msgspec

from stateroom.blobs.files import TRANSLATED
from stateroom.runtime.files.files import Incoming
from stateroom.runtime.skills.bundle import Packed, members_of_folder, members_of_zip, pack
from stateroom.runtime.skills.manifest import Manifest
from stateroom.runtime.skills.refusals import bad_archive, shown, too_large
from stateroom.runtime.skills.zip_reader import Bounds

T = TypeVar("T")

GATHERED_BYTES: Final = 256 * 1024


class Bundle(msgspec.Struct, frozen=True):
    """A skill that was checked and packed."""

    manifest: Manifest
    files: int
    bytes: int
    """Of its files together."""
    digest: str
    """Of the zip that is kept."""
    size: int
    """Of that zip."""


class Receiving:
    """Takes in one skill. Leaving the block without `kept` leaves nothing of it behind."""

    def __init__(self, incoming: Incoming, scratch: Path, bounds: Bounds, places: asyncio.Semaphore) -> None:
        self._incoming = incoming
        self._scratch = scratch
        self._bounds = bounds
        self._places = places
        self._stack = AsyncExitStack()
        self._gathered = bytearray()
        self._listed: list[tuple[str, int, int, int]] = []
        self._size = 0

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._incoming)
        with TRANSLATED:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Files without a name: nothing of them is left when they are closed, whatever closes them.
            self._sent: BinaryIO = self._stack.enter_context(_unnamed(self._scratch))
            self._out: BinaryIO = self._stack.enter_context(_unnamed(self._scratch))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def begin(self, filename: str) -> None:
        """What is written from now on belongs to a file by this path. The caller bounds how many there are."""
        self._listed.append((filename, self._size, 0, 0))

    async def write(self, data: bytes) -> None:
        """Raises TooLarge, StorageFull."""
        path, start, size, crc = self._listed[-1]
        if len(self._listed) > 1 and size + len(data) > self._bounds.file_bytes:
            message = f"{shown(path)} has more than {self._bounds.file_bytes} bytes (`limits.skill_file_bytes`)."
            raise too_large(message)
        self._listed[-1] = (path, start, size + len(data), zlib.crc32(data, crc))
        self._size += len(data)
        self._gathered += data
        if len(self._gathered) >= GATHERED_BYTES:
            await self._flush()

    async def pack(self) -> Bundle:
        """Check all of it. Raises InvalidRequest, TooLarge, StorageError."""
        await self._flush()
        async with self._places:
            packed = await in_thread(self._pack)
            await in_thread(lambda: self._out.seek(0))
            while piece := await in_thread(lambda: self._out.read(GATHERED_BYTES)):
                await self._incoming.write(piece)
        incoming = self._incoming
        return Bundle(packed.manifest, packed.files, packed.bytes, incoming.digest, incoming.size)

    async def finish(self) -> str:
        """Keep the packed zip as a blob until the block is left or something refers to it; its digest."""
        return await self._incoming.finish()

    def keep(self) -> None:
        """Something refers to the blob now."""
        self._incoming.kept = True

    def _pack(self) -> Packed:
        self._sent.seek(0)
        if len(self._listed) == 1 and self._sent.read(2) == b"PK":
            members = members_of_zip(self._sent, self._bounds)
        elif len(self._listed) == 1 and self._listed[0][0].lower().endswith(".zip"):
            raise bad_archive("it does not begin like one")
        else:
            members = members_of_folder(self._sent, self._listed, self._bounds)
        return pack(members, self._out)

    async def _flush(self) -> None:
        data, self._gathered = self._gathered, bytearray()
        await in_thread(lambda: self._sent.write(data))


def _unnamed(folder: Path) -> BinaryIO:
    return tempfile.TemporaryFile(dir=folder)  # the caller's stack closes it


async def in_thread(work: Callable[[], T]) -> T:
    """What it gives. Whoever is cancelled meanwhile waits for its end: it uses files that are closed afterwards."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    working.add_done_callback(lambda done: done.cancelled() or done.exception())  # else it complains when nobody waits
    with TRANSLATED:
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait((working,))
            raise
