"""Skills as folders of this machine, for sandboxes to read: unpacked when they are asked for, and kept for the next.

The folders are a cache over blobs. Whatever an earlier process left is thrown away at the start, and a folder whose
blob was erased goes as soon as nobody has it mounted. Where it can be told what is mounted, the cache is bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final
from weakref import WeakValueDictionary

import msgspec

from stateroom.blobs.files import TRANSLATED
from stateroom.blobs.store import BlobDamaged, Blobs, is_digest
from stateroom.clock import Clock
from stateroom.errors import StorageError
from stateroom.runtime.skills.bundle import extract
from stateroom.runtime.skills.receiving import in_thread

log = logging.getLogger("stateroom.skills")

MOUNTING_SECONDS: Final = 300.0
"""How long a folder that was asked for may take to be mounted."""
_ASIDE: Final = "aside"


class _Kept(msgspec.Struct):
    size: int
    asked_at: float


class SkillFolders:
    """The folders of one process. Nothing else may write below `root`."""

    def __init__(self, blobs: Blobs, root: Path, clock: Clock, *, bytes_max: int) -> None:
        self._blobs = blobs
        self._root = root.absolute()  # sandboxes are told of it, wherever they begin
        self._clock = clock
        self._bytes_max = bytes_max
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._made = 0
        self.mounted: Callable[[], Collection[str]] | None = None
        """The folders that sandboxes have mounted now. While nobody can tell, all may be."""

    @property
    def size(self) -> int:
        """Bytes of all folders, in whole blocks."""
        return sum(kept.size for kept in self._kept.values())

    async def start(self) -> None:
        """Throw away what an earlier process left: its sandboxes are gone, and its last writes may be, too."""
        await in_thread(lambda: remove_folder(self._root))

    async def folder(self, digest: str) -> Path:
        """The folder with the files of a skill, to be mounted read-only within minutes.

        Raises StorageError, BlobMissing among them.
        """
        lock = self._locks.get(digest)
        if lock is None:
            lock = self._locks[digest] = asyncio.Lock()
        async with lock:
            is_new = digest not in self._kept
            if is_new:
                size = await self.unpack(digest, self._root / digest)
                self._kept[digest] = _Kept(size, 0.0)
            self._kept[digest].asked_at = self._clock.now()
            self._kept.move_to_end(digest)
        if is_new:
            await self.sweep()
        return self._root / digest

    async def unpack(self, digest: str, directory: Path) -> int:
        """Unpack a kept skill into a directory that is not there yet: whole, or not at all; its size on the disk.

        Files are 0444, or 0555 when they can be executed, folders 0555. Raises StorageError.
        """
        self._made += 1
        aside = directory.parent / f"{_ASIDE}-{os.getpid()}-{self._made}"
        with TRANSLATED:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory.parent) as kept:
                await self._copy(digest, kept)
                try:
                    return await in_thread(lambda: _place(kept, aside, directory))
                except BaseException:
                    await in_thread(lambda: remove_folder(aside))
                    raise

    async def sweep(self) -> None:
        """Let go of folders whose skills were erased, and of the oldest beyond the bound; mounted ones stay."""
        for digest in list(self._kept):
            is_gone = not await self._blobs.exists(digest)
            kept = self._kept.get(digest)
            if kept is None or not (is_gone or self.size > self._bytes_max) or self._is_mounted(digest, kept):
                continue
            del self._kept[digest]
            self._made += 1
            aside = self._root / f"{_ASIDE}-{os.getpid()}-{self._made}"
            try:
                with TRANSLATED:
                    (self._root / digest).rename(aside)  # at once: from now on the name is free
                await in_thread(partial(remove_folder, aside))
            except StorageError as error:
                log.warning("skills.folder_left digest=%s error=%s", digest, error.message)

    def _is_mounted(self, digest: str, kept: _Kept) -> bool:
        if self.mounted is None or self._clock.now() - kept.asked_at < MOUNTING_SECONDS:
            return True
        return str(self._root / digest) in self.mounted()

    async def _copy(self, digest: str, out: BinaryIO) -> None:
        if not is_digest(digest):
            raise StorageError("There is no skill by this digest.", code="blob_missing")
        whole = hashlib.sha256()
        async with aclosing(self._blobs.chunks(digest)) as pieces:
            async for piece in pieces:
                whole.update(piece)
                out.write(piece)
        if whole.hexdigest() != digest:
            raise BlobDamaged(
                f"Blob {digest} is damaged: its bytes have changed on the disk. Restore it from a backup."
            )


def _place(kept: BinaryIO, aside: Path, directory: Path) -> int:
    aside.mkdir(mode=0o700)
    size = extract(kept, aside)
    aside.rename(directory)
    return size


def remove_folder(folder: Path) -> None:
    """A folder whose folders may be read-only. Links in it are not followed; there are none."""
    if not folder.is_dir():
        return
    for above, _, _ in os.walk(folder):
        Path(above).chmod(0o700)
    shutil.rmtree(folder)
