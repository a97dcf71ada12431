"""What the journal on SQLite does beyond the seam: group commit, generations, reads beside the writer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from stateroom import ids
from stateroom.errors import Fenced, HeadMoved
from stateroom.journal.entries import (
    Frame,
    ItemFinished,
    RunEnded,
    RunSettings,
    RunStarted,
    Usage,
)
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.sqlite_connections import Durability, connect_writer
from stateroom.journal.store import THIS, Append, Branch
from stateroom.testing.journal_stage import P, SetClock, begin, draft, note, started, texts, turn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def size(path: Path) -> int:
    return path.stat().st_size


def commits_in(path: Path) -> int:
    """How many transactions the log holds: each ends with one frame that says how large the file is now."""
    log = path.with_name(path.name + "-wal").read_bytes()
    frames = [log[start : start + 24] for start in range(32, len(log), 24 + 4096)]
    return sum(int.from_bytes(frame[4:8], "big") > 0 for frame in frames)


async def test_what_gathers_while_the_writer_is_busy_goes_into_one_commit(path: Path) -> None:
    journal = open_sqlite(path)
    before = commits_in(path)
    await asyncio.gather(*[begin(journal, f"b{number}", turn(f"resp_{number}")) for number in range(200)])
    assert commits_in(path) - before < 100
    assert len(await journal.runs(P, limit=1_000)) == 200
    await journal.close()


async def test_an_append_is_a_future_at_once_and_seen_by_reads_when_it_resolves(path: Path) -> None:
    journal = open_sqlite(path)
    head = -1
    for number in range(200):
        create = None if number else Branch("b", P)
        future = journal.append(Append(P, "b", head, [note(str(number))], create=create))
        assert isinstance(future, asyncio.Future)
        assert not isinstance(future, asyncio.Task)
        head = (await future).head
        assert (await texts(journal, "b", after=head - 1)) == [str(number)]
    await journal.close()


async def test_a_resolved_append_is_seen_by_large_reads_too(path: Path) -> None:
    journal = open_sqlite(path)
    head = (await begin(journal, "b", [note(str(number)) for number in range(600)])).head
    for number in range(600, 620):
        head = (await journal.append(Append(P, "b", head, [note(str(number))]))).head
        assert len(await journal.read(P, "b")) == head + 1
    await journal.close()


@pytest.mark.parametrize(("durability", "level"), [("normal", 1), ("full", 2)])
def test_durability_is_what_sqlite_is_told(path: Path, durability: Durability, level: int) -> None:
    connection = connect_writer(path, durability)
    assert connection.pragma("synchronous") == level
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("secure_delete") == 1
    connection.close()


async def test_a_later_server_fences_an_earlier_one(path: Path) -> None:
    clock = SetClock()
    earlier = open_sqlite(path, clock=clock)
    held = await begin(earlier, "b", [note("0")], acquire="earlier", lease_seconds=3_600)
    assert held.lease is not None
    later = open_sqlite(path, clock=clock)
    for change in (
        Append(P, "b", 0, [note("x")], lease=held.lease),
        Append(P, "b", 0, lease=held.lease, release=True),
        Append(P, "c", -1, [note("x")], create=Branch("c", P)),
    ):
        with pytest.raises(Fenced):
            await earlier.append(change)
    with pytest.raises(Fenced):
        await earlier.renew([held.lease], 60)
    with pytest.raises(Fenced):
        await earlier.redact(P, "b", {0: None}, at=1)
    with pytest.raises(Fenced):
        await earlier.rebuild()
    with pytest.raises(Fenced):
        await earlier.compact()
    taken = await later.append(Append(P, "b", 0, [note("1")], acquire="later"))
    assert taken.head == 1
    assert await texts(earlier, "b") == ["0", "1"]
    await earlier.close()
    await later.close()


async def test_a_visitor_takes_nothing_over(path: Path) -> None:
    server = open_sqlite(path)
    held = await begin(server, "b", [note("0")], acquire="server")
    visitor = open_sqlite(path, generation=False)
    with pytest.raises(HeadMoved):
        await visitor.append(Append(P, "b", 0, [note("x")]))
    await begin(visitor, "c", [note("visited")])
    await visitor.close()
    assert (await server.append(Append(P, "b", 0, [note("1")], lease=held.lease))).head == 1
    assert await texts(server, "c") == ["visited"]
    await server.close()


async def test_the_future_of_one_loop_is_not_settled_by_another(path: Path) -> None:
    journal = open_sqlite(path)
    elsewhere: list[int] = []

    def run() -> None:
        elsewhere.append(asyncio.run(wait_elsewhere()))

    async def wait_elsewhere() -> int:
        answers = await asyncio.gather(*[begin(journal, f"there{number}") for number in range(50)])
        return len(answers)

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.gather(*[begin(journal, f"here{number}") for number in range(50)])
    await asyncio.to_thread(thread.join)
    assert elsewhere == [50]
    await journal.close()


async def test_a_loop_that_went_away_does_not_stop_the_writer(path: Path) -> None:
    journal = open_sqlite(path)

    async def leave() -> None:
        for number in range(20):
            journal.append(Append(P, f"b{number}", -1, [note("x")], create=Branch(f"b{number}", P)))

    await asyncio.to_thread(lambda: asyncio.run(leave()))
    await begin(journal, "after", [note("x")])
    assert await texts(journal, "b19") == ["x"]
    await journal.close()


async def test_a_turn_costs_well_under_700_bytes(path: Path) -> None:
    await open_sqlite(path).close()
    empty = size(path)
    journal = open_sqlite(path)
    question, answer, branch, previous, said = "q" * 60, "a" * 90, ids.new_id("br"), "", 0
    for number in range(1_000):
        key = ids.new_key()
        asked = [{"role": "user", "content": question}]
        first = RunStarted(f"resp_{key}", RunSettings(model="m"), asked, previous=previous)
        drafts = [
            draft(first, run=THIS, at=1_790_000_000_000),
            draft(ItemFinished(0, {"role": "assistant", "content": answer}), run=THIS, at=1_790_000_000_000),
            draft(RunEnded("completed", Usage(100, 30)), run=THIS, at=1_790_000_000_000),
        ]
        said += sum(len(entry.body) for entry in drafts)
        create = None if number else Branch(branch, P)
        await journal.append(Append(P, branch, number * 3 - 1, drafts, create=create, acquire="me", release=True))
        previous = f"resp_{key}"
    await journal.close()
    grown = size(path) - empty
    assert grown / 1_000 < 650
    assert (grown - said) / 1_000 < 240


async def test_frames_of_a_short_stream_are_sealed_to_a_few_hundred_bytes(path: Path) -> None:
    journal = open_sqlite(path)
    body = b"".join(
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"msg_1",'
        b'"output_index":0,"content_index":0,"delta":"%d ","logprobs":[],"sequence_number":%d}\n\n' % (number, number)
        for number in range(20)
    )
    for number in range(300):
        frames = [Frame(0, 19, body)]
        await begin(journal, f"b{number}", [started(f"r{number}")], frames_run=THIS, frames=frames, seal=True)
    await journal.close()
    assert size(path) / 300 < 900 < len(body)
