"""Brings the file of a journal to this version's schema, or refuses it: damaged, somebody else's, or newer than we are.

The checks at opening are cheap: the file's header, its application id, its version and the text of its schema. Reading
every page is `check_file` in sqlite_check.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw

from stateroom.errors import JournalDamaged, JournalNewer
from stateroom.journal.statements import Migration

APPLICATION_ID: Final = 0x53724A6C
"""Marks a SQLite file as a journal of ours ("SrJl")."""

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100


def check_header(path: Path, newest: int) -> None:
    """Refuse a file that cannot be a journal of this version, before SQLite touches it. A missing file is fine."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise JournalDamaged(f"{path} is not a journal, or its beginning is damaged. Restore it from a backup.")
    application_id = int.from_bytes(header[68:72], "big")
    if application_id not in (0, APPLICATION_ID):
        raise JournalDamaged(f"{path} is a SQLite database of another program. Choose another data directory.")
    _check_length(path, header)
    if application_id == APPLICATION_ID:
        _check_version(path, int.from_bytes(header[60:64], "big"), newest)


def migrate(connection: apsw.Connection, migrations: Sequence[Migration], path: Path, at: int) -> list[str]:
    """Apply what is missing, each migration in a transaction that also records it; return the names applied."""
    version = _version(connection, path)
    _check_version(path, version, len(migrations))
    applied = []
    for migration in migrations[version:]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            _apply(connection, migration, at)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        applied.append(migration.name)
    check_schema(connection, migrations, path)
    return applied


def _apply(connection: apsw.Connection, migration: Migration, at: int) -> None:
    connection.execute(migration.sql)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, at INTEGER NOT NULL)"
    )
    connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (migration.number, migration.name, at))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {migration.number}")


def _version(connection: apsw.Connection, path: Path) -> int:
    application_id = connection.pragma("application_id")
    version: int = connection.pragma("user_version")
    empty = not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    if application_id != APPLICATION_ID and not (application_id == 0 and empty):
        raise JournalDamaged(f"{path} is a SQLite database of another program. Choose another data directory.")
    return version


def _check_version(path: Path, version: int, newest: int) -> None:
    if version > newest:
        raise JournalNewer(
            f"{path} was written by a newer version of Stateroom (schema {version}; this one knows {newest}). "
            "Start that version, or restore a backup from before the upgrade."
        )


def _check_length(path: Path, header: bytes) -> None:
    """A file shorter than its header says was cut off, unless the rest still stands in the write-ahead log."""
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big")
    log = path.with_name(path.name + "-wal")
    logged = log.exists() and log.stat().st_size > 0
    # SQLite itself trusts the page count only when these two counters agree.
    if header[24:28] == header[92:96] and not logged and path.stat().st_size < pages * page_size:
        raise JournalDamaged(f"{path} is shorter than it says: it was cut off. Restore it from a backup.")


def check_schema(connection: apsw.Connection, migrations: Sequence[Migration], path: Path) -> None:
    """Refuse a file that has other tables than these migrations make."""
    if _schema(connection) != expected_schema(migrations):
        raise JournalDamaged(f"{path} does not have the tables of a journal. Restore it from a backup.")


def expected_schema(migrations: Sequence[Migration]) -> set[tuple[str, str]]:
    """Names and statements of the tables and indexes that these migrations make."""
    with closing(apsw.Connection(":memory:")) as connection:
        for migration in migrations:
            _apply(connection, migration, 0)
        return _schema(connection)


def index_statements(migrations: Sequence[Migration], tables: Sequence[str]) -> list[str]:
    """The statements that make these tables, then those that make their indexes."""
    schema = sorted(expected_schema(migrations))
    made = [statement for name, statement in schema if name in tables]
    return made + [statement for _, statement in schema if any(f" ON {table} (" in statement for table in tables)]


def _schema(connection: apsw.Connection) -> set[tuple[str, str]]:
    return set(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
