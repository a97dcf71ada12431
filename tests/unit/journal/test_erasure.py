"""What was erased is in no byte of the file or its log, and room that it left can be had back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from stateroom.journal.entries import ConversationCreated, Frame, ItemsAdded, RunSettings, RunStarted, encode
from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.journal.store import THIS, Append, Branch
from stateroom.testing.journal_stage import P, begin, draft, note


def raw(path: Path) -> bytes:
    """Every byte of the database, its log and its shared memory."""
    return b"".join([file.read_bytes() for file in sorted(path.parent.iterdir()) if file.is_file()])


@contextmanager
def open_reader(path: Path) -> Iterator[apsw.Connection]:
    """Somebody else who reads the file."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        yield connection
    finally:
        connection.close()


async def grown(journal: SqliteJournal, seed: int) -> dict[tuple[str, int], bytes]:
    """Many branches that grow among each other, so that pages split; the secret of each entry by its place."""
    chance = random.Random(seed)
    secrets: dict[tuple[str, int], bytes] = {}
    heads: dict[str, int] = {}
    waiting = []
    for step in range(600):
        name = f"b{chance.randrange(20)}"
        secret = f"SECRET-{seed}-{step}-"
        item = {"id": secret, "role": "user", "content": secret * chance.choice([1, 3, 30, 150, 600])}
        create = None if name in heads else Branch(name, P)
        seq = heads[name] = heads.get(name, -1) + 1
        secrets[name, seq] = secret.encode()
        if chance.random() < 0.5:
            added = draft(ItemsAdded(f"k{step}", [item]))
            waiting.append(journal.append(Append(P, name, seq - 1, [added], create=create)))
            continue
        record = RunStarted(f"r{step}", RunSettings(model=secret), [item])
        frames = [Frame(0, 5, (secret * chance.choice([1, 20, 400])).encode())]
        run = Append(P, name, seq - 1, [draft(record, run=THIS)], create=create, frames_run=THIS, frames=frames)
        waiting.append(journal.append(run))
        if chance.random() < 0.7:
            sealed = [Frame(0, 9, secret.encode() + chance.randbytes(30))]
            waiting.append(journal.append(Append(P, name, None, frames_run=seq, frames=sealed, seal=True)))
        if step % 40 == 0:
            await journal.read(P, name)
    for future in waiting:
        await future
    return secrets


@pytest.mark.parametrize("seed", range(3))
async def test_erased_text_is_in_no_byte_of_the_files(tmp_path: Path, seed: int) -> None:
    journal = open_sqlite(tmp_path / "journal.db")
    secrets = await grown(journal, seed)
    chance = random.Random(seed)
    gone = {place for place in secrets if chance.random() < 0.5}
    for name in {name for name, _ in gone}:
        places = {seq: None for branch, seq in gone if branch == name}
        await journal.redact(P, name, places, at=5)
    held = raw(tmp_path / "journal.db")
    assert [place for place in gone if secrets[place] in held] == []
    assert [place for place in secrets.keys() - gone if secrets[place] not in held] == []
    assert await journal.check() == []
    await journal.close()


async def test_a_shortened_body_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    journal = open_sqlite(tmp_path / "journal.db")
    for size in (1, 50, 5_000):
        await begin(journal, f"b{size}", [note("SECRET" * size), note("kept")])
        await journal.redact(P, f"b{size}", {0: encode(ItemsAdded("k", [{"type": "erased"}]))}, at=5)
    assert b"SECRET" not in raw(tmp_path / "journal.db")
    await journal.close()


async def test_an_erased_conversation_leaves_no_metadata(tmp_path: Path) -> None:
    journal = open_sqlite(tmp_path / "journal.db")
    await begin(journal, "b", [draft(ConversationCreated("conv", {"name": "SECRET"}))])
    assert b"SECRET" in raw(tmp_path / "journal.db")
    await journal.redact(P, "b", {0: None}, at=5)
    assert b"SECRET" not in raw(tmp_path / "journal.db")
    await journal.close()


async def test_a_reader_in_the_way_delays_the_cutting_of_the_log_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = open_sqlite(path)
    await begin(journal, "b", [note("SECRET"), note("kept")])
    with open_reader(path) as reader:
        rows = reader.execute("SELECT body FROM entries")
        next(rows)
        await journal.redact(P, "b", {0: None}, at=5)
        assert b"SECRET" in raw(path)
        rows.close()
    # Any later commit tries again, and so does the writer when it is idle.
    await begin(journal, "c", [note("later")])
    assert b"SECRET" not in raw(path)
    await journal.close()


async def test_an_erasure_that_was_cut_off_by_a_crash_is_finished_at_the_next_opening(tmp_path: Path) -> None:
    path, crashed = tmp_path / "journal.db", tmp_path / "crashed"
    crashed.mkdir()
    journal = open_sqlite(path)
    await begin(journal, "b", [note("SECRET"), note("kept")])
    with open_reader(path) as reader:
        rows = reader.execute("SELECT body FROM entries")
        next(rows)
        await journal.redact(P, "b", {0: None}, at=5)
        for file in ("journal.db", "journal.db-wal"):
            (crashed / file).write_bytes((tmp_path / file).read_bytes())
        rows.close()
    await journal.close()
    assert b"SECRET" in raw(crashed / "journal.db")
    reopened = open_sqlite(crashed / "journal.db")
    assert b"SECRET" not in raw(crashed / "journal.db")
    await reopened.close()


async def test_compacting_gives_back_the_room_of_what_was_erased(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = open_sqlite(path)
    secrets = await grown(journal, 9)
    for name in {name for name, _ in secrets}:
        seqs = [seq for branch, seq in secrets if branch == name]
        shortened = encode(ItemsAdded("k", []))
        kinds = {entry.seq: entry.kind for entry in await journal.read(P, name)}
        bodies = {seq: shortened if seq % 3 == 0 and kinds[seq] == "items.added" else None for seq in seqs}
        await journal.redact(P, name, bodies, at=5)
    before, size = {name: await journal.read(P, name) for name, _ in secrets}, path.stat().st_size
    await journal.compact()
    assert path.stat().st_size < size / 5
    assert {name: await journal.read(P, name) for name, _ in secrets} == before
    assert await journal.check() == []
    assert (await begin(journal, "after", [note("x")])).head == 0
    await journal.close()
