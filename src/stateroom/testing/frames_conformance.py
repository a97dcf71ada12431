"""What every journal must do with frames, and what erasing content must leave behind. Part of journal_conformance."""

from __future__ import annotations

from typing import Final

from stateroom.errors import StorageError
from stateroom.journal.entries import Erased, Frame, ItemsAdded, Kind, RunEnded, RunSettings, RunStarted, decode, encode
from stateroom.journal.store import THIS, Append, Appended, Branch
from stateroom.testing.journal_stage import (
    OTHER,
    Case,
    P,
    Stage,
    begin,
    draft,
    note,
    refused,
    said,
    started,
    texts,
    turn,
)


async def frames_are_kept_in_order_and_read_from_anywhere(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [started("resp_1")], acquire="me")
    for first in range(0, 30, 3):
        frame = Frame(first, first + 2, b"%d" % first)
        answer = await stage.store.append(Append(P, "b", None, lease=mine.lease, frames_run=0, frames=[frame]))
        assert answer == Appended(0, mine.lease)
    assert [frame.first for frame in await stage.store.frames(P, "b", 0)] == list(range(0, 30, 3))
    assert [frame.first for frame in await stage.store.frames(P, "b", 0, after=13)] == [12, 15, 18, 21, 24, 27]
    assert [frame.first for frame in await stage.store.frames(P, "b", 0, after=14)] == [15, 18, 21, 24, 27]
    assert await stage.store.frames(P, "b", 0, after=29) == []
    assert await stage.store.frames(P, "b", 1) == []


async def many_frames_are_read_whole(stage: Stage) -> None:
    frames = [Frame(number, number, b"x") for number in range(700)]
    await begin(stage.store, "b", [started("resp_1")], frames_run=THIS, frames=frames)
    assert await stage.store.frames(P, "b", 0) == frames
    assert await stage.store.frames(P, "b", 0, after=100) == frames[101:]


async def sealing_replaces_all_frames_by_one(stage: Stage) -> None:
    parts = [Frame(n, n, b'event: x\ndata: {"n":%d}\n\n' % n) for n in range(50)]
    mine = await begin(stage.store, "b", [started("resp_1")], acquire="me", frames_run=THIS, frames=parts)
    whole = Frame(0, 60, b"".join([part.body for part in parts]) + bytes(range(256)) * 300)
    ended = [draft(RunEnded("completed"), run=0)]
    change = Append(P, "b", 0, ended, lease=mine.lease, release=True, frames_run=0, frames=[whole], seal=True)
    await stage.store.append(change)
    assert await stage.store.frames(P, "b", 0) == [whole]
    assert await stage.store.frames(P, "b", 0, after=59) == [whole]
    assert await stage.store.frames(P, "b", 0, after=60) == []


