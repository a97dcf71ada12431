"""What every journal must derive from its entries: runs, items, conversations, blobs. Part of journal_conformance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from stateroom.journal.entries import (
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    Frame,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunSettings,
    RunStarted,
    encode,
)
from stateroom.journal.store import THIS, Append, Branch, ConversationRow, ItemRow, RunRow
from stateroom.testing.journal_stage import OTHER, Case, P, Stage, Store, begin, draft, note, started, turn

BLOB: Final = "ab" * 32
COLLECTIONS: Final = ("c0", "c1")


async def index_answers(
    store: Store, projects: Iterable[str], branches: Iterable[str], names: Iterable[str]
) -> dict[str, Any]:
    """Everything that the index says about these: two stores with the same history answer the same."""
    found: dict[str, Any] = {"open": await store.open_runs()}
    for project in projects:
        found[f"{project}: runs"] = await store.runs(project, limit=10_000)
        found[f"{project}: conversations"] = await store.conversations(project, limit=10_000)
        for branch in branches:
            found[f"{project}: runs on {branch}"] = await store.runs_on(project, branch)
            found[f"{project}: children of {branch}"] = await store.children(project, branch)
        for name in names:
            found[f"{project}: run {name}"] = await store.run(project, name)
            found[f"{project}: item {name}"] = await store.item(project, name)
            found[f"{project}: conversation {name}"] = await store.conversation(project, name)
        for collection in COLLECTIONS:
            found[f"{project}: {collection}"] = await store.records(project, collection, limit=10_000)
            for name in names:
                found[f"{project}: {collection} {name}"] = await store.record(project, collection, name)
                found[f"{project}: places of {collection} {name}"] = await store.record_places(
                    project, collection, name
                )
                noted = await store.record_notes(project, collection, name, limit=10_000)
                found[f"{project}: notes of {collection} {name}"] = [(row.at, bytes(row.note)) for row in noted]
    for collection in COLLECTIONS:
        found[f"open {collection}"] = await store.open_records(collection)
    found["unerased"] = sorted(await store.unerased_records(), key=repr)
    found["expired"] = await store.expired_records(7)
    for project in projects:
        found[f"{project}: ended"] = await store.ended_runs(project, 10_000, limit=10_000)
        for branch in branches:
            found[f"{project}: needed of {branch}"] = [await store.needed(project, branch, since) for since in (0, 7)]

    for name in names:
        found[f"blob {name}"] = await store.blob_in_use(name)
    return found


async def a_run_is_found_by_its_id(stage: Stage) -> None:
    await begin(stage.store, "b", [note("x"), started("resp_1", at=55)])
    row = RunRow("resp_1", "b", 1, -1, "in_progress", "responses", 55, P)
    assert await stage.store.run(P, "resp_1") == row
    assert await stage.store.run(OTHER, "resp_1") is None
    assert await stage.store.run(P, "resp_2") is None
    await stage.store.append(Append(P, "b", 1, [draft(RunEnded("incomplete", reason="max_output_tokens"), run=1)]))
    ended = RunRow("resp_1", "b", 1, 2, "incomplete", "responses", 55, P)
    assert await stage.store.run(P, "resp_1") == ended
    assert await stage.store.runs_on(P, "b") == [ended]


async def runs_of_one_surface_are_listed_without_the_others(stage: Stage) -> None:
    for number, surface in enumerate(("responses", "chat", "telegraph", "chat")):
        name = f"{surface}{number}"
        first = draft(RunStarted(name, RunSettings(), [], surface=surface), run=THIS)
        await begin(stage.store, f"b{number}", [first])

    async def listed(surface: str, after: str = "", *, before: str = "", descending: bool = False) -> list[str]:
        rows = await stage.store.runs(P, surface=surface, after=after, before=before, descending=descending)
        return [row.id for row in rows]

    assert await listed("chat") == ["chat1", "chat3"]
    assert await listed("chat", descending=True) == ["chat3", "chat1"]
    assert await listed("chat", "chat1") == ["chat3"]
    assert await listed("chat", "responses0") == ["chat1", "chat3"]
    assert await listed("chat", before="telegraph2") == ["chat1"]
    assert await listed("chat", "responses0", before="chat3") == ["chat1"]
    assert await listed("telegraph") == ["telegraph2"]
    assert await listed("smoke") == []
    assert len(await listed("")) == 4


async def words_that_nobody_foresaw_are_kept(stage: Stage) -> None:
    first = draft(RunStarted("r", RunSettings(), [], surface="telegraph"), run=THIS)
    await begin(stage.store, "b", [first, draft(RunEnded("dissolved"), run=THIS)])
    row = await stage.store.run(P, "r")
    assert row is not None
    assert (row.surface, row.status) == ("telegraph", "dissolved")


async def runs_are_listed_by_age(stage: Stage) -> None:
    # Created within one millisecond and on three branches: age is the order of arrival.
    for number in range(9):
        branch = f"b{number % 3}"
        head = (number // 3) * 3 - 1
        create = Branch(branch, P) if number < 3 else None
        await stage.store.append(Append(P, branch, head, turn(f"resp_{9 - number}"), create=create))
    await begin(stage.store, "other", turn("resp_other"), project=OTHER)
    names = [f"resp_{9 - number}" for number in range(9)]
    assert await _ids(stage, limit=100, descending=False) == names
    assert await _ids(stage, limit=100) == names[::-1]
    assert await _ids(stage, limit=3) == names[:-4:-1]
    assert await _ids(stage, after=names[4], limit=2) == [names[3], names[2]]
    assert await _ids(stage, after=names[4], limit=2, descending=False) == [names[5], names[6]]
    assert await _ids(stage, after=names[0]) == []
    assert await _ids(stage, before=names[6]) == [names[8], names[7]]
    assert await _ids(stage, before=names[6], limit=1) == [names[8]]
    assert await _ids(stage, after=names[7], before=names[3]) == [names[6], names[5], names[4]]
    assert await _ids(stage, after=names[1], before=names[4], descending=False) == [names[2], names[3]]
    assert await _ids(stage, after=names[3], before=names[7]) == []
    assert await _ids(stage, before=names[4], after=names[4]) == []
    assert await _ids(stage, before="resp_other") == []
    assert await _ids(stage, after="resp_other") == []
    assert [row.id for row in await stage.store.runs(OTHER)] == ["resp_other"]


async def open_runs_are_those_without_an_end(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1"))
    await begin(stage.store, "c", [started("resp_2")])
    await begin(stage.store, "d", [started("resp_3")], project=OTHER)
    assert [(row.id, row.project) for row in await stage.store.open_runs()] == [("resp_2", P), ("resp_3", OTHER)]
    await stage.store.append(Append(P, "c", 0, [draft(RunEnded("cancelled"), run=0)]))
    assert [row.id for row in await stage.store.open_runs()] == ["resp_3"]


async def an_item_with_its_own_id_is_found(stage: Stage) -> None:
    own = {"id": "msg_own", "role": "user", "content": "x"}
    other = {"id": "msg_two", "role": "user", "content": "y"}
    await begin(stage.store, "b", [note("x", key="KEY"), started("resp_1", {"role": "user", "content": "-"}, own)])
    output = draft(ItemFinished(3, {"id": "fc_1", "type": "function_call"}), run=1)
    await stage.store.append(Append(P, "b", 1, [output, draft(ItemsAdded("K2", [own, other]))]))
    assert await stage.store.item(P, "KEY") == ItemRow("KEY", "b", 0, 0)
    assert await stage.store.item(P, "fc_1") == ItemRow("fc_1", "b", 2, 0)
    assert await stage.store.item(P, "msg_two") == ItemRow("msg_two", "b", 3, 1)
    assert await stage.store.item(P, "msg_own") == ItemRow("msg_own", "b", 3, 0)
    assert await stage.store.item(OTHER, "msg_own") is None
    assert await stage.store.item(P, "msg_none") is None


async def the_latest_place_of_an_item_wins(stage: Stage) -> None:
    item = {"id": "m", "role": "user", "content": "x"}
    await begin(stage.store, "late", [note("first")])
    await begin(stage.store, "early", [draft(ItemsAdded("k", [item]), at=9_000)])
    await stage.store.append(Append(P, "late", 0, [draft(ItemsAdded("k", [item, item]), at=1)]))
    await begin(stage.store, "foreign", [draft(ItemsAdded("k", [item]))], project=OTHER)
    assert await stage.store.item(P, "m") == ItemRow("m", "late", 1, 1)
    await stage.store.redact(P, "late", {1: None}, at=5)
    assert await stage.store.item(P, "m") == ItemRow("m", "early", 0, 0)


async def a_conversation_lives_from_its_creation_to_its_deletion(stage: Stage) -> None:
    created = ConversationCreated("conv_1", {"topic": "x"}, forked_from="conv_0")
    await begin(stage.store, "b", [draft(created, at=66)])
    row = ConversationRow("conv_1", "b", 66, {"topic": "x"}, "conv_0")
    assert await stage.store.conversation(P, "conv_1") == row
    assert await stage.store.conversation(OTHER, "conv_1") is None
    await stage.store.append(Append(P, "b", 0, [draft(ConversationUpdated({"topic": "y", "n": "1"}))]))
    row = ConversationRow("conv_1", "b", 66, {"topic": "y", "n": "1"}, "conv_0")
    assert await stage.store.conversation(P, "conv_1") == row
    assert await stage.store.conversations(P) == [row]
    await stage.store.append(Append(P, "b", 1, [draft(ConversationDeleted("conv_1"))]))
    assert await stage.store.conversation(P, "conv_1") is None
    assert await stage.store.conversations(P) == []


async def conversations_are_listed_by_age(stage: Stage) -> None:
    names = [f"conv_{9 - number}" for number in range(6)]
    for name in names:
        await begin(stage.store, f"branch {name}", [draft(ConversationCreated(name))])
    listed = stage.store.conversations
    assert [row.id for row in await listed(P)] == names[::-1]
    assert [row.id for row in await listed(P, descending=False, limit=2)] == names[:2]
    assert [row.id for row in await listed(P, after=names[3], limit=2)] == [names[2], names[1]]
    assert [row.id for row in await listed(P, after=names[3], descending=False)] == names[4:]
    assert await listed(P, after="conv_none") == []
    assert [row.id for row in await listed(P, before=names[3])] == [names[5], names[4]]
    assert [row.id for row in await listed(P, after=names[0], before=names[2], descending=False)] == [names[1]]
    assert await listed(P, before="conv_none") == []
    assert await listed(OTHER) == []


async def children_are_the_direct_forks(stage: Stage) -> None:
    await begin(stage.store, "a", [note("0"), note("1")])
    for name, parent, seq in (("c", "a", 1), ("b", "a", 0), ("d", "b", 0)):
        await stage.store.append(Append(P, name, seq, [note(name)], create=Branch(name, P, parent, seq)))
    assert await stage.store.children(P, "a") == [Branch("c", P, "a", 1, 2), Branch("b", P, "a", 0, 1)]
    assert [child.id for child in await stage.store.children(P, "b")] == ["d"]
    assert await stage.store.children(P, "d") == []
    assert await stage.store.children(OTHER, "a") == []


async def a_blob_is_in_use_while_an_entry_refers_to_it(stage: Stage) -> None:
    part = {"type": "input_image", "blob": BLOB}
    item = {"role": "user", "content": [part, part, {"type": "input_file", "blob": "not a digest"}]}
    settings = RunSettings(tools_blob="cd" * 32, instructions_blob="ef" * 32)
    first = draft(RunStarted("resp_1", settings, [item]), run=THIS)
    await begin(stage.store, "b", [first, draft(ItemsAdded("k", [item]))])
    await begin(stage.store, "c", [draft(ItemFinished(0, {"type": "x", "output": [part]}))], project=OTHER)
    for digest in (BLOB, "cd" * 32, "ef" * 32, "not a digest"):
        assert await stage.store.blob_in_use(digest), digest
    assert not await stage.store.blob_in_use(BLOB.upper())
    await stage.store.redact(P, "b", {0: None, 1: encode(ItemsAdded("k", [{"type": "erased"}]))}, at=5)
    assert not await stage.store.blob_in_use("cd" * 32)
    assert not await stage.store.blob_in_use("not a digest")
    assert await stage.store.blob_in_use(BLOB)
    await stage.store.redact(OTHER, "c", {0: None}, at=5)
    assert not await stage.store.blob_in_use(BLOB)


async def an_erased_run_is_not_found(stage: Stage) -> None:
    await begin(stage.store, "b", [*turn("resp_1"), started("resp_2")])
    await stage.store.redact(P, "b", {0: None, 3: None}, at=5)
    assert await stage.store.run(P, "resp_1") is None
    assert await stage.store.runs(P) == []
    assert await stage.store.runs_on(P, "b") == []
    assert await stage.store.open_runs() == []


async def a_rewritten_run_keeps_its_end(stage: Stage) -> None:
    await begin(stage.store, "b", turn("resp_1", at=7))
    await stage.store.redact(P, "b", {0: encode(RunStarted("resp_1", RunSettings(), [], surface="agents"))}, at=5)
    row = RunRow("resp_1", "b", 0, 2, "completed", "agents", 7, P)
    assert await stage.store.run(P, "resp_1") == row
    await stage.store.redact(P, "b", {2: encode(RunEnded("failed"))}, at=5)
    assert (await stage.store.runs_on(P, "b"))[0].status == "failed"


async def an_erased_update_gives_way_to_the_one_before(stage: Stage) -> None:
    entries = [draft(ConversationCreated("conv", {"n": "0"})), draft(ConversationUpdated({"n": "1"}))]
    await begin(stage.store, "b", [*entries, draft(ConversationUpdated({"n": "2"}))])
    for seq, metadata in ((2, {"n": "1"}), (1, {"n": "0"})):
        await stage.store.redact(P, "b", {seq: None}, at=5)
        row = await stage.store.conversation(P, "conv")
        assert row is not None
        assert row.metadata == metadata
    await stage.store.redact(P, "b", {0: None}, at=5)
    assert await stage.store.conversation(P, "conv") is None


async def the_branches_of_a_project_are_listed(stage: Stage) -> None:
    store = stage.store
    await begin(store, "a", turn("resp_1"))
    await begin(store, "strange", turn("resp_2"), project=OTHER)
    await store.append(Append(P, "b", 2, [note("x")], create=Branch("b", P, "a", 2)))
    await begin(store, "c", [note("y")])
    first, second = Branch("a", P, head=2), Branch("b", P, "a", 2, 3)
    third = Branch("c", P, head=0)
    assert await store.branches(P) == [first, second, third]
    assert await store.branches(P, after="a", limit=1) == [second]
    assert await store.branches(P, after="c") == []
    assert await store.branches(P, after="strange") == []
    assert [branch.id for branch in await store.branches(OTHER)] == ["strange"]


async def ended_runs_are_listed_by_age(stage: Stage) -> None:
    store = stage.store
    await begin(store, "slow", [started("resp_slow", at=10)])
    await begin(store, "talk", [draft(ConversationCreated("conv")), *turn("resp_talk", at=30)])
    await begin(store, "quick", turn("resp_quick", at=20))
    await begin(store, "same", turn("resp_same", at=20))
    await begin(store, "strange", turn("resp_strange", at=20), project=OTHER)
    await store.append(Append(P, "slow", 0, [draft(RunEnded("completed"), run=0, at=40)]))

    async def ended(upto: int, **more: Any) -> list[tuple[str, int, int, int, bool]]:
        rows = await store.ended_runs(P, upto, **more)
        return [(row.branch, row.start, row.end, row.ended_at, row.conversation) for row in rows]

    quick, same = ("quick", 0, 2, 20, False), ("same", 0, 2, 20, False)
    talk, slow = ("talk", 1, 3, 30, True), ("slow", 0, 1, 40, False)
    assert await ended(19) == []
    assert await ended(20) == [quick, same]
    assert await ended(39) == [talk, quick, same]
    assert await ended(40) == [slow, talk, quick, same]
    assert await ended(40, limit=1) == [slow]
    first = (await store.ended_runs(P, 39, limit=1))[0].mark
    assert await ended(40, after=first) == [quick, same]
    await store.redact(P, "quick", dict.fromkeys(range(3)), at=50)
    assert await ended(40, after=first) == [same]
    assert await ended(40) == [slow, talk, same]
    await store.append(Append(P, "talk", 3, [draft(ConversationDeleted("conv"))]))
    assert await ended(30) == [("talk", 1, 3, 30, False), same]
    assert await store.projects() == [P, OTHER]


async def a_branch_is_needed_as_far_as_what_lives_on_it(stage: Stage) -> None:
    store = stage.store
    await begin(store, "b", turn("resp_1", at=10))
    await store.append(Append(P, "b", 2, turn("resp_2", at=20)))
    await store.append(Append(P, "c", 2, turn("resp_3", at=30), create=Branch("c", P, "b", 2)))
    assert [await store.needed(P, "b", since) for since in (5, 10, 19, 20)] == [5, 5, 5, -1]
    assert [await store.needed(P, "c", since) for since in (29, 30)] == [5, -1]
    assert [await store.needed(project, branch, 0) for project, branch in ((OTHER, "b"), (P, "x"))] == [-1, -1]
    await store.append(Append(P, "c", 5, [started("resp_4", at=40)]))
    assert await store.needed(P, "c", 1_000) == 6
    await begin(store, "talk", [draft(ConversationCreated("conv")), *turn("resp_5", at=10), note("x")])
    assert await store.needed(P, "talk", 1_000) == 4
    await store.append(Append(P, "talk", 4, [draft(ConversationDeleted("conv"))]))
    assert await store.needed(P, "talk", 1_000) == -1


async def streams_are_listed_while_they_are_kept(stage: Stage) -> None:
    store = stage.store
    frames: dict[str, Any] = {"frames_run": THIS, "frames": [Frame(0, 9, b"x")], "seal": True}
    await begin(store, "a", turn("resp_1", at=10), **frames)
    await begin(store, "b", turn("resp_2", at=20), project=OTHER, **frames)
    await begin(store, "c", turn("resp_3", at=30))
    await begin(store, "d", turn("resp_4", at=40), **frames)
    kept = await store.kept_streams()
    assert [(row.project, row.branch, row.start, row.end, row.ended_at) for row in kept] == [
        (P, "a", 0, 2, 10),
        (OTHER, "b", 0, 2, 20),
        (P, "d", 0, 2, 40),
    ]
    assert await store.kept_streams(limit=1) == kept[:1]
    assert await store.kept_streams(after=kept[0].mark) == kept[1:]
    await store.append(Append(P, "a", None, frames_run=0, seal=True))
    await store.redact(OTHER, "b", {0: None, 1: None, 2: None}, at=50)
    assert await store.kept_streams() == kept[2:]


async def an_index_built_anew_answers_the_same(stage: Stage) -> None:
    item = {"id": "m", "role": "user", "content": [{"type": "input_image", "blob": BLOB}]}
    created = draft(ConversationCreated("conv", {"n": "0"}))
    await begin(stage.store, "b", [created, *turn("resp_1"), draft(ConversationUpdated({"n": "1"}))])
    await stage.store.append(Append(P, "c", 2, [started("resp_2", item)], create=Branch("c", P, "b", 2)))
    await begin(stage.store, "d", [draft(ItemsAdded("k", [item])), *turn("resp_3")], project=OTHER)
    await stage.store.redact(P, "b", {2: None}, at=5)
    asked = ((P, OTHER), ("b", "c", "d"), ("resp_1", "resp_2", "resp_3", "conv", "m", "k", BLOB))
    before = await index_answers(stage.store, *asked)
    await stage.store.rebuild()
    assert await index_answers(stage.store, *asked) == before


async def _ids(stage: Stage, **which: Any) -> list[str]:
    return [row.id for row in await stage.store.runs(P, **which)]


CASES: Final[tuple[Case, ...]] = (
    a_run_is_found_by_its_id,
    words_that_nobody_foresaw_are_kept,
    runs_of_one_surface_are_listed_without_the_others,
    runs_are_listed_by_age,
    open_runs_are_those_without_an_end,
    an_item_with_its_own_id_is_found,
    the_latest_place_of_an_item_wins,
    a_conversation_lives_from_its_creation_to_its_deletion,
    conversations_are_listed_by_age,
    children_are_the_direct_forks,
    a_blob_is_in_use_while_an_entry_refers_to_it,
    an_erased_run_is_not_found,
    a_rewritten_run_keeps_its_end,
    the_branches_of_a_project_are_listed,
    ended_runs_are_listed_by_age,
    a_branch_is_needed_as_far_as_what_lives_on_it,
    streams_are_listed_while_they_are_kept,
    an_erased_update_gives_way_to_the_one_before,
    an_index_built_anew_answers_the_same,
)
