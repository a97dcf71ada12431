"""Each kind of damage to a data directory is found and named, with what to do about it; what is whole passes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec
import pytest

from stateroom.blobs.directory import open_directory
from stateroom.clock import SystemClock
from stateroom.errors import StorageError
from stateroom.journal.backup import Backup
from stateroom.journal.entries import (
    ConversationCreated,
    Frame,
    ItemsAdded,
    RecordDropped,
    RecordNoted,
    RecordPut,
    RunEnded,
)
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.store import THIS, Append, Branch
from stateroom.journal.verify import verify_data
from stateroom.journal.verify_report import SHOWN_MAX, Report
from stateroom.testing.journal_stage import OTHER, P, begin, draft, note, started, turn

PICTURE = b"a picture"
DIGEST = hashlib.sha256(PICTURE).hexdigest()
BLOB = Path("blobs") / DIGEST[:2] / DIGEST[2:]


def events(first: int, last: int) -> Frame:
    return Frame(first, last, b"".join(b'data: {"sequence_number":%d}\n\n' % n for n in range(first, last + 1)))


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """A data directory with something of everything."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "secret.key").write_bytes(bytes(range(32)))
    (folder / "secret.key").chmod(0o600)
    other = apsw.Connection(str(folder / "access.db"))
    other.execute("CREATE TABLE keys (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO keys VALUES (1, 'x')")
    other.close()
    await open_directory(folder / "blobs").put(PICTURE)
    journal = open_sqlite(folder / "journal.db")
    image = {"id": "msg_own", "role": "user", "content": [{"type": "input_image", "blob": DIGEST}]}
    await begin(journal, "b", [draft(ConversationCreated("conv", {"a": "b"})), draft(ItemsAdded("k", [image]))])
    await journal.append(Append(P, "b", 1, [started("resp_1", image)], frames_run=THIS, frames=[events(0, 3)]))
    await journal.append(Append(P, "b", None, frames_run=2, frames=[events(4, 4)]))
    await journal.append(Append(P, "b", None, frames_run=2, frames=[events(5, 9)]))
    await journal.append(Append(P, "fork", 1, turn("resp_2"), create=Branch("fork", P, "b", 1)))
    await begin(journal, "other", turn("resp_3"), project=OTHER, frames_run=THIS, frames=[events(0, 5)], seal=True)
    await begin(journal, "gone", turn("resp_4"), frames_run=THIS, frames=[events(0, 5)], seal=True)
    await journal.redact(P, "gone", {0: None, 1: None}, at=5)
    put = RecordPut("file", "f", msgspec.Raw(b"{}"), open=True, expires_at=9, blobs=[DIGEST])
    await begin(journal, "rec", [draft(put), draft(RecordNoted("file", "f", msgspec.Raw(b"{}")))])
    await begin(
        journal, "rec 2", [draft(RecordPut("file", "g", msgspec.Raw(b"{}"))), draft(RecordDropped("file", "g"))]
    )
    await journal.close()
    return folder


def look(folder: Path) -> Report:
    return verify_data(folder, lambda *_: None)


def sql(statement: str) -> Callable[[Path], None]:
    """Damage done to the journal by SQLite itself."""

    def damage(folder: Path) -> None:
        connection = apsw.Connection(str(folder / "journal.db"))
        connection.execute(statement).fetchall()
        assert connection.total_changes() or "TABLE" in statement, "the damage does nothing"
        connection.close()

    return damage


