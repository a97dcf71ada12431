"""Descriptors into a directory whose content is hostile: no symlink is followed, no device, pipe or socket is opened.

Whatever runs in the sandbox may rename, replace and link things while we look at them. So nothing here is reached by a
path of more than one name: each component is opened by itself, in the directory that was opened before it. A file is
first opened with O_PATH, which opens nothing, and only what is then known to be a plain file is opened to be read.

The sandbox may also take all permissions from what it owns. A server that is not root owns it too: it lends itself
the permission that is missing, and gives the old ones back when it leaves the directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from stateroom import ids
from stateroom.errors import NO_ROOM, InvalidRequest, NotFound, StateroomError, StorageFull, WorkspaceError

NAME_BYTES_MAX: Final = 255
"""What file systems allow."""

DEPTH_MAX: Final = 128
"""Components of a path. What is deeper is not reached, not listed and not committed, only deleted."""
PATH_BYTES_MAX: Final = 4096
OURS: Final = b".~stateroom-"
"""What is being written or deleted has names that begin so. They are nobody else's, and are not committed."""

_PATH: Final = getattr(os, "O_PATH", os.O_RDONLY)  # other systems have none: their servers start, without workspaces
_ENTER: Final = _PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_BATCH: Final = 4096
_TRIES: Final = 50

_Result = TypeVar("_Result")


def parts(path: str, *, empty: bool = False) -> tuple[bytes, ...]:
    """The names of a path inside a workspace; none for its root, if `empty` allows that. Raises InvalidRequest."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _invalid(path, "it is not text") from None
    if raw.startswith(b"/"):
        raise _invalid(path, "it must be relative to the workspace")
    if b"\0" in raw:
        raise _invalid(path, "it has a NUL character")
    if len(raw) > PATH_BYTES_MAX:
        raise _invalid(path, f"it is longer than {PATH_BYTES_MAX} bytes")
    names = tuple(name for name in raw.split(b"/") if name not in (b"", b"."))
    if b".." in names:
        raise _invalid(path, "it must not contain '..'")
    if any(len(name) > NAME_BYTES_MAX for name in names):
        raise _invalid(path, f"a name in it is longer than {NAME_BYTES_MAX} bytes")
    if any(name.startswith(OURS) for name in names):
        raise _invalid(path, f"names that begin with {OURS.decode()} are the server's own")
    if len(names) > DEPTH_MAX:
        raise _invalid(path, f"it has more than {DEPTH_MAX} components")
    if not names and not empty:
        raise _invalid(path, "it names no file")
    return names


def text(names: tuple[bytes, ...] | bytes) -> str:
    """A path as text; bytes that are not UTF-8 become lone surrogates, which `parts` turns back."""
    raw = names if isinstance(names, bytes) else b"/".join(names)
    return raw.decode("utf-8", "surrogateescape")


def shown(path: str) -> str:
    """A path that can be printed and sent: what is not UTF-8 in it is replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _invalid(path: str, why: str) -> InvalidRequest:
    name = path if len(path) <= 200 else path[:200] + "…"
    name = name.encode("utf-8", "replace").decode()
    return InvalidRequest(f"The path {name!r} cannot be used: {why}.", code="invalid_path", param="path")


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Lets no error of the operating system out of its block."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path) from error


def refusal(error: OSError, path: str) -> StateroomError:
    """What an error of the operating system means to whoever asked for `path`."""
    number = error.errno
    if number in NO_ROOM:
        return StorageFull()
    if number == errno.ENOENT:
        return NotFound(f"There is no file {shown(path)!r} in the workspace.", code="file_not_found", param="path")
    why = {
        errno.ENOTDIR: "it leads through something that is no directory; symbolic links are not followed",
        errno.ELOOP: "it is a symbolic link, and those are not followed",
        errno.EISDIR: "it is a directory",
        errno.EEXIST: "something of that name is there already",
        errno.ENOTEMPTY: "the directory is not empty",
        errno.EINVAL: "it is no plain file of the workspace",
        errno.ENAMETOOLONG: "a name in it is too long",
        errno.EACCES: "the workspace does not let the server reach it",
        errno.EPERM: "the workspace does not let the server reach it",
    }.get(number or 0)
    if why is not None:
        return _invalid(path, why)
    return WorkspaceError(f"The workspace's file {shown(path)!r} could not be reached ({error.strerror}).")


