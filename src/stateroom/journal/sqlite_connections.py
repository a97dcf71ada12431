"""How the journal's file is opened: the pragmas of its one writer and of its readers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal, TypeAlias

import apsw

Durability: TypeAlias = Literal["normal", "full"]

BUSY_MILLISECONDS: Final = 5_000
"""How long a statement waits for another process."""

_LOG_BYTES: Final = 64 * 1024 * 1024
"""What the write-ahead log is cut back to after a burst."""


def connect_writer(path: Path, durability: Durability) -> apsw.Connection:
    """The connection that writes; creates the file, readable by its owner alone."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    # Erased text must not linger in freed pages, so whatever is deleted is overwritten.
    connection.execute(
        f"""
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = {"FULL" if durability == "full" else "NORMAL"};
        PRAGMA fullfsync = {int(durability == "full")};
        PRAGMA secure_delete = ON;
        PRAGMA journal_size_limit = {_LOG_BYTES};
        PRAGMA temp_store = MEMORY;
        PRAGMA trusted_schema = OFF;
        """
    ).fetchall()
    return connection


def connect_reader(path: Path) -> apsw.Connection:
    """A connection that can only read."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    connection.execute("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF").fetchall()
    return connection
