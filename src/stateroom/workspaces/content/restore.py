"""Makes a workspace's files what a tree says: in place, only what differs is touched, and what is not in it goes.

Nothing may write in the workspace meanwhile. The tree may be hostile (the store may have come from elsewhere): see
tree.py for what is refused; here, how deep, how many and how large.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from stateroom.errors import TooLarge
from stateroom.workspaces.content.cut import ZERO_DIGEST, NoRoom, Nowhere, cut_file
from stateroom.workspaces.content.errors import ContentDamaged
from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.scan import RACY_NANOSECONDS, Seen, key_of
from stateroom.workspaces.content.tree import DIRECTORY, FILE, LINK, Entry
from stateroom.workspaces.files.walk import DEPTH_MAX, OURS, Walk, set_mode, temporary_name
from stateroom.workspaces.files.write import create, settle, write_all

_SIZES = {DIRECTORY: stat.S_IFDIR, FILE: stat.S_IFREG, LINK: stat.S_IFLNK}


class Restore:
    """One restoring."""

    def __init__(
        self, walk: Walk, reader: Reader, *, owner: tuple[int, int] | None, files_max: int, bytes_max: int
    ) -> None:
        self._walk = walk
        self._reader = reader
        self._owner = owner
        self._uid = os.geteuid() if owner is None else owner[0]
        self._names = files_max
        self._room = bytes_max

    def directory(self, descriptor: int, digest: bytes, last: Seen | None, depth: int) -> Seen:
        """Make an open directory what a tree says; what it is then. `last`: what is known of it."""
        if depth > DEPTH_MAX:
            raise ContentDamaged(f"A tree of the content store is more than {DEPTH_MAX} directories deep.")
        entries = self._reader.directory(digest)
        self._names -= len(entries)
        self._room -= sum(entry.size for entry in entries)
        if self._names < 0 or self._room < 0:
            raise TooLarge("The tree has more files or bytes than a workspace may have.", code="tree_too_large")
        seen = Seen()
        seen.summary = self._reader.summary(digest)
        there = self._clear(descriptor, {entry.name: entry for entry in entries})
        for entry in entries:
            if entry.name.startswith(OURS):
                raise ContentDamaged(f"A tree of the content store has a name of the server's own: {entry.name!r}")
            seen.entries[entry.name] = entry
            if entry.kind == DIRECTORY:
                below = None if last is None else last.below.get(entry.name)
                self._below(descriptor, entry, there.get(entry.name), below, seen, depth)
            elif entry.kind == LINK:
                self._link(descriptor, entry, there=entry.name in there)
            else:
                self._file(descriptor, entry, there.get(entry.name), last, seen)
        return seen

    def _clear(self, descriptor: int, wanted: dict[bytes, Entry]) -> dict[bytes, os.stat_result]:
        """Delete what is not wanted, or is of another kind; what is left."""
        there: dict[bytes, os.stat_result] = {}
        unwanted = []
        for name, found in self._walk.scan(descriptor):
            status = found.stat(follow_symlinks=False)
            entry = wanted.get(name)
            if entry is None or stat.S_IFMT(status.st_mode) != _SIZES[entry.kind]:
                unwanted.append(name)
            else:
                there[name] = status
        for name in unwanted:
            self._walk.remove(descriptor, name)
        return there

    def _below(
        self, parent: int, entry: Entry, status: os.stat_result | None, last: Seen | None, seen: Seen, depth: int
    ) -> None:
        if status is None:
            below = self._walk.make(parent, entry.name, 0o700, self._owner)
        else:
            below = self._walk.enter(parent, entry.name)
        try:
            seen.below[entry.name] = self.directory(below, entry.digest, last, depth + 1)
            if status is None or status.st_mode & 0o7777 != entry.mode:
                self._walk.settle(below, entry.mode)
        finally:
            self._walk.leave(below)

    def _link(self, parent: int, entry: Entry, *, there: bool) -> None:
        if there:
            if os.readlink(entry.name, dir_fd=parent) == entry.digest:
                return
            self._walk.remove(parent, entry.name)
        self._walk.lending(parent, lambda: os.symlink(entry.digest, entry.name, dir_fd=parent))
        if self._owner is not None:
            os.chown(entry.name, *self._owner, dir_fd=parent, follow_symlinks=False)

    def _file(self, parent: int, entry: Entry, status: os.stat_result | None, last: Seen | None, seen: Seen) -> None:
        if status is None or not self._is_same(parent, entry, status, last):
            status = self._write(parent, entry, exists=status is not None)
        elif status.st_mode & 0o7777 != entry.mode or status.st_mtime_ns != entry.mtime_ns:
            # Another name of the file would get what is meant for this one.
            shared = status.st_nlink > 1
            status = self._write(parent, entry, exists=True) if shared else self._touch(parent, entry)
        seen.keys[entry.name] = key_of(status)

    def _is_same(self, parent: int, entry: Entry, status: os.stat_result, last: Seen | None) -> bool:
        """Whether a file has the wanted content, by what is known of it, else by reading it."""
        if status.st_size != entry.size:
            return False
        if last is not None and last.keys.get(entry.name) == key_of(status):
            return last.entries[entry.name].digest == entry.digest
        try:
            opened, _ = self._walk.open_plain(parent, entry.name, self._uid)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL):
                return False
            raise
        try:
            return cut_file(opened, entry.size, entry.size, Nowhere())[0] == entry.digest
        except NoRoom:
            return False
        finally:
            os.close(opened)

    def _write(self, parent: int, entry: Entry, *, exists: bool) -> os.stat_result:
        name = temporary_name() if exists else entry.name
        opened = self._walk.lending(parent, lambda: create(parent, name))
        try:
            self._fill(opened, entry)
            settle(opened, self._owner, entry.mode)
            _set_time(opened, entry.mtime_ns)
            if exists:
                os.rename(name, entry.name, src_dir_fd=parent, dst_dir_fd=parent)
            return os.fstat(opened)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(opened)

    def _fill(self, descriptor: int, entry: Entry) -> None:
        found = self._reader.list(entry.digest)
        if found is None:
            data = self._reader.chunk(entry.digest)
            if len(data) != entry.size:
                raise ContentDamaged(f"{entry.digest.hex()} in the content store has not the size that its tree says.")
            write_all(descriptor, data)
            return
        if found[0] != entry.size:
            raise ContentDamaged(f"{entry.digest.hex()} in the content store has not the size that its tree says.")
        for offset, digest in self._reader.offsets(*found):
            if digest != ZERO_DIGEST:
                os.lseek(descriptor, offset, os.SEEK_SET)
                write_all(descriptor, self._reader.piece(digest, offset, entry.size))
        os.ftruncate(descriptor, entry.size)

    def _touch(self, parent: int, entry: Entry) -> os.stat_result:
        """Give a file that has the right content the right permissions and time."""
        opened, _ = self._walk.open_plain(parent, entry.name, self._uid)
        try:
            set_mode(opened, entry.mode)
            _set_time(opened, entry.mtime_ns)
            return os.fstat(opened)
        finally:
            os.close(opened)


def forget_recent(seen: Seen, now_ns: int) -> None:
    """Trust no file that was changed just now: see content_scan.py."""
    for name in [name for name, key in seen.keys.items() if key[1] >= now_ns - RACY_NANOSECONDS]:
        del seen.keys[name]
    for below in seen.below.values():
        forget_recent(below, now_ns)


def _set_time(descriptor: int, mtime_ns: int) -> None:
    with suppress(OSError, OverflowError):  # a time that this file system cannot keep
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))
