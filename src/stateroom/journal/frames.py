"""Packs the events of an ended run: zlib with a preset dictionary of typical event text, one format byte in front.

A short stream repeats little within itself but much of every other stream; the dictionary supplies that. Format bytes
are never given a second meaning: a better dictionary is a new format, and the old ones go on being read.
"""

from __future__ import annotations

import zlib
from importlib import resources
from typing import Final

from stateroom.errors import JournalDamaged
from stateroom.journal.frames_fold import fold, unfold

PLAIN: Final = 0
"""As it is: for what zlib does not make smaller."""

FORMAT: Final = 1
"""zlib with the dictionary frames_1.txt."""

FOLDED: Final = 2
"""Folded (see frames_fold), then as FORMAT."""

_FOLD_MAX: Final = 256 * 1024
"""Beyond this size folding would hold up the commits of others for more than a few milliseconds."""

_LARGE: Final = 16 * 1024
"""Beyond this size a stream repeats itself, and the fast level packs it nearly as well at a third of the cost."""


class FramePacker:
    """Packs and unpacks; holds the dictionary. Safe to use from several threads."""

    def __init__(self) -> None:
        self._dictionary = (resources.files("stateroom.journal") / "frames_1.txt").read_bytes()

    def pack(self, body: bytes) -> bytes:
        folded = fold(body) if len(body) <= _FOLD_MAX else None
        if folded is not None:
            return bytes((FOLDED,)) + self._compress(folded)
        packed = self._compress(body)
        return bytes((FORMAT,)) + packed if len(packed) < len(body) else bytes((PLAIN,)) + body

    def _compress(self, body: bytes) -> bytes:
        level = 6 if len(body) <= _LARGE else 1
        packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, zlib.Z_DEFAULT_STRATEGY, self._dictionary)
        return packer.compress(body) + packer.flush()

    def unpack(self, packed: bytes) -> bytes:
        """Exactly what was packed. Raises JournalDamaged on anything else."""
        if packed and packed[0] == PLAIN:
            return packed[1:]
        if not packed or packed[0] not in (FORMAT, FOLDED):
            raise JournalDamaged("A sealed stream is of a format that this version does not know.")
        unpacker = zlib.decompressobj(15, self._dictionary)
        try:
            body = unpacker.decompress(memoryview(packed)[1:]) + unpacker.flush()
        except zlib.error as error:
            raise JournalDamaged(f"A sealed stream cannot be unpacked: {error}.") from error
        if not unpacker.eof or unpacker.unused_data:
            raise JournalDamaged("A sealed stream is cut off or has something after its end.")
        if packed[0] == FORMAT:
            return body
        try:
            return unfold(body)
        except ValueError as error:
            raise JournalDamaged(f"A sealed stream cannot be unfolded: {error}.") from error
