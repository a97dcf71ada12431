"""Zips of strangers: what is in them, read so strictly that every reader would see the same.

All that a zip says of itself is held against the bytes that are there before anything is unpacked: the two lists of
entries, where they lie, that none lies on another. Unpacking gives what was announced, or fails. No more than the list
of entries is ever in memory. Made for archives below 4 GiB: zip64 is refused.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from stateroom.runtime.skills.paths import Tree, is_junk
from stateroom.runtime.skills.refusals import bad_archive, encrypted, not_a_file, shown, too_large, too_many_files

CHUNK_BYTES: Final = 64 * 1024
FREE_BYTES: Final = 1024 * 1024
"""A skill of this size may be packed as tightly as it likes."""
DIRECTORY_BYTES: Final = 8 * 1024 * 1024
"""The list of entries."""

_END: Final = struct.Struct("<4s4H2LH")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_END_MARK: Final = b"PK\x05\x06"
_END64_MARK: Final = b"PK\x06\x07"
_COMMENT_BYTES: Final = 65_535
_WHOLE_32: Final = 0xFFFFFFFF
_WHOLE_16: Final = 0xFFFF
_ZIP64: Final = 0x0001
_ENCRYPTED: Final = 0x0001 | 0x0040 | 0x2000
_SIZES_BEHIND: Final = 0x0008
_PATCH: Final = 0x0020
_STORED, _DEFLATED, _AES = 0, 8, 99
_UNIX: Final = (3, 19)
_DOS_FOLDER: Final = 0x10
_REPARSE: Final = 0x400
_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class Bounds(msgspec.Struct, frozen=True):
    """What one skill may have."""

    files: int
    file_bytes: int
    """One file, unpacked."""
    bytes: int
    """All of them."""
    ratio: int
    """How many times as large as the zip they may be."""


class ZipFile(msgspec.Struct, frozen=True):
    """A file in a zip, and where it lies there."""

    path: str
    size: int
    crc: int
    executable: bool | None
    """None: the zip does not say."""
    start: int
    """Of its bytes in the zip."""
    packed: int
    deflated: bool


class _Entry(msgspec.Struct, frozen=True):
    """One line of the list of entries."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    attributes: int
    unix: bool
    offset: int


def list_files(zip_file: BinaryIO, bounds: Bounds) -> list[ZipFile]:
    """The files of a zip, checked against all that can be known without unpacking. Raises InvalidRequest, TooLarge."""
    length = zip_file.seek(0, 2)
    count, directory_at, directory = _find_directory(zip_file, length)
    # Folders and what macOS adds are entries, too, and some packers make one of them for each file.
    if count > 2 * bounds.files + 64:
        raise too_many_files(bounds.files)
    entries = list(_entries(directory, count))
    if sum(entry.size for entry in entries) > max(FREE_BYTES, bounds.ratio * length):
        message = f"Unpacked, the zip is more than {bounds.ratio} times as large (`limits.skill_ratio`)."
        raise too_large(message)
    tree, files, spans = Tree(), list[ZipFile](), list[tuple[int, int]]()
    for entry in entries:
        path = _path_of(entry)
        is_folder = _is_folder(entry, path)
        tree.add(path.removesuffix("/"), folder=is_folder)
        start = _check_local(zip_file, entry, path, directory_at)
        spans.append((entry.offset, start + entry.packed))
        if not is_folder and not is_junk(path):
            files.append(_file_of(entry, path, start))
    _check_spans(spans)
    check_sizes([(file.path, file.size) for file in files], bounds)
    return files


def check_sizes(files: list[tuple[str, int]], bounds: Bounds) -> None:
    """Raises InvalidRequest, TooLarge."""
    if len(files) > bounds.files:
        raise too_many_files(bounds.files)
    for path, size in files:
        if size > bounds.file_bytes:
            message = f"{shown(path)} has more than {bounds.file_bytes} bytes (`limits.skill_file_bytes`)."
            raise too_large(message)
    if sum(size for _, size in files) > bounds.bytes:
        raise too_large(f"Unpacked, the skill has more than {bounds.bytes} bytes (`limits.skill_unpacked_bytes`).")


def read_file(zip_file: BinaryIO, file: ZipFile) -> Iterator[bytes]:
    """Its bytes, in pieces. Raises InvalidRequest when they are not those that were announced; do not stop before."""
    size, crc = 0, 0
    for piece in _inflated(zip_file, file) if file.deflated else _stored(zip_file, file):
        size += len(piece)
        if size > file.size:
            raise bad_archive(f"{shown(file.path)} is longer than the zip says")
        crc = zlib.crc32(piece, crc)
        yield piece
    if size != file.size or crc != file.crc:
        raise bad_archive(f"{shown(file.path)} is damaged")


