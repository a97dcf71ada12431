"""The long check of a journal's file: every page, and every branch against its entries."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import apsw

from stateroom.journal.sqlite_connections import connect_reader
from stateroom.journal.sqlite_errors import TRANSLATED
from stateroom.journal.statements import read_queries


def check_file(path: Path) -> list[str]:
    """What is wrong with the journal at `path`, in words; empty when all is well. Reads the whole file."""
    with TRANSLATED, closing(connect_reader(path)) as connection:
        return find_damage(connection)


def find_damage(connection: apsw.Connection) -> list[str]:
    """The same on an open connection."""
    queries = read_queries()
    try:
        found = [f"file: {text}" for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"]
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return [f"file: {error}"]
    if found:
        return found
    for name, count, missing in connection.execute(queries["check_branches"]):
        found.append(f"branch {name}: has {count} entries and should have {missing}")
    for name, parent_seq in connection.execute(queries["check_parents"]):
        found.append(f"branch {name}: was forked at {parent_seq}, where its parent has no entry")
    for (strays,) in connection.execute(queries["count_strays"]):
        if strays:
            found.append(f"entries: {strays} belong to no branch")
    return found
