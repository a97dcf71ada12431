"""Blobs in memory: for tests, and for what leaves nothing behind."""

from __future__ import annotations

from stateroom.blobs.store import digest_of


class MemoryBlobs:
    """Implements `Blobs`."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        digest = digest_of(data)
        self._kept[digest] = bytes(data)
        return digest

    async def get(self, digest: str) -> bytes | None:
        return self._kept.get(digest)

    async def delete(self, digest: str) -> None:
        self._kept.pop(digest, None)

    async def exists(self, digest: str) -> bool:
        return digest in self._kept

    async def digests(self) -> list[str]:
        return list(self._kept)
