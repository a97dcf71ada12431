"""What every journal must derive of records from its entries. Part of journal_conformance."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.journal.entries import Frame, RecordDropped, RecordNoted, RecordPut, encode
from stateroom.journal.store import THIS, Append, Branch, Draft, RecordName, RecordPlace, RecordRow
from stateroom.testing.journal_stage import OTHER, Case, P, Stage, begin, draft, note, turn

BLOB: Final = "ab" * 32


def put(record_id: str, said: str = "x", *, at: int = 1_000, collection: str = "c", **more: Any) -> Draft:
    """An entry that says a record's state."""
    return draft(RecordPut(collection, record_id, _raw(said), **more), at=at)


async def a_record_is_what_was_put_last(stage: Stage) -> None:
    await begin(stage.store, "b", [put("r", "one", at=5, open=True, expires_at=70, blobs=[BLOB])])
    first = RecordRow("c", "r", "b", 0, _raw("one"), 5, 5, True, 70, P, [BLOB])
    assert await stage.store.record(P, "c", "r") == first
    await begin(stage.store, "elsewhere", [note("x"), put("r", "two", at=6)])
    latest = RecordRow("c", "r", "elsewhere", 1, _raw("two"), 5, 6, False, 0, P, [])
    assert await stage.store.record(P, "c", "r") == latest
    assert await stage.store.records(P, "c") == [latest]
    for project, collection, name in ((OTHER, "c", "r"), (P, "d", "r"), (P, "c", "s")):
        assert await stage.store.record(project, collection, name) is None


async def the_order_of_arrival_decides_and_not_the_clock(stage: Stage) -> None:
    await begin(stage.store, "b", [put("r", "late", at=9_000)])
    await begin(stage.store, "a", [put("r", "early", at=1)])
    row = await stage.store.record(P, "c", "r")
    assert row is not None
    assert (bytes(row.state), row.created_at, row.changed_at) == (b'"early"', 9_000, 1)
    await stage.store.append(Append(P, "b", 0, [put("r", "again", at=2), put("r", "last", at=3)]))
    row = await stage.store.record(P, "c", "r")
    assert row is not None
    assert (bytes(row.state), row.branch, row.seq) == (b'"last"', "b", 2)


async def a_dropped_record_is_gone_until_it_is_put_again(stage: Stage) -> None:
    await begin(stage.store, "b", [put("r", at=5, open=True, expires_at=9)])
    await begin(stage.store, "c", [draft(RecordDropped("c", "r"))])
    assert await stage.store.record(P, "c", "r") is None
    assert await stage.store.records(P, "c") == []
    assert await stage.store.open_records("c") == []
    assert await stage.store.expired_records(10) == []
    await stage.store.append(Append(P, "c", 0, [put("r", "anew", at=7)]))
    assert await stage.store.record(P, "c", "r") == RecordRow("c", "r", "c", 1, _raw("anew"), 7, 7, project=P)


async def an_erased_state_gives_way_to_the_one_before(stage: Stage) -> None:
    await begin(stage.store, "b", [put("r", "0", open=True), put("r", "1", expires_at=5), put("r", "2")])
    for seq, said, open in ((2, "1", False), (1, "0", True)):
        await stage.store.redact(P, "b", {seq: None}, at=5)
        row = await stage.store.record(P, "c", "r")
        assert row is not None
        assert (row.state, row.open, row.seq) == (_raw(said), open, seq - 1)
    assert [row.id for row in await stage.store.open_records("c")] == ["r"]
    await stage.store.redact(P, "b", {0: None}, at=5)
    assert await stage.store.record(P, "c", "r") is None
    assert await stage.store.open_records("c") == []


async def an_erased_first_state_leaves_the_age_to_the_next(stage: Stage) -> None:
    await begin(stage.store, "b", [put("r", at=1), put("s", at=2), put("r", at=3)])
    await stage.store.redact(P, "b", {0: None}, at=5)
    assert [(row.id, row.created_at) for row in await stage.store.records(P, "c")] == [("r", 3), ("s", 2)]


async def a_rewritten_state_is_the_state(stage: Stage) -> None:
    await begin(stage.store, "b", [put("r", "long " * 50, open=True), put("s")])
    await stage.store.redact(P, "b", {0: encode(RecordPut("c", "r", _raw("short"), expires_at=4))}, at=5)
    row = await stage.store.record(P, "c", "r")
    assert row is not None
    assert (row.state, row.open, row.expires_at) == (_raw("short"), False, 4)
    assert await stage.store.open_records("c") == []


