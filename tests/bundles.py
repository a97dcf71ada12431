"""Skills for tests: honest zips, and zips that lie in one place."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST = b"---\nname: geometry\ndescription: Areas of plane figures.\n---\n\nUse area.py.\n"
FILES = {"SKILL.md": MANIFEST, "area.py": b"#!/usr/bin/env python3\nprint(6 * 7)\n", "data/units.csv": b"m,cm\n"}


def manifest(name: str = "geometry", description: str = "Areas of plane figures.") -> bytes:
    return f"---\nname: {name}\ndescription: {description}\n---\n\nUse area.py.\n".encode()


def zip_of(
    files: Mapping[str, bytes] = FILES, *, folder: str = "geometry/", method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for path, content in files.items():
            made.writestr(folder + path, content)
    return out.getvalue()


def files_of(data: bytes) -> dict[str, bytes]:
    """What a zip has, by path, as somebody else reads it."""
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        return {name: read.read(name) for name in read.namelist()}


@dataclass
class Entry:
    """An entry of a zip; `local` and `central` replace what the one or the other place says."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    made_by: int = 3 << 8 | 20
    mode: int = 0o100644
    attributes: int | None = None
    extra: bytes = b""
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)


def raw_zip(
    entries: Iterable[Entry], *, end: Mapping[str, int] = {}, behind: bytes = b"", before: bytes = b""
) -> bytes:
    """A zip whose every field is for the test to say."""
    body, directory, count = before, b"", 0
    for entry in entries:
        packed = _deflated(entry.data) if entry.method == 8 else entry.data
        packed = entry.local.get("bytes", packed)
        said = {
            **{"name": entry.name, "flags": entry.flags, "method": entry.method, "crc": zlib.crc32(entry.data)},
            **{"packed": len(packed), "size": len(entry.data), "extra": entry.extra},
        }
        local, central = {**said, **entry.local}, {**said, "offset": len(body), **entry.central}
        body += struct.pack(
            "<4s5H3L2H",
            *(b"PK\x03\x04", 20, local["flags"], local["method"], 0, 33, local["crc"], local["packed"], local["size"]),
            *(len(local["name"]), len(local["extra"])),
        )
        body += local["name"] + local["extra"] + packed
        attributes = entry.mode << 16 if entry.attributes is None else entry.attributes
        directory += struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\x01\x02", entry.made_by, 20, central["flags"], central["method"], 0, 33),
            *(central["crc"], central["packed"], central["size"], len(central["name"]), len(central["extra"])),
            *(0, 0, 0, attributes, central["offset"]),
        )
        directory += central["name"] + central["extra"]
        count += 1
    told = {"count": count, "size": len(directory), "offset": len(body), "disk": 0, **end}
    tail = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", told["disk"], 0, told["count"], told["count"], told["size"], told["offset"], 0
    )
    return body + directory + tail + behind


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()