def written(name: str | Path, start: int, content: bytes) -> Callable[[Path], None]:
    """Bytes of a file that changed on the disk."""

    def damage(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(start)
            file.write(content)

    return damage


def removed(name: str | Path) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


B = "(SELECT id FROM branches WHERE name = 'b')"
START = f"({B} << 32) + 2"
DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an entry is missing": (sql(f"DELETE FROM places WHERE place = ({B} << 32) + 1"), "branch", "entry 1 is missing"),
    "an entry belongs nowhere": (sql(f"DELETE FROM places WHERE place = {START}"), "entry", "belongs to no branch"),
    "the end is missing": (
        sql("UPDATE branches SET head = 7 WHERE name = 'b'"),
        "branch",
        "3 to 7 are missing, at its",
    ),
    "a head is too small": (sql("UPDATE branches SET head = 1 WHERE name = 'b'"), "branch", "its head is 1"),
    "a branch is missing": (sql("DELETE FROM branches WHERE name = 'other'"), "branch", "which is missing"),
    "a parent is missing": (
        sql("UPDATE branches SET parent = 99 WHERE name = 'fork'"),
        "branch",
        "forked from is missing",
    ),
    "a fork lies beyond": (sql("UPDATE branches SET parent_seq = 40 WHERE name = 'fork'"), "branch", "forked at 40"),
    "a foreign parent": (
        sql("UPDATE branches SET project = (SELECT id FROM projects WHERE name = 'other project') WHERE name = 'b'"),
        "branch",
        "of another project",
    ),
    "a parent that is younger": (
        sql("UPDATE branches SET parent = (SELECT max(id) FROM branches) WHERE name = 'fork'"),
        "branch",
        "younger than itself",
    ),
    "an orphan with a past": (sql("UPDATE branches SET parent = NULL WHERE name = 'fork'"), "branch", "has no parent"),
    "a project is missing": (sql("DELETE FROM projects WHERE name = 'project'"), "branch", "its project is missing"),
    "an entry of its parent": (
        sql("UPDATE branches SET parent_seq = 2 WHERE name = 'fork'"),
        "branch",
        "its parent's",
    ),
    "content is missing": (sql("DELETE FROM entries WHERE id = 2"), "entry", "number 2, is missing"),
    "an entry stands twice": (sql("INSERT INTO places VALUES ((3 << 32) + 9, 1)"), "entry", "stands in 2 places"),
    "an entry is unreadable": (sql("UPDATE entries SET body = x'7b22' WHERE id = 3"), "entry", "cannot be read"),
    "an entry lacks a field": (sql("UPDATE entries SET body = x'7b7d' WHERE id = 3"), "entry", "cannot be read"),
    "an unknown kind": (sql("UPDATE entries SET kind = 60 WHERE id = 3"), "entry", "kind 60"),
    "a kind of text": (sql("UPDATE entries SET kind = 'x' WHERE id = 3"), "entry", "never held"),
    "an erasure is not complete": (
        sql("UPDATE entries SET body = CAST(body || 'x' AS BLOB) WHERE kind = 12"),
        "entry",
        "was erased",
    ),
    "a run that starts nowhere": (sql("UPDATE entries SET run = 1 WHERE id = 3"), "entry", "starts at 1, and none"),
    "a batch of events is missing": (
        sql("DELETE FROM frames WHERE first = 4"),
        "stream",
        "after event 3 comes event 5",
    ),
    "a stream begins late": (sql("DELETE FROM frames WHERE first = 0"), "stream", "after event -1 comes event 4"),
    "events are missing": (sql("UPDATE frames SET body = x'0a0a' WHERE first = 5"), "stream", "there are 1"),
    "events are none": (sql("UPDATE frames SET body = 'x' WHERE first = 5"), "stream", "never held"),
    "events do not end": (sql("UPDATE frames SET body = x'0a0a78' WHERE first = 5"), "stream", "there are 0"),
    "a branch of nonsense": (sql("UPDATE branches SET head = 'x' WHERE name = 'b'"), "file", "no Stateroom wrote"),
    "a stream of no run": (sql("UPDATE frames SET run = run + 1"), "stream", "missing or erased"),
    "a packed stream is damaged": (
        sql("UPDATE sealed SET body = substr(body, 1, 9) WHERE last = 5"),
        "stream",
        "cut off|cannot be unpacked",
    ),
    "a packed stream lacks events": (sql("UPDATE sealed SET last = 7 WHERE last = 5"), "stream", "events 0 to 7"),
    "a packed stream begins late": (sql("UPDATE sealed SET first = 1, last = 6 WHERE last = 5"), "stream", "is 1"),
    "an erased stream is still there": (
        sql("UPDATE sealed SET body = x'0001' WHERE last = -1"),
        "stream",
        "was erased",
    ),
    "a run is not indexed": (sql("DELETE FROM runs WHERE ended IS NULL"), "index", "table runs.* is missing"),
    "a run has another end": (sql("UPDATE runs SET ended = 9 WHERE ended"), "index", "table runs.* not follow"),
    "an id is not indexed": (
        sql("DELETE FROM run_ids WHERE id = 'resp_2'"),
        "index",
        "table run_ids.*'resp_2'.*missing",
    ),
    "an item is not indexed": (sql("DELETE FROM items"), "index", "table items"),
    "a conversation is not indexed": (sql("DELETE FROM conversations"), "index", "table conversations.*'conv'"),
    "a blob's use is not indexed": (sql("DELETE FROM blob_uses"), "index", f"table blob_uses.*{DIGEST}"),
    "a record is not indexed": (sql("DELETE FROM records"), "index", "table records"),
    "a record has another state": (sql("UPDATE records SET open = 0"), "index", "table records"),
    "a record's past is not indexed": (sql("DELETE FROM record_entries"), "index", "table record_entries"),
    "an index has a stranger": (
        sql("INSERT INTO run_ids VALUES (1, 'resp_stranger', 1)"),
        "index",
        "'resp_stranger'.*does not follow",
    ),
    "a blob is missing": (removed(BLOB), "blob", f"{DIGEST}.*missing"),
    "a blob has changed": (written(BLOB, 2, b"X"), "blob", f"{DIGEST}.*not those that were written"),
    "a blob was cut off": (lambda folder: os.truncate(folder / BLOB, 3), "blob", f"{DIGEST}.*not those"),
    "the secret key is missing": (removed("secret.key"), "key", "missing"),
    "the secret key was cut off": (lambda folder: os.truncate(folder / "secret.key", 5), "key", "5 bytes"),
    "the secret key is open": (lambda folder: (folder / "secret.key").chmod(0o644), "key", "others"),
    "the journal is another file": (written("journal.db", 0, b"no journal at all"), "file", "not a journal"),
    "the journal was cut off": (lambda folder: os.truncate(folder / "journal.db", 40_960), "file", "cut off"),
    "a page is damaged": (written("journal.db", 4_096 * 2, b"\xff" * 64), "file", "."),
    "a table is missing": (sql("DROP TABLE sealed"), "file", "sealed is missing"),
    "a table of somebody else": (sql("CREATE TABLE stranger (id)"), "file", "stranger is none"),
    "the access keys are damaged": (written("access.db", 4_096, b"\xff" * 64), "file", "access.db"),
    "the access keys are another file": (written("access.db", 0, b"no database"), "file", "access.db"),
}


