"""Copies a data directory while its server writes on, and puts such a copy back in place.

Why this order. A blob is there before the entry that refers to it is committed, and goes after the entry is erased. So:

1. The blobs that are there are linked into the backup. A link pins the bytes: no erasure takes them away any more.
2. The journal is copied, as it stands at one moment, by SQLite's own means.
3. The blobs that this copy refers to and that came after step 1 are linked. One that is gone already was erased in
   between: then the copy of the journal still says what was erased, and steps 2 and 3 are done again.
4. Blobs that the copy does not refer to leave the backup: what was erased before step 2 is in no byte of it.

5. The content store is copied: content is there before the journal names it. What the copy of the journal names and it
   has not was dropped in between, and steps 2 to 5 are done again.

The rest (access keys, the secret key) does not refer to the journal. The manifest comes last: what has none is no
backup. Blobs are never written in place, so that a link is as good as a copy on the same disk, and no better.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from stateroom.blobs.files import open_private, sync_folder
from stateroom.blobs.store import is_digest
from stateroom.clock import Clock
from stateroom.errors import StorageError
from stateroom.journal.codes import pack_digest
from stateroom.journal.layout import BLOBS, JOURNAL, MANIFEST, SECRET
from stateroom.journal.migrations import check_header
from stateroom.journal.sqlite_connections import connect_reader
from stateroom.journal.sqlite_errors import TRANSLATED
from stateroom.journal.statements import read_migrations, read_queries
from stateroom.journal.verify import Manifest, verify_data
from stateroom.journal.verify_blobs import file_digest, list_blobs
from stateroom.journal.verify_content import missing_contents, named_contents
from stateroom.journal.verify_entries import Progress
from stateroom.journal.verify_report import Report
from stateroom.workspaces.layout import CONTENT

_PAGES: Final = 2_000
"""Pages of a database that are copied between two words about it."""
_TRIES: Final = 5
"""How often the journal is copied when blobs vanish in between; each needs an erasure in the very moment."""


class Backup:
    """One backup in the making."""

    def __init__(self, data: Path, target: Path, clock: Clock, progress: Progress, *, link: bool = True) -> None:
        """`link` False copies the blobs, on the same disk, too."""
        self._data = data
        self._target = target
        self._clock = clock
        self._progress = progress
        self._link = link
        self._queries = read_queries()

    def make(self) -> Report:
        """Write the backup and verify it; without findings it gets its manifest. Raises StorageError, OSError."""
        with TRANSLATED:
            check_header(self._data / JOURNAL, len(read_migrations()))
            if not (self._data / JOURNAL).is_file():
                raise StorageError(f"There is no {JOURNAL} in {self._data}: it is no data directory of Stateroom.")
            make_empty(self._target)
            (self._target / BLOBS).mkdir(mode=0o700)
            self._pin_blobs()
            missing = self._copy_both()
            self._drop_unused()
            names = self._copy_rest()
        report = verify_data(self._target, self._progress)
        if missing:
            report.notes.append(f"{missing} blobs are missing in {self._data} as well.")
        if report.ok:
            self._write_manifest([JOURNAL, *names])
        return report

    def _pin_blobs(self) -> None:
        """Step 1."""
        for number, (digest, path) in enumerate(list_blobs(self._data / BLOBS)):
            if number % 256 == 0:
                self._progress("blobs", number, 0)
            with suppress(FileNotFoundError):
                self._take_blob(digest, path)

    def _copy_journal(self) -> int:
        """Steps 2 and 3; how many blobs are missing for good."""
        for _ in range(_TRIES):
            copy_database(self._data / JOURNAL, self._target / JOURNAL, self._progress)
            gone = [digest for digest in self._wanted() if not self._has_blob(digest)]
            with closing(connect_reader(self._data / JOURNAL)) as now:
                damaged = [digest for digest in gone if _is_used(now, self._queries, digest)]
            if len(damaged) == len(gone):
                return len(damaged)
        raise StorageError(
            "Blobs were erased each time that the journal was copied. Try again when less is being deleted."
        )

    def _copy_both(self) -> int:
        """Steps 2, 3 and 5; how many blobs are missing for good."""
        for _ in range(_TRIES):
            missing = self._copy_journal()
            if not (self._data / CONTENT).is_file() or not self._content_is_newer():
                return missing
        raise StorageError("Containers were deleted each time that the journal was copied. Try again later.")

    def _content_is_newer(self) -> bool:
        """Copy the content store; whether it lacks what is in the copy of the journal, and in the journal no more."""
        (self._target / CONTENT).parent.mkdir(mode=0o700, exist_ok=True)
        copy_database(self._data / CONTENT, self._target / CONTENT, self._progress)
        with closing(apsw.Connection(str(self._target / JOURNAL), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            missing = missing_contents(self._target, named_contents(connection, self._queries))
        if not missing:
            return False
        with closing(connect_reader(self._data / JOURNAL)) as now:
            return not set(missing) <= named_contents(now, self._queries)

    def _has_blob(self, digest: str) -> bool:
        if blob_path(self._target, digest).exists():
            return True
        try:
            self._take_blob(digest, blob_path(self._data, digest))
        except FileNotFoundError:
            return False
        return True

    def _take_blob(self, digest: str, path: Path) -> None:
        to = blob_path(self._target, digest)
        to.parent.mkdir(mode=0o700, exist_ok=True)
        if self._link:
            try:
                to.hardlink_to(path)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or a file system without links
                self._link = False
            else:
                return
        copy_file(path, to)

    def _drop_unused(self) -> None:
        """Step 4."""
        wanted = set(self._wanted())
        for digest, path in list_blobs(self._target / BLOBS):
            if digest not in wanted:
                path.unlink()

    def _wanted(self) -> Iterator[str]:
        """Blobs that the copy of the journal refers to."""
        with closing(apsw.Connection(str(self._target / JOURNAL), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            rows: Any = connection.execute(self._queries["verify_blob_uses"])
            for (packed,) in rows:
                digest = packed if isinstance(packed, str) else packed.hex()
                if is_digest(digest):
                    yield digest

    def _copy_rest(self) -> list[str]:
        """Every other database, and the keys."""
        names = [path.name for path in sorted(self._data.glob("*.db")) if path.name != JOURNAL]
        for name in names:
            copy_database(self._data / name, self._target / name, self._progress)
        if (self._target / CONTENT).is_file():
            names.append(CONTENT)
        if (self._data / SECRET).is_file():
            copy_file(self._data / SECRET, self._target / SECRET)
            names.append(SECRET)
        return names

    def _write_manifest(self, names: Sequence[str]) -> None:
        sizes = [path.stat().st_size for _, path in list_blobs(self._target / BLOBS)]
        manifest = Manifest(
            made_at=int(self._clock.now() * 1000),
            version=version("stateroom"),
            files={name: file_digest(self._target / name) for name in names},
            blobs=len(sizes),
            blob_bytes=sum(sizes),
        )
        for folder in (path for path in (self._target / BLOBS).iterdir() if path.is_dir()):
            sync_folder(folder)
        sync_folder(self._target / BLOBS)
        write_file(self._target / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        sync_folder(self._target)


def _is_used(connection: apsw.Connection, queries: Mapping[str, str], digest: str) -> bool:
    return bool(connection.execute(queries["find_blob_use"], (pack_digest(digest),)).fetchall())


def make_empty(folder: Path) -> None:
    """A new folder, or one that is empty; others may not look into it. Raises StorageError, OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty. Name a directory that is empty, or that is not there yet.")


