"""Carrying out runs: hosted tools around a cut, cancellation at every point, what is left behind."""

from __future__ import annotations

import asyncio

import pytest

from stateroom.errors import BackendFailed
from stateroom.journal.entries import Effect, ItemFinished, RunEnded, RunStarted, ToolDecided, ToolIntent, ToolOutcome
from stateroom.models.backend import Finished, ReasoningDelta, TextDelta, ToolCallDelta
from tests.unit.runtime.stage import CountedTool, Stage, answer_of, calls, says, text_of, until

COUNTED = [{"type": "stateroom:counted"}]


async def test_a_run_is_asked_carried_out_and_kept() -> None:
    stage = Stage(says("hello", " there"))
    run = await stage.ask("hi")
    assert answer_of(run) == "hello there"
    kinds = [type(record) for record in await stage.records(run)]
    assert kinds == [RunStarted, ItemFinished, RunEnded]
    assert (await stage.runs.view("p", run.id)).status == "completed"


async def test_the_intent_of_an_effect_is_durable_before_the_tool_begins() -> None:
    tool = CountedTool()
    stage = Stage(calls("counted"), says("done"), tools=[tool])
    seen: list[list[type]] = []

    def look() -> None:
        # The journal in memory answers at once, so this can be looked at from within the tool.
        reading = stage.records(run)
        with pytest.raises(StopIteration) as stopped:
            reading.send(None)
        seen.append([type(record) for record in stopped.value.value])

    tool.before = look
    run = await stage.start(tools=COUNTED)
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert seen == [[RunStarted, ItemFinished, ToolDecided, ToolIntent]]
    assert [type(record) for record in await stage.records(run)][2:5] == [ToolDecided, ToolIntent, ToolOutcome]
    assert answer_of(run) == "done"
    assert stage.backend.asked[1].texts() == ["hi", "{}", "counted 1"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_effect_that_was_cut_off_is_never_repeated_and_the_model_is_told(stream: bool) -> None:
    tool = CountedTool()
    tool.gate = asyncio.Event()
    stage = Stage(calls("counted"), tools=[tool])
    run = await stage.start(tools=COUNTED, stream=stream)
    await until(lambda: len(tool.made) == 1)
    await stage.give_up(run)

    again = CountedTool()
    later = stage.after_crash(says("I see"), tools=[again])
    await later.recover()
    assert again.made == []
    view = await later.runs.view("p", run.id)
    assert view.status == "completed"
    assert view.output[0].item["status"] == "incomplete"
    assert "unknown" in later.backend.asked[0].texts()[-1]


async def test_an_idempotent_call_that_was_cut_off_is_made_again_as_a_further_attempt() -> None:
    tool = CountedTool(Effect.IDEMPOTENT)
    tool.gate = asyncio.Event()
    stage = Stage(calls("counted"), tools=[tool])
    run = await stage.start(tools=COUNTED)
    await until(lambda: len(tool.made) == 1)
    await stage.give_up(run)

    again = CountedTool(Effect.IDEMPOTENT)
    later = stage.after_crash(says("done"), tools=[again])
    await later.recover()
    assert [call.attempt for call in again.made] == [2]
    assert again.made[0].call_id == tool.made[0].call_id
    assert again.made[0].id == tool.made[0].id
    assert (await later.runs.view("p", run.id)).output[0].item["output"] == "counted 1"


async def test_calls_that_the_model_gives_one_id_have_idempotency_keys_of_their_own() -> None:
    tool = CountedTool()
    same = [[ToolCallDelta(0, "same", "counted", "{}")], [Finished("stop", None)]]
    stage = Stage(same, same, says("done"), same, says("done"), tools=[tool])
    first = await stage.ask(tools=COUNTED)
    second = await stage.ask(tools=COUNTED)
    shown = [held.id for run in (first, second) for held in run.state.output if "call_id" in held.item]
    assert [call.id for call in tool.made] == shown
    assert len(set(shown)) == 3
    assert {call.call_id for call in tool.made} == {"same"}


async def test_a_tool_that_breaks_is_told_to_the_model_without_its_words() -> None:
    tool = CountedTool()
    tool.error = RuntimeError("the password is hunter2")
    stage = Stage(calls("counted"), says("too bad"), tools=[tool])
    run = await stage.ask(tools=COUNTED)
    assert run.state.outcomes[0].failed
    assert "hunter2" not in str(stage.backend.asked[1].texts())
    assert answer_of(run) == "too bad"


async def test_a_hosted_call_cut_short_by_the_limit_of_tokens_is_not_carried_out() -> None:
    tool = CountedTool()
    stage = Stage(calls("counted", '{"amount": 1', finish="length"), tools=[tool])
    run = await stage.ask(tools=COUNTED, stream=True)
    assert tool.made == []
    assert run.state.ended is not None
    assert (run.state.ended.status, run.state.ended.reason) == ("incomplete", "max_output_tokens")
    assert run.state.output[0].item["status"] == "failed"
    assert run.state.outcomes[0].failed
    body = b"".join(frame.body for frame in await stage.frames(run))
    assert body.count(b"event: response.output_item.done") == 1
    assert b"The run ended before this call began." in body.partition(b"event: response.incomplete")[0]


async def test_a_caller_can_bound_the_hosted_calls() -> None:
    tool = CountedTool()
    both = [
        [ToolCallDelta(0, "a", "counted", "{}"), ToolCallDelta(1, "b", "counted", "{}")],
        [Finished("stop", None)],
    ]
    stage = Stage(both, says("enough"), tools=[tool])
    run = await stage.ask(tools=COUNTED, max_tool_calls=1, stream=True)
    assert len(tool.made) == 1
    assert run.state.outcomes[1].failed
    assert "max_tool_calls" in run.state.outcomes[1].output
    assert answer_of(run) == "enough"


async def test_a_run_that_is_cancelled_keeps_what_it_has_said() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("half")], gate, *says("never")])
    run = await stage.start(background=True)
    await until(lambda: run.stream is not None and b"half" in b"".join(frame.body for frame in run.stream.frames))
    view = await stage.runs.cancel("p", run.id)
    assert view.status == "cancelled"
    assert text_of(view.output[0].item) == "half"
    assert view.output[0].item["status"] == "incomplete"
    assert stage.backend.closed == 1
    assert (await stage.runs.cancel("p", run.id)).status == "cancelled"


