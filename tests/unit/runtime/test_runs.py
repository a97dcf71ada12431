"""Runs from the outside: chains and conversations, other people's ids, runs that were left open."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
import pytest

from stateroom.errors import BackendUnavailable, InvalidRequest, NotFound, StateroomError, StorageError, StorageFull
from stateroom.journal.entries import ItemFinished, RunEnded
from stateroom.journal.memory import MemoryJournal
from stateroom.models.backend import TextDelta
from stateroom.runtime.runs import RunRequest
from stateroom.runtime.takeup import _NotBack, _pause
from stateroom.settings import Limits
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan
from stateroom.wire.responses import render_response
from tests.unit.runtime.stage import (
    MovedClock,
    PlayedBackend,
    RunSettings,
    Stage,
    answer_of,
    says,
    text_of,
    until,
    user,
)


async def branch_count(stage: Stage) -> int:
    return len(stage.journal._lines)


async def test_a_chain_stays_on_one_branch_and_two_children_of_one_response_fork() -> None:
    stage = Stage()
    first = await stage.ask("1")
    second = await stage.ask("2", previous=first.id)
    assert await branch_count(stage) == 1
    third = await stage.ask("2b", previous=first.id)
    assert await branch_count(stage) == 2
    await stage.ask("3", previous=second.id)
    await stage.ask("3b", previous=third.id)
    assert await branch_count(stage) == 2
    asked = [each.texts() for each in stage.backend.asked]
    assert asked[3] == ["1", "ok", "2", "ok", "3"]
    assert asked[4] == ["1", "ok", "2b", "ok", "3b"]


async def test_a_chain_that_was_dropped_from_memory_goes_on_on_its_branch() -> None:
    stage = Stage(memory_bytes=1)
    run = await stage.ask("0")
    for number in range(1, 6):
        await stage.ask("elsewhere")
        run = await stage.ask(str(number), previous=run.id)
    assert run.branch.branch == (await stage.journal.run("p", run.id)).branch
    assert stage.backend.asked[-1].texts() == ["0", "ok", "1", "ok", "2", "ok", "3", "ok", "4", "ok", "5"]
    assert await branch_count(stage) == 6


async def test_a_fork_of_a_conversation_goes_on_on_its_own_branch_even_when_it_is_loaded_anew() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    said = await stage.ask("in it", conversation=conversation.id)
    run = await stage.ask("beside it", previous=said.id)
    later = Stage(journal=stage.journal, clock=stage.clock)
    before = await branch_count(later)
    for number in range(3):
        run = await later.ask(str(number), previous=run.id)
    assert await branch_count(later) == before
    assert len(await stage.conversations.items("p", conversation.id)) == 2


async def test_what_another_project_owns_looks_like_what_is_not_there() -> None:
    stage = Stage()
    run = await stage.ask("secret")
    gate = asyncio.Event()
    stage.backend.answers.append([[TextDelta("half")], gate])
    live = await stage.start("live", background=True)
    conversation = await stage.conversations.create("p", metadata={}, items=[user("secret")])
    item = (await stage.conversations.items("p", conversation.id))[0]

    async def same(call: Any, **named: str) -> None:
        errors = []
        for identifier in (named["theirs"], named["nobodys"]):
            with pytest.raises(StateroomError) as refused:
                await call("other", identifier)
            errors.append((refused.value.status, refused.value.code, refused.value.message.replace(identifier, "ID")))
        assert errors[0] == errors[1]

    for theirs in (run.id, live.id):
        for call in (
            stage.runs.view,
            stage.runs.delete,
            stage.runs.cancel,
            stage.runs.input_items,
            lambda project, identifier: stage.runs.follow(project, identifier, after=-1),
            lambda project, identifier: stage.conversations.fork_chain(project, identifier, {}),
            lambda project, identifier: stage.start("x", project=project, previous=identifier),
        ):
            await same(call, theirs=theirs, nobodys="resp_nobody")
    for call in (
        stage.conversations.get,
        stage.conversations.delete,
        stage.conversations.items,
        stage.conversations.fork,
        lambda project, identifier: stage.conversations.update(project, identifier, {}),
        lambda project, identifier: stage.conversations.add_items(project, identifier, [user("x")]),
        lambda project, identifier: stage.conversations.delete_item(project, identifier, item.id),
        lambda project, identifier: stage.conversations.item(project, identifier, item.id),
        lambda project, identifier: stage.start("x", project=project, conversation=identifier),
    ):
        await same(call, theirs=conversation.id, nobodys="conv_nobody")
    reference = [{"type": "item_reference", "id": item.id}]
    with pytest.raises(NotFound):
        await stage.start(reference, project="other")
    assert await stage.runs.page("other", after="", limit=5, descending=True) == []
    with pytest.raises(InvalidRequest, match="no response with id"):
        await stage.runs.page("other", after=run.id, limit=5, descending=True)
    assert await stage.conversations.page("other", after="", limit=5, descending=True) == []
    assert (await stage.runs.view("p", run.id)).status == "completed"
    await stage.runs.cancel("p", live.id)


async def test_an_unstored_run_can_be_found_by_nobody_and_leaves_nothing() -> None:
    stage = Stage()
    gate = asyncio.Event()
    stage.backend.answers.append([[TextDelta("half")], gate, *says("whole")])
    run = await stage.start("secret", store=False)
    for call in (stage.runs.view, stage.runs.delete, stage.runs.cancel):
        with pytest.raises(NotFound):
            await call("p", run.id)
    with pytest.raises(InvalidRequest):
        await stage.start("x", previous=run.id)
    gate.set()
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert answer_of(run) == "halfwhole"
    assert stage.journal._lines == {}
    assert stage.ephemeral._lines == {}
    assert stage.blobs._kept == {}
    with pytest.raises(InvalidRequest) as refused:
        await stage.start("x", store=False, conversation="conv_x")
    assert refused.value.param == "store"


async def test_an_unstored_run_can_continue_a_stored_one_and_does_not_change_it() -> None:
    stage = Stage()
    first = await stage.ask("1")
    await stage.ask("2", previous=first.id, store=False)
    assert stage.backend.asked[1].texts() == ["1", "ok", "2"]
    await stage.ask("3", previous=first.id)
    assert stage.backend.asked[2].texts() == ["1", "ok", "3"]
    assert await branch_count(stage) == 1


async def test_a_response_in_progress_cannot_be_continued() -> None:
    stage = Stage()
    gate = asyncio.Event()
    stage.backend.answers.append([gate, *says("done")])
    run = await stage.start("1", background=True)
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            await stage.start("2", previous=run.id)
        assert refused.value.code == "previous_response_in_progress"
    await stage.give_up(run)
    with pytest.raises(InvalidRequest) as refused:
        await stage.start("2", previous=run.id)
    assert refused.value.code == "previous_response_in_progress"


async def test_a_request_that_is_refused_leaves_its_conversation_usable_and_in_memory() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[user("first")])
    active = await stage.branches.open("p", (await stage.journal.conversation("p", conversation.id)).branch)
    for _ in range(3):
        with pytest.raises(NotFound):
            await stage.start([{"type": "item_reference", "id": "msg_nobody"}], conversation=conversation.id)
        with pytest.raises(InvalidRequest):
            await stage.start("x", conversation=conversation.id, tool_choice="required")
    assert not active.busy
    assert not active.stale
    await stage.ask("second", conversation=conversation.id)
    assert stage.backend.asked[0].texts() == ["first", "second"]


async def test_a_run_whose_first_commit_fails_is_not_built_upon() -> None:
    store = FaultyStore(MemoryJournal(), Plan({1: Fault.FULL}))
    stage = Stage(journal=store)
    conversation = await stage.conversations.create("p", metadata={}, items=[user("first")])
    with pytest.raises(StorageError):
        await stage.start("lost", conversation=conversation.id)
    run = await stage.ask("kept", conversation=conversation.id)
    assert stage.backend.asked[0].texts() == ["first", "kept"]
    assert (await stage.runs.view("p", run.id)).status == "completed"


async def test_a_view_shows_nothing_that_is_not_durable() -> None:
    class Held(MemoryJournal):
        gate = asyncio.Event()

        def append(self, change):  # type: ignore[no-untyped-def]  # as the protocol has it
            return asyncio.ensure_future(self._later(change))

        async def _later(self, change):  # type: ignore[no-untyped-def]  # as above
            if change.release:
                await self.gate.wait()
            return await super().append(change)

    stage = Stage(says("all"), journal=Held(clock=MovedClock()))
    run = await stage.start(background=True)
    await until(lambda: run.state.ended is not None)
    viewing = asyncio.ensure_future(stage.runs.view("p", run.id))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not viewing.done()
    Held.gate.set()
    assert (await viewing).status == "completed"


async def test_a_run_that_was_left_open_is_carried_out_once() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("half")], gate], [gate])
    runs = [await stage.start("1", background=True), await stage.start("2")]
    for run in runs:
        await stage.give_up(run)
    later = stage.after_crash(says("a"), says("b"))
    await later.router.refresh()
    await asyncio.gather(later.runs.recover(), later.runs.recover())
    await until(lambda: not later.runs.live)
    for run in runs:
        ends = [record for record in await later.records(run) if isinstance(record, RunEnded)]
        assert [end.status for end in ends] == ["completed"]
    assert len(later.backend.asked) == 2


@pytest.mark.parametrize("ways", [{}, {"stream": True}, {"background": True}])
async def test_a_run_is_taken_up_when_its_model_is_back_and_its_conversation_waits_for_it(ways: dict[str, Any]) -> None:
    gate = asyncio.Event()
    stage = Stage([gate])
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    run = await stage.start("1", conversation=conversation.id, **ways)
    await until(lambda: len(stage.backend.asked) == 1)
    await stage.give_up(run)

    backend = PlayedBackend(says("late"), says("later"))
    backend.unreachable = BackendUnavailable("not up yet")
    later = stage.after_crash(backend=backend)
    await later.router.refresh()
    await later.runs.recover()
    await until(lambda: not later.runs.live)
    assert (await later.runs.view("p", run.id)).status in ("queued", "in_progress")
    backend.unreachable = None
    later.clock.seconds += 5
    await later.router.refresh()
    await later.ask("2", conversation=conversation.id)
    assert [each.texts() for each in backend.asked] == [["1"], ["1", "late", "2"]]
    assert (await later.runs.view("p", run.id)).status == "completed"
    assert not any(active.busy for active in later.branches._active.values())


@pytest.mark.parametrize("unknown_models", ["reject", "default"])
async def test_a_run_waits_for_its_own_backend_though_another_is_there(
    monkeypatch: pytest.MonkeyPatch, unknown_models: Literal["reject", "default"]
) -> None:
    gate = asyncio.Event()
    stage = Stage([gate])
    run = await stage.start("1", stream=True)
    await until(lambda: len(stage.backend.asked) == 1)
    await stage.give_up(run)

    monkeypatch.setattr("stateroom.runtime.takeup.RECOVERY_RETRY_SECONDS", 0.001)
    monkeypatch.setattr("stateroom.runtime.takeup.RECOVERY_LOOK_SECONDS", 0.001)
    own, other = PlayedBackend(says("late")), PlayedBackend()
    own.name, own.unreachable, other.serves = "own", BackendUnavailable("not up yet"), "o"
    later = stage.after_crash(backend=own, beside=[other], unknown_models=unknown_models)
    await later.runs.recover()
    for looks in range(1, 4):
        later.clock.seconds += 5
        await until(lambda looks=looks: own.listed > looks)  # type: ignore[misc]  # mypy cannot infer the default
        assert (await later.runs.view("p", run.id)).status == "in_progress"
    own.unreachable = None
    later.clock.seconds += 5
    await until(lambda: len(own.asked) == 1 and not later.runs.live)
    assert (await later.runs.view("p", run.id)).status == "completed"
    assert other.asked == []


async def test_a_run_that_is_deleted_while_it_waits_for_its_model_is_not_waited_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = asyncio.Event()
    stage = Stage([gate])
    run = await stage.start("1", background=True)
    await stage.give_up(run)
    monkeypatch.setattr("stateroom.runtime.takeup.RECOVERY_RETRY_SECONDS", 0.001)
    backend = PlayedBackend()
    backend.unreachable = BackendUnavailable("not up yet")
    later = stage.after_crash(backend=backend)
    await later.runs.recover()
    assert later.dispatcher._timers
    await later.runs.delete("p", run.id)
    await until(lambda: not later.dispatcher._timers)


async def test_a_run_says_the_temperature_that_its_model_is_asked_with() -> None:
    backend = PlayedBackend()
    backend.temperature = 0.0
    stage = Stage(backend=backend)
    views = [(await stage.ask(temperature=asked)).view() for asked in (None, 0.7)]
    assert [view.settings.temperature for view in views] == [0.0, 0.7]
    assert [msgspec.json.decode(render_response(view))["temperature"] for view in views] == [0.0, 0.7]
    plain = await Stage().ask()
    assert plain.view().settings.temperature is None


def test_a_server_that_comes_back_is_noticed_within_seconds_for_minutes_and_later_within_half_a_minute() -> None:
    away, full, waited = _NotBack("away", "m", ""), StorageFull("full"), 0.0
    assert [_pause(waited, away) for waited in (0.0, 2.0, 4.0, 60.0, 599.0)] == [2.0, 2.0, 4.0, 4.0, 4.0]
    assert _pause(3_600.0, away) == 30.0
    pauses = []
    while waited < 200:
        pauses.append(_pause(waited, full))
        waited += pauses[-1]
    assert pauses == [2.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


async def test_a_run_that_cannot_be_taken_up_does_not_keep_its_branch() -> None:
    gate = asyncio.Event()
    stage = Stage([gate])
    run = await stage.start("1", stream=True)
    await stage.give_up(run)
    inner = stage.journal
    later = Stage(says("now"), journal=FaultyStore(inner, Plan({0: Fault.FULL})), blobs=stage.blobs, clock=stage.clock)
    later.clock.seconds += 60
    await later.router.refresh()
    await later.runs.recover()
    assert not any(active.busy for active in later.branches._active.values())
    await until(lambda: not later.runs.live)
    row = await later.journal.run("p", run.id)
    await later.runs._taking_up._try_take_up(row)  # what the timer does
    await until(lambda: not later.runs.live)
    assert (await later.runs.view("p", run.id)).status == "completed"


async def test_a_run_that_was_given_up_for_want_of_room_is_carried_out_when_somebody_needs_its_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stateroom.runtime.writer.FULL_PATIENCE_SECONDS", 0.0)
    store = FaultyStore(MemoryJournal(), Plan({2: Fault.FULL}))
    stage = Stage(says("lost"), says("again"), says("next"), journal=store)
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    run = await stage.ask("1", conversation=conversation.id)
    assert run.failure is not None
    assert (await stage.runs.view("p", run.id)).status == "in_progress"
    await stage.ask("2", conversation=conversation.id)
    assert [each.texts() for each in stage.backend.asked] == [["1"], ["1"], ["1", "again", "2"]]
    assert (await stage.runs.view("p", run.id)).status == "completed"


async def test_a_run_that_was_given_up_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateroom.runtime.writer.FULL_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("stateroom.runtime.takeup.RECOVERY_RETRY_SECONDS", 0.001)
    store = FaultyStore(MemoryJournal(), Plan({1: Fault.FULL}))
    stage = Stage(says("lost"), says("again"), journal=store)
    run = await stage.ask("1")
    assert run.failure is not None
    await until(lambda: len(stage.backend.asked) == 2 and not stage.runs.live)
    view = await stage.runs.view("p", run.id)
    assert view.status == "completed"
    assert [text_of(held.item) for held in view.output] == ["again"]


async def test_a_run_whose_tools_are_gone_is_ended_and_not_tried_for_ever() -> None:
    from tests.unit.runtime.stage import CountedTool

    gate = asyncio.Event()
    stage = Stage([gate], tools=[CountedTool()])
    run = await stage.start("1", tools=[{"type": "stateroom:counted"}], stream=True)
    await stage.give_up(run)
    later = stage.after_crash()
    await later.recover()
    view = await later.runs.view("p", run.id)
    assert view.status == "failed"
    assert view.error is not None
    assert view.error["code"] == "unsupported_tool"


async def test_deleting_a_run_in_progress_ends_it_first_and_erases_everything() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("half")], gate])
    run = await stage.start("secret", background=True)
    await until(lambda: run.assembler is not None)
    await asyncio.wait_for(stage.runs.delete("p", run.id), 5)
    with pytest.raises(NotFound):
        await stage.runs.view("p", run.id)
    entries = await stage.journal.read("p", run.branch.branch)
    assert {entry.kind for entry in entries} == {"erased"}
    assert b"secret" not in b"".join(entry.body for entry in entries)
    assert await stage.frames(run) == []


async def test_deleting_a_run_that_was_given_up_leaves_its_conversation_usable() -> None:
    gate = asyncio.Event()
    stage = Stage([gate])
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    run = await stage.start("1", conversation=conversation.id)
    await stage.give_up(run)
    later = stage.after_crash(says("fine"))
    await later.conversations.items("p", conversation.id)
    await later.runs.delete("p", run.id)
    await later.ask("2", conversation=conversation.id)
    assert later.backend.asked[0].texts() == ["2"]


async def test_requests_on_one_conversation_queue_and_each_sees_what_came_before() -> None:
    stage = Stage(limits=Limits(conversation_queue=20))
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    runs = await asyncio.gather(*[stage.start(str(number), conversation=conversation.id) for number in range(8)])
    await asyncio.wait_for(asyncio.gather(*[asyncio.shield(run.done) for run in runs]), 5)
    assert [len(each.items) for each in stage.backend.asked] == [1, 3, 5, 7, 9, 11, 13, 15]
    held = await stage.conversations.items("p", conversation.id)
    assert [text_of(each.item) for each in held[::2]] == [str(number) for number in range(8)]


async def test_counting_input_writes_nothing_and_counts_what_would_be_seen() -> None:
    stage = Stage()
    first = await stage.ask("1")
    lines = dict(stage.journal._lines)
    asked = RunRequest(RunSettings(model="m"), [user("2")], previous=first.id, store=False)
    assert await stage.runs.count_input("p", asked, surface="responses") == (3, True)
    assert stage.journal._lines == lines
    assert stage.branches._size == sum(active.counted for active in stage.branches._active.values())


async def test_only_background_runs_can_be_cancelled() -> None:
    stage = Stage()
    run = await stage.ask()
    with pytest.raises(InvalidRequest) as refused:
        await stage.runs.cancel("p", run.id)
    assert refused.value.code == "response_not_cancellable"


async def test_strange_ids_are_not_found_and_nothing_worse() -> None:
    stage = Stage()
    for identifier in (
        "",
        "resp_",
        "\x00",
        "resp_\x00'; DROP TABLE runs; --",
        "é" * 300,
        "../../etc/passwd",
        "%s%n",
        "resp_" + "a" * 9000,
    ):
        with pytest.raises(NotFound):
            await stage.runs.view("p", identifier)
        with pytest.raises(NotFound):
            await stage.conversations.get("p", identifier)
        with pytest.raises(NotFound):
            await stage.start([{"type": "item_reference", "id": identifier}])


async def test_a_turn_costs_no_more_the_longer_its_chain_is() -> None:
    stage = Stage()
    run = await stage.ask("0")
    for _ in range(40):
        run = await stage.ask("x", previous=run.id)
    context = run.branch.context
    assert len(context.items) + 1 == len(run.branch.state.items)
    bodies = [len(entry.body) for entry in await stage.journal.read("p", run.branch.branch)]
    early, late = sum(bodies[3:6]), sum(bodies[-3:])
    assert abs(late - early) < 30
    assert sum(isinstance(record, ItemFinished) for record in await stage.records(run)) == 1
