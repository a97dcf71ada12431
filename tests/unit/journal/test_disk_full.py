"""A disk that fills up: a clear error for who could not be served, nothing half written, and on it goes with room."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import apsw
import msgspec
import pytest

from stateroom.clock import SystemClock
from stateroom.errors import StorageFull
from stateroom.journal.entries import Frame
from stateroom.journal.migrations import migrate
from stateroom.journal.sqlite import SqliteJournal
from stateroom.journal.sqlite_check import check_file
from stateroom.journal.sqlite_connections import connect_writer
from stateroom.journal.statements import read_migrations, read_queries
from stateroom.journal.store import THIS, Append, Appended, Branch
from stateroom.testing.journal_stage import P, begin, note, texts, turn

PROGRAM = """
import asyncio, resource, sys
from stateroom.errors import StorageFull
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.store import Append
from stateroom.testing.journal_stage import P, begin, note, texts

async def main():
    journal = open_sqlite(sys.argv[1])
    head = (await begin(journal, "b", [note("0")])).head
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    refused = 0
    while refused < 5:
        try:
            head = (await journal.append(Append(P, "b", head, [note("x" * 5_000)]))).head
        except StorageFull:
            refused += 1
    assert head > 5
    assert len(await journal.read(P, "b")) == head + 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for _ in range(3):
        head = (await journal.append(Append(P, "b", head, [note("with room")]))).head
    assert (await texts(journal, "b"))[-3:] == ["with room"] * 3
    await journal.close()
    print("all well")

asyncio.run(main())
"""


def open_bounded(path: Path) -> tuple[SqliteJournal, apsw.Connection]:
    """A journal, and the connection that it writes with, on which its file can be bounded."""
    connection = connect_writer(path, "normal")
    migrate(connection, read_migrations(), path, 0)
    return SqliteJournal(path, connection, read_queries(), generation=0, clock=SystemClock()), connection


def bound(connection: apsw.Connection, more: int) -> None:
    """Let the file grow by so many pages and no further."""
    pages = connection.pragma("page_count")
    connection.execute(f"PRAGMA max_page_count = {pages + more}").fetchall()


async def test_an_append_without_room_is_refused_whole_and_room_makes_it_pass(tmp_path: Path) -> None:
    journal, connection = open_bounded(tmp_path / "journal.db")
    mine = await begin(journal, "b", [note("0")], acquire="me")
    bound(connection, 3)
    frames = [Frame(0, 9, b"y" * 100_000)]
    large = Append(P, "b", 0, turn("resp_1", "x" * 50_000), lease=mine.lease, frames_run=THIS, frames=frames)
    with pytest.raises(StorageFull) as refusal:
        await journal.append(large)
    assert refusal.value.status == 503
    assert await texts(journal, "b") == ["0"]
    assert await journal.run(P, "resp_1") is None
    assert await journal.frames(P, "b", 1) == []
    assert (await journal.append(Append(P, "b", 0, [note("1")], lease=mine.lease))).head == 1
    bound(connection, 1_000)
    assert (await journal.append(msgspec.structs.replace(large, expected=1))).head == 4
    assert await journal.frames(P, "b", 2) == frames
    await journal.close()
    assert check_file(tmp_path / "journal.db") == []


async def test_those_who_fit_are_served_beside_those_who_do_not(tmp_path: Path) -> None:
    journal, connection = open_bounded(tmp_path / "journal.db")
    await begin(journal, "warm", [note("0")])
    bound(connection, 8)
    sizes = [10, 200_000, 10, 10, 300_000, 10]
    changes = [
        Append(P, f"b{number}", -1, [note("x" * size)], create=Branch(f"b{number}", P))
        for number, size in enumerate(sizes)
    ]
    outcomes = await asyncio.gather(*[journal.append(change) for change in changes], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Appended, StorageFull, Appended, Appended, StorageFull, Appended]
    heads = [await journal.branch(P, f"b{number}") for number in range(6)]
    assert [branch is not None for branch in heads] == [True, False, True, True, False, True]
    await journal.close()
    assert check_file(tmp_path / "journal.db") == []


def test_a_real_file_that_may_not_grow_is_a_full_disk_and_the_journal_goes_on_with_room(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "all well\n"), ran.stderr
    assert check_file(path) == []
