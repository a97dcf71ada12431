"""Takes a workspace's files into the content store: only what changed since the last time is read.

Whether a file changed is told by its status, as git does: times, size, inode, mode. The time of a change moves in steps
of some milliseconds, so that a file that was changed just before it was read may change again and look the same. What
was changed within 20 ms of the scan is therefore read again the next time (git calls such an entry racily clean).

Kept: names, kinds, permission bits, contents, the times of files, the targets of links, empty directories. Not kept:
owners, extended attributes, times of directories, that two names are one file. Not taken, and told: devices, pipes,
sockets, what cannot be read, and what is too deep or too much.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple, TypeAlias

import msgspec

from stateroom.workspaces.content.cut import SMALL_MAX, NoRoom, cut_file
from stateroom.workspaces.content.errors import ContentDamaged, ContentMissing
from stateroom.workspaces.content.intake import Intake
from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.tree import DIRECTORY, FILE, LINK, Entry, Summary, encode, time_within
from stateroom.workspaces.files.walk import DEPTH_MAX, OURS, Walk, text

RACY_NANOSECONDS: Final = 20_000_000
SKIPPED_MAX: Final = 100
"""So many of what was not taken are named; the others are counted."""

Key: TypeAlias = tuple[int, int, int, int, int]
"""What tells whether a file is the same: times of its content and its status, size, inode, mode."""


class Skipped(msgspec.Struct, frozen=True):
    """Something that was not taken."""

    path: str
    reason: str


class Seen:
    """A directory as it was the last time."""

    __slots__ = ("below", "entries", "keys", "summary")

    def __init__(self) -> None:
        self.keys: dict[bytes, Key] = {}
        """Of files that need not be read again while they look the same."""
        self.entries: dict[bytes, Entry] = {}
        self.below: dict[bytes, Seen] = {}
        self.summary: Summary | None = None


class _At(NamedTuple):
    """A directory that is being looked at."""

    descriptor: int
    above: tuple[bytes, ...]
    """Its path."""
    last: Seen | None
    seen: Seen


class StatCache:
    """What is known of the files of one workspace. In memory only: without it everything is read again."""

    def __init__(self) -> None:
        self.tree: bytes = b""
        """The tree that `root` is of."""
        self.root: Seen | None = None

    def forget(self) -> None:
        self.tree, self.root = b"", None


class Scan:
    """One look at everything."""

    def __init__(
        self, walk: Walk, intake: Intake, reader: Reader, *, owner: int, began_ns: int, files_max: int, bytes_max: int
    ) -> None:
        self._walk = walk
        self._intake = intake
        self._reader = reader
        self._owner = owner
        self._trusted_before = began_ns - RACY_NANOSECONDS
        self._names = files_max
        self._room = bytes_max
        self._bytes_max = bytes_max
        self.skipped: list[Skipped] = []
        self.skipped_count = 0

    def directory(self, descriptor: int, last: Seen | None, above: tuple[bytes, ...]) -> Seen:
        """What an open directory is now; `last`: what it was."""
        seen = Seen()
        at = _At(descriptor, above, last, seen)
        summaries: dict[bytes, Summary] = {}
        for name, status in self._list(descriptor):
            if self._names <= 0:
                self._skip((*above, name), "the workspace has more files than it may have")
                continue
            self._names -= 1
            entry = self._entry(at, name, status)
            if entry is not None:
                seen.entries[name] = entry
                if name in seen.below:
                    summary = seen.below[name].summary
                    assert summary is not None, "a directory below is complete"
                    summaries[name] = summary
        if last is not None and last.entries == seen.entries:
            seen.entries, seen.summary = last.entries, last.summary
        else:
            nodes = encode(list(seen.entries.values()), summaries)
            for node in nodes:
                self._intake.tree(node)
            seen.summary = nodes[-1].summary
        return seen

    def _list(self, descriptor: int) -> list[tuple[bytes, os.stat_result]]:
        found = []
        for name, entry in self._walk.scan(descriptor):
            if not name.startswith(OURS):
                try:
                    found.append((name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:  # it is gone since
                    continue
        found.sort()
        return found

    def _entry(self, at: _At, name: bytes, status: os.stat_result) -> Entry | None:
        kind = stat.S_IFMT(status.st_mode)
        try:
            if kind == stat.S_IFREG:
                return self._file(at, name, status)
            if kind == stat.S_IFDIR:
                return self._below(at, name, status)
            if kind == stat.S_IFLNK:
                return Entry(name, LINK, 0o777, 0, 0, os.readlink(name, dir_fd=at.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return None  # it is gone since, or something else
        except NoRoom:
            self._skip((*at.above, name), f"with it the files would be larger than {self._bytes_max} bytes")
        except OSError as error:
            self._skip((*at.above, name), f"it cannot be read: {error.strerror}")
        else:
            self._skip((*at.above, name), "it is a device, a pipe or a socket")
        return None

    def _file(self, at: _At, name: bytes, status: os.stat_result) -> Entry:
        last, seen = at.last, at.seen
        key = key_of(status)
        before = None if last is None else last.entries.get(name)
        if before is not None and last is not None and last.keys.get(name) == key:
            seen.keys[name] = key
            if before.size > self._room:
                raise NoRoom
            self._room -= before.size
            return before
        if status.st_size > self._room:
            raise NoRoom
        opened, status = self._walk.open_plain(at.descriptor, name, self._owner)
        try:
            self._intake.known = self._pieces_of(before)
            digest, size = cut_file(opened, status.st_size, self._room, self._intake)
            after = os.fstat(opened)
        finally:
            self._intake.known = set()
            os.close(opened)
        self._room -= size
        if key_of(status) == key_of(after) and after.st_ctime_ns < self._trusted_before:
            seen.keys[name] = key_of(after)
        return Entry(name, FILE, after.st_mode & 0o777, time_within(after.st_mtime_ns), size, digest)

    def _pieces_of(self, before: Entry | None) -> set[bytes]:
        """The pieces that a large file had: they are held with the tree that has them."""
        if before is None or before.kind != FILE or before.size <= SMALL_MAX:
            return set()
        try:
            found = self._reader.list(before.digest)
            return set() if found is None else set(self._reader.pieces(found[1]))
        except (ContentDamaged, ContentMissing):  # then every piece is put again
            return set()

    def _below(self, at: _At, name: bytes, status: os.stat_result) -> Entry | None:
        path = (*at.above, name)
        if len(path) > DEPTH_MAX:
            self._skip(path, f"it is more than {DEPTH_MAX} directories deep")
            return None
        below = self._walk.enter(at.descriptor, name)
        try:
            if os.fstat(below).st_dev != os.fstat(self._walk.root).st_dev:
                self._skip(path, "it is another file system")
                return None
            inner = self.directory(below, None if at.last is None else at.last.below.get(name), path)
        finally:
            self._walk.leave(below)
        assert inner.summary is not None, "a directory that was scanned is complete"
        at.seen.below[name] = inner
        return Entry(name, DIRECTORY, status.st_mode & 0o777, 0, 0, inner.summary.digest)

    def _skip(self, names: tuple[bytes, ...], reason: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < SKIPPED_MAX:
            self.skipped.append(Skipped(text(names), reason))


def key_of(status: os.stat_result) -> Key:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode
