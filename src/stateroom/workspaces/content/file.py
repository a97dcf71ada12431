"""The file of the content store: opened, brought to the tables of this version, read by many and written by one."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import apsw

from stateroom.errors import NO_ROOM, StorageError, StorageFull
from stateroom.workspaces.content.errors import TRANSLATED, ContentDamaged, ContentNewer

Durability: TypeAlias = Literal["normal", "full"]

APPLICATION_ID: Final = 0x53724374
"""Marks the file as ours ("SrCt")."""

_BUSY_MILLISECONDS: Final = 5_000
_LOG_BYTES: Final = 64 * 1024 * 1024
_IDLE_READERS: Final = 8
_BACKUP_PAGES: Final = 2_000
_NUMBERED: Final = re.compile(r"\A(\d{4})_\w+\.sql\Z")


def read_migrations() -> tuple[str, ...]:
    """The statements of each version of the tables, numbered from 1 without gaps."""
    folder = resources.files("stateroom.workspaces.content") / "sql"
    found = sorted((file.name, file) for file in folder.iterdir() if _NUMBERED.match(file.name))
    if [int(name[:4]) for name, _ in found] != list(range(1, len(found) + 1)):
        raise ContentDamaged("The migrations of this installation are not complete: install it again.")
    return tuple(file.read_text(encoding="utf-8") for _, file in found)


class ContentFile:
    """One connection that writes, one block at a time, and as many that read as there are readers."""

    def __init__(self, path: Path, durability: Durability) -> None:
        """Opens, creates or upgrades the file. Raises ContentDamaged, ContentNewer and other StorageErrors."""
        self.path = path
        self._writing = threading.Lock()
        self._idle: list[apsw.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        with TRANSLATED:
            self._writer = _open_writer(path, durability)

    @contextmanager
    def write(self) -> Iterator[apsw.Cursor]:
        """A transaction: all of it is kept or nothing."""
        with self._writing, TRANSLATED:
            self._check_open()
            cursor = self._writer.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException as error:
                # A quota is no full disk to SQLite.
                no_room = isinstance(error, apsw.IOError) and self._writer.system_errno in NO_ROOM
                if self._writer.in_transaction:
                    cursor.execute("ROLLBACK")
                if no_room:
                    raise StorageFull() from error
                raise

    @contextmanager
    def read(self) -> Iterator[apsw.Cursor]:
        """A cursor that only reads. Each statement sees what was committed when it began."""
        with TRANSLATED:
            with self._idle_lock:
                self._check_open()
                connection = self._idle.pop() if self._idle else None
            connection = connection or _open_reader(self.path)
            cursor = connection.cursor()
            try:
                yield cursor
            finally:
                cursor.close()
                with self._idle_lock:
                    keep = not self._closed and len(self._idle) < _IDLE_READERS
                    if keep:
                        self._idle.append(connection)
                if not keep:
                    connection.close()

    def shrink(self, pages: int) -> bool:
        """Give some of the room that is free back to the disk; whether there is more of it."""
        with self._writing, TRANSLATED:
            self._check_open()
            self._writer.execute(f"PRAGMA incremental_vacuum({pages:d})").fetchall()
            return bool(self._writer.pragma("freelist_count"))

    def cut_log(self) -> bool:
        """Bring everything into the file and leave nothing in its log; False when somebody reads in it."""
        with self._writing, TRANSLATED:
            self._check_open()
            busy: Any = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return not busy[0][0]

    def backup(self, target: Path) -> None:
        """Copy the file as it stands at one moment, while it is written. Replaces `target`."""
        target.unlink(missing_ok=True)
        with TRANSLATED, closing(_open_reader(self.path)) as source, closing(_create(target)) as copy:
            # The open transaction keeps the moment: without it a write would begin the copy anew.
            source.execute("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
            with copy.backup("main", source, "main") as copying:
                while not copying.done:
                    copying.step(_BACKUP_PAGES)
            source.execute("COMMIT")
            copy.execute("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL").fetchall()
        with target.open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """What is being done is done first. May be called twice."""
        with self._idle_lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        with self._writing, TRANSLATED:
            self._writer.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("The content store is closed.", code="content_closed")


def rows(cursor: apsw.Cursor, statement: str, *values: int | bytes) -> list[Any]:
    """All rows of an answer, so that no statement stays open."""
    return cursor.execute(statement, values).fetchall()


def _create(path: Path) -> apsw.Connection:
    """A connection to a file that only its owner may read, made when it is not there."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    return connection


def _open_writer(path: Path, durability: Durability) -> apsw.Connection:
    connection = _create(path)
    try:
        _check_ours(connection, path)
        # What is deleted is overwritten, and its room goes back to the disk.
        connection.execute(
            f"""
            PRAGMA auto_vacuum = INCREMENTAL;
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = {"FULL" if durability == "full" else "NORMAL"};
            PRAGMA fullfsync = {int(durability == "full")};
            PRAGMA secure_delete = ON;
            PRAGMA journal_size_limit = {_LOG_BYTES};
            PRAGMA temp_store = MEMORY;
            PRAGMA trusted_schema = OFF;
            """
        ).fetchall()
        _migrate(connection, path)
        # The log of a killed server may still hold what was erased: it ends here.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _open_reader(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    connection.execute("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF").fetchall()
    return connection


def _check_ours(connection: apsw.Connection, path: Path) -> None:
    application_id = connection.pragma("application_id")
    version = connection.pragma("user_version")
    newest = len(read_migrations())
    if application_id != APPLICATION_ID and not (application_id == 0 and not _schema(connection)):
        raise ContentDamaged(f"{path} is a SQLite database of another program. Choose another data directory.")
    if version > newest:
        raise ContentNewer(
            f"{path} was written by a newer version of Stateroom (schema {version}; this one knows {newest}). "
            "Start that version, or restore a backup from before the upgrade."
        )


def _migrate(connection: apsw.Connection, path: Path) -> None:
    migrations = read_migrations()
    for number in range(connection.pragma("user_version") + 1, len(migrations) + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            _apply(connection, migrations[number - 1], number)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    with closing(apsw.Connection(":memory:")) as expected:
        for number, statements in enumerate(migrations, 1):
            _apply(expected, statements, number)
        if _schema(connection) != _schema(expected):
            raise ContentDamaged(f"{path} does not have the tables of a content store. Restore it from a backup.")


def _apply(connection: apsw.Connection, statements: str, number: int) -> None:
    connection.execute(statements)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}")


def _schema(connection: apsw.Connection) -> set[tuple[str, str]]:
    return set(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
