"""Blobs as files: `ab/cdef…` under a directory, written aside and renamed into place.

A name that exists therefore always stands for whole bytes, whatever was killed when. Small files are written where they
are asked for; large ones, and every fsync, in a thread.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final, Literal

from stateroom.blobs.directory_writer import DirectoryBlobWriter
from stateroom.blobs.files import TRANSLATED, open_private, put_in_place, sync_folder
from stateroom.blobs.store import CHUNK_BYTES, BlobDamaged, BlobMissing, digest_of, is_digest

_ASIDE: Final = "incoming"
"""Folder of files being written; on the same file system, so that a rename is atomic."""
_INLINE_BYTES: Final = 32 * 1024
"""Up to this size a file is read and written on the event loop: a hop to a thread costs more."""
_KNOWN_MAX: Final = 4_096
"""Digests remembered as being there, so that putting the same bytes again costs their hash alone."""


def open_directory(root: str | Path, *, durability: Literal["normal", "full"] = "normal") -> DirectoryBlobs:
    """Open the blobs under `root`, creating it, and remove what an interrupted write left behind.

    Only one process at a time may hold a directory open.
    """
    root = Path(root)
    aside = root / _ASIDE
    with TRANSLATED:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.mkdir(mode=0o700, exist_ok=True)
        for leftover in aside.iterdir():
            leftover.unlink()
    return DirectoryBlobs(root, durability=durability)


class DirectoryBlobs:
    """Implements `Blobs`. Made by `open_directory`."""

    def __init__(self, root: Path, *, durability: Literal["normal", "full"]) -> None:
        self._root = root
        self._full = durability == "full"
        self._known: OrderedDict[str, None] = OrderedDict()
        self._written = 0
        # Changes of one blob happen one after the other, lest a delete take away what a put beside it has just found.
        self._locks = {digit: asyncio.Lock() for digit in "0123456789abcdef"}

    async def put(self, data: bytes) -> str:
        small = len(data) <= _INLINE_BYTES
        digest = digest_of(data) if small else await asyncio.to_thread(digest_of, data)
        if digest in self._known:
            self._known.move_to_end(digest)
            return digest
        async with self._locks[digest[0]]:
            self._written += 1
            write = partial(self._write, digest, data, self._root / _ASIDE / f"{digest}.{self._written}")
            with TRANSLATED:
                if small and not self._full:
                    write()
                else:
                    await asyncio.to_thread(write)
            self._remember(digest)
        return digest

    async def get(self, digest: str) -> bytes | None:
        if not is_digest(digest):
            return None
        path = self._path(digest)
        with TRANSLATED:
            try:
                small = path.stat().st_size <= _INLINE_BYTES
                return _read(path, digest) if small else await asyncio.to_thread(_read, path, digest)
            except FileNotFoundError:
                return None

    async def delete(self, digest: str) -> None:
        if not is_digest(digest):
            return
        path = self._path(digest)
        self._known.pop(digest, None)  # at once: a put that comes while this waits for its turn must write it again
        async with self._locks[digest[0]]:
            with TRANSLATED:
                path.unlink(missing_ok=True)
        if self._full and path.parent.is_dir():
            with TRANSLATED:
                await asyncio.to_thread(sync_folder, path.parent)

    async def exists(self, digest: str) -> bool:
        return is_digest(digest) and (digest in self._known or self._path(digest).is_file())

    async def digests(self) -> list[str]:
        with TRANSLATED:
            return await asyncio.to_thread(self._list)

    async def size(self, digest: str) -> int | None:
        if not is_digest(digest):
            return None
        with TRANSLATED:
            try:
                return self._path(digest).stat().st_size
            except FileNotFoundError:
                return None

    def writer(self) -> DirectoryBlobWriter:
        self._written += 1
        aside = self._root / _ASIDE / f"pieces.{self._written}"
        return DirectoryBlobWriter(aside, full=self._full, put=self.put, place=self._place)

    async def chunks(self, digest: str, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        with TRANSLATED, self._open(digest) as file:
            left = os.fstat(file.fileno()).st_size if last is None else last + 1
            left = max(left - first, 0)
            file.seek(first)
            small = left <= _INLINE_BYTES
            while left:
                wanted = min(left, CHUNK_BYTES)
                data = file.read(wanted) if small else await asyncio.to_thread(file.read, wanted)
                if not data:
                    return
                left -= len(data)
                yield data

    def _open(self, digest: str) -> FileIO:
        try:
            return FileIO(str(self._path(digest)) if is_digest(digest) else "")
        except FileNotFoundError:
            raise BlobMissing(f"Blob {digest!r} is not there.") from None

    async def _place(self, aside: Path, digest: str) -> None:
        """Give a file that is written its name."""
        async with self._locks[digest[0]]:
            place = partial(put_in_place, aside, self._path(digest), self._root, full=self._full)
            await asyncio.to_thread(place)
            self._remember(digest)

    def _list(self) -> list[str]:
        names = [folder.name + file.name for folder in self._root.iterdir() for file in folder.iterdir()]
        return [name for name in names if is_digest(name)]

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest[2:]

    def _remember(self, digest: str) -> None:
        self._known[digest] = None
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    def _write(self, digest: str, data: bytes, aside: Path) -> None:
        path = self._path(digest)
        try:
            with open(aside, "xb", opener=open_private) as file:
                file.write(data)
                if self._full:
                    file.flush()
                    os.fsync(file.fileno())
            put_in_place(aside, path, self._root, full=self._full)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _read(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    if digest_of(data) != digest:
        raise BlobDamaged(f"Blob {digest} is damaged: its bytes have changed on the disk. Restore it from a backup.")
    return data
