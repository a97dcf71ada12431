"""Verifies a data directory, or a backup of one: is everything as it was written, and if not, what is damaged where.

Only reads. Beside a running server it looks at one moment of the journal: while it does, the log of the journal cannot
be cut, and what is erased meanwhile leaves the log when the verification ends. What it cannot notice is a byte that
changed within the text of an entry and left it readable; a backup has a checksum of the whole file for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import apsw
import msgspec

from stateroom.errors import StorageError
from stateroom.journal.codes import pack_digest
from stateroom.journal.layout import BLOBS, JOURNAL, MANIFEST, SECRET
from stateroom.journal.migrations import APPLICATION_ID, check_header, expected_schema
from stateroom.journal.sqlite_connections import BUSY_MILLISECONDS, connect_reader
from stateroom.journal.sqlite_index import TABLES
from stateroom.journal.statements import read_migrations, read_queries
from stateroom.journal.verify_blobs import BlobCheck, file_digest
from stateroom.journal.verify_content import check_content
from stateroom.journal.verify_entries import EntryCheck, Progress
from stateroom.journal.verify_index import KEPT, compare_index, make_index_tables, replay
from stateroom.journal.verify_report import REBUILD, RESTORE, Report

_SECRET_BYTES: Final = 32


class Manifest(msgspec.Struct, frozen=True):
    """What a backup says of itself."""

    made_at: int
    """Milliseconds since the epoch."""
    version: str
    """Of the Stateroom that made it."""
    files: dict[str, str]
    """SHA-256 of every file but the blobs, which are named by theirs."""
    blobs: int
    blob_bytes: int


def verify_data(data: Path, progress: Progress) -> Report:
    """Look at everything in a data directory. Raises StorageError when there is nothing to look at."""
    if not (data / JOURNAL).is_file():
        raise StorageError(f"There is no {JOURNAL} in {data}: it is no data directory of Stateroom.")
    report = Report(str(data))
    _check_manifest(data, report, progress)
    try:
        check_header(data / JOURNAL, len(read_migrations()))
    except StorageError as error:
        report.add("file", JOURNAL, error.message)
    else:
        _check_journal(data, report, progress)
    for path in sorted(data.glob("*.db")):
        if path.name != JOURNAL:
            _check_database(path, report)
    _check_secret(data / SECRET, report)
    return report


@contextmanager
def open_snapshot(path: Path) -> Iterator[apsw.Connection]:
    """One moment of a journal, attached to an empty temporary database."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    with closing(apsw.Connection("", flags=flags)) as connection:
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        connection.execute(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA trusted_schema = OFF"
        ).fetchall()
        name = f"file:{quote(str(path.absolute()))}?mode=ro"
        try:
            _attach(connection, name)
        except apsw.CantOpenError:
            # A folder that cannot be written takes no log: without a server there is nothing in one either.
            connection.execute(f"DETACH {KEPT}")
            _attach(connection, f"{name}&immutable=1")
        yield connection


def _attach(connection: apsw.Connection, name: str) -> None:
    connection.execute(f"ATTACH ? AS {KEPT}", (name,))
    connection.execute("BEGIN")
    try:
        connection.execute(f"SELECT 1 FROM {KEPT}.sqlite_schema LIMIT 1").fetchall()  # noqa: S608  # our name
    except apsw.Error:
        connection.execute("ROLLBACK")
        raise


def _check_journal(data: Path, report: Report, progress: Progress) -> None:
    queries = read_queries()
    try:
        with open_snapshot(data / JOURNAL) as connection:
            _check_pages(connection, report, progress)
            if _check_schema(connection, report):
                _check_content(connection, data, queries, report, progress)
    except apsw.Error as error:
        report.add("file", JOURNAL, f"it cannot be read any further: {error}")
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # A column may hold anything once the file is damaged; the report has to come to its end all the same.
        report.add("file", JOURNAL, f"it holds what no Stateroom wrote: {type(error).__name__}: {error}")


def _check_pages(connection: apsw.Connection, report: Report, progress: Progress) -> None:
    progress("pages", 0, 0)
    for (text,) in _rows(connection, f"PRAGMA {KEPT}.integrity_check(100)"):
        for line in text.splitlines() if text != "ok" else ():
            of_index = any(f"index {table}" in line or line.endswith(f"in {table}") for table in TABLES)
            report.add("file", JOURNAL, line, REBUILD if of_index else RESTORE)


