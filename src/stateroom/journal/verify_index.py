"""The index of a journal against a replay of its entries, row for row.

The replay goes into a temporary database beside the journal, by the code that keeps the index of a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import apsw

from stateroom.journal.migrations import index_statements
from stateroom.journal.sqlite_index import TABLES, IndexWriter
from stateroom.journal.statements import read_migrations
from stateroom.journal.verify_entries import Progress
from stateroom.journal.verify_report import REBUILD, Report

REPLAY: Final = "main"
"""The schema of the derived tables; what is not found in it is the journal's."""
KEPT: Final = "journal"

_TOLD: Final = 5
"""Rows of a table that are told each way; the rest are counted."""


def make_index_tables(connection: apsw.Connection) -> None:
    """Make empty tables of the index, and none of the truth's, in the temporary database."""
    for statement in index_statements(read_migrations(), TABLES):
        connection.execute(statement)


def replay(connection: apsw.Connection, queries: Mapping[str, str], progress: Progress) -> None:
    """Derive the index from the entries of the attached journal."""
    total = _count(connection, queries["count_places"])
    writer = IndexWriter(connection.cursor(), queries)
    writer.rebuild(connection.cursor(), lambda number: progress("replay", number, total))


def compare_index(connection: apsw.Connection, tables: Sequence[str], report: Report, progress: Progress) -> None:
    """Tell every row of these tables that only one of the two has."""
    rows = 0
    for number, table in enumerate(tables):
        progress("index", number, len(tables))
        rows += _count(connection, f"SELECT count(*) FROM {REPLAY}.{table}")  # noqa: S608  # our table
        _tell(connection, report, table, (KEPT, REPLAY), "does not follow from the entries")
        _tell(connection, report, table, (REPLAY, KEPT), "is missing")
    report.counts["index rows"] = rows


def _count(connection: apsw.Connection, query: str) -> int:
    rows: Any = connection.execute(query)
    [(count,)] = rows
    return int(count)


def _tell(connection: apsw.Connection, report: Report, table: str, sides: tuple[str, str], problem: str) -> None:
    one, other = sides
    query = f"SELECT * FROM {one}.{table} EXCEPT SELECT * FROM {other}.{table}"  # noqa: S608  # our tables
    more = 0
    for number, row in enumerate(connection.execute(query)):
        if number < _TOLD:
            report.add("index", f"table {table}", f"the row {_shown(row)} {problem}", REBUILD)
        else:
            more += 1
    if more:
        report.add("index", f"table {table}", f"{more} more rows: each {problem}", REBUILD)


def _shown(row: tuple[Any, ...]) -> str:
    return ", ".join(value.hex() if isinstance(value, bytes) else repr(value) for value in row)
