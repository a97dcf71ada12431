"""The only writer of a branch: what goes into one commit, what is shown when, what a failed commit leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from stateroom import ids
from stateroom.agent.state import BranchState
from stateroom.errors import HeadMoved, StorageError, StorageFull
from stateroom.journal.entries import (
    ConversationCreated,
    Frame,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunSettings,
    RunStarted,
    decode,
)
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.store import Append, Appended, Branch
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.writer import BranchWriter, Flusher
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan
from tests.unit.runtime.stage import MovedClock, until

P = "p"


class Watched(MemoryJournal):
    """A journal that notes the appends and answers them when it is told to."""

    def __init__(self, clock: MovedClock) -> None:
        super().__init__(clock=clock)
        self.changes: list[Append] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def append(self, change: Append) -> Awaitable[Appended]:
        self.changes.append(change)
        return asyncio.ensure_future(self._when_open(super().append(change)))

    async def _when_open(self, answer: Awaitable[Appended]) -> Appended:
        await self.gate.wait()
        return await answer


class Numbers:
    """A renderer of which only `take` is used: each word is an event."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.next = 0

    def take(self) -> Frame | None:
        if not self.words:
            return None
        first, self.next = self.next, self.next + len(self.words)
        body = "".join(f"event: {word}\ndata: {{}}\n\n" for word in self.words).encode()
        self.words = []
        return Frame(first, self.next - 1, body)


class Failures:
    def __init__(self) -> None:
        self.errors: list[StorageError] = []

    def __call__(self, error: StorageError) -> None:
        self.errors.append(error)


def writer_of(
    journal: object, clock: MovedClock, *, branch: str = "b", flusher: Flusher | None = None, stream: bool = False
) -> tuple[BranchWriter, Failures]:
    failures = Failures()
    writer = BranchWriter(
        journal,  # type: ignore[arg-type]  # journals in these tests implement what a writer needs
        flusher or Flusher(0.0),
        clock,
        project=P,
        branch=branch,
        state=BranchState(),
        holder="h",
        create=Branch(branch, P),
        on_failure=failures,
    )
    if stream:
        writer.stream = LiveStream()
        writer.renderer = Numbers()  # type: ignore[assignment]  # as far as a writer uses one
    return writer, failures


async def a_few_ticks() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def started() -> RunStarted:
    return RunStarted(ids.new_id("resp"), RunSettings(model="m"), [{"role": "user", "content": "hi"}], frames=True)


def said(index: int = 0) -> ItemFinished:
    return ItemFinished(index, {"role": "assistant", "content": "yes"}, "stop")


def words_of(frames: Sequence[Frame]) -> list[str]:
    lines = b"".join(frame.body for frame in frames).decode().split("\n")
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


async def test_facts_and_the_events_that_announce_them_are_one_commit() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock(), stream=True)
    writer.add(started())
    writer.renderer.words.append("created")  # type: ignore[union-attr]  # it is a Numbers
    await writer.commit()
    writer.add(said())
    writer.renderer.words.append("done")  # type: ignore[union-attr]  # as above
    await writer.commit()
    assert [(len(change.entries), words_of(change.frames)) for change in journal.changes] == [
        (1, ["created"]),
        (1, ["done"]),
    ]


async def test_nothing_is_shown_before_it_is_committed() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock(), stream=True)
    assert writer.stream is not None
    journal.gate.clear()
    writer.add(started())
    writer.renderer.words.append("created")  # type: ignore[union-attr]  # it is a Numbers
    waiting = writer.commit()
    await a_few_ticks()
    assert not waiting.done()
    assert writer.stream.frames == []
    assert not writer.is_settled
    journal.gate.set()
    await waiting
    assert words_of(writer.stream.frames) == ["created"]
    assert writer.is_settled


async def test_what_gathers_during_a_commit_goes_out_in_the_next_one_and_in_order() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock(), stream=True)
    journal.gate.clear()
    writer.add(started())
    first = writer.commit()
    waiters = []
    for number in range(5):
        writer.add(said(number))
        writer.renderer.words.append(f"w{number}")  # type: ignore[union-attr]  # it is a Numbers
        writer.touch()
        waiters.append(writer.commit())
    assert len(journal.changes) == 1
    journal.gate.set()
    await asyncio.gather(first, *waiters)
    assert [len(change.entries) for change in journal.changes] == [1, 5]
    entries = await journal.read(P, "b")
    assert [entry.seq for entry in entries] == list(range(6))
    held = [decode(entry.kind, entry.body) for entry in entries[1:]]
    assert [record.index for record in held if isinstance(record, ItemFinished)] == list(range(5))


