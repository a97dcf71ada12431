"""What a user says while a run goes on."""

from __future__ import annotations

import asyncio

import pytest

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Kind, RunEnded, RunSettings, RunStarted, RunSteered, decode
from stateroom.models.backend import Finished, TextDelta, ToolCallDelta
from stateroom.runtime.live import LiveRun
from stateroom.runtime.local import LocalMemory
from stateroom.runtime.runs import RunRequest
from stateroom.runtime.steering import STEERS_MAX
from tests.unit.runtime.stage import PROJECT, USAGE, CountedTool, Stage, answer_of, calls, says, until, user

FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
MANY = 1 << 20


async def begun(stage: Stage, **asked: object) -> LiveRun:
    """A streamed run whose model has said something and waits."""
    run = await stage.start(stream=True, **asked)
    await until(lambda: run.assembler is not None and run.assembler.size > 0)
    return run


async def steer(stage: Stage, run: LiveRun, said: str, steer_id: str = "steer_1") -> None:
    await stage.runs.steering.steer(run, steer_id, [user(said)])
    run.interrupt_if_steered()


async def end(run: LiveRun) -> LiveRun:
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    return run


async def test_a_steered_answer_stops_where_it_is_and_its_successor_takes_the_message_in() -> None:
    stage = Stage([[TextDelta("one ")], [TextDelta("two")], asyncio.Event()], says("as you wish"))
    run = await begun(stage, instructions="be brief", temperature=0.5)
    await steer(stage, run, "stop")
    await end(run)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.state.ended.reason) == ("incomplete", "steered")
    assert (answer_of(run), run.state.output[-1].item["status"]) == ("one two", "incomplete")
    new = run.successor
    assert new is not None
    await end(new)
    assert stage.backend.asked[1].texts() == ["hi", "one two", "stop"]
    assert (new.state.started.previous, answer_of(new)) == (run.id, "as you wish")
    assert (new.settings.instructions, new.settings.temperature) == ("be brief", 0.5)
    view = await stage.runs.view(PROJECT, run.id)
    assert (view.status, view.reason) == ("incomplete", "steered")
    assert (await stage.runs.view(PROJECT, new.id)).status == "completed"


async def test_the_end_of_a_steered_run_and_its_successor_are_one_commit() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    run = await begun(stage)
    await steer(stage, run, "stop")
    await end(run)
    assert run.successor is not None
    await end(run.successor)
    entries = await stage.journal.read(PROJECT, run.branch.branch)
    records = [decode(entry.kind, entry.body) for entry in entries]
    at = next(position for position, record in enumerate(records) if isinstance(record, RunEnded))
    assert isinstance(records[at + 1], RunStarted)
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    frames = await stage.frames(run.successor)
    assert frames[0].first == 0


async def test_a_message_that_comes_before_the_first_word_leaves_an_empty_response() -> None:
    stage = Stage([asyncio.Event()], says("yes"))
    run = await stage.start(stream=True)
    await until(lambda: run.interruptible)
    await steer(stage, run, "rather this")
    await end(run)
    assert run.state.output == []
    assert run.state.ended is not None
    assert run.state.ended.reason == "steered"
    assert run.successor is not None
    await end(run.successor)
    assert stage.backend.asked[1].texts() == ["hi", "rather this"]


async def test_a_message_that_comes_at_the_very_end_follows_a_completed_response() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("all")], gate, [Finished("stop", USAGE)]], says("and more"))
    run = await begun(stage)
    await stage.runs.steering.steer(run, "steer_1", [user("go on")])
    gate.set()  # the answer ends before anybody interrupts it
    await end(run)
    assert run.state.ended is not None
    assert run.state.ended.status == "completed"
    assert run.successor is not None
    await end(run.successor)
    assert stage.backend.asked[1].texts() == ["hi", "all", "go on"]


