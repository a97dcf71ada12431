"""The one way in which this server writes a zip: the same files give the same bytes, on every machine.

Nothing is compressed and nothing dated, so that neither a version of zlib nor a clock has a say in the digest.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable
from typing import BinaryIO, Final

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_NEEDED: Final = 20
_MADE_BY: Final = 3 << 8 | _NEEDED  # Unix: the modes of files are its
_UTF8: Final = 0x0800
_FIRST_DAY: Final = 0x0021
"""1 January 1980, the earliest that there is."""


class ZipWriter:
    """Writes files one after the other, in the order in which they are added."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._at = 0
        self._list: list[bytes] = []

    def add(self, path: str, size: int, crc: int, pieces: Iterable[bytes], *, executable: bool | None) -> None:
        """Add a file whose size and CRC are known. With `executable` None, one that begins with `#!` is."""
        name, offset, head = path.encode(), self._at, b""
        self._write(_LOCAL.pack(b"PK\x03\x04", _NEEDED, _UTF8, 0, 0, _FIRST_DAY, crc, size, size, len(name), 0) + name)
        for piece in pieces:
            head = (head + piece)[:2] if len(head) < 2 else head
            self._write(piece)
        runs = head == b"#!" if executable is None else executable
        mode = stat.S_IFREG | (0o755 if runs else 0o644)
        named = (len(name), 0, 0, 0, 0, mode << 16, offset)
        fields = (_MADE_BY, _NEEDED, _UTF8, 0, 0, _FIRST_DAY, crc, size, size, *named)
        self._list.append(_CENTRAL.pack(b"PK\x01\x02", *fields) + name)

    def finish(self) -> None:
        """Write the list of what was added."""
        offset, directory, count = self._at, b"".join(self._list), len(self._list)
        self._write(directory)
        self._write(_END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), offset, 0))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._at += len(data)
