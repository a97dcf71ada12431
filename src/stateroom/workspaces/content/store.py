"""`ContentStore`: the content store as the event loop sees it; the work is done in threads by `ContentDatabase`.

It keeps what is known of each workspace's files from one commit to the next (`StatCache`), so that a commit reads only
what has changed. Whoever wants more than is here takes `database`, which may be used from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Iterator
from pathlib import Path
from typing import Final

from stateroom.clock import Clock, SystemClock
from stateroom.workspaces.content.compare import Change, Difference, TreeEntry
from stateroom.workspaces.content.database import BYTES_MAX, ENTRIES_MAX, FILES_MAX, ContentDatabase, Tree
from stateroom.workspaces.content.file import Durability
from stateroom.workspaces.content.scan import Skipped, StatCache
from stateroom.workspaces.files.folder import Folder

PIECE_BYTES: Final = 256 * 1024
"""What is read with one hop to a thread, at least."""
CACHES_MAX: Final = 64
"""Workspaces whose files are known from one commit to the next; the others are read anew."""


class ContentStore:
    """One file. Raises StorageError subclasses."""

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability = "normal",
        clock: Clock | None = None,
        files_max: int = FILES_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """Opens the file, or makes it. What a workspace has beyond `files_max` and `bytes_max` is not taken."""
        self._clock = clock or SystemClock()
        self._path = path
        self.database = ContentDatabase(path, durability=durability, clock=self._clock)
        self._files_max = files_max
        self._bytes_max = bytes_max
        self._caches: OrderedDict[Path, StatCache] = OrderedDict()
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the file and its log."""
        return sum(
            path.stat().st_size
            for path in (self._path, self._path.with_name(f"{self._path.name}-wal"))
            if path.exists()
        )

    async def snapshot_of(self, workspace_id: str, folder: Folder) -> Tree:
        """Take the files of a workspace in; one call at a time for each. Nothing should write to them meanwhile."""
        with self._lock:
            self._paths[workspace_id] = folder.path
        return await asyncio.to_thread(self.snapshot, folder)

    def snapshot(self, folder: Folder) -> Tree:
        """The same, and it blocks."""
        return self.database.snapshot(folder, self._cache(folder), files_max=self._files_max, bytes_max=self._bytes_max)

    def put_in_place(self, digest: str, folder: Folder) -> None:
        """Make the files of a workspace those of a tree. It blocks. Nothing may write to them meanwhile."""
        self.database.materialise(
            digest,
            folder,
            self._cache(folder),
            # What was taken while more was allowed comes back, within reason.
            files_max=max(self._files_max, ENTRIES_MAX),
            bytes_max=max(self._bytes_max, BYTES_MAX),
        )

    def forget(self, workspace_id: str) -> None:
        """Drop what is known of a workspace's files."""
        with self._lock:
            if (path := self._paths.pop(workspace_id, None)) is not None:
                self._caches.pop(path, None)

    async def exists(self, digest: str) -> bool:
        """Whether a tree is there."""
        return await asyncio.to_thread(self.database.exists, digest)

    async def entries(self, digest: str, *, limit: int = ENTRIES_MAX) -> list[TreeEntry]:
        """Everything in a tree, each directory before what is in it. Raises TooLarge."""
        return await asyncio.to_thread(self.database.entries, digest, limit=limit)

    async def find(self, digest: str, path: str) -> TreeEntry:
        """What stands under a path of a tree. Raises NotFound, InvalidRequest."""
        return await asyncio.to_thread(self.database.find, digest, path)

    async def read(self, digest: str, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of a content from `first` to `last` (inclusive; None: the end)."""
        pieces = self.database.read(digest, first=first, last=last)
        while gathered := await asyncio.to_thread(_gather, pieces):
            yield gathered

    async def diff(self, before: str, after: str, *, limit: int = 100_000) -> Difference:
        """What differs between two trees; '': no files at all."""
        return await asyncio.to_thread(self.database.diff, before, after, limit=limit)

    async def text_diff(self, change: Change) -> str | None:
        """The unified diff of a file that differs; None: it is no text, or too large to be compared."""
        return await asyncio.to_thread(self.database.text_diff, change)

    async def keep_blob(self, data: bytes) -> str:
        """Keep bytes; their digest."""
        return await asyncio.to_thread(self.database.put_blob, data)

    async def get_blob(self, digest: str) -> bytes:
        return await asyncio.to_thread(self.database.get_blob, digest)

    async def collect(self, live: Collection[str], before: float) -> int:
        """Delete what is not live and was not put or found since `before` (seconds since the epoch); bytes freed."""
        younger_than = max(0.0, self._clock.now() - before)
        collected = await asyncio.to_thread(self.database.collect, live, keep_younger_than=younger_than)
        return collected.bytes

    async def verify(self) -> list[str]:
        """Read everything and hold it against its digests; what is wrong, in words."""
        return await asyncio.to_thread(self.database.verify)

    async def backup(self, path: Path) -> None:
        """Copy the store as it stands now, while it is used."""
        await asyncio.to_thread(self.database.backup, path)

    async def close(self) -> None:
        await asyncio.to_thread(self.database.close)

    def _cache(self, folder: Folder) -> StatCache:
        with self._lock:
            cache = self._caches.setdefault(folder.path, StatCache())
            self._caches.move_to_end(folder.path)
            if len(self._caches) > CACHES_MAX:
                self._caches.popitem(last=False)
            return cache


def _gather(pieces: Iterator[bytes]) -> bytes:
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            break
    return b"".join(gathered)


__all__ = ["Change", "ContentDatabase", "ContentStore", "Difference", "Skipped", "StatCache", "Tree", "TreeEntry"]