async def records_are_listed_by_the_age_of_their_first_state(stage: Stage) -> None:
    names = [f"r{9 - number}" for number in range(6)]
    for name in names:
        await begin(stage.store, name, [put(name)])
    await begin(stage.store, "later", [put(names[0], "later"), put("x", collection="d")])
    await begin(stage.store, "foreign", [put("foreign")], project=OTHER)

    async def listed(**which: Any) -> list[str]:
        return [row.id for row in await stage.store.records(P, "c", **which)]

    assert await listed() == names[::-1]
    assert await listed(descending=False, limit=2) == names[:2]
    assert await listed(after=names[3], limit=2) == [names[2], names[1]]
    assert await listed(after=names[3], descending=False) == names[4:]
    assert await listed(before=names[3]) == [names[5], names[4]]
    assert await listed(after=names[1], before=names[4], descending=False) == [names[2], names[3]]
    assert await listed(before="none") == []
    assert await listed(after="none") == []
    assert await listed(after="foreign") == []
    assert await listed(after="x") == []
    assert await stage.store.records("nobody", "c") == []


async def open_and_expired_records_are_those_of_every_project(stage: Stage) -> None:
    await begin(stage.store, "a", [put("late", expires_at=9), put("soon", expires_at=3), put("open", open=True)])
    await begin(stage.store, "b", [put("theirs", open=True, expires_at=5)], project=OTHER)
    await begin(stage.store, "d", [put("x", collection="d", open=True, expires_at=4), put("never")])
    assert [(row.project, row.id) for row in await stage.store.open_records("c")] == [(P, "open"), (OTHER, "theirs")]
    assert [row.id for row in await stage.store.expired_records(5)] == ["soon", "x", "theirs"]
    assert [row.id for row in await stage.store.expired_records(9, limit=2)] == ["soon", "x"]
    assert await stage.store.expired_records(2) == []
    await stage.store.append(Append(P, "a", 2, [put("open"), put("soon", expires_at=30)]))
    assert [row.id for row in await stage.store.open_records("c")] == ["theirs"]
    assert [row.id for row in await stage.store.expired_records(9)] == ["x", "theirs", "late"]


async def all_that_is_said_of_a_record_has_its_places(stage: Stage) -> None:
    noted = draft(RecordNoted("c", "r", _raw("n")))
    await begin(stage.store, "b", [put("r"), noted, put("other"), put("r")])
    await begin(stage.store, "d", [noted])
    places = [
        RecordPlace("b", 0, False, False),
        RecordPlace("b", 3, False, False),
        RecordPlace("b", 1, True, False),
        RecordPlace("d", 0, True, False),
    ]
    assert await stage.store.record_places(P, "c", "r") == places
    assert await stage.store.record_places(OTHER, "c", "r") == []
    await stage.store.redact(P, "b", {0: None, 1: None}, at=5)
    assert await stage.store.record_places(P, "c", "r") == [places[1], places[3]]
    assert await stage.store.unerased_records() == []


async def what_a_dropped_record_said_is_known_until_it_is_erased(stage: Stage) -> None:
    dropped, noted = draft(RecordDropped("c", "r")), draft(RecordNoted("c", "r", _raw("n")))
    await begin(stage.store, "b", [put("r"), noted, dropped, put("r")])
    await begin(stage.store, "d", [draft(RecordDropped("c", "never there")), put("s")], project=OTHER)
    assert await stage.store.unerased_records() == [RecordName(P, "c", "r")]
    places = await stage.store.record_places(P, "c", "r")
    assert [(place.seq, place.gone) for place in places] == [(0, True), (3, False), (1, True)]
    await stage.store.redact(P, "b", {0: None}, at=5)
    assert await stage.store.unerased_records() == [RecordName(P, "c", "r")]
    await stage.store.redact(P, "b", {1: None}, at=5)
    assert await stage.store.unerased_records() == []
    assert await stage.store.record_places(P, "c", "r") == [RecordPlace("b", 3, False, False)]
    assert await stage.store.record(P, "c", "r") is not None


async def notes_are_read_by_arrival_between_marks(stage: Stage) -> None:
    noted = [draft(RecordNoted("c", "r", _raw(said)), at=at) for said, at in zip("01234", (9, 3, 5, 5, 1), strict=True)]
    await begin(stage.store, "b", [put("r"), noted[0], put("other"), noted[1]])
    await begin(stage.store, "d", [noted[2], draft(RecordNoted("c", "other", _raw("x")))])
    await stage.store.append(Append(P, "b", 3, noted[3:]))
    rows = await stage.store.record_notes(P, "c", "r", descending=False)
    assert [(bytes(row.note), row.at) for row in rows] == [
        (b'"%d"' % said, at) for said, at in enumerate((9, 3, 5, 5, 1))
    ]
    marks = [row.mark for row in rows]
    assert marks == sorted(set(marks))
    assert await stage.store.record_notes(P, "c", "r") == rows[::-1]
    assert await stage.store.record_notes(P, "c", "r", limit=2) == rows[:2:-1]
    assert await stage.store.record_notes(P, "c", "r", before=marks[3], limit=2) == rows[2:0:-1]
    assert await stage.store.record_notes(P, "c", "r", after=marks[1], before=marks[4]) == rows[3:1:-1]
    assert await stage.store.record_notes(P, "c", "r", after=marks[1], limit=2, descending=False) == rows[2:4]
    assert await stage.store.record_notes(P, "c", "r", after=marks[4]) == []
    for project, collection, name in ((OTHER, "c", "r"), (P, "d", "r"), (P, "c", "s"), ("nobody", "c", "r")):
        assert await stage.store.record_notes(project, collection, name) == []
    await stage.store.redact(P, "b", {3: None, 5: None}, at=5)
    assert await stage.store.record_notes(P, "c", "r") == [rows[3], rows[2], rows[0]]


