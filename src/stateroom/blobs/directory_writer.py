"""A blob that comes in pieces and goes to a file aside: hashed as it is written, named when its hash is known.

Pieces are gathered first, so that there is one hop to a thread for each quarter of a megabyte.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable
from io import FileIO
from pathlib import Path
from typing import Final

from stateroom.blobs.files import TRANSLATED, open_private
from stateroom.blobs.store import WriterClosed

_GATHERED_BYTES: Final = 256 * 1024


class DirectoryBlobWriter:
    """Implements `BlobWriter`. Made by `DirectoryBlobs.writer`."""

    def __init__(
        self,
        aside: Path,
        *,
        full: bool,
        put: Callable[[bytes], Awaitable[str]],
        place: Callable[[Path, str], Awaitable[None]],
    ) -> None:
        """`put` keeps what was small after all; `place` gives the file aside the name of its digest."""
        self._aside = aside
        self._full = full
        self._put = put
        self._place = place
        self._hash = hashlib.sha256()
        self._written = 0
        self._gathered = bytearray()
        self._file: FileIO | None = None
        self._closed = False
        self._busy: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        return self._written + len(self._gathered)

    @property
    def digest(self) -> str:
        whole = self._hash.copy()
        whole.update(self._gathered)
        return whole.hexdigest()

    async def write(self, data: bytes) -> None:
        self._check_open()
        self._gathered += data
        if len(self._gathered) >= _GATHERED_BYTES:
            await self._try(self._flush())

    async def finish(self) -> str:
        self._check_open()
        if self._file is None:
            self._closed = True
            return await self._put(bytes(self._gathered))
        await self._try(self._flush(last=True))
        digest = self._hash.hexdigest()
        self._closed = True
        await self._try(self._place(self._aside, digest))
        return digest

    async def abort(self) -> None:
        self._closed = True
        self._gathered = bytearray()
        if self._busy is not None:
            # A thread that writes to a file which is closed meanwhile might write to somebody else's.
            await asyncio.wait((self._busy,))
        if self._file is not None:
            await asyncio.to_thread(self._discard)

    async def _try(self, step: Awaitable[None]) -> None:
        try:
            with TRANSLATED:
                await step
        except Exception:  # whatever it was: half a blob is of no use, and its room is wanted
            await self.abort()
            raise

    async def _flush(self, *, last: bool = False) -> None:
        data, self._gathered = self._gathered, bytearray()
        self._busy = asyncio.ensure_future(asyncio.to_thread(self._append, data, last))
        self._written += len(data)
        await asyncio.shield(self._busy)

    def _append(self, data: bytearray, last: bool) -> None:
        self._hash.update(data)
        if self._file is None:
            self._file = FileIO(str(self._aside), "x", opener=open_private)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        if last:
            if self._full:
                os.fsync(self._file.fileno())
            self._file.close()

    def _discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what cannot be written out on closing is thrown away anyhow
                self._file.close()
        with contextlib.suppress(OSError):  # the next start removes what is left aside
            self._aside.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if self._closed:
            raise WriterClosed("The blob is finished, aborted or broken off: nothing can be added to it.")
