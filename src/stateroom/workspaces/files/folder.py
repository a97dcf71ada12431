"""`Folder`: the server's own access to the files of a workspace, from outside of its sandbox.

What is in the directory is hostile, and may change while it is looked at: see folder_walk.py for how nothing outside
of it is ever reached. Everything here blocks, is safe to call from any thread, and raises errors of ours only:
InvalidRequest (`invalid_path`), NotFound (`file_not_found`), TooLarge, StorageFull, WorkspaceError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from stateroom.errors import TooLarge
from stateroom.workspaces.files.walk import DEPTH_MAX, OURS, Walk, parts, refusing, set_mode, shown, text
from stateroom.workspaces.files.write import FileWriter, make_directories

PIECE_BYTES: Final = 256 * 1024
"""The largest piece that a file is read in."""
_KINDS: Final[dict[int, Literal["file", "directory", "symlink", "other"]]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
}
ENTRIES_MAX: Final = 1_000_000
"""Names that are looked at to answer one question."""


class FileInfo(msgspec.Struct, frozen=True):
    """What stands under a path."""

    path: str
    """From the root of the workspace; bytes that are not UTF-8 are lone surrogates (`folder_walk.shown` hides them)."""
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: int
    """Permission bits."""
    mtime_ns: int
    target: str = ""
    """Where a symlink leads. Nothing here follows it."""


class Page(msgspec.Struct, frozen=True):
    """Some of a listing."""

    entries: tuple[FileInfo, ...]
    more: bool


class Folder:
    """The files of one workspace."""

    def __init__(self, path: Path, *, owner: tuple[int, int] | None = None) -> None:
        """`owner`: user and group to whom belongs what is written here; None: whoever runs this server."""
        self.path = path
        self.owner = owner

    @property
    def uid(self) -> int:
        return os.geteuid() if self.owner is None else self.owner[0]

    def walk(self) -> Walk:
        """Descriptors into it, for a block. Raises OSError."""
        return Walk(self.path)

    def stat(self, path: str) -> FileInfo:
        names = parts(path, empty=True)
        with refusing(path), self.walk() as walk:
            if not names:
                return _info((), os.fstat(walk.root), "")
            parent = walk.descend(names[:-1])
            status = walk.status(parent, names[-1])
            return _info(names, status, _target(parent, names[-1], status))

    def open(self, path: str) -> OpenFile:
        """A plain file to be read, and to be closed by the caller."""
        names = parts(path)
        with refusing(path), self.walk() as walk:
            descriptor, status = walk.open_plain(walk.descend(names[:-1]), names[-1], self.uid)
            return OpenFile(descriptor, _info(names, status, ""))

    def read(self, path: str, *, bytes_max: int) -> bytes:
        """All of a small file. Raises TooLarge."""
        with self.open(path) as file:
            data = b"".join(file.chunks(last=bytes_max))
        if len(data) > bytes_max:
            raise TooLarge(f"The file {shown(path)!r} is larger than {bytes_max} bytes.", code="file_too_large")
        return data

    def write(
        self, path: str, data: bytes | Iterable[bytes], *, mode: int | None = None, bytes_max: int | None = None
    ) -> FileInfo:
        """Put a file in place, whole or not at all; see `writer`."""
        with self.writer(path, mode=mode, bytes_max=bytes_max) as writer:
            for piece in (data,) if isinstance(data, bytes) else data:
                writer.write(piece)
            return _info(parts(path), writer.finish(), "")

    def writer(
        self, path: str, *, mode: int | None = None, replace: bool = True, bytes_max: int | None = None
    ) -> FileWriter:
        """A file in the making; missing directories are made.

        `mode` None keeps that of the file which is replaced. A link that stands there is replaced, not followed.
        """
        names = parts(path)
        with refusing(path):
            walk = self.walk()
            try:
                return FileWriter(walk, names, owner=self.owner, mode=mode, replace=replace, bytes_max=bytes_max)
            except BaseException:
                walk.close()
                raise

    def mkdir(self, path: str) -> None:
        """Make a directory and those above it, as far as they are missing."""
        names = parts(path)
        with refusing(path), self.walk() as walk:
            make_directories(walk, names, self.owner)

    def chmod(self, path: str, mode: int) -> None:
        """Set the permissions of a plain file or a directory; never more than 0o777."""
        names = parts(path)
        with refusing(path), self.walk() as walk:
            parent = walk.descend(names[:-1])
            if stat.S_ISDIR(walk.status(parent, names[-1]).st_mode):
                descriptor = os.dup(walk.enter(parent, names[-1]))
            else:
                descriptor, _ = walk.open_plain(parent, names[-1], self.uid)
            try:
                set_mode(descriptor, mode)
            finally:
                os.close(descriptor)

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty directory; `recursive`: all that is in a directory, too."""
        names = parts(path)
        with refusing(path), self.walk() as walk:
            parent = walk.descend(names[:-1])
            if recursive:
                walk.remove(parent, names[-1])
            elif stat.S_ISDIR(walk.status(parent, names[-1]).st_mode):
                walk.lending(parent, lambda: os.rmdir(names[-1], dir_fd=parent))
            else:
                walk.lending(parent, lambda: os.unlink(names[-1], dir_fd=parent))

    def clear(self) -> None:
        """Delete everything in it, also what was being written."""
        with refusing(""), self.walk() as walk:
            for name in [name for name, _ in walk.scan(walk.root)]:
                walk.remove(walk.root, name)

    def list(self, path: str = "", *, recursive: bool = False, after: str = "", limit: int = 1000) -> Page:
        """What is in a directory, in the order of the names' bytes, beginning after the path `after`.

        Raises TooLarge when there are more names than anybody would want to page through.
        """
        names = parts(path, empty=True)
        last = parts(after, empty=True)
        found: list[FileInfo] = []
        with refusing(path), self.walk() as walk:
            listing = _Listing(walk, names, recursive=recursive)
            for info in listing.entries(walk.descend(names), (), last[len(names) :] if last else ()):
                if len(found) == limit:
                    return Page(tuple(found), more=True)
                found.append(info)
        return Page(tuple(found), more=False)