async def test_what_is_whole_passes(data: Path) -> None:
    report = look(data)
    assert report.findings == []
    assert report.ok
    assert report.counts == {"branches": 6, "entries": 16, "streams": 2, "index rows": 18, "blobs": 1}


async def test_comments_in_a_stream_are_no_events(data: Path) -> None:
    sql("UPDATE frames SET body = CAST(x'3a20630a0a' || body || x'3a20640a0a' AS BLOB) WHERE first = 5")(data)
    assert look(data).findings == []


@pytest.mark.parametrize("what", DAMAGES)
async def test_damage_is_found_and_named(data: Path, what: str) -> None:
    damage, part, words = DAMAGES[what]
    damage(data)
    report = look(data)
    assert not report.ok
    told = [f"{finding.where} {finding.problem}" for finding in report.findings if finding.part == part]
    assert any(re.search(words, text) for text in told), report.findings
    assert all(finding.advice for finding in report.findings)


async def test_index_damage_is_to_be_rebuilt_and_other_damage_to_be_restored(data: Path) -> None:
    sql("DELETE FROM items")(data)
    assert {finding.advice for finding in look(data).findings} == {"Stop the server and run `stateroom rebuild`."}
    sql("DELETE FROM entries WHERE id = 2")(data)
    assert any("stateroom restore" in finding.advice for finding in look(data).findings)


