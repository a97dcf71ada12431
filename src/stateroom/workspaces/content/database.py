"""`ContentDatabase`: trees of files by the hash of what is in them, each content kept once. It blocks.

`snapshot` takes a workspace's files in, `materialise` makes a workspace what a tree says. A tree is a directory of
names with the digests of contents and of further trees (tree.py); contents are cut into chunks (content_cut.py) and
packed. Two trees share all that is the same in them, so that a fork costs nothing, and a commit what has changed.

Nothing in here knows who refers to what: whoever puts something holds it (`hold`) until the reference is written, and
`collect` is told what is alive. Everything blocks and may be called from any thread; one writes at a time, many read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from stateroom.clock import Clock, SystemClock
from stateroom.errors import NotFound, TooLarge
from stateroom.workspaces.content.collect import Collected, Collection
from stateroom.workspaces.content.compare import Change, Comparison, Difference, TreeEntry, told, unified
from stateroom.workspaces.content.cut import cut_bytes
from stateroom.workspaces.content.errors import ContentMissing
from stateroom.workspaces.content.file import ContentFile, Durability
from stateroom.workspaces.content.hold import Hold, Holds
from stateroom.workspaces.content.intake import Intake
from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.restore import Restore, forget_recent
from stateroom.workspaces.content.scan import Scan, Skipped, StatCache
from stateroom.workspaces.content.tree import DIRECTORY, Entry
from stateroom.workspaces.content.verify import Progress, verify_file
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.files.walk import parts, refusing, shown

FILES_MAX: Final = 100_000
BYTES_MAX: Final = 4 * 1024 * 1024 * 1024
ENTRIES_MAX: Final = 1_000_000
"""What one answer names at most."""
TEXT_BYTES_MAX: Final = 256 * 1024
"""Of a file whose lines are compared."""
KEEP_SECONDS: Final = 3600.0


class Tree(msgspec.Struct, frozen=True):
    """What a snapshot took."""

    digest: str
    """64 hexadecimal digits; the same for the same files."""
    files: int
    """Files and links."""
    bytes: int
    new_bytes: int
    """What was not in the store before, as it is packed."""
    skipped: tuple[Skipped, ...] = ()
    """What was not taken, and why; the first hundred."""
    skipped_count: int = 0


class ContentDatabase:
    """One file. Raises StorageError subclasses, among them ContentDamaged and ContentMissing."""

    def __init__(self, path: Path, *, durability: Durability = "normal", clock: Clock | None = None) -> None:
        """Opens the file, or makes it. `durability` is that of the journal, and means the same."""
        self._clock = clock or SystemClock()
        self._file = ContentFile(path, durability)
        self._holds = Holds(self._clock)
        self._collecting = threading.Lock()
        self._stop = threading.Event()

    def hold(self) -> AbstractContextManager[Hold]:
        """For a block in which something is put and then referred to: until its end, `collect` spares it."""
        return self._holds.hold()

    def snapshot(
        self,
        folder: Folder,
        cache: StatCache | None = None,
        *,
        hold: Hold | None = None,
        files_max: int = FILES_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> Tree:
        """Take the files in. Nothing should write to them meanwhile; if something does, each file is as it was read.

        `cache` spares reading what has not changed since it was last given, and is brought up to date; it must not be
        used by two threads at the same time. Without `hold` the tree is kept for `keep_younger_than` only.
        """
        cache = StatCache() if cache is None else cache
        began = self._clock.now()
        with (
            self._holds.hold(hold) as held,
            refusing(""),
            folder.walk() as walk,
            Intake(self._file, held, round(began * 1000)) as intake,
        ):
            reader = Reader(self._file)
            if cache.root is not None:
                # With the tree of the last time all is held that the cache knows of, if the tree is still there.
                held.keep(cache.tree)
                if reader.summary(cache.tree) is None:
                    cache.forget()
            scan = Scan(
                walk,
                intake,
                reader,
                owner=folder.uid,
                began_ns=int(began * 1e9),
                files_max=files_max,
                bytes_max=bytes_max,
            )
            seen = scan.directory(walk.root, cache.root, ())
            assert seen.summary is not None, "a directory that was scanned is complete"
            held.keep(seen.summary.digest)
            intake.flush()
            self._holds.remember(seen.summary.digest)
            cache.tree, cache.root = seen.summary.digest, seen
        return Tree(
            digest=seen.summary.digest.hex(),
            files=seen.summary.files,
            bytes=seen.summary.bytes,
            new_bytes=intake.new_bytes,
            skipped=tuple(scan.skipped),
            skipped_count=scan.skipped_count,
        )

    def materialise(
        self,
        digest: str,
        folder: Folder,
        cache: StatCache | None = None,
        *,
        files_max: int = ENTRIES_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """Make the files those of a tree: what differs is written, what is not in it is deleted.

        Nothing may write to them meanwhile. If it fails, the files are some of both, and it can be done again. `cache`
        spares reading what is there, and is brought up to date.
        """
        raw = _raw(digest)
        cache = StatCache() if cache is None else cache
        last = cache.root
        with self._holds.hold() as held, refusing(""), folder.walk() as walk:
            held.keep(raw)
            cache.forget()
            restore = Restore(walk, Reader(self._file), owner=folder.owner, files_max=files_max, bytes_max=bytes_max)
            seen = restore.directory(walk.root, raw, last, 0)
        forget_recent(seen, int(self._clock.now() * 1e9))
        if seen.summary is not None:
            cache.tree, cache.root = raw, seen

    def exists(self, digest: str) -> bool:
        """Whether a tree is there."""
        return Reader(self._file).summary(_raw(digest)) is not None

    def keep(self, digest: str, hold: Hold) -> bool:
        """Let a tree or blob that somebody is about to refer to not be swept; False when it is not there (any more)."""
        raw = _raw(digest)
        hold.keep(raw)
        self._holds.remember(raw)
        reader = Reader(self._file)
        return reader.summary(raw) is not None or reader.size(raw) is not None

    def entries(self, digest: str, *, limit: int = ENTRIES_MAX) -> list[TreeEntry]:
        """Everything in a tree, each directory before what is in it, by the order of names. Raises TooLarge."""
        found: list[TreeEntry] = []
        for entry in self.walk(digest):
            if len(found) == limit:
                raise TooLarge(f"The tree has more than {limit} files.", code="tree_too_large")
            found.append(entry)
        return found

    def walk(self, digest: str) -> Iterator[TreeEntry]:
        """The same, one at a time and without a limit: a tree from elsewhere may name more than there are atoms."""
        reader = Reader(self._file)
        waiting: list[tuple[tuple[bytes, ...], Entry]] = []
        above: tuple[bytes, ...] = ()
        below = _raw(digest)
        while True:
            entries = reader.directory(below)
            waiting += [((*above, entry.name), entry) for entry in reversed(entries)]
            while waiting:
                path, entry = waiting.pop()
                yield told(path, entry)
                if entry.kind == DIRECTORY:
                    above, below = path, entry.digest
                    break
            else:
                return

    def find(self, digest: str, path: str) -> TreeEntry:
        """What stands under a path of a tree. Raises NotFound, InvalidRequest."""
        names = parts(path)
        reader, below = Reader(self._file), _raw(digest)
        for number, name in enumerate(names, 1):
            entry = next((one for one in reader.directory(below) if one.name == name), None)
            if entry is not None and number == len(names):
                return told(names, entry)
            if entry is None or entry.kind != DIRECTORY:
                break
            below = entry.digest
        raise NotFound(f"There is no file {shown(path)!r} in that commit.", code="file_not_found", param="path")

    def read(self, digest: str, *, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """The bytes of a content from `first` to `last` (inclusive; None: the end), in pieces of up to a mebibyte."""
        return Reader(self._file).content(_raw(digest), first=first, last=last)

    def size(self, digest: str) -> int | None:
        """Of a content; None: it is not there."""
        return Reader(self._file).size(_raw(digest))

    def diff(self, before: str | None, after: str | None, *, limit: int = 10_000) -> Difference:
        """What differs between two trees; None or empty: no files at all."""
        comparison = Comparison(Reader(self._file), limit=limit)
        return comparison.compare(_raw(before) if before else None, _raw(after) if after else None)

    def text_diff(self, change: Change) -> str | None:
        """The unified diff of a file that differs; None: one side is no text, or more than 256 KiB."""
        old, new = self._text(change.before), self._text(change.after)
        return None if old is None or new is None else unified(old, new, shown(change.path))

    def put_blob(self, data: bytes | memoryview, *, hold: Hold | None = None) -> str:
        """Keep bytes; their digest. Without `hold` they are kept for `keep_younger_than` only."""
        born = round(self._clock.now() * 1000)
        with self._holds.hold(hold) as held, Intake(self._file, held, born) as intake:
            digest, _ = cut_bytes(data, intake)
            intake.flush()
            self._holds.remember(digest)
        return digest.hex()

    def get_blob(self, digest: str) -> bytes:
        return b"".join(self.read(digest))

    def collect(
        self, live: Iterable[str], *, keep_younger_than: float = KEEP_SECONDS, rest_seconds: float = 0.005
    ) -> Collected:
        """Delete what is neither live (digests of trees and blobs), nor held, nor was put in the last seconds.

        What is put between the time when `live` was read and now must be held, or be younger than that.
        """
        with self._collecting:
            collection = Collection(self._file, self._holds, self._stop, rest_seconds=rest_seconds)
            roots = (_raw(digest) for digest in live)
            return collection.run(roots, now_ms=round(self._clock.now() * 1000), younger_than=keep_younger_than)

    def verify(self, progress: Progress = lambda what, done, total: None) -> list[str]:
        """Read everything and hold it against its digests; what is wrong, in words."""
        return verify_file(self._file, progress)

    def backup(self, path: Path) -> None:
        """Copy the store as it stands now, while it is used. Raises StorageError, OSError."""
        self._file.backup(path)

    def cut_log(self) -> bool:
        """Bring all that was written into the file, and leave its log empty; False when somebody reads in it."""
        return self._file.cut_log()

    def close(self) -> None:
        """A collection that goes on ends early."""
        self._stop.set()
        with self._collecting:
            self._file.close()

    def _text(self, entry: TreeEntry | None) -> str | None:
        if entry is None:
            return ""
        if entry.kind != "file" or entry.size > TEXT_BYTES_MAX:
            return None
        data = b"".join(self.read(entry.digest))
        try:
            return None if b"\0" in data else data.decode("utf-8")
        except UnicodeDecodeError:
            return None


def _raw(digest: str) -> bytes:
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ContentMissing(f"{digest[:80]!r} is not the digest of anything in the content store.")
    return raw