def _check_schema(connection: apsw.Connection, report: Report) -> bool:
    """Whether the tables are those of a journal."""
    migrations = read_migrations()
    [(application,)] = _rows(connection, f"PRAGMA {KEPT}.application_id")
    [(version,)] = _rows(connection, f"PRAGMA {KEPT}.user_version")
    if application != APPLICATION_ID or version > len(migrations):
        report.add("file", JOURNAL, "it is no journal of this version")
        return False
    if version < len(migrations):
        report.notes.append(f"{JOURNAL} is of schema {version}: the next start brings it to schema {len(migrations)}.")
    kept, expected = _kept_schema(connection), expected_schema(migrations[:version])
    missing = {name for name, _ in expected - kept}
    for name in sorted(missing):
        report.add("file", JOURNAL, f"its table or index {name} is missing or another")
    for name in sorted({name for name, _ in kept - expected} - missing):
        report.add("file", JOURNAL, f"its table or index {name} is none of Stateroom's")
    return not missing


def _kept_schema(connection: apsw.Connection) -> set[tuple[str, str]]:
    """Names and statements of what the attached journal is made of."""
    query = f"SELECT name, sql FROM {KEPT}.sqlite_schema WHERE sql IS NOT NULL"  # noqa: S608  # our name
    return set(_rows(connection, query))


def _rows(connection: apsw.Connection, query: str) -> list[Any]:
    return connection.execute(query).fetchall()


def _check_content(
    connection: apsw.Connection, data: Path, queries: Mapping[str, str], report: Report, progress: Progress
) -> None:
    entries = EntryCheck(connection, queries, report, progress)
    entries.check_branches()
    entries.check_streams()
    if entries.readable:
        # A journal that an earlier version wrote may lack some of today's tables, or have others.
        alike = {name for name, _ in _kept_schema(connection) & expected_schema(read_migrations())}
        make_index_tables(connection)
        replay(connection, queries, progress)
        compare_index(connection, [table for table in TABLES if table in alike], report, progress)
    else:
        report.notes.append("The index was not compared: it cannot be derived from entries that cannot be read.")

    def in_use(digest: str) -> bool:
        with closing(connect_reader(data / JOURNAL)) as now:
            return bool(now.execute(queries["find_blob_use"], (pack_digest(digest),)).fetchall())

    BlobCheck(connection, queries, report, progress, in_use).check(data / BLOBS)
    check_content(connection, data, queries, report, progress)


def _check_database(path: Path, report: Report) -> None:
    """Another database of the server, of which only its owner knows what it says."""
    try:
        with closing(connect_reader(path)) as connection:
            problems: list[Any] = connection.execute("PRAGMA integrity_check(20)").fetchall()
    except apsw.Error as error:
        problems = [(str(error),)]
    for (text,) in problems:
        if text != "ok":
            report.add("file", path.name, text, f"Put {path.name} back from a backup.")


def _check_secret(path: Path, report: Report) -> None:
    advice = f"Put {path.name} back from a backup, readable by its owner alone; a start makes a new one."
    lost = "what clients carry sealed (`encrypted_content`) cannot be opened"
    try:
        status = path.stat()
    except FileNotFoundError:
        report.add("key", path.name, f"it is missing: {lost}", advice)
        return
    if status.st_size != _SECRET_BYTES:
        report.add("key", path.name, f"it has {status.st_size} bytes instead of {_SECRET_BYTES}: {lost}", advice)
    if status.st_mode & 0o077:
        report.add("key", path.name, "others than its owner may read it", f"chmod 600 {path}")


def _check_manifest(data: Path, report: Report, progress: Progress) -> None:
    """A backup holds what it held when it was made."""
    try:
        manifest = read_manifest(data)
    except FileNotFoundError:
        return
    except StorageError as error:
        report.add("backup", MANIFEST, error.message, "Make another backup.")
        return
    for number, (name, digest) in enumerate(sorted(manifest.files.items())):
        progress("checksums", number, len(manifest.files))
        path = data / name
        if not path.is_file():
            report.add("backup", name, "it is missing", "Use another backup.")
        elif file_digest(path) != digest:
            report.add("backup", name, "it has changed since the backup was made", "Use another backup.")


def read_manifest(backup: Path) -> Manifest:
    """What a backup says of itself. Raises FileNotFoundError, StorageError."""
    try:
        return msgspec.json.decode((backup / MANIFEST).read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise StorageError(f"{backup / MANIFEST} is not what a backup says of itself: {error}.") from error