async def test_a_missing_blob_is_told_with_what_refers_to_it(data: Path) -> None:
    (data / BLOB).unlink()
    [finding] = look(data).findings
    assert str(BLOB) in finding.advice
    assert "response resp_1 (entry 2 of branch 'b')" in finding.advice


async def test_much_damage_of_a_kind_is_counted(data: Path) -> None:
    journal = open_sqlite(data / "journal.db")
    await begin(journal, "long", [note(str(number)) for number in range(200)])
    await journal.close()
    sql("UPDATE entries SET body = 'x' WHERE id > 20")(data)
    report = look(data)
    assert sum(finding.part == "entry" for finding in report.findings) == SHOWN_MAX
    assert report.untold["entry"] >= 100
    assert report.found()["entry"] == SHOWN_MAX + report.untold["entry"]
    assert any("index was not compared" in text for text in report.notes)


async def test_blobs_that_nothing_refers_to_are_no_damage(data: Path) -> None:
    await open_directory(data / "blobs").put(b"an orphan")
    (data / "blobs" / "incoming" / "half").write_bytes(b"ha")
    report = look(data)
    assert report.ok
    assert any("1 blobs that nothing refers to" in text for text in report.notes)


async def test_it_looks_at_one_moment_while_others_write(data: Path) -> None:
    journal = open_sqlite(data / "journal.db")
    written: list[int] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        connection = apsw.Connection(str(data / "journal.db"))
        connection.set_busy_timeout(5_000)
        connection.execute("INSERT INTO projects (name) VALUES (?)", (f"p{len(written)}",))
        connection.execute("UPDATE branches SET head = head + 1 WHERE name = 'b'")
        connection.close()
        written.append(done)

    await begin(journal, "later", [note("in the log only")])
    report = verify_data(data, meanwhile)
    assert report.findings == []
    assert written
    assert not look(data).ok
    await journal.close()


async def test_a_blob_that_is_erased_meanwhile_is_not_missing(data: Path) -> None:
    journal = open_sqlite(data / "journal.db")

    def erase(what: str, done: int, total: int) -> None:
        if what == "blobs":
            sql("DELETE FROM blob_uses")(data)
            (data / BLOB).unlink(missing_ok=True)

    assert verify_data(data, erase).findings == []
    await journal.close()


def test_a_directory_that_cannot_be_written_can_be_verified(data: Path) -> None:
    before = sorted(data.iterdir())
    for path in (data, *data.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert look(data).findings == []
        assert sorted(data.iterdir()) == before or os.geteuid() == 0
    finally:
        data.chmod(0o700)


async def test_where_there_is_nothing_to_verify_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no data directory of Stateroom"):
        look(tmp_path)


async def test_a_backup_that_has_changed_is_found_by_its_checksums(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    assert Backup(data, target, SystemClock(), lambda *_: None).make().ok
    body = (target / "journal.db").read_bytes()
    at = body.index(b"answer")
    written("journal.db", at, b"ANSWER")(target)
    [finding] = look(target).findings
    assert (finding.part, finding.where) == ("backup", "journal.db")
    written("journal.db", at, b"answer")(target)
    assert look(target).ok
    (target / "access.db").unlink()
    assert [finding.where for finding in look(target).findings] == ["access.db"]
    (target / "backup.json").write_text(json.dumps({"files": 5}))
    assert [finding.where for finding in look(target).findings] == ["backup.json"]


async def test_an_end_that_was_erased_leaves_its_run_open(data: Path) -> None:
    journal = open_sqlite(data / "journal.db")
    await journal.append(Append(P, "fork", 4, [started("resp_9"), draft(RunEnded("failed"), run=THIS)]))
    await journal.redact(P, "fork", {6: None}, at=5)
    assert [row.id for row in await journal.open_runs()] == ["resp_1", "resp_9"]
    await journal.close()
    assert look(data).findings == []