async def test_the_state_is_what_a_fold_of_the_journal_gives() -> None:
    journal = MemoryJournal()
    writer, _ = writer_of(journal, MovedClock())
    for record in (ConversationCreated("conv_1"), started(), said(), RunEnded("completed"), ItemsAdded("k", [])):
        writer.add(record)
        await writer.commit()
    folded = BranchState()
    for entry in await journal.read(P, "b"):
        folded.apply(entry)
    assert (folded.head, folded.items, folded.size) == (writer.state.head, writer.state.items, writer.state.size)


async def test_a_record_that_cannot_be_written_is_not_folded_in_either() -> None:
    journal = MemoryJournal()
    writer, failures = writer_of(journal, MovedClock())
    writer.add(started())
    head = writer.state.head
    with pytest.raises(UnicodeEncodeError):
        writer.add(ItemFinished(0, {"role": "assistant", "content": "\ud800"}))
    assert writer.state.head == head
    writer.add(said())
    await writer.commit(release=True)
    assert [entry.seq for entry in await journal.read(P, "b")] == [0, 1]
    assert failures.errors == []


async def test_a_release_seals_the_stream_into_one_frame_and_gives_the_branch_back() -> None:
    journal = MemoryJournal()
    writer, _ = writer_of(journal, MovedClock(), stream=True)
    for number, record in enumerate((started(), said(), RunEnded("completed"))):
        writer.add(record)
        writer.renderer.words.append(f"w{number}")  # type: ignore[union-attr]  # it is a Numbers
        await writer.commit(release=number == 2)
    frames = await journal.frames(P, "b", 0)
    assert len(frames) == 1
    assert (frames[0].first, frames[0].last, words_of(frames)) == (0, 2, ["w0", "w1", "w2"])
    assert writer.lease is None
    taken = await journal.append(Append(P, "b", 2, acquire="somebody else"))
    assert taken.lease is not None


async def test_a_release_that_is_asked_for_during_a_commit_takes_place() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock(), stream=True)
    journal.gate.clear()
    writer.add(started())
    writer.commit()
    writer.add(RunEnded("completed"))
    released = writer.commit(release=True)
    journal.gate.set()
    await released
    assert [change.release for change in journal.changes] == [False, True]


async def test_a_released_writer_writes_nothing_more_even_when_somebody_waits_for_it() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock(), stream=True)
    writer.add(started())
    writer.renderer.words.append("created")  # type: ignore[union-attr]  # it is a Numbers
    writer.add(RunEnded("completed"))
    await writer.commit(release=True)
    await journal.redact(P, "b", {0: None, 1: None}, at=0)
    await writer.commit()
    await writer.settled()
    writer.touch()
    await a_few_ticks()
    assert len(journal.changes) == 1
    assert await journal.frames(P, "b", 0) == []


async def test_looking_at_a_branch_that_is_durable_writes_nothing() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock())
    writer.add(started())
    await writer.commit()
    for _ in range(5):
        await writer.settled()
        await writer.commit()
    assert len(journal.changes) == 1


async def test_whoever_waits_for_the_state_sees_nothing_that_came_meanwhile_and_is_not_durable() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock())
    writer.add(started())
    await writer.commit()
    seen: list[bool] = []

    async def read() -> None:
        await writer.settled()
        seen.append(writer.is_settled)

    async def write() -> None:
        await writer.commit()
        writer.add(RunEnded("completed"))  # at once after the commit that the reader waits for, too
        await writer.commit()

    journal.gate.clear()
    writer.add(said())
    both = asyncio.gather(write(), read(), read())
    await asyncio.sleep(0)
    journal.gate.set()
    await both
    assert seen == [True, True]


async def test_a_failed_commit_fails_everybody_who_waits_and_everybody_who_comes() -> None:
    journal = MemoryJournal()
    await journal.append(Append(P, "b", create=Branch("b", P)))
    writer, failures = writer_of(journal, MovedClock(), stream=True)
    writer.add(started())
    waiters = [writer.commit(), writer.commit()]
    for waiter in waiters:
        with pytest.raises(HeadMoved):
            await waiter
    with pytest.raises(HeadMoved):
        await writer.commit()
    with pytest.raises(HeadMoved):
        await writer.settled()
    assert [error.code for error in failures.errors] == ["head_moved"]
    assert writer.stream is not None
    assert writer.stream.ended
    assert writer.stream.cut


