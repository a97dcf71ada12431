"""Records are kept, listed, changed and dropped; what a dropped record said is erased, whatever came in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.errors import StorageError, StorageFull
from stateroom.journal.entries import Kind, RecordPut, RunSettings, RunStarted, encode
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.store import THIS, Append, Branch, Draft, Frame
from stateroom.runtime.records import Collection, Held, RecordExists, Records, RecordUnreadable
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan, StoreDied
from stateroom.testing.journal_stage import OTHER, P, SetClock, Store, begin, note, turn


class Thing(msgspec.Struct, frozen=True):
    name: str
    count: int = 0


class Said(msgspec.Struct, frozen=True):
    line: int


class Scene:
    """Records over a journal, which may be exchanged for one that fails."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.journal = MemoryJournal(clock=self.clock)
        self.blobs = MemoryBlobs()
        self.held = HeldBlobs(self.blobs)

    def records(self, journal: Store | None = None) -> Records:
        store = journal or self.journal
        return Records(store, store, self.blobs, self.held, self.clock)

    def things(self, journal: Store | None = None) -> Collection[Thing]:
        return self.records(journal).collection("thing", Thing)

    async def said(self) -> list[bytes]:
        """The bodies of all entries that still say something of a record."""
        kinds = (Kind.RECORD_PUT, Kind.RECORD_NOTED)
        branches = list(self.journal._lines)
        entries = [entry for name in branches for p in (P, OTHER) for entry in await self.journal.read(p, name)]
        return [entry.body for entry in entries if entry.kind in kinds]


def renamed(name: str) -> Callable[[Held[Thing]], Thing | None]:
    return lambda held: Thing(name, held.state.count + 1)


async def test_a_record_is_found_by_its_own_project_only() -> None:
    scene = Scene()
    things = scene.things()
    scene.clock.time = 5.0
    made = await things.create(P, "a", Thing("x"), open=True, expires_at=77, blobs=["d"])
    assert made == Held("a", P, Thing("x"), 5_000, True, 77, 5_000, ("d",))
    assert await things.get(P, "a") == made
    assert await things.get(OTHER, "a") is None
    assert await things.get(P, "b") is None
    assert await scene.records().collection("other thing", Thing).get(P, "a") is None


async def test_two_projects_may_use_the_same_id() -> None:
    scene = Scene()
    things, others = scene.things(), scene.records().collection("other", Thing)
    await things.create(P, "key", Thing("mine"))
    await things.create(OTHER, "key", Thing("theirs"))
    await others.create(P, "key", Thing("other"))
    for collection, project, name in ((things, P, "mine"), (things, OTHER, "theirs"), (others, P, "other")):
        held = await collection.get(project, "key")
        assert held is not None
        assert held.state.name == name
    assert await things.drop(OTHER, "key")
    assert await things.get(P, "key") is not None
    assert await others.get(P, "key") is not None