async def notes_from_before_a_drop_are_not_of_the_record_that_is_put_again(stage: Stage) -> None:
    noted = draft(RecordNoted("c", "r", _raw("old")))
    await begin(stage.store, "b", [put("r"), noted, noted, draft(RecordDropped("c", "r"))])
    assert await stage.store.record_notes(P, "c", "r") == []
    await stage.store.append(Append(P, "b", 3, [put("r"), draft(RecordNoted("c", "r", _raw("new")))]))
    for descending in (True, False):
        found = await stage.store.record_notes(P, "c", "r", descending=descending)
        assert [bytes(row.note) for row in found] == [b'"new"']
    await stage.store.redact(P, "b", {0: None, 1: None, 2: None}, at=5)
    assert [bytes(row.note) for row in await stage.store.record_notes(P, "c", "r")] == [b'"new"']


async def a_blob_of_a_record_is_in_use_until_it_is_erased(stage: Stage) -> None:
    noted = draft(RecordNoted("c", "r", _raw("n"), ["cd" * 32]))
    await begin(stage.store, "b", [put("r", blobs=[BLOB]), noted, draft(RecordDropped("c", "r"))])
    assert await stage.store.blob_in_use(BLOB)
    assert await stage.store.blob_in_use("cd" * 32)
    await stage.store.redact(P, "b", {0: None, 1: None}, at=5)
    assert not await stage.store.blob_in_use(BLOB)
    assert not await stage.store.blob_in_use("cd" * 32)


async def erasing_a_record_leaves_the_run_that_it_was_committed_with(stage: Stage) -> None:
    drafts = turn("resp_1")
    record = msgspec.structs.replace(put("r"), run=THIS)
    frame = Frame(0, 3, b"events")
    change = Append(P, "b", -1, [drafts[0], record, *drafts[1:]], create=Branch("b", P), frames_run=THIS)
    await stage.store.append(msgspec.structs.replace(change, frames=[frame]))
    await stage.store.redact(P, "b", {1: None}, at=5)
    assert await stage.store.record(P, "c", "r") is None
    assert await stage.store.frames(P, "b", 0) == [frame]


async def records_found_anew_are_the_same(stage: Stage) -> None:
    # On two branches by turns: a rebuild reads branch by branch, and the latest has to win all the same.
    await begin(stage.store, "b", [put("r", "0", open=True), put("s", "0"), put("t")])
    await begin(stage.store, "d", [put("r", "1"), draft(RecordDropped("c", "s")), put("u", expires_at=5)])
    await stage.store.append(Append(P, "b", 2, [put("r", "2", expires_at=4), put("s", "1", open=True)]))
    await stage.store.append(
        Append(P, "d", 2, [draft(RecordDropped("c", "t")), draft(RecordNoted("c", "u", _raw("")))])
    )
    await stage.store.redact(P, "b", {3: None}, at=5)

    async def found() -> list[Any]:
        store = stage.store
        rows = [await store.records(P, "c"), await store.open_records("c"), await store.expired_records(9)]
        names = ("r", "s", "t", "u")
        return [*rows, *[await store.record_places(P, "c", name) for name in names], await store.unerased_records()]

    before = await found()
    assert [row.id for row in before[0]] == ["s", "u", "r"]
    await stage.store.rebuild()
    after = await found()
    assert sorted(after.pop(), key=repr) == sorted(before.pop(), key=repr)
    assert after == before


def _raw(said: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(said))


CASES: Final[tuple[Case, ...]] = (
    a_record_is_what_was_put_last,
    the_order_of_arrival_decides_and_not_the_clock,
    a_dropped_record_is_gone_until_it_is_put_again,
    an_erased_state_gives_way_to_the_one_before,
    an_erased_first_state_leaves_the_age_to_the_next,
    a_rewritten_state_is_the_state,
    records_are_listed_by_the_age_of_their_first_state,
    open_and_expired_records_are_those_of_every_project,
    all_that_is_said_of_a_record_has_its_places,
    what_a_dropped_record_said_is_known_until_it_is_erased,
    notes_are_read_by_arrival_between_marks,
    notes_from_before_a_drop_are_not_of_the_record_that_is_put_again,
    a_blob_of_a_record_is_in_use_until_it_is_erased,
    erasing_a_record_leaves_the_run_that_it_was_committed_with,
    records_found_anew_are_the_same,
)