async def test_a_cancelled_run_is_part_of_its_conversation_and_the_next_turn_sees_it_once() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("half")], gate], says("fine"))
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    run = await stage.start("one", background=True, conversation=conversation.id)
    await until(lambda: run.assembler is not None and run.assembler.size > 0)
    await stage.runs.cancel("p", run.id)
    await stage.ask("two", conversation=conversation.id)
    assert stage.backend.asked[1].texts() == ["one", "half", "two"]


async def test_a_run_cancelled_before_its_first_step_ends() -> None:
    stage = Stage()
    run = await stage.start(background=True)
    stage.dispatcher.abandon(run)  # its task has not run yet
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert (await stage.runs.view("p", run.id)).status == "cancelled"
    assert stage.dispatcher.count == 0
    assert stage.backend.asked == []


async def test_cancelling_while_the_end_is_being_committed_changes_nothing() -> None:
    stage = Stage(says("all"))
    run = await stage.start(store=False)
    await until(lambda: run.state.ended is not None)
    stage.dispatcher.abandon(run)
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert run.state.ended is not None
    assert run.state.ended.status == "completed"
    assert run.failure is None


async def test_a_task_that_is_cancelled_while_it_commits_the_end_writes_no_second_end() -> None:
    stage = Stage(says("all"))
    run = await stage.start(background=True)
    await until(lambda: run.state.ended is not None)
    run.cancelling = True
    assert run.task is not None
    run.task.cancel()
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    ends = [record for record in await stage.records(run) if isinstance(record, RunEnded)]
    assert [end.status for end in ends] == ["completed"]


async def test_a_cancelled_hosted_call_is_recorded_as_unknown() -> None:
    tool = CountedTool()
    tool.gate = asyncio.Event()
    stage = Stage(calls("counted"), tools=[tool])
    run = await stage.start(tools=COUNTED, background=True)
    await until(lambda: len(tool.made) == 1)
    view = await stage.runs.cancel("p", run.id)
    assert run.state.outcomes[0].unknown
    assert view.output[0].item["status"] == "incomplete"


async def test_a_failed_run_leaves_nothing_in_the_conversation_and_can_be_tried_again() -> None:
    stage = Stage([[ReasoningDelta("hm")], BackendFailed("broke")], says("now it works"))
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    failed = await stage.ask("hi", conversation=conversation.id, stream=True)
    assert failed.failure is not None
    assert await stage.conversations.items("p", conversation.id) == []
    await stage.ask("hi", conversation=conversation.id)
    assert stage.backend.asked[1].texts() == ["hi"]
    held = await stage.conversations.items("p", conversation.id)
    assert [text_of(each.item) for each in held] == ["hi", "now it works"]


async def test_a_broken_blob_fails_the_run_and_does_not_leave_it_open_for_ever() -> None:
    class Broken(type(Stage().blobs)):  # type: ignore[misc]  # the class of the blobs in memory
        async def get(self, digest: str) -> bytes | None:
            from stateroom.blobs.store import BlobDamaged

            raise BlobDamaged("its bytes have changed")

    stage = Stage(blobs=Broken())
    item = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
    run = await stage.ask([item])
    assert run.state.ended is not None
    assert run.state.ended.status == "failed"
    assert run.state.ended.error is not None
    assert run.state.ended.error["code"] == "blob_damaged"


async def test_a_run_that_meets_a_mistake_of_ours_fails_with_a_message_that_gives_nothing_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tool = CountedTool()
    tool.effect = lambda call: 1 / 0  # type: ignore[assignment,method-assign,return-value]  # a tool that is broken
    stage = Stage(calls("counted"), tools=[tool])
    run = await stage.ask("my secret", tools=COUNTED, stream=True)
    assert run.state.ended is not None
    assert run.state.ended.status == "failed"
    assert run.failure is not None
    assert "division" not in run.failure.message
    assert "my secret" not in caplog.text
    assert stage.dispatcher.count == 0
