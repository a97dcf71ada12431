"""The seam of the blobs: bytes by the SHA-256 of their content, referred to by entries and by nothing else.

A blob is put before the entry that refers to it is appended, and deleted only when `Index.blob_in_use` says no. Every
store passes `stateroom.testing.blob_conformance`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Protocol

from stateroom.errors import StorageError

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


class BlobDamaged(StorageError):
    """The bytes on disk are no longer those that were put."""

    code = "blob_damaged"


def digest_of(data: bytes) -> str:
    """The name of these bytes: their SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def is_digest(value: str) -> bool:
    return _DIGEST.match(value) is not None
