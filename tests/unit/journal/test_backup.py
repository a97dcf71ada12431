"""A backup is a whole and consistent copy, taken while others write and erase, and a restore puts it back unchanged."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from stateroom.blobs.directory import DirectoryBlobs, open_directory
from stateroom.clock import SystemClock
from stateroom.errors import DirectoryInUse, JournalDamaged, StorageError
from stateroom.journal.backup import Backup
from stateroom.journal.backup_restore import restore
from stateroom.journal.entries import ItemsAdded
from stateroom.journal.lock import lock_directory
from stateroom.journal.rebuild import rebuild
from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.journal.store import Append, Draft
from stateroom.journal.verify import verify_data
from stateroom.journal.verify_entries import Progress
from stateroom.journal.verify_report import Report
from stateroom.testing.index_conformance import index_answers
from stateroom.testing.journal_stage import OTHER, P, begin, draft, note, texts, turn


def quiet(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def backed_up(data: Path, target: Path, progress: Progress = quiet, *, link: bool = True) -> Report:
    return Backup(data, target, SystemClock(), progress, link=link).make()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def picture(content: bytes) -> Draft:
    item = {"role": "user", "content": [{"type": "input_image", "blob": digest(content)}]}
    return draft(ItemsAdded(f"k{content!r}", [item]))


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "secret.key").write_bytes(bytes(range(32)))
    (folder / "secret.key").chmod(0o600)
    (folder / "server.lock").write_text("123")
    other = apsw.Connection(str(folder / "access.db"))
    other.execute("PRAGMA journal_mode = WAL; CREATE TABLE keys (id INTEGER PRIMARY KEY, name TEXT)").fetchall()
    other.execute("INSERT INTO keys VALUES (1, 'a key')")
    other.close()
    await open_directory(folder / "blobs").put(b"first")
    journal = open_sqlite(folder / "journal.db")
    await begin(journal, "b", [note("one"), picture(b"first"), *turn("resp_1")])
    await journal.close()
    return folder


class Server:
    """Somebody who has the directory open and writes."""

    def __init__(self, data: Path) -> None:
        self.journal: SqliteJournal = open_sqlite(data / "journal.db")
        self.blobs: DirectoryBlobs = open_directory(data / "blobs")


async def test_a_backup_has_everything_and_only_for_its_owner(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "far" / "backup"
    assert backed_up(data, target).findings == []
    blob = f"blobs/{digest(b'first')[:2]}/{digest(b'first')[2:]}"
    assert set(files(target)) == {"journal.db", "access.db", "secret.key", "backup.json", blob}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (target, *target.rglob("*"))}
    assert modes == {0o600, 0o700}
    assert files(target)["secret.key"] == bytes(range(32))
    assert apsw.Connection(str(target / "access.db")).execute("SELECT name FROM keys").fetchall() == [("a key",)]


async def test_what_is_restored_says_the_same(data: Path, tmp_path: Path) -> None:
    server = Server(data)
    asked = ((P, OTHER), ("b",), ("resp_1", digest(b"first")))
    before = await index_answers(server.journal, *asked), await server.journal.read(P, "b")
    assert backed_up(data, tmp_path / "backup").ok
    assert restore(tmp_path / "backup", tmp_path / "again", quiet).findings == []
    await server.journal.close()
    again = Server(tmp_path / "again")
    assert (await index_answers(again.journal, *asked), await again.journal.read(P, "b")) == before
    assert await again.blobs.get(digest(b"first")) == b"first"
    await again.journal.append(Append(P, "b", 4, [note("goes on")]))
    await again.journal.close()
    assert "backup.json" not in files(tmp_path / "again")
    assert verify_data(tmp_path / "again", quiet).ok


async def test_blobs_are_linked_or_copied(data: Path, tmp_path: Path) -> None:
    blob = Path("blobs") / digest(b"first")[:2] / digest(b"first")[2:]
    assert backed_up(data, tmp_path / "linked").ok
    assert backed_up(data, tmp_path / "copied", link=False).ok
    assert (tmp_path / "linked" / blob).samefile(data / blob)
    assert not (tmp_path / "copied" / blob).samefile(data / blob)
    assert restore(tmp_path / "linked", tmp_path / "again", quiet).ok
    assert not (tmp_path / "again" / blob).samefile(data / blob)


async def test_it_is_one_moment_of_what_others_write_meanwhile(data: Path, tmp_path: Path) -> None:
    server = Server(data)
    waiting = []
    steps: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        steps.append(what)
        connection = apsw.Connection(str(data / "journal.db"))
        connection.set_busy_timeout(5_000)
        connection.execute("UPDATE branches SET head = head + 1")  # no journal of one moment has half of an append
        connection.execute("UPDATE branches SET head = head - 1")
        connection.close()

    for number in range(300):
        waiting.append(begin(server.journal, f"c{number}", [note("x" * 3_000)]))
    for each in waiting:
        await each
    assert backed_up(data, tmp_path / "backup", meanwhile).findings == []
    assert {"blobs", "journal.db"} <= set(steps)
    await server.journal.close()


async def test_a_blob_that_comes_and_is_used_meanwhile_is_in_the_backup(data: Path, tmp_path: Path) -> None:
    server = Server(data)
    (data / "blobs" / digest(b"late")[:2]).mkdir(exist_ok=True)
    late = data / "blobs" / digest(b"late")[:2] / digest(b"late")[2:]
    pending = [picture(b"late")]

    def meanwhile(what: str, done: int, total: int) -> None:
        # After the first blob was pinned, and before the journal is copied.
        if what == "blobs" and pending:
            late.write_bytes(b"late")
            late.chmod(0o600)
            insert(data, pending.pop())

    assert backed_up(data, tmp_path / "backup", meanwhile).findings == []
    assert (tmp_path / "backup" / late.relative_to(data)).read_bytes() == b"late"
    await server.journal.close()


def insert(data: Path, added: Draft) -> None:
    """What an append of the entry to branch b does, from another process."""
    connection = apsw.Connection(str(data / "journal.db"))
    connection.set_busy_timeout(5_000)
    with connection:
        [(branch, head)] = connection.execute("SELECT id, head FROM branches WHERE name = 'b'").fetchall()
        connection.execute("INSERT INTO entries (kind, run, at, body) VALUES (11, -1, 1, ?)", (added.body,))
        number = connection.last_insert_rowid()
        connection.execute("INSERT INTO places VALUES (?, ?)", ((branch << 32) + head + 1, number))
        connection.execute("UPDATE branches SET head = head + 1 WHERE id = ?", (branch,))
        key = hashlib.blake2b(b"kb'late'", digest_size=16).digest()
        connection.execute("INSERT INTO items VALUES (1, ?, ?, 0, ?)", (key, number, (branch << 32) + head + 1))
        connection.execute("INSERT INTO blob_uses VALUES (?, ?)", (bytes.fromhex(digest(b"late")), number))
    connection.close()


async def test_a_blob_that_is_erased_meanwhile_has_the_journal_copied_again(data: Path, tmp_path: Path) -> None:
    late = data / "blobs" / digest(b"late")[:2] / digest(b"late")[2:]
    copies: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "blobs" and done == 0 and total == 0 and not copies:
            copies.append("begun")
            insert(data, picture(b"late"))  # its blob is gone again before it could be pinned
        elif what == "journal.db" and done == total:
            copies.append("copied")
            if copies.count("copied") == 1:
                erase(data)

    assert backed_up(data, tmp_path / "backup", meanwhile).findings == []
    assert copies.count("copied") == 2
    assert not late.exists()
    held = b"".join(files(tmp_path / "backup").values())
    assert digest(b"late").encode() not in held


def erase(data: Path) -> None:
    """What the server does meanwhile: the entry is erased."""
    connection = apsw.Connection(str(data / "journal.db"))
    connection.set_busy_timeout(5_000)
    connection.execute("PRAGMA secure_delete = ON").fetchall()
    with connection:
        [(number, size)] = connection.execute(
            "SELECT max(id), length(body) FROM entries WHERE id = (SELECT max(id) FROM entries)"
        ).fetchall()
        body = (bytes((11,)) + (5).to_bytes(6, "big")).ljust(size, b"\0")
        connection.execute("UPDATE entries SET kind = 12, body = ? WHERE id = ?", (body, number))
        connection.execute("DELETE FROM items WHERE entry = ?", (number,))
        connection.execute("DELETE FROM blob_uses WHERE entry = ?", (number,))
    connection.close()


@pytest.mark.parametrize("open_server", [True, False])
async def test_what_was_erased_is_in_no_byte_of_a_later_backup(data: Path, tmp_path: Path, open_server: bool) -> None:
    server = Server(data)
    await server.blobs.put(b"SECRET picture")
    drafts = [note("SECRET note"), picture(b"SECRET picture"), *turn("resp_9", "SECRET answer")]
    await begin(server.journal, "secret", drafts)
    assert backed_up(data, tmp_path / "before").ok
    await server.journal.redact(P, "secret", dict.fromkeys(range(5)), at=5)
    await server.blobs.delete(digest(b"SECRET picture"))
    if not open_server:
        await server.journal.close()
    assert backed_up(data, tmp_path / "after").ok
    assert b"SECRET" in b"".join(files(tmp_path / "before").values())
    assert b"SECRET" not in b"".join(files(tmp_path / "after").values())
    await server.journal.close()


async def test_a_blob_that_nothing_refers_to_stays_out(data: Path, tmp_path: Path) -> None:
    await open_directory(data / "blobs").put(b"an orphan")
    assert backed_up(data, tmp_path / "backup").ok
    assert b"an orphan" not in files(tmp_path / "backup").values()
    assert files(data)[f"blobs/{digest(b'an orphan')[:2]}/{digest(b'an orphan')[2:]}"] == b"an orphan"


@pytest.mark.parametrize("which", ["backup", "restore"])
async def test_a_directory_that_is_not_empty_is_left_alone(data: Path, tmp_path: Path, which: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("mine")
    assert backed_up(data, tmp_path / "backup").ok
    with pytest.raises(StorageError, match="is not empty"):
        backed_up(data, target) if which == "backup" else restore(tmp_path / "backup", target, quiet)
    assert files(target) == {"mine": b"mine"}


async def test_a_backup_of_what_is_damaged_says_so_and_cannot_be_restored(data: Path, tmp_path: Path) -> None:
    (data / "blobs" / digest(b"first")[:2] / digest(b"first")[2:]).unlink()
    report = backed_up(data, tmp_path / "backup")
    assert [finding.part for finding in report.findings] == ["blob"]
    assert any("are missing in" in text for text in report.notes)
    with pytest.raises(StorageError, match="no backup, or one that was cut off"):
        restore(tmp_path / "backup", tmp_path / "again", quiet)
    assert not (tmp_path / "again").exists()


def flip(path: str) -> Callable[[Path], None]:
    def damage(backup: Path) -> None:
        content = bytearray((backup / path).read_bytes())
        content[len(content) // 2] ^= 1
        (backup / path).write_bytes(content)

    return damage


@pytest.mark.parametrize("path", ["journal.db", "access.db", "secret.key", "blob"])
async def test_a_backup_that_has_changed_is_not_restored(data: Path, tmp_path: Path, path: str) -> None:
    assert backed_up(data, tmp_path / "backup", link=False).ok
    blob = f"blobs/{digest(b'first')[:2]}/{digest(b'first')[2:]}"
    flip(blob if path == "blob" else path)(tmp_path / "backup")
    report = restore(tmp_path / "backup", tmp_path / "again", quiet)
    assert not report.ok
    with pytest.raises(JournalDamaged):
        open_sqlite(tmp_path / "again" / "journal.db")


async def test_a_backup_that_lacks_a_file_is_not_restored(data: Path, tmp_path: Path) -> None:
    assert backed_up(data, tmp_path / "backup").ok
    (tmp_path / "backup" / "access.db").unlink()
    with pytest.raises(StorageError, match=r"'access\.db' is missing"):
        restore(tmp_path / "backup", tmp_path / "again", quiet)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "blobs/x"])
async def test_a_manifest_cannot_name_files_elsewhere(data: Path, tmp_path: Path, name: str) -> None:
    assert backed_up(data, tmp_path / "backup").ok
    manifest = (tmp_path / "backup" / "backup.json").read_text()
    (tmp_path / "backup" / "backup.json").write_text(manifest.replace("access.db", name))
    with pytest.raises(StorageError, match="is not whole"):
        restore(tmp_path / "backup", tmp_path / "again", quiet)


class Cut(Exception):
    """The end of a process, in the middle of something."""


async def test_no_server_starts_on_half_of_a_restore(data: Path, tmp_path: Path) -> None:
    assert backed_up(data, tmp_path / "backup").ok

    def cut(what: str, done: int, total: int) -> None:
        raise Cut

    with pytest.raises(Cut):
        restore(tmp_path / "backup", tmp_path / "again", cut)
    with pytest.raises(JournalDamaged):
        open_sqlite(tmp_path / "again" / "journal.db")


async def test_no_server_starts_while_a_restore_goes_on(data: Path, tmp_path: Path) -> None:
    assert backed_up(data, tmp_path / "backup").ok
    refused: list[str] = []

    def knock(what: str, done: int, total: int) -> None:
        with pytest.raises(DirectoryInUse):
            lock_directory(tmp_path / "again")
        refused.append(what)

    assert restore(tmp_path / "backup", tmp_path / "again", knock).ok
    assert refused
    lock_directory(tmp_path / "again").release()


def test_where_there_is_no_data_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no data directory"):
        backed_up(tmp_path / "nothing", tmp_path / "backup")
    with pytest.raises(StorageError, match="no backup"):
        restore(tmp_path / "nothing", tmp_path / "again", quiet)
    assert list(tmp_path.iterdir()) == []


async def test_a_backup_of_a_backup_is_a_backup(data: Path, tmp_path: Path) -> None:
    assert backed_up(data, tmp_path / "one").ok
    assert backed_up(tmp_path / "one", tmp_path / "two").ok
    assert restore(tmp_path / "two", tmp_path / "again", quiet).ok


DAMAGED_INDEXES = [
    "DELETE FROM runs; DELETE FROM items; DELETE FROM conversations; DELETE FROM records",
    "INSERT INTO run_ids VALUES (1, 'resp_stranger', 1); UPDATE runs SET ended = 1",
    "DROP TABLE run_ids; DROP TABLE records",
    "DROP INDEX runs_open; ALTER TABLE items ADD COLUMN more",
]


@pytest.mark.parametrize("damage", DAMAGED_INDEXES)
async def test_a_rebuild_mends_every_index(data: Path, damage: str) -> None:
    asked = ((P, OTHER), ("b",), ("resp_1", "resp_stranger", digest(b"first")))
    server = Server(data)
    before = await index_answers(server.journal, *asked)
    await server.journal.close()
    connection = apsw.Connection(str(data / "journal.db"))
    connection.execute(damage).fetchall()
    connection.close()
    assert not verify_data(data, quiet).ok
    counts = rebuild(data, "normal", SystemClock(), quiet)
    assert (counts["entries"], counts["runs"]) == (5, 1)
    assert verify_data(data, quiet).findings == []
    server = Server(data)
    assert await index_answers(server.journal, *asked) == before
    assert await texts(server.journal, "b", upto=0) == ["one"]
    await server.journal.close()


async def test_a_rebuild_needs_the_directory_for_itself(data: Path) -> None:
    lock = lock_directory(data)
    with pytest.raises(DirectoryInUse):
        rebuild(data, "normal", SystemClock(), quiet)
    lock.release()


async def test_a_rebuild_that_fails_leaves_the_indexes_as_they_were(data: Path) -> None:
    connection = apsw.Connection(str(data / "journal.db"))
    connection.execute("UPDATE entries SET body = 'x' WHERE id = 3").fetchall()
    connection.close()
    with pytest.raises(JournalDamaged, match="stateroom verify"):
        rebuild(data, "normal", SystemClock(), quiet)
    connection = apsw.Connection(str(data / "journal.db"))
    assert connection.execute("SELECT id FROM run_ids").fetchall() == [("resp_1",)]
    connection.close()
    with pytest.raises(StorageError):
        rebuild(data.parent, "normal", SystemClock(), quiet)
