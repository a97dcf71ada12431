"""Makes every index of a journal anew from its entries, also one whose tables are damaged or gone. No server runs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw
import msgspec

from stateroom.clock import Clock
from stateroom.errors import JournalDamaged, StorageError
from stateroom.journal.layout import JOURNAL
from stateroom.journal.lock import lock_directory
from stateroom.journal.migrations import check_header, check_schema, index_statements, migrate
from stateroom.journal.sqlite_connections import Durability, connect_writer
from stateroom.journal.sqlite_errors import TRANSLATED
from stateroom.journal.sqlite_index import TABLES, IndexWriter
from stateroom.journal.statements import read_migrations, read_queries
from stateroom.journal.verify_entries import Progress


def rebuild(data: Path, durability: Durability, clock: Clock, progress: Progress) -> dict[str, int]:
    """Drop every index, replay the entries, and commit both at once; how many rows each table has.

    Raises DirectoryInUse, JournalDamaged, JournalNewer and other StorageErrors; then nothing has changed.
    """
    path = data / JOURNAL
    if not path.is_file():
        raise StorageError(f"There is no {JOURNAL} in {data}: it is no data directory of Stateroom.")
    lock = lock_directory(data)
    try:
        migrations = read_migrations()
        check_header(path, len(migrations))
        with TRANSLATED, closing(connect_writer(path, durability)) as connection:
            if connection.pragma("user_version") != len(migrations):
                migrate(connection, migrations, path, int(clock.now() * 1000))
            try:
                counts = _rebuild(connection, path, progress)
            except msgspec.MsgspecError as error:
                raise JournalDamaged(
                    f"An entry of {path} cannot be read ({error}): nothing was changed. `stateroom verify` says which."
                ) from error
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return counts
    finally:
        lock.release()


def _rebuild(connection: apsw.Connection, path: Path, progress: Progress) -> dict[str, int]:
    queries = read_queries()
    migrations = read_migrations()
    total = _count(connection, "places")
    with connection:  # one transaction: a rebuild that fails leaves the indexes as they were
        for table in TABLES:
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in index_statements(migrations, TABLES):
            connection.execute(statement)
        check_schema(connection, migrations, path)
        writer = IndexWriter(connection.cursor(), queries)
        writer.rebuild(connection.cursor(), lambda number: progress("replay", number, total))
    return {"entries": total, **{table: _count(connection, table) for table in TABLES}}


def _count(connection: apsw.Connection, table: str) -> int:
    count = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]  # noqa: S608  # our table
    assert isinstance(count, int), "a count is a number"
    return count