async def sealing_with_nothing_drops_the_frames(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"), frames_run=THIS, frames=[Frame(0, 9, b"x")], seal=True)
    await stage.store.append(Append(P, "b", None, frames_run=0, seal=True))
    assert await stage.store.frames(P, "b", 0) == []
    assert len(await stage.store.read(P, "b")) == 3


async def frames_may_be_dropped_while_another_run_holds_the_branch(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"), frames_run=THIS, frames=[Frame(0, 9, b"x")], seal=True)
    mine = await stage.store.append(Append(P, "b", 2, [started("resp_2")], acquire="me"))
    await stage.store.append(Append(P, "b", None, frames_run=0, seal=True))
    assert await stage.store.frames(P, "b", 0) == []
    assert (await stage.store.append(Append(P, "b", 3, [note("x")], lease=mine.lease))).head == 4


async def redacted_bodies_replace_the_old_ones(stage: Stage) -> None:
    await begin(stage.store, "b", [note("zero"), note("one, which is long"), note("two")])
    short, long = encode(ItemsAdded("k", [])), encode(ItemsAdded("k", [{"role": "user", "content": "longer" * 50}]))
    await stage.store.redact(P, "b", {0: long, 1: short}, at=5)
    read = await stage.store.read(P, "b")
    assert [entry.body for entry in read[:2]] == [long, short]
    assert [entry.kind for entry in read] == [Kind.ITEMS_ADDED] * 3
    assert said(read[2]) == "two"


async def an_erased_entry_keeps_its_place_and_nothing_else(stage: Stage) -> None:
    await begin(stage.store, "b", [note("zero", at=3), *turn("resp_1", at=4)])
    await stage.store.redact(P, "b", {0: None, 1: None, 2: None, 3: None}, at=1_234_567_890_123)
    read = await stage.store.read(P, "b")
    assert [(entry.seq, entry.kind, entry.run, entry.at) for entry in read] == [
        (0, Kind.ERASED, -1, 3),
        (1, Kind.ERASED, 1, 4),
        (2, Kind.ERASED, 1, 4),
        (3, Kind.ERASED, 1, 4),
    ]
    was = [Kind.ITEMS_ADDED, Kind.RUN_STARTED, Kind.ITEM_FINISHED, Kind.RUN_ENDED]
    assert [decode(entry.kind, entry.body) for entry in read] == [Erased(str(kind), 1_234_567_890_123) for kind in was]
    assert (await stage.store.append(Append(P, "b", 3, [note("on")]))).head == 4


async def what_is_erased_stays_erased(stage: Stage) -> None:
    await begin(stage.store, "b", [note("zero")])
    await stage.store.redact(P, "b", {0: None}, at=5)
    before = await stage.store.read(P, "b")
    await stage.store.redact(P, "b", {0: None}, at=6)
    await stage.store.redact(P, "b", {0: encode(ItemsAdded("k", []))}, at=7)
    assert await stage.store.read(P, "b") == before


async def redaction_reaches_own_entries_only(stage: Stage) -> None:
    await begin(stage.store, "b", [note("0"), note("1")])
    await stage.store.append(Append(P, "c", 1, [note("c2")], create=Branch("c", P, "b", 1)))
    await stage.store.redact(P, "c", {0: None, 2: None, 9: None}, at=5)
    await stage.store.redact(OTHER, "b", {0: None}, at=5)
    await stage.store.redact(P, "nowhere", {0: None}, at=5)
    assert await texts(stage.store, "b") == ["0", "1"]
    assert [entry.kind for entry in await stage.store.read(P, "c")] == [Kind.ITEMS_ADDED, Kind.ITEMS_ADDED, Kind.ERASED]


async def a_redaction_with_a_body_of_another_kind_is_refused(stage: Stage) -> None:
    await begin(stage.store, "b", [note("0"), note("1")])
    await refused(StorageError, stage.store.redact(P, "b", {0: None, 1: b"{"}, at=5))
    assert await texts(stage.store, "b") == ["0", "1"]


async def erasing_an_entry_of_a_run_takes_its_frames(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"), frames_run=THIS, frames=[Frame(0, 9, b"sealed" * 9)], seal=True)
    await stage.store.append(Append(P, "b", 2, turn("resp_2"), frames_run=THIS, frames=[Frame(0, 9, b"open")]))
    await stage.store.append(Append(P, "b", 5, turn("resp_3"), frames_run=THIS, frames=[Frame(0, 9, b"kept")]))
    await stage.store.redact(P, "b", {0: None, 4: None, 6: encode(RunStarted("resp_3", RunSettings(), []))}, at=5)
    assert await stage.store.frames(P, "b", 0) == []
    assert await stage.store.frames(P, "b", 3) == []
    assert await stage.store.frames(P, "b", 6) == [Frame(0, 9, b"kept")]


async def a_redaction_does_not_need_the_lease(stage: Stage) -> None:
    mine = await begin(stage.store, "b", [note("0")], acquire="me")
    await stage.store.redact(P, "b", {0: None}, at=5)
    assert (await stage.store.append(Append(P, "b", 0, [note("1")], lease=mine.lease))).head == 1


CASES: Final[tuple[Case, ...]] = (
    frames_are_kept_in_order_and_read_from_anywhere,
    many_frames_are_read_whole,
    sealing_replaces_all_frames_by_one,
    sealing_with_nothing_drops_the_frames,
    frames_may_be_dropped_while_another_run_holds_the_branch,
    redacted_bodies_replace_the_old_ones,
    an_erased_entry_keeps_its_place_and_nothing_else,
    what_is_erased_stays_erased,
    redaction_reaches_own_entries_only,
    a_redaction_with_a_body_of_another_kind_is_refused,
    erasing_an_entry_of_a_run_takes_its_frames,
    a_redaction_does_not_need_the_lease,
)
