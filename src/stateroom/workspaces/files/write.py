"""Files that the server writes into a workspace: aside, in their own directory, and put in place when they are whole.

No file that is there is ever opened to be written, so that nothing is written through a link of any sort.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from types import TracebackType
from typing import Self

from stateroom.errors import TooLarge
from stateroom.workspaces.files.walk import Walk, refusing, shown, temporary_name, text


class FileWriter:
    """A file that is written aside, in its own directory, and gets its name when it is whole."""

    def __init__(
        self,
        walk: Walk,
        names: tuple[bytes, ...],
        *,
        owner: tuple[int, int] | None,
        mode: int | None,
        replace: bool,
        bytes_max: int | None,
    ) -> None:
        """Closes `walk` at its end. Made by `Folder.writer`."""
        self._walk = walk
        self._names = names
        self._owner = owner
        self._replace = replace
        self._bytes_max = bytes_max
        self._parent = make_directories(walk, names[:-1], owner)
        self._mode = self._mode_now() if mode is None else mode & 0o777
        self._aside = temporary_name()
        self._file = walk.lending(self._parent, lambda: create(self._parent, self._aside))
        self.size = 0
        """Bytes written so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, data: bytes) -> None:
        """Raises TooLarge, StorageFull."""
        path = text(self._names)
        if self._bytes_max is not None and self.size + len(data) > self._bytes_max:
            raise TooLarge(f"The file {shown(path)!r} is larger than {self._bytes_max} bytes.", code="file_too_large")
        with refusing(path):
            write_all(self._file, data)
        self.size += len(data)

    def finish(self) -> os.stat_result:
        """Put the file in its place. Raises InvalidRequest when something is there that may not be replaced."""
        path, name = text(self._names), self._names[-1]
        with refusing(path):
            settle(self._file, self._owner, self._mode)
            if self._replace:
                os.rename(self._aside, name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            else:
                os.link(self._aside, name, src_dir_fd=self._parent, dst_dir_fd=self._parent, follow_symlinks=False)
            status = os.fstat(self._file)
        self.abort()
        return status

    def abort(self) -> None:
        """Leave nothing aside. May be called at any time, also after `finish`."""
        if self._file < 0:
            return
        with suppress(OSError):  # it has its name already, or its directory is gone
            os.unlink(self._aside, dir_fd=self._parent)
        os.close(self._file)
        self._file = -1
        self._walk.close()

    def _mode_now(self) -> int:
        try:
            status = self._walk.status(self._parent, self._names[-1])
        except FileNotFoundError:
            return 0o644
        return status.st_mode & 0o777 if stat.S_ISREG(status.st_mode) else 0o644


def make_directories(walk: Walk, names: tuple[bytes, ...], owner: tuple[int, int] | None) -> int:
    """The directory of this path, which is made as far as it is missing."""
    directory = walk.root
    for name in names:
        try:
            below = walk.enter(directory, name)
        except FileNotFoundError:
            try:
                below = walk.make(directory, name, 0o755, owner)
            except FileExistsError:  # somebody else was faster
                below = walk.enter(directory, name)
        if directory != walk.root:
            walk.leave(directory)
        directory = below
    return directory


def create(parent: int, name: bytes) -> int:
    """A new file, open to be written. Raises FileExistsError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=parent)


def settle(descriptor: int, owner: tuple[int, int] | None, mode: int) -> None:
    """Owner and permissions of a file that we have made."""
    if owner is not None:
        os.fchown(descriptor, *owner)
    os.fchmod(descriptor, mode)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