def copy_database(source: Path, target: Path, progress: Progress) -> None:
    """Copy a SQLite database as it stands at one moment, while others write it. Replaces `target`."""
    target.unlink(missing_ok=True)
    os.close(open_private(str(target), os.O_RDWR | os.O_CREAT))
    try:
        _copy_pages(source, target, progress)
    except apsw.FullError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
    sync_file(target)


def _copy_pages(source: Path, target: Path, progress: Progress) -> None:
    with (
        closing(connect_reader(source)) as reader,
        closing(apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)) as writer,
    ):
        # The open transaction keeps the moment: without it a write of somebody else would begin the copy anew.
        reader.execute("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        with writer.backup("main", reader, "main") as copying:
            while not copying.done:
                copying.step(_PAGES)
                progress(source.name, copying.page_count - copying.remaining, copying.page_count)
        reader.execute("COMMIT")
        # One file without a log beside it; the server that opens it makes it one with a log again.
        writer.execute("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL").fetchall()


def blob_path(folder: Path, digest: str) -> Path:
    """Where a data directory or a backup has a blob."""
    return folder / BLOBS / digest[:2] / digest[2:]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, for its owner alone to read."""
    with source.open("rb") as reader, open(target, "xb", opener=open_private) as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)
        writer.flush()
        os.fsync(writer.fileno())


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, for its owner alone to read."""
    aside = path.with_name(f"{path.name}.new")
    with open(aside, "wb", opener=open_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
