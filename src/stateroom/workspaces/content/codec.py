"""How bytes are kept: packed with zstd where that pays; unpacked, nothing is believed that a row says of itself."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Final

import zstandard

from stateroom.workspaces.content.errors import ContentDamaged

RAW: Final = 0
ZSTD: Final = 1

_LEVEL: Final = 3
_LEAST: Final = 64
"""Fewer bytes than this are not worth a try."""
_PAYS: Final = 0.94
"""What packing must make of them at most; reading raw bytes is faster."""


class Codec:
    """Packs and unpacks. Not to be used by two threads at the same time."""

    # Made when it is needed: a commit of nothing needs neither, and together they cost as much as looking at 30 files.

    @cached_property
    def _compressor(self) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)

    @cached_property
    def _decompressor(self) -> zstandard.ZstdDecompressor:
        return zstandard.ZstdDecompressor()

    def pack(self, data: bytes | bytearray | memoryview) -> tuple[int, bytes]:
        """How the bytes are packed, and what they are then."""
        if len(data) >= _LEAST:
            packed = self._compressor.compress(data)
            if len(packed) < len(data) * _PAYS:
                return ZSTD, packed
        return RAW, bytes(data)

    def unpack(self, digest: bytes, size: int, packed: int, data: bytes, *, size_max: int) -> bytes:
        """The bytes of this digest. Raises ContentDamaged for anything else."""
        if size > size_max:
            raise damaged(digest)
        if packed == ZSTD:
            try:
                # The size that a frame claims is what would be allocated for it.
                if zstandard.frame_content_size(data) != size:
                    raise damaged(digest)
                data = self._decompressor.decompress(data)
            except zstandard.ZstdError as error:
                raise damaged(digest) from error
        if len(data) != size or hashlib.sha256(data).digest() != digest:
            raise damaged(digest)
        return data


def damaged(digest: bytes) -> ContentDamaged:
    return ContentDamaged(f"{digest.hex()} in the content store is not what was put there. Restore it from a backup.")