async def test_an_id_is_given_once_while_its_record_is_there() -> None:
    things = Scene().things()
    outcomes = await asyncio.gather(
        *[things.create(P, "a", Thing(str(number))) for number in range(5)], return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [Held, *[RecordExists] * 4]
    await things.drop(P, "a")
    assert (await things.create(P, "a", Thing("again"))).state.name == "again"
    assert await things.notes(P, "a") == []


async def test_an_update_keeps_what_it_does_not_name() -> None:
    scene = Scene()
    things = scene.things()
    await things.create(P, "a", Thing("x"), open=True, expires_at=9, blobs=["d"])
    scene.clock.time += 1
    updated = await things.update(P, "a", renamed("y"))
    assert updated is not None
    assert (updated.state, updated.open, updated.expires_at, updated.blobs) == (Thing("y", 1), True, 9, ("d",))
    assert updated.changed_at == updated.created_at + 1_000
    assert await things.get(P, "a") == updated
    closed = await things.update(P, "a", renamed("z"), open=False, expires_at=0, blobs=())
    assert closed is not None
    assert (closed.open, closed.expires_at, closed.blobs) == (False, 0, ())
    assert await things.get(P, "a") == closed
    assert await things.update(P, "missing", renamed("x")) is None


async def test_an_update_that_changes_nothing_writes_nothing() -> None:
    scene = Scene()
    things = scene.things()
    made = await things.create(P, "a", Thing("x"))
    assert await things.update(P, "a", lambda held: None, open=True) == made
    assert len(await scene.said()) == 1


async def test_no_update_is_lost_when_many_come_at_once() -> None:
    things = Scene().things()
    await things.create(P, "a", Thing("x"))
    await asyncio.gather(*[things.update(P, "a", renamed("y")) for _ in range(50)])
    held = await things.get(P, "a")
    assert held is not None
    assert held.state.count == 50


async def test_records_are_listed_by_the_age_of_their_first_state() -> None:
    things = Scene().things()
    for name in ("a", "b", "c", "d"):
        await things.create(P, name, Thing(name))
    await things.update(P, "a", renamed("later"))
    assert [held.id for held in await things.page(P, limit=2)] == ["d", "c", "b"]
    assert [held.id for held in await things.page(P, after="c", limit=2)] == ["b", "a"]
    assert [held.id for held in await things.page(P, after="b", descending=False)] == ["c", "d"]
    assert await things.page(P, after="missing") == []
    assert await things.page(OTHER) == []


async def test_open_records_are_those_of_every_project_with_work_left() -> None:
    things = Scene().things()
    await things.create(P, "a", Thing("a"), open=True)
    await things.create(OTHER, "b", Thing("b"), open=True)
    await things.create(P, "c", Thing("c"))
    assert [held.id for held in await things.open()] == ["a", "b"]
    await things.update(P, "a", renamed("done"), open=False)
    assert [held.id for held in await things.open()] == ["b"]


async def test_notes_are_those_of_the_record_in_order() -> None:
    scene = Scene()
    things = scene.things()
    await things.create(P, "a", Thing("a"))
    for line in range(3):
        assert await things.note(P, "a", Said(line))
        await things.update(P, "a", renamed("a"))
    assert not await things.note(P, "missing", Said(0))
    assert not await things.note(OTHER, "a", Said(0))
    assert [msgspec.json.decode(each, type=Said).line for each in await things.notes(P, "a")] == [0, 1, 2]
    assert await things.notes(OTHER, "a") == []


async def test_what_is_committed_along_with_a_record_is_there_with_it() -> None:
    scene = Scene()
    things = scene.things()
    keys = scene.records().collection("key", Thing)
    await things.create(P, "a", Thing("a"), also=[keys.put("k", Thing("key"), expires_at=5)])
    assert (await keys.get(P, "k")) is not None
    await keys.update(P, "k", renamed("changed"))
    await things.update(P, "a", renamed("b"))
    held = await keys.get(P, "k")
    assert held is not None
    assert held.state.name == "changed"
    assert await keys.drop(P, "k")
    assert await keys.get(P, "k") is None
    assert await things.get(P, "a") is not None
    assert not any(b'"key"' in body for body in await scene.said())


async def test_a_record_on_the_branch_of_a_run_leaves_the_branch_to_its_writer() -> None:
    scene = Scene()
    keys = scene.records().collection("key", Thing)
    put = keys.put("k", Thing("key"))
    first = [
        Draft(Kind.RUN_STARTED, encode(RunStarted("resp_1", RunSettings(), [])), 1, THIS),
        Draft(Kind.RECORD_PUT, encode(put), 1, THIS),
    ]
    start = Append(P, "br", -1, first, create=Branch("br", P), acquire="me", frames_run=THIS)
    frame = Frame(0, 3, b"events")
    taken = await scene.journal.append(msgspec.structs.replace(start, frames=[frame]))
    assert await keys.update(P, "k", renamed("changed")) is not None
    assert await keys.note(P, "k", Said(1))
    assert await keys.drop(P, "k")
    assert (await scene.journal.append(Append(P, "br", 1, turn("resp_2"), lease=taken.lease))).head == 4
    assert await scene.journal.frames(P, "br", 0) == [frame]
    assert await scene.said() == []


async def test_dropping_erases_what_was_said_and_the_blobs_that_nobody_else_needs() -> None:
    scene = Scene()
    things = scene.things()
    with scene.held.hold() as hold:
        own, shared, noted = [await hold.put(text) for text in (b"own", b"shared", b"noted")]
        await things.create(P, "a", Thing("SECRET"), blobs=[own, shared])
        await things.create(P, "b", Thing("b"), blobs=[shared])
        await things.note(P, "a", Said(1), blobs=[noted])
        await things.update(P, "a", renamed("SECRET TOO"), blobs=[own])
    assert await things.drop(P, "a")
    assert await things.get(P, "a") is None
    assert len(await scene.said()) == 1
    assert await scene.blobs.digests() == [shared]
    assert not await things.drop(P, "a")
    assert not await things.drop(OTHER, "b")


async def test_a_blob_that_is_on_its_way_elsewhere_survives_a_drop() -> None:
    scene = Scene()
    things = scene.things()
    digest = await scene.blobs.put(b"same")
    await things.create(P, "a", Thing("a"), blobs=[digest])
    with scene.held.hold() as hold:
        await hold.put(b"same")
        await things.drop(P, "a")
        assert await scene.blobs.exists(digest)
        await things.create(P, "b", Thing("b"), blobs=[digest])
    await things.drop(P, "b")
    assert not await scene.blobs.exists(digest)


@pytest.mark.parametrize("fault", [Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.FULL])
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("mend", ["sweep", "drop again"])
async def test_an_erasure_that_was_cut_off_is_finished(fault: Fault, number: int, mend: str) -> None:
    scene = Scene()
    keys = scene.records().collection("key", Thing)
    things = scene.things()
    digest = await scene.blobs.put(b"SECRET")
    # Said on two branches, and more than one commit erases.
    await keys.create(P, "k", Thing("k"), also=[things.put("a", Thing("SECRET"), blobs=[digest])])
    await things.update(P, "a", renamed("SECRET"))
    for line in range(510):
        await things.note(P, "a", Said(line))
    dying = FaultyStore(scene.journal, Plan({number: fault}))
    outcome = (await asyncio.gather(scene.things(dying).drop(P, "a"), return_exceptions=True))[0]
    assert outcome is True or isinstance(outcome, StoreDied | StorageFull)
    assert (outcome is True) == (dying.writes <= number)
    visible = await things.get(P, "a") is not None
    assert visible == (number == 0 and fault is not Fault.DIE_AFTER)
    if mend == "drop again" or visible:
        await things.drop(P, "a")
    else:
        await scene.records().sweep()
    for left in await scene.blobs.digests() if fault is not Fault.FULL else ():
        if not await scene.journal.blob_in_use(left):  # what the sweep of the blobs does at the next start
            await scene.blobs.delete(left)
    assert [body for body in await scene.said() if b"SECRET" in body or b"line" in body] == []
    assert not await things.drop(P, "a")
    assert await scene.journal.unerased_records() == []
    assert await scene.blobs.digests() == []
    assert await keys.get(P, "k") is not None


async def test_a_sweep_leaves_a_record_that_took_the_id_of_a_dropped_one_alone() -> None:
    scene = Scene()
    things = scene.things()
    await things.create(P, "a", Thing("SECRET"))
    await things.note(P, "a", Said(1))
    dying = FaultyStore(scene.journal, Plan({1: Fault.DIE_BEFORE}))
    with pytest.raises(StoreDied):
        await scene.things(dying).drop(P, "a")
    await things.create(P, "a", Thing("new"))
    await things.note(P, "a", Said(2))
    assert [bytes(each) for each in await things.notes(P, "a")] == [b'{"line":2}']
    await scene.records().sweep()
    assert len(await scene.said()) == 2
    held = await things.get(P, "a")
    assert held is not None
    assert held.state == Thing("new")


async def test_records_whose_time_has_come_are_dropped() -> None:
    scene = Scene()
    things = scene.things()
    now = scene.records().now()
    for name, until in (("never", 0), ("due", now), ("long due", now - 9), ("later", now + 1)):
        await things.create(P, name, Thing(name), expires_at=until)
    assert await scene.records().drop_expired(limit=1) == 1
    assert await things.get(P, "long due") is None
    assert await scene.records().drop_expired() == 1
    assert [held.id for held in await things.page(P, descending=False)] == ["never", "later"]
    assert await scene.records().drop_expired() == 0


async def test_a_record_whose_time_is_put_off_while_it_is_dropped_stays() -> None:
    scene = Scene()
    records = scene.records()
    things = records.collection("thing", Thing)
    await things.create(P, "a", Thing("a"), expires_at=1)
    async with records.changing(P, "thing", "a"):
        dropping = asyncio.ensure_future(records.drop_expired())
        updating = asyncio.ensure_future(things.update(P, "a", renamed("b"), expires_at=0))
        await asyncio.sleep(0)
        put = things.put("a", Thing("kept"))
        await records.append(P, "thing", "a", [put])
    assert await dropping == 0
    assert await updating is not None


async def test_a_state_of_another_shape_is_a_clear_error() -> None:
    scene = Scene()
    await begin(scene.journal, "br", [note("x")])
    broken = RecordPut("thing", "a", msgspec.Raw(b'{"title": "x"}'))
    await scene.journal.append(Append(P, "br", 0, [Draft(Kind.RECORD_PUT, encode(broken), 1)]))
    with pytest.raises(RecordUnreadable, match="newer version"):
        await scene.things().get(P, "a")
    assert issubclass(RecordUnreadable, StorageError)
    assert await scene.things().drop(P, "a")