async def test_several_messages_are_taken_in_together_in_their_order() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    run = await begun(stage)
    await stage.runs.steering.steer(run, "steer_1", [user("first")])
    await stage.runs.steering.steer(run, "steer_2", [user("second"), user("third")])
    run.interrupt_if_steered()
    await end(run)
    assert run.successor is not None
    await end(run.successor)
    assert stage.backend.asked[1].texts()[-3:] == ["first", "second", "third"]


async def test_a_call_that_was_begun_is_made_whole_and_waits_for_its_client() -> None:
    gate = asyncio.Event()
    stage = Stage(
        [[ToolCallDelta(0, "call_1", "look", "{")], gate, [ToolCallDelta(0, "", "", "}")], [Finished("stop", USAGE)]],
        says("seen"),
    )
    run = await stage.start(stream=True, tools=[FUNCTION])
    await until(lambda: run.assembler is not None and run.assembler.calls > 0)
    await steer(stage, run, "and hurry")
    gate.set()
    await end(run)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.successor) == ("completed", None)
    result = {"type": "function_call_output", "call_id": "call_1", "output": "a tree"}
    await stage.ask([result], previous=run.id, tools=[FUNCTION])
    assert stage.backend.asked[1].texts() == ["hi", "{}", "and hurry", "a tree"]
    third = await stage.ask("next", previous=run.id)
    assert stage.backend.asked[2].texts() == ["hi", "{}", "next"], "it was taken in once"
    assert third.state.ended is not None


async def test_what_waits_for_a_client_outlives_a_crash() -> None:
    gate = asyncio.Event()
    stage = Stage([[ToolCallDelta(0, "call_1", "look", "{}")], gate, [Finished("stop", USAGE)]])
    run = await stage.start(stream=True, tools=[FUNCTION])
    await until(lambda: run.assembler is not None and run.assembler.calls > 0)
    await steer(stage, run, "and hurry")
    gate.set()
    await end(run)
    later = stage.after_crash(says("seen"))
    result = {"type": "function_call_output", "call_id": "call_1", "output": "a tree"}
    await later.ask([result], previous=run.id, tools=[FUNCTION])
    assert later.backend.asked[0].texts() == ["hi", "{}", "and hurry", "a tree"]


async def test_a_hosted_call_is_settled_before_a_steered_run_ends() -> None:
    tool = CountedTool()
    tool.gate = asyncio.Event()
    stage = Stage(calls("counted"), says("then this"), tools=[tool])
    run = await stage.start(stream=True, tools=[{"type": tool.type}])
    await until(lambda: bool(tool.made))
    await steer(stage, run, "change of plan")
    tool.gate.set()
    await end(run)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.state.ended.reason) == ("incomplete", "steered")
    assert run.state.output[-1].item["output"] == "counted 1"
    assert run.successor is not None
    await end(run.successor)
    assert len(tool.made) == 1
    assert stage.backend.asked[1].texts()[-2:] == ["counted 1", "change of plan"]


async def test_a_message_that_was_accepted_is_taken_in_after_a_crash() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    run = await begun(stage)
    await stage.runs.steering.steer(run, "steer_1", [user("stop")])
    await stage.give_up(run)
    later = stage.after_crash(says("stopped"))
    await later.recover()
    rows = await later.journal.runs(PROJECT, descending=False)
    assert [row.status for row in rows] == ["incomplete", "completed"]
    view = await later.runs.view(PROJECT, rows[1].id)
    assert view.previous == run.id
    assert later.backend.asked[0].texts() == ["hi", "stop"]


async def test_a_successor_that_a_crash_met_at_its_start_has_its_whole_stream() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()], [asyncio.Event()])
    run = await begun(stage)
    await steer(stage, run, "stop")
    await until(lambda: run.successor is not None)
    assert run.successor is not None
    await stage.give_up(run.successor)
    frames = stage.journal._lines[run.branch.branch].frames
    frames.pop(run.successor.state.start, None)  # as if the crash had come before its first frame
    later = stage.after_crash(says("stopped"))
    await later.recover()
    row = await later.journal.run(PROJECT, run.successor.id)
    assert row is not None
    assert row.status == "completed"
    kept = await later.journal.frames(PROJECT, row.branch, row.start)
    assert kept[0].first == 0
    assert kept[0].body.startswith(b"event: response.created\n")


