"""The seam of the blobs: bytes by the SHA-256 of their content, referred to by entries and by nothing else.

A blob is put before the entry that refers to it is appended, and deleted only when `Index.blob_in_use` says no. Every
store passes `stateroom.testing.blob_conformance`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator
from typing import Final, Protocol

from stateroom.errors import StorageError

CHUNK_BYTES: Final = 256 * 1024
"""The largest piece that a blob is read in."""

_DIGEST: Final = re.compile(r"\A[0-9a-f]{64}\Z")


class Blobs(Protocol):
    """Raises StorageError subclasses. What is not a digest is like a blob that is not there."""

    async def put(self, data: bytes) -> str:
        """Keep `data`; its digest. Durable when it returns, as far as the store is. Raises StorageFull."""
        ...

    async def get(self, digest: str) -> bytes | None:
        """The bytes, checked against their digest, or None. Raises BlobDamaged."""
        ...

    async def delete(self, digest: str) -> None:
        """Forget a blob; nothing happens when it is not there."""
        ...

    async def exists(self, digest: str) -> bool: ...

    async def digests(self) -> list[str]:
        """Every blob there is."""
        ...

    async def size(self, digest: str) -> int | None:
        """How many bytes it has; None when it is not there."""
        ...

    def writer(self) -> BlobWriter:
        """For bytes that come in pieces and are never whole in memory."""
        ...

    def chunks(self, digest: str, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `first` to `last` (inclusive; None: the end), in pieces of at most 256 KiB.

        Not checked against the digest, which only whole bytes can be. Raises StorageError when it is not there.
        """
        ...


class BlobWriter(Protocol):
    """One blob in the making: `write` any number of times, then `finish` or `abort` once; one call at a time."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the bytes written so far."""
        ...

    async def write(self, data: bytes) -> None:
        """Raises StorageFull."""
        ...

    async def finish(self) -> str:
        """Keep what was written; its digest. Durable when it returns, as far as the store is."""
        ...

    async def abort(self) -> None:
        """Leave nothing behind. May be called at any time, also after `finish`, when it does nothing."""
        ...


class WriterClosed(StorageError):
    """A blob that was finished or aborted, or whose writing failed, takes no more bytes."""

    code = "blob_writer_closed"


class BlobMissing(StorageError):
    """The bytes that are asked for are not there."""

    code = "blob_missing"


class BlobDamaged(StorageError):
    """The bytes on disk are no longer those that were put."""

    code = "blob_damaged"


def digest_of(data: bytes) -> str:
    """The name of these bytes: their SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def is_digest(value: str) -> bool:
    return _DIGEST.match(value) is not None
