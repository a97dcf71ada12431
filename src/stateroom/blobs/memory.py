"""Blobs in memory: for tests, and for what leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from stateroom.blobs.store import CHUNK_BYTES, BlobMissing, WriterClosed, digest_of


class MemoryBlobs:
    """Implements `Blobs`."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        return self._keep(bytes(data))

    async def get(self, digest: str) -> bytes | None:
        return self._kept.get(digest)

    async def delete(self, digest: str) -> None:
        self._kept.pop(digest, None)

    async def exists(self, digest: str) -> bool:
        return digest in self._kept

    async def digests(self) -> list[str]:
        return list(self._kept)

    async def size(self, digest: str) -> int | None:
        data = self._kept.get(digest)
        return None if data is None else len(data)

    def writer(self) -> MemoryBlobWriter:
        return MemoryBlobWriter(self._keep)

    async def chunks(self, digest: str, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        data = self._kept.get(digest)
        if data is None:
            raise BlobMissing(f"Blob {digest} is not there.")
        end = len(data) if last is None else min(last + 1, len(data))
        for start in range(first, end, CHUNK_BYTES):
            yield data[start : min(start + CHUNK_BYTES, end)]

    def _keep(self, data: bytes) -> str:
        digest = digest_of(data)
        self._kept[digest] = data
        return digest


class MemoryBlobWriter:
    """Implements `BlobWriter`."""

    def __init__(self, keep: Callable[[bytes], str]) -> None:
        self._keep = keep
        self._data = bytearray()
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def digest(self) -> str:
        return digest_of(bytes(self._data))

    async def write(self, data: bytes) -> None:
        self._check_open()
        self._data += data

    async def finish(self) -> str:
        self._check_open()
        self._closed = True
        return self._keep(bytes(self._data))

    async def abort(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise WriterClosed("The blob is finished or aborted: nothing can be added to it.")