async def test_a_run_that_fails_has_no_successor() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("one")], gate])  # ends without saying that it is complete
    run = await begun(stage)
    await stage.runs.steering.steer(run, "steer_1", [user("stop")])
    gate.set()
    await end(run)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.successor) == ("failed", None)
    assert run.branch.state.steers == []


async def test_who_has_ended_cannot_be_steered() -> None:
    stage = Stage(says("done"), [[TextDelta("one")], asyncio.Event()])
    run = await stage.ask(stream=True)
    with pytest.raises(InvalidRequest) as refusal:
        await steer(stage, run, "too late")
    assert refusal.value.code == "response_already_completed"
    cancelled = await begun(stage)
    await stage.dispatcher.cancel(cancelled)
    with pytest.raises(InvalidRequest) as refusal:
        await steer(stage, cancelled, "too late")
    assert refusal.value.code == "response_not_active"


async def test_a_run_of_a_conversation_cannot_be_steered() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    run = await begun(stage, conversation=conversation.id)
    with pytest.raises(InvalidRequest) as refusal:
        await steer(stage, run, "stop")
    assert refusal.value.code == "steering_not_supported"
    await stage.dispatcher.cancel(run)


async def test_one_run_is_steered_so_many_times_and_no_more() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    run = await begun(stage)
    for number in range(STEERS_MAX):
        await stage.runs.steering.steer(run, f"steer_{number}", [user("stop")])
    with pytest.raises(InvalidRequest) as refusal:
        await stage.runs.steering.steer(run, "steer_x", [user("stop")])
    assert refusal.value.code == "too_many_pending_steers"
    await stage.dispatcher.cancel(run)


async def test_an_image_that_cannot_be_had_is_refused_before_anything_is_kept() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    run = await begun(stage)
    picture = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,?"}]}
    with pytest.raises(InvalidRequest) as refusal:
        await stage.runs.steering.steer(run, "steer_1", [picture])
    assert refusal.value.code == "invalid_input"
    assert run.state.steers == []
    await stage.dispatcher.cancel(run)


async def test_deleting_the_response_that_took_a_message_in_leaves_nothing_of_it() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()])
    run = await begun(stage)
    await steer(stage, run, "the secret")
    await end(run)
    assert run.successor is not None
    await end(run.successor)
    await stage.runs.delete(PROJECT, run.successor.id)
    entries = await stage.journal.read(PROJECT, run.branch.branch)
    assert not [entry for entry in entries if b"secret" in entry.body]
    steered = [decode(entry.kind, entry.body) for entry in entries if entry.kind == Kind.RUN_STEERED]
    assert steered == [RunSteered("steer_1", [])]
    assert await stage.frames(run), "the stream of the response before is still there"


async def test_an_unstored_run_and_its_successor_are_kept_with_their_connection() -> None:
    stage = Stage([[TextDelta("one")], asyncio.Event()], says("two"), says("three"))
    local = LocalMemory(bytes_max=MANY, connection_bytes_max=MANY).open()

    async def start(previous: str = "") -> LiveRun:
        request = RunRequest(RunSettings(model="m"), [user("hi")], previous, stream=True, store=False)
        return await stage.runs.create(PROJECT, request, surface="responses", local=local)

    run = await start()
    await until(lambda: run.assembler is not None and run.assembler.size > 0)
    await steer(stage, run, "stop")
    await end(run)
    assert run.successor is not None
    await end(run.successor)
    assert run.id in local
    last = await end(await start(run.successor.id))
    assert stage.backend.asked[2].texts() == ["hi", "one", "stop", "two", "hi"]
    assert answer_of(last) == "three"
    assert await stage.journal.runs(PROJECT) == []
    assert stage.ephemeral._lines == {}
