"""Blobs as files: `ab/cdef…` under a directory, written aside and renamed into place.

A name that exists therefore always stands for whole bytes, whatever was killed when. Small files are written where they
are asked for; large ones, and every fsync, in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from stateroom.blobs.store import BlobDamaged, digest_of, is_digest
from stateroom.errors import StorageError, StorageFull

_ASIDE: Final = "incoming"
"""Folder of files being written; on the same file system, so that a rename is atomic."""
_INLINE_BYTES: Final = 32 * 1024
"""Up to this size a file is read and written on the event loop: a hop to a thread costs more."""
_KNOWN_MAX: Final = 4_096
"""Digests remembered as being there, so that putting the same bytes again costs their hash alone."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_directory(root: str | Path, *, durability: Literal["normal", "full"] = "normal") -> DirectoryBlobs:
    """Open the blobs under `root`, creating it, and remove what an interrupted write left behind.

    Only one process at a time may hold a directory open.
    """
    root = Path(root)
    aside = root / _ASIDE
    with _Translated():
        aside.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            with _Translated():
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
        with _Translated():
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
            with _Translated():
                path.unlink(missing_ok=True)
        if self._full and path.parent.is_dir():
            with _Translated():
                await asyncio.to_thread(_sync_folder, path.parent)

    async def exists(self, digest: str) -> bool:
        return is_digest(digest) and (digest in self._known or self._path(digest).is_file())

    async def digests(self) -> list[str]:
        with _Translated():
            return await asyncio.to_thread(self._list)

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
            with open(aside, "xb", opener=_open_private) as file:
                file.write(data)
                if self._full:
                    file.flush()
                    os.fsync(file.fileno())
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                if self._full:
                    _sync_folder(self._root)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if self._full:
            _sync_folder(path.parent)


def _read(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    if digest_of(data) != digest:
        raise BlobDamaged(f"Blob {digest} is damaged: its bytes have changed on the disk. Restore it from a backup.")
    return data


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: it is the folder that remembers names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Translated:
    """Lets no error of the operating system out of its block."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise _translate(error) from error


def _translate(error: OSError) -> StorageError:
    if error.errno in _NO_ROOM:
        return StorageFull(
            "The disk with the data directory is full: nothing of this was kept. Make room, then try again."
        )
    return StorageError(
        f"A blob could not be read or written ({error.strerror}). See the disk's state and permissions."
    )