class OpenFile:
    """A file that is read. It is the one that was opened, whatever takes its name meanwhile."""

    def __init__(self, descriptor: int, info: FileInfo) -> None:
        self._descriptor = descriptor
        self.info = info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def chunks(self, *, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """The bytes from `first` to `last` (inclusive; None: the end), never more than the file had when opened.

        Fewer when it was cut off meanwhile.
        """
        end = self.info.size if last is None else min(last + 1, self.info.size)
        with refusing(self.info.path):
            while first < end:
                piece = os.pread(self._descriptor, min(PIECE_BYTES, end - first), first)
                if not piece:
                    return
                first += len(piece)
                yield piece


class _Listing:
    """One walk through a listing."""

    def __init__(self, walk: Walk, base: tuple[bytes, ...], *, recursive: bool) -> None:
        self._walk = walk
        self._base = base
        self._recursive = recursive
        self._seen = 0

    def entries(self, directory: int, above: tuple[bytes, ...], after: tuple[bytes, ...]) -> Iterator[FileInfo]:
        """What comes after `after`, a path below this directory."""
        names = []
        for name, _ in self._walk.scan(directory):
            self._seen += 1
            if self._seen > ENTRIES_MAX:
                raise TooLarge(f"The workspace has more than {ENTRIES_MAX} files.", code="workspace_too_large")
            if not name.startswith(OURS) and (not after or name >= after[0]):
                names.append(name)
        for name in sorted(names):
            was_told = bool(after) and name == after[0]
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                yield from self._entry(directory, (*above, name), after[1:] if was_told else (), was_told=was_told)

    def _entry(
        self, directory: int, names: tuple[bytes, ...], after: tuple[bytes, ...], *, was_told: bool
    ) -> Iterator[FileInfo]:
        path = (*self._base, *names)
        status = self._walk.status(directory, names[-1])
        if not was_told:
            yield _info(path, status, _target(directory, names[-1], status))
        if self._recursive and stat.S_ISDIR(status.st_mode) and len(path) < DEPTH_MAX:
            try:
                below = self._walk.enter(directory, names[-1])
            except NotADirectoryError:  # it was one a moment ago
                return
            try:
                yield from self.entries(below, names, after)
            finally:
                self._walk.leave(below)


def _info(names: tuple[bytes, ...], status: os.stat_result, target: str) -> FileInfo:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    size = status.st_size if kind == "file" else 0
    return FileInfo(text(names), kind, size, status.st_mode & 0o777, status.st_mtime_ns, target)


def _target(parent: int, name: bytes, status: os.stat_result) -> str:
    if not stat.S_ISLNK(status.st_mode):
        return ""
    try:
        return text(os.readlink(name, dir_fd=parent))
    except OSError:  # it was a link a moment ago
        return ""