async def test_a_commit_that_fails_when_nobody_waits_any_more_is_no_error_of_its_own() -> None:
    journal = MemoryJournal()
    await journal.append(Append(P, "b", create=Branch("b", P)))
    writer, failures = writer_of(journal, MovedClock())
    writer.add(started())
    unheard: Any = writer.commit()
    await until(lambda: bool(failures.errors))
    assert not unheard._log_traceback, "asyncio would log it when it is thrown away"
    with pytest.raises(HeadMoved):
        await unheard


async def test_a_full_disk_refuses_the_first_append_at_once_and_nothing_is_kept() -> None:
    store = FaultyStore(MemoryJournal(), Plan({0: Fault.FULL}))
    writer, failures = writer_of(store, MovedClock())
    writer.add(started())
    with pytest.raises(StorageFull):
        await writer.commit()
    assert len(failures.errors) == 1
    assert await store.read(P, "b") == []


async def test_a_run_in_progress_waits_for_room_and_goes_on_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateroom.runtime.writer.FULL_RETRY_SECONDS", 0.001)
    inner = MemoryJournal()
    store = FaultyStore(inner, Plan({1: Fault.FULL, 2: Fault.FULL, 3: Fault.FULL}))
    writer, failures = writer_of(store, MovedClock(), stream=True)
    writer.add(started())
    await writer.commit()
    writer.add(said())
    writer.renderer.words.append("a")  # type: ignore[union-attr]  # it is a Numbers
    first = writer.commit()
    writer.renderer.words.append("b")  # type: ignore[union-attr]  # as above
    writer.add(RunEnded("completed"))
    second = writer.commit(release=True)
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert failures.errors == []
    assert [entry.seq for entry in await inner.read(P, "b")] == [0, 1, 2]
    assert words_of(await inner.frames(P, "b", 0)) == ["a", "b"]


async def test_the_patience_with_a_full_disk_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateroom.runtime.writer.FULL_RETRY_SECONDS", 0.001)
    clock = MovedClock()
    store = FaultyStore(MemoryJournal(), Plan(dict.fromkeys(range(1, 1000), Fault.FULL)))
    writer, failures = writer_of(store, clock, stream=True)
    writer.add(started())
    await writer.commit()
    writer.renderer.words.append("never")  # type: ignore[union-attr]  # it is a Numbers
    waiting = writer.commit()
    await until(lambda: store.writes > 3)
    assert not waiting.done()
    clock.seconds += 61
    with pytest.raises(StorageFull):
        await asyncio.wait_for(waiting, 5)
    assert len(failures.errors) == 1
    assert writer.stream is not None
    assert writer.stream.frames == []


async def test_a_commit_whose_waiter_went_away_takes_place() -> None:
    journal = Watched(MovedClock())
    writer, failures = writer_of(journal, MovedClock())
    journal.gate.clear()
    writer.add(started())
    waiting = asyncio.ensure_future(writer.settled())
    await asyncio.sleep(0)
    waiting.cancel()
    journal.gate.set()
    await writer.commit()
    assert len(await journal.read(P, "b")) == 1
    assert failures.errors == []


async def test_one_tick_serves_all_streams_and_each_once() -> None:
    journal = Watched(MovedClock())
    flusher = Flusher(0.005)
    writers = [writer_of(journal, MovedClock(), branch=f"b{n}", flusher=flusher, stream=True)[0] for n in range(10)]
    for writer in writers:
        writer.add(started())
        await writer.commit()
    journal.changes.clear()
    for _ in range(3):
        for writer in writers:
            writer.renderer.words.append("w")  # type: ignore[union-attr]  # it is a Numbers
            writer.touch()
    await until(lambda: len(journal.changes) >= 10)
    await a_few_ticks()
    assert sorted(change.branch for change in journal.changes) == sorted(writer.branch for writer in writers)
    assert all(words_of(change.frames) == ["w", "w", "w"] for change in journal.changes)


async def test_a_stream_that_is_busy_is_flushed_at_intervals_and_not_for_each_event() -> None:
    journal = Watched(MovedClock())
    writer, _ = writer_of(journal, MovedClock(), flusher=Flusher(0.02), stream=True)
    writer.add(started())
    await writer.commit()
    began = asyncio.get_running_loop().time()
    for _ in range(200):
        writer.renderer.words.append("w")  # type: ignore[union-attr]  # it is a Numbers
        writer.touch()
        await asyncio.sleep(0)
    await writer.commit()
    elapsed = asyncio.get_running_loop().time() - began
    assert len(journal.changes) <= 3 + elapsed / 0.02
    assert len(words_of([frame for change in journal.changes for frame in change.frames])) == 200