def temporary_name() -> bytes:
    return OURS + ids.new_key().encode()


class Walk:
    """The descriptors that are open in one workspace, and the permissions that are lent, until the block ends."""

    def __init__(self, root: Path) -> None:
        self._open: dict[int, int] = {}
        """Descriptor to the permissions to give back; -1: none were lent."""
        self.root = self._keep(os.open(root, _ENTER))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave everything, what was entered last first."""
        for descriptor in reversed(self._open):
            self._give_back(descriptor)
            os.close(descriptor)
        self._open.clear()

    def enter(self, parent: int, name: bytes) -> int:
        """A directory in a directory. Raises OSError: ENOTDIR for everything else, a link to a directory too."""
        return self._keep(self._reach(parent, name, _ENTER))

    def descend(self, names: tuple[bytes, ...]) -> int:
        """The directory of this path."""
        descriptor = self.root
        for name in names:
            below = self.enter(descriptor, name)
            if descriptor != self.root:
                self.leave(descriptor)
            descriptor = below
        return descriptor

    def settle(self, descriptor: int, mode: int) -> None:
        """Set the permissions of a directory that was entered, to stay when it is left."""
        self._open[descriptor] = -1
        set_mode(descriptor, mode)

    def leave(self, descriptor: int) -> None:
        self._give_back(descriptor)
        del self._open[descriptor]
        os.close(descriptor)

    def make(self, parent: int, name: bytes, mode: int, owner: tuple[int, int] | None) -> int:
        """A new directory, and enter it. Raises FileExistsError."""
        self.lending(parent, lambda: os.mkdir(name, 0o700, dir_fd=parent))
        made = self._keep(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent))
        if owner is not None:
            os.fchown(made, *owner)
        os.fchmod(made, mode)
        return made

    def status(self, parent: int, name: bytes) -> os.stat_result:
        return self.lending(parent, lambda: os.stat(name, dir_fd=parent, follow_symlinks=False))

    def open_plain(self, parent: int, name: bytes, owner: int) -> tuple[int, os.stat_result]:
        """A plain file, to be read and closed by the caller. Raises OSError; EISDIR, ELOOP or EINVAL for the rest.

        A file with several names, one of which might be outside, is opened only if it is the workspace owner's.
        """
        aside = self._reach(parent, name, _PATH | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(aside)
            check_plain(status, owner)
            try:
                return os.open(_own(aside), _READ), status
            except PermissionError:
                if status.st_uid != os.geteuid() or status.st_nlink != 1:
                    raise
                set_mode(aside, status.st_mode & 0o777 | 0o400)
                try:
                    return os.open(_own(aside), _READ), status
                finally:
                    set_mode(aside, status.st_mode & 0o777)
        finally:
            os.close(aside)

    def scan(self, directory: int) -> Iterator[tuple[bytes, os.DirEntry[str]]]:
        """What is in a directory, in no order. An entry is valid until the next one is asked for."""
        readable = self._reach(directory, b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with os.scandir(readable) as found:
                for entry in found:
                    yield os.fsencode(entry.name), entry
        finally:
            os.close(readable)

    def lending(self, directory: int, act: Callable[[], _Result]) -> _Result:
        """Do something in a directory; once more with all permissions on it when they are missing."""
        try:
            return act()
        except PermissionError:
            if not self.lend(directory):
                raise
            return act()

    def lend(self, directory: int) -> bool:
        """Give ourselves all permissions on a directory that is open here; False when it is not ours to give."""
        status = os.fstat(directory)
        if status.st_uid != os.geteuid():
            return False
        if status.st_mode & 0o700 != 0o700:
            if self._open.get(directory, -1) < 0:
                self._open[directory] = status.st_mode & 0o777
            set_mode(directory, status.st_mode & 0o777 | 0o700)
        return True

    def remove(self, parent: int, name: bytes) -> None:
        """Delete a file, a link, or a directory with all below it, however deep and whatever its permissions are."""
        try:
            self.lending(parent, lambda: os.unlink(name, dir_fd=parent))
        except (IsADirectoryError, PermissionError):  # POSIX says EPERM for a directory, Linux EISDIR
            if not stat.S_ISDIR(self.status(parent, name).st_mode):
                raise
            self._remove_tree(parent, name)

    def _remove_tree(self, parent: int, name: bytes) -> None:
        """Directories are moved into one of ours before they are emptied: two descriptors, whatever the depth."""
        aside = temporary_name()
        heap = self.make(parent, aside, 0o700, None)
        try:
            self._move(parent, name, heap, b"0")
            waiting, count = [b"0"], 1
            while waiting:
                one = waiting.pop()
                for _ in range(_TRIES):
                    count = self._empty(heap, one, waiting, count)
                    try:
                        os.rmdir(one, dir_fd=heap)
                        break
                    except OSError as error:
                        # Somebody in the sandbox stands in it and writes on.
                        if error.errno != errno.ENOTEMPTY:
                            raise
                else:
                    raise WorkspaceError("A directory cannot be deleted: something in the sandbox keeps filling it.")
        finally:
            self.leave(heap)
            with suppress(OSError):  # what could not be deleted is in it, and is deleted with the workspace
                os.rmdir(aside, dir_fd=parent)

    def _empty(self, heap: int, name: bytes, waiting: list[bytes], count: int) -> int:
        directory = self.enter(heap, name)
        try:
            while found := self._some(directory):
                for below, is_directory in found:
                    if is_directory:
                        moved = b"%d" % count
                        count += 1
                        self._move(directory, below, heap, moved)
                        waiting.append(moved)
                    else:
                        self.lending(directory, partial(os.unlink, below, dir_fd=directory))
        finally:
            self.leave(directory)
        return count

    def _some(self, directory: int) -> list[tuple[bytes, bool]]:
        """Some of what is in a directory, and whether that is a directory."""
        found = []
        for name, entry in self.scan(directory):
            found.append((name, entry.is_dir(follow_symlinks=False)))
            if len(found) == _BATCH:
                break
        return found

    def _move(self, source: int, name: bytes, target: int, new: bytes) -> None:
        """A directory that moves must be writable itself: its `..` changes."""

        def move() -> None:
            os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)

        try:
            self.lending(source, move)
        except PermissionError:
            directory = self.enter(source, name)
            try:
                if not self.lend(directory):
                    raise
                move()
            finally:
                self.leave(directory)

    def _reach(self, parent: int, name: bytes, flags: int) -> int:
        try:
            return os.open(name, flags, dir_fd=parent)
        except PermissionError:
            if not self.lend(parent):
                raise
            return os.open(name, flags, dir_fd=parent)

    def _keep(self, descriptor: int) -> int:
        self._open[descriptor] = -1
        return descriptor

    def _give_back(self, descriptor: int) -> None:
        mode = self._open.get(descriptor, -1)
        if mode >= 0:
            with suppress(OSError):  # it was deleted meanwhile
                set_mode(descriptor, mode)


def check_plain(status: os.stat_result, owner: int) -> None:
    """Raise OSError unless this is a plain file that the workspace's owner has, or that has one name only."""
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    if status.st_nlink > 1 and status.st_uid != owner:
        raise OSError(errno.EINVAL, "it has other names, and is not the workspace's")


def set_mode(descriptor: int, mode: int) -> None:
    """Set the permissions of what is open, also when it is open by O_PATH only."""
    Path(_own(descriptor)).chmod(mode & 0o777)


def _own(descriptor: int) -> str:
    """The name that stands for what is open, whatever its path leads to by now."""
    return f"/proc/self/fd/{descriptor}"
