"""Blobs on their way into an entry: between the put and the append nothing refers to them, and erasure must wait."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from stateroom.blobs.store import Blobs, BlobWriter, digest_of


class HeldBlobs:
    """Which blobs are on their way, over all requests of this process."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._held: Counter[str] = Counter()

    def hold(self) -> BlobHold:
        """To be entered before blobs are put and left after the entry is appended."""
        return BlobHold(self._blobs, self._held)

    def is_held(self, digest: str) -> bool:
        return self._held[digest] > 0


class BlobHold:
    """The blobs of one entry in the making."""

    def __init__(self, blobs: Blobs, held: Counter[str]) -> None:
        self._blobs = blobs
        self._held = held
        self._mine: list[str] = []

    async def put(self, data: bytes) -> str:
        """Keep `data` and its place until the hold ends."""
        digest = digest_of(data)
        self.add(digest)
        await self._blobs.put(data)
        return digest

    async def keep(self, digest: str) -> bool:
        """Keep a blob that is there already in its place until the hold ends; False when it is not there."""
        self.add(digest)
        return await self._blobs.exists(digest)

    def writer(self) -> BlobWriter:
        """As `Blobs.writer`; the blob keeps its place from its finish on, until the hold ends."""
        return _HeldWriter(self._blobs.writer(), self)

    def add(self, digest: str) -> None:
        """Let nobody delete this blob until the hold ends."""
        self._held[digest] += 1
        self._mine.append(digest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for digest in self._mine:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]


class _HeldWriter:
    """Implements `BlobWriter`: a blob is held before it has its name, lest an erasure come in between."""

    def __init__(self, inner: BlobWriter, hold: BlobHold) -> None:
        self._inner = inner
        self._hold = hold
        self.write = inner.write
        self.abort = inner.abort

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def digest(self) -> str:
        return self._inner.digest

    async def finish(self) -> str:
        self._hold.add(self._inner.digest)
        return await self._inner.finish()