def _find_directory(zip_file: BinaryIO, length: int) -> tuple[int, int, bytes]:
    """How many entries there are, where their list begins, and the list."""
    tail_at = max(0, length - _END.size - _COMMENT_BYTES)
    zip_file.seek(tail_at)
    tail = zip_file.read(length - tail_at)
    found = tail.rfind(_END_MARK)
    if found < 0 or len(tail) - found < _END.size:
        raise bad_archive("it does not end like one, or not all of it came")
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(tail, found)
    if found + _END.size + comment != len(tail):
        raise bad_archive("something follows its end")
    if found >= 20 and tail[found - 20 : found - 16] == _END64_MARK:
        raise bad_archive("it is a zip64 archive; make a plain one")
    if _WHOLE_16 in (here, count) or _WHOLE_32 in (size, offset):
        raise bad_archive("it is a zip64 archive; make a plain one")
    if disk or first_disk or here != count:
        raise bad_archive("it is a part of several")
    if offset + size != tail_at + found:
        raise bad_archive("its list of entries is not where it says")
    if size > DIRECTORY_BYTES:
        raise bad_archive(f"its list of entries has more than {DIRECTORY_BYTES} bytes")
    zip_file.seek(offset)
    return count, offset, zip_file.read(size)


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if len(directory) - at < _CENTRAL.size or directory[at : at + 4] != b"PK\x01\x02":
            raise bad_archive("its list of entries is damaged")
        (
            _,
            made_by,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            size,
            names,
            extras,
            comments,
            disk,
            _,
            attributes,
            offset,
        ) = _CENTRAL.unpack_from(directory, at)
        at += _CENTRAL.size
        name, extra = directory[at : at + names], directory[at + names : at + names + extras]
        at += names + extras + comments
        if at > len(directory):
            raise bad_archive("its list of entries is damaged")
        if _WHOLE_32 in (packed, size, offset) or disk or _has_zip64(extra):
            raise bad_archive("it is a zip64 archive or a part of several; make a plain one")
        yield _Entry(name, flags, method, crc, packed, size, attributes, made_by >> 8 in _UNIX, offset)
    if at != len(directory):
        raise bad_archive("its list of entries is longer than it says")


def _has_zip64(extra: bytes) -> bool:
    at = 0
    while len(extra) - at >= 4:
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64:
            return True
        at += 4 + size
    return False


def _path_of(entry: _Entry) -> str:
    # Without the flag names may be in any encoding. Most packers of today write UTF-8 in either case.
    try:
        return entry.name.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_archive(f"the name {entry.name[:100]!a} is not UTF-8") from None


def _is_folder(entry: _Entry, path: str) -> bool:
    """Raises InvalidRequest for what is neither a file nor a folder, and for what says to be both."""
    if entry.flags & _ENCRYPTED or entry.method == _AES:
        raise encrypted(path)
    mode = entry.attributes >> 16
    kind = stat.S_IFMT(mode)
    if kind in _KINDS:
        raise not_a_file(path, _KINDS[kind])
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or entry.attributes & _REPARSE:
        raise not_a_file(path, "of an unknown kind")
    is_folder = path.endswith("/")
    says_folder = kind == stat.S_IFDIR or bool(entry.attributes & _DOS_FOLDER)
    if (says_folder and not is_folder) or (is_folder and (kind == stat.S_IFREG or entry.size)):
        raise not_a_file(path, "a file by its name and a folder by its type, or the other way round")
    return is_folder


def _check_local(zip_file: BinaryIO, entry: _Entry, path: str, directory_at: int) -> int:
    """Where the bytes of an entry begin. Raises InvalidRequest when the entry itself and the list contradict."""
    if entry.flags & _PATCH or entry.method not in (_STORED, _DEFLATED):
        raise bad_archive(f"{shown(path)} is packed in an uncommon way; use deflate")
    if entry.method == _STORED and entry.packed != entry.size:
        raise bad_archive(f"{shown(path)} has two sizes")
    zip_file.seek(entry.offset)
    head = zip_file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
        raise bad_archive(f"{shown(path)} is not where the list of entries says")
    _, _, flags, method, _, _, crc, packed, size, names, extras = _LOCAL.unpack(head)
    start: int = entry.offset + _LOCAL.size + names + extras
    if start + entry.packed > directory_at:
        raise bad_archive(f"{shown(path)} lies outside of it")
    same = zip_file.read(names) == entry.name and method == entry.method
    same = same and flags & _ENCRYPTED == entry.flags & _ENCRYPTED
    if not flags & _SIZES_BEHIND:
        same = same and (crc, packed, size) == (entry.crc, entry.packed, entry.size)
    if not same:
        raise bad_archive(f"{shown(path)} and the list of entries contradict each other")
    return start


def _check_spans(spans: list[tuple[int, int]]) -> None:
    end = 0
    for first, last in sorted(spans):
        if first < end:
            raise bad_archive("its entries lie on each other")
        end = last


def _file_of(entry: _Entry, path: str, start: int) -> ZipFile:
    mode = entry.attributes >> 16
    # Python's zipfile writes 0600 for a content that is no file, which says nothing.
    executable = bool(mode & 0o111) if entry.unix and mode & 0o777 not in (0, 0o600) else None
    return ZipFile(path, entry.size, entry.crc, executable, start, entry.packed, entry.method == _DEFLATED)


def _stored(zip_file: BinaryIO, file: ZipFile) -> Iterator[bytes]:
    at, left = file.start, file.packed
    while left:
        zip_file.seek(at)
        piece = zip_file.read(min(left, CHUNK_BYTES))
        if not piece:
            return
        at, left = at + len(piece), left - len(piece)
        yield piece


def _inflated(zip_file: BinaryIO, file: ZipFile) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(zip_file, file):
            if inflate.eof:
                raise bad_archive(f"something follows the end of {shown(file.path)}")
            while packed:
                piece = inflate.decompress(packed, CHUNK_BYTES)
                packed = inflate.unconsumed_tail
                if piece:
                    yield piece
        while not inflate.eof and (piece := inflate.decompress(b"", CHUNK_BYTES)):
            yield piece
    except zlib.error:
        raise bad_archive(f"{shown(file.path)} is damaged") from None
    if not inflate.eof or inflate.unused_data:
        raise bad_archive(f"{shown(file.path)} is damaged")
