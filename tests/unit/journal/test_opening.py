"""A journal opens what it wrote, upgrades what is older, and refuses what is newer, damaged or somebody else's."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from stateroom.errors import JournalDamaged, JournalNewer, StorageError
from stateroom.journal.migrations import APPLICATION_ID
from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.journal.sqlite_check import check_file
from stateroom.journal.statements import Migration, read_migrations
from stateroom.testing.journal_stage import P, begin, note, texts, turn

NEWEST = len(read_migrations())
NEXT = Migration(NEWEST + 1, "more", "CREATE TABLE more (id INTEGER PRIMARY KEY); INSERT INTO more VALUES (7)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def written(path: Path) -> None:
    journal = open_sqlite(path)
    await begin(journal, "b", [note("kept")])
    await journal.close()


def content(path: Path) -> bytes:
    return path.read_bytes()


def change(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(sql).fetchall()
    connection.close()


async def test_what_was_written_is_there_after_reopening(path: Path) -> None:
    await written(path)
    journal = open_sqlite(path)
    assert await texts(journal, "b") == ["kept"]
    await journal.close()
    assert check_file(path) == []


async def test_the_file_and_its_log_are_private(path: Path) -> None:
    journal = open_sqlite(path)
    await begin(journal, "b", [note("secret")])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    await journal.close()
    assert modes == {"journal.db": 0o600, "journal.db-wal": 0o600, "journal.db-shm": 0o600}


async def test_migrations_are_recorded(path: Path) -> None:
    await written(path)
    connection = apsw.Connection(str(path))
    assert connection.pragma("application_id") == APPLICATION_ID
    assert connection.pragma("user_version") == len(read_migrations())
    recorded = connection.execute("SELECT number, name FROM migrations ORDER BY number").fetchall()
    assert recorded == [(migration.number, migration.name) for migration in read_migrations()]


async def test_a_file_of_the_first_migration_is_upgraded(path: Path) -> None:
    first = read_migrations()[:1]
    journal = open_sqlite(path, migrations=first)
    await begin(journal, "b", [note("old")])
    await journal.close()
    journal = open_sqlite(path)
    assert await texts(journal, "b") == ["old"]
    await journal.close()


async def test_only_missing_migrations_are_applied(path: Path) -> None:
    await written(path)
    for _ in range(2):
        journal = open_sqlite(path, migrations=[*read_migrations(), NEXT])
        assert await texts(journal, "b") == ["kept"]
        await journal.close()
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT id FROM more").fetchall() == [(7,)]
    assert connection.pragma("user_version") == NEWEST + 1


async def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    await written(path)
    broken = Migration(NEWEST + 1, "broken", "CREATE TABLE more (id); DROP TABLE frames; SELECT nonsense")
    with pytest.raises(StorageError):
        open_sqlite(path, migrations=[*read_migrations(), broken])
    journal = open_sqlite(path)
    assert await texts(journal, "b") == ["kept"]
    await journal.close()


async def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    journal = open_sqlite(path, migrations=[*read_migrations(), NEXT])
    await begin(journal, "b", [note("newer")])
    await journal.close()
    before = content(path)
    with pytest.raises(JournalNewer, match="newer version of Stateroom"):
        open_sqlite(path)
    assert content(path) == before


async def test_a_newer_version_that_still_stands_in_the_log_is_refused(path: Path) -> None:
    journal = open_sqlite(path, migrations=[*read_migrations(), NEXT], generation=False)
    assert content(path)[60:64] == bytes(4)
    with pytest.raises(JournalNewer):
        open_sqlite(path)
    await journal.close()


def overwrite(start: int, data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(data)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "another file altogether": lambda path: path.write_text("# notes\n" * 100) and None,
    "a few bytes": lambda path: path.write_bytes(b"SQLite") and None,
    "its first bytes are gone": overwrite(0, bytes(16)),
    "another program's database": overwrite(68, b"\x00\x00\x00\x07"),
    "it was cut off": lambda path: os.truncate(path, path.stat().st_size // 4096 // 2 * 4096),
    "its schema page is gone": overwrite(100, b"\xff" * 1_000),
    "a table is missing": lambda path: change(path, "DROP TABLE places"),
    "a table is another": lambda path: change(path, "ALTER TABLE entries ADD COLUMN more"),
    "somebody's tables": lambda path: change(path, "PRAGMA application_id = 0"),
}


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_damaged_file_is_refused(path: Path, what: str) -> None:
    await written(path)
    DAMAGES[what](path)
    with pytest.raises(JournalDamaged) as refusal:
        open_sqlite(path)
    assert str(path) in refusal.value.message or "damaged" in refusal.value.message


async def test_a_file_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        open_sqlite(tmp_path / "missing" / "journal.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        open_sqlite(tmp_path / "folder")


async def test_the_long_check_finds_what_opening_does_not_look_for(path: Path) -> None:
    journal = open_sqlite(path)
    await begin(journal, "b", turn("resp_1", "x" * 20_000))
    await begin(journal, "c", [note("0")])
    assert await journal.check() == []
    await journal.close()
    change(path, "UPDATE branches SET head = 5 WHERE name = 'b'; DELETE FROM entries WHERE id = 4")
    change(path, "UPDATE branches SET parent = 77 WHERE name = 'c'")
    found = check_file(path)
    assert any("branch b: has 3 entries and should have 6" in text for text in found)
    assert any("branch c: has 0 entries and should have 1" in text for text in found)
    assert any("branch c: was forked at -1" in text for text in found)
    assert any("belong to no branch" in text for text in found)


async def test_the_long_check_reads_every_page(path: Path) -> None:
    journal = open_sqlite(path)
    for number in range(50):
        await begin(journal, f"b{number}", [note("x" * 1_000)])
    await journal.close()
    connection = apsw.Connection(str(path))
    [[page]] = connection.execute("SELECT max(pageno) FROM dbstat WHERE name = 'entries' AND pagetype = 'leaf'")
    connection.close()
    overwrite((page - 1) * 4096, b"\xff" * 64)(path)
    assert check_file(path) != []


async def test_a_damaged_page_is_a_clear_error_for_those_who_need_it(path: Path) -> None:
    journal = open_sqlite(path)
    for number in range(50):
        await begin(journal, f"b{number}", [note("x" * 1_000)])
    await journal.close()
    connection = apsw.Connection(str(path))
    [[page]] = connection.execute("SELECT max(pageno) FROM dbstat WHERE name = 'entries' AND pagetype = 'leaf'")
    connection.close()
    overwrite((page - 1) * 4096, b"\xff" * 64)(path)
    reopened: SqliteJournal = open_sqlite(path)
    assert await texts(reopened, "b0") == ["x" * 1_000]
    with pytest.raises(JournalDamaged):
        await reopened.read(P, "b49")
    await reopened.close()
