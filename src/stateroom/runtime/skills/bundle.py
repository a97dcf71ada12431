"""From what was sent, a zip or the files of a folder, to the one zip that is kept; and from that to a folder again.

Works on open files, piece by piece, and blocks: it runs in a thread. The kept zip has one folder with the skill's name,
its files sorted, nothing compressed. What was sent is not kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from stateroom.runtime.skills.front_matter import HEAD_BYTES
from stateroom.runtime.skills.manifest import MANIFEST, Manifest, read_manifest
from stateroom.runtime.skills.paths import Tree, is_junk
from stateroom.runtime.skills.refusals import bad_manifest, shown
from stateroom.runtime.skills.zip_reader import CHUNK_BYTES, Bounds, check_sizes, list_files, read_file
from stateroom.runtime.skills.zip_writer import ZipWriter

_BLOCK: Final = 4_096
"""What file systems keep of a small file."""
_OURS: Final = Bounds(files=1 << 40, file_bytes=1 << 40, bytes=1 << 40, ratio=1 << 40)
"""Of a zip that was checked when it was made, perhaps under other bounds."""


class Member(msgspec.Struct, frozen=True):
    """A file that belongs to a skill."""

    path: str
    size: int
    crc: int
    executable: bool | None
    """None: nobody says; it is if it begins with `#!`."""
    pieces: Callable[[], Iterable[bytes]]


class Packed(msgspec.Struct, frozen=True):
    """What the kept zip has in it."""

    manifest: Manifest
    files: int
    bytes: int
    """Of its files together."""


def members_of_zip(sent: BinaryIO, bounds: Bounds) -> list[Member]:
    """Raises InvalidRequest, TooLarge."""
    files = list_files(sent, bounds)

    def reading(number: int) -> Callable[[], Iterable[bytes]]:
        return lambda: read_file(sent, files[number])

    return [
        Member(file.path, file.size, file.crc, file.executable, reading(number)) for number, file in enumerate(files)
    ]


def members_of_folder(sent: BinaryIO, listed: Sequence[tuple[str, int, int, int]], bounds: Bounds) -> list[Member]:
    """Of files that lie behind each other in `sent`: path, beginning, size, CRC. Raises InvalidRequest, TooLarge."""
    tree, members = Tree(), list[Member]()
    for path, start, size, crc in listed:
        tree.add(path)
        if not is_junk(path):
            members.append(Member(path, size, crc, None, _reading(sent, start, size)))
    check_sizes([(member.path, member.size) for member in members], bounds)
    return members


def pack(members: Sequence[Member], out: BinaryIO) -> Packed:
    """Write the zip that is kept. Raises InvalidRequest."""
    root = _root_of([member.path for member in members])
    named = {_kept_path(member.path, root): member for member in members}
    manifest = read_manifest(_head(named[MANIFEST]))
    writer = ZipWriter(out)
    for path, member in sorted(named.items(), key=lambda each: each[0].encode()):
        kept = f"{manifest.name}/{path}"
        writer.add(kept, member.size, member.crc, member.pieces(), executable=member.executable)
    writer.finish()
    return Packed(manifest, len(members), sum(member.size for member in members))


def extract(kept: BinaryIO, folder: Path) -> int:
    """Write the files of a kept zip into a new folder that nobody else knows of, read-only; their size on the disk."""
    files = list_files(kept, _OURS)
    folders = {folder}
    for file in files:
        path = folder / file.path.partition("/")[2]
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folders.update(above for above in path.parents if above.is_relative_to(folder))
        with open(path, "xb", opener=_open_new) as out:
            for piece in read_file(kept, file):
                out.write(piece)
            os.fchmod(out.fileno(), 0o555 if file.executable else 0o444)
    for each in folders:
        each.chmod(0o555)
    return sum(-(-file.size // _BLOCK) * _BLOCK for file in files) + _BLOCK * len(folders)


def _root_of(paths: Sequence[str]) -> str:
    """The folder in which everything lies, with its slash: that of the one SKILL.md, which may be the top."""
    manifests = [path for path in paths if path.rpartition("/")[2].casefold() == MANIFEST.casefold()]
    if not manifests:
        raise bad_manifest(f"The skill has no {MANIFEST}.")
    if len(manifests) > 1:
        named = ", ".join(map(shown, manifests[:4]))
        raise bad_manifest(f"A skill has one {MANIFEST}, at its top; this one has several: {named}.")
    root = manifests[0].rpartition("/")[0]
    root += "/" if root else ""
    if "/" in root[:-1] or not all(path.startswith(root) for path in paths):
        raise bad_manifest(
            f"{MANIFEST} has to be at the top of a skill: in the one folder in which everything else is, or beside it."
        )
    return root


def _kept_path(path: str, root: str) -> str:
    inside = path[len(root) :]
    return MANIFEST if inside.casefold() == MANIFEST.casefold() else inside


def _head(member: Member) -> bytes:
    head = b""
    for piece in member.pieces():
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    return head[:HEAD_BYTES]


def _reading(sent: BinaryIO, start: int, size: int) -> Callable[[], Iterable[bytes]]:
    def pieces() -> Iterator[bytes]:
        at, left = start, size
        while left:
            sent.seek(at)
            piece = sent.read(min(left, CHUNK_BYTES))
            if not piece:
                raise EOFError("what was sent is no longer all there")
            yield piece
            at, left = at + len(piece), left - len(piece)

    return pieces


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
