"""Contexts that are compacted while runs go on: what is written, what the model sees, what a crash leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateroom.agent import compaction
from stateroom.agent.compaction import FALLBACK
from stateroom.errors import BackendFailed, BackendRejected, BackendUnavailable, InvalidRequest
from stateroom.journal.entries import Item, ItemFinished, RunSettings, Usage
from stateroom.models.backend import Finished, Model, ModelCall, ReasoningDelta, TextDelta, ToolCallDelta
from stateroom.runtime.live import LiveRun
from stateroom.runtime.runs import RunRequest
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan
from tests.unit.runtime.stage import (
    PROJECT,
    USAGE,
    CountedTool,
    MovedClock,
    Play,
    PlayedBackend,
    Stage,
    calls,
    picture,
    says,
    text_of,
    until,
    user,
)

FULL = Usage(5_000, 50)
ANSWER = "first " + "long " * 2_500
FIRST = says(ANSWER, usage=FULL)
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


def told(run: LiveRun) -> list[str]:
    return [held.item.get("type", "message") for held in run.state.output]


def asked(stage: Stage, number: int = -1) -> list[str]:
    return stage.backend.asked[number].texts()


def compaction_of(run: LiveRun) -> Item:
    [item] = [held.item for held in run.state.output if held.item.get("type") == "compaction"]
    return item


async def chain(stage: Stage, *said: str | list[Item], **settings: Any) -> LiveRun:
    """Turns that continue each other."""
    run: LiveRun | None = None
    for each in said:
        run = await stage.ask(each, previous=run.id if run is not None else "", **settings)
        assert run.failure is None
    assert run is not None
    return run


async def test_a_trigger_gives_one_compaction_item_and_nothing_else() -> None:
    stage = Stage(says("Paris"), says("They asked about France."), says("Tokyo"))
    first = await stage.ask("capital of France?")
    run = await stage.ask([], previous=first.id, compact_now=True)
    assert told(run) == ["compaction"]
    assert run.state.ended is not None
    assert run.state.ended.status == "completed"
    assert compaction_of(run)["created_by"] == "m"
    assert "has become too long" in asked(stage)[-1]
    assert stage.backend.asked[-1].tool_choice == "none"

    await stage.ask("and of Japan?", previous=run.id)
    seen = asked(stage)
    assert seen[0].endswith("They asked about France.")
    assert seen[1:] == ["capital of France?", "Paris", "and of Japan?"], "the tail stands behind the summary"


async def test_everything_stays_readable_and_a_fork_before_the_compaction_sees_it_all() -> None:
    stage = Stage(
        *[says(f"answer {n} " + "long " * 300) for n in range(3)], says("the summary"), says("ok"), says("ok")
    )
    before = await chain(stage, *[f"question {n} " + "long " * 300 for n in range(3)])
    run = await stage.ask([], previous=before.id, compact_now=True, compact_from=1000)
    after = await stage.ask("next", previous=run.id)
    assert [text[:10] for text in asked(stage)] == ["question 2", "[What came", "next"]
    items = await stage.runs.input_items(PROJECT, after.id)
    assert [text_of(held.item)[:10] for held in items if "content" in held.item] == [
        *["question 0", "answer 0 l", "question 1", "answer 1 l", "question 2", "answer 2 l"],
        "next",
    ]
    await stage.ask("elsewhere", previous=before.id)
    assert [text[:10] for text in asked(stage)] == [
        *["question 0", "answer 0 l", "question 1", "answer 1 l", "question 2", "answer 2 l"],
        "elsewhere",
    ]


async def test_what_was_compacted_away_comes_back_by_reference() -> None:
    stage = Stage(says("answer 0 " + "long " * 300), says("answer 1 " + "long " * 300), says("summary"), says("ok"))
    run = await chain(stage, "question 0", "question 1")
    old = (await stage.runs.input_items(PROJECT, run.id))[1]
    compacted = await stage.ask([], previous=run.id, compact_now=True, compact_from=1000)
    await stage.ask([{"type": "item_reference", "id": old.id}, user("again?")], previous=compacted.id)
    assert asked(stage)[-2].startswith("answer 0")


async def test_a_context_that_passes_the_threshold_is_compacted_before_the_answer() -> None:
    stage = Stage(FIRST, says("the summary", usage=Usage(5_100, 7)), says("second", usage=Usage(9, 1)))
    run = await chain(stage, "one", "two", compact_from=4000)
    assert told(run) == ["compaction", "message"]
    assert asked(stage)[-1] == "two"
    assert run.state.usage == Usage(5_109, 8)
    third = await stage.ask("three", previous=run.id, compact_from=4000)
    assert told(third) == ["message"], "it has become short again"


async def test_below_the_threshold_nothing_is_asked_or_compacted() -> None:
    stage = Stage(says("first", usage=Usage(3_000, 1)), says("second"))
    run = await chain(stage, "one", "two", compact_from=4000)
    assert told(run) == ["message"]
    assert len(stage.backend.asked) == 2


async def test_an_estimate_beyond_the_threshold_is_counted_before_it_is_believed() -> None:
    stage = Stage(says("fine"))
    run = await stage.ask("word " * 5_000, compact_from=4000)
    assert told(run) == ["message"], "the backend counts one token an item"


async def test_tool_results_within_a_run_are_compacted_in_the_run_and_pairs_stay_whole() -> None:
    tool = CountedTool()
    answer: list[Play] = [
        [TextDelta(ANSWER)],
        [ToolCallDelta(0, "call_a", "counted", "{}")],
        [Finished("stop", FULL)],
    ]
    stage = Stage(answer, says("counting was asked for"), says("done"), tools=[tool])
    run = await stage.ask("count!", tools=[{"type": "stateroom:counted"}], compact_from=4000)
    assert told(run) == ["message", "stateroom:tool_call", "compaction", "message"]
    seen = stage.backend.asked[-1].items
    kinds = [held.item.get("type", "message") for held in seen]
    assert kinds == ["message", "message", "function_call", "function_call_output"]
    assert len(tool.made) == 1


async def test_a_call_that_waits_for_its_result_outlives_the_compaction() -> None:
    stage = Stage(calls("look", '{"at": "x"}'), says("summary"), says("I looked"))
    first = await stage.ask("look!", tools=[TOOL])
    compacted = await stage.ask([], previous=first.id, compact_now=True, compact_from=1000)
    result = {"type": "function_call_output", "call_id": "call_look", "output": "a cat"}
    await stage.ask([result], previous=compacted.id, tools=[TOOL])
    assert [held.item.get("type", "message") for held in stage.backend.asked[-1].items][-2:] == [
        "function_call",
        "function_call_output",
    ]


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        ([BackendFailed("broke")], "backend_failed"),
        ([BackendUnavailable("gone")], "backend_unavailable"),
        ([[TextDelta("half")], BackendFailed("broke")], "backend_failed"),
        (says(""), "empty"),
        (says("  \n"), "empty"),
        (says("word " * 5_000), "too_long"),
        (says("cut", finish="length"), "too_long"),
        ([[ReasoningDelta("hm")], [Finished("stop", USAGE)]], "empty"),
        ([[ToolCallDelta(0, "c", "look", "{}")], [Finished("stop", USAGE)]], "empty"),
    ],
)
async def test_compaction_succeeds_whatever_the_model_does(
    play: list[Play], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(says("the capital is Paris"), play, says("ok"))
    first = await stage.ask("capital of France?")
    run = await stage.ask([], previous=first.id, compact_now=True, compact_from=1000)
    assert told(run) == ["compaction"]
    assert compaction_of(run)["created_by"] == FALLBACK
    assert f"reason={reason}" in caplog.text
    await stage.ask("next", previous=run.id)
    assert asked(stage)[-1] == "next"
    assert "capital of France?" in asked(stage)


async def test_thoughts_that_a_server_leaves_in_the_text_are_no_part_of_the_summary() -> None:
    stage = Stage(says("<think>let me see</think>\nThe summary."))
    run = await stage.ask("hi", compact_now=True)
    assert compaction_of(run)["compacted"]["summary"] == "The summary."


async def test_a_history_that_is_too_long_to_be_summarised_is_shortened_for_the_summary() -> None:
    too_long = BackendRejected("too long", code="context_length_exceeded")
    stage = Stage(*[says(f"a{n}") for n in range(8)], [too_long], [too_long], says("the rest"))
    run = await chain(stage, *[f"q{n}" for n in range(8)])
    compacted = await stage.ask([], previous=run.id, compact_now=True)
    assert compaction_of(compacted)["compacted"]["summary"] == "the rest"
    assert [len(each.items) for each in stage.backend.asked[-3:]] == [17, 9, 5]


async def test_a_failed_run_leaves_no_compaction_behind() -> None:
    stage = Stage(FIRST, says("summary"), [BackendFailed("no")], says("summary"), says("again"))
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    await stage.ask("one", conversation=conversation.id)
    failed = await stage.ask("two", conversation=conversation.id, compact_from=4000)
    assert failed.failure is not None
    kept = await stage.conversations.items(PROJECT, conversation.id)
    assert [text_of(held.item) for held in kept] == ["one", ANSWER]
    run = await stage.ask("two", conversation=conversation.id, compact_from=4000)
    assert told(run) == ["compaction", "message"]
    assert asked(stage, -2)[:3] == ["one", ANSWER, "two"]


async def test_a_cold_server_sees_what_a_warm_one_does() -> None:
    stage = Stage(FIRST, says("summary"), says("second"), says("third"))
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    for said in ("one", "two", "three"):
        run = await stage.ask(said, conversation=conversation.id, compact_from=4000)
        assert run.failure is None
    warm = asked(stage)
    later = stage.after_crash(says("fourth"))
    await later.ask("four", conversation=conversation.id)
    assert asked(later) == [*warm, "third", "four"]


async def test_a_cold_server_knows_from_the_journal_how_long_the_context_is() -> None:
    stage = Stage(FIRST)
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    await stage.ask("one", conversation=conversation.id)
    later = stage.after_crash(says("summary"), says("second"))
    run = await later.ask("two", conversation=conversation.id, compact_from=4000)
    assert told(run) == ["compaction", "message"]


async def test_a_summary_goes_over_the_same_encoded_history_and_the_new_context_begins_a_new_one() -> None:
    caches: list[Any] = []

    class Watching(PlayedBackend):
        async def generate(self, call: ModelCall) -> Any:
            caches.append(call.cache)
            async for batch in super().generate(call):
                yield batch

    stage = Stage(backend=Watching(FIRST, says("summary"), says("second"), says("third")))
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    for said in ("one", "two", "three"):
        await stage.ask(said, conversation=conversation.id, compact_from=4000)
    first, summary, second, third = caches
    assert summary is first
    assert second is not first
    assert third is second


def events(run_frames: list[Any]) -> list[tuple[str, int]]:
    body = b"".join(frame.body for frame in run_frames)
    names = [part.split(b"\n")[0].decode() for part in body.split(b"event: ")[1:]]
    numbers = [int(part.split(b"}")[0]) for part in body.split(b'"sequence_number":')[1:]]
    assert numbers == list(range(len(numbers)))
    return list(zip(names, numbers, strict=True))


async def test_the_stream_tells_of_a_compaction_before_and_after() -> None:
    stage = Stage(says("the summary"))
    run = await stage.ask("hi", compact_now=True, stream=True)
    assert [name for name, _ in events(await stage.frames(run))] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.compaction.compacting",
        "response.output_item.done",
        "response.completed",
    ]


async def test_a_crash_while_the_summary_is_written_leaves_one_compaction_item() -> None:
    gate = asyncio.Event()
    stage = Stage(says("first"), [[TextDelta("half a summ")], gate])
    first = await stage.ask("one")
    run = await stage.start([], previous=first.id, compact_now=True, stream=True)
    await until(lambda: run.stream is not None and b"compacting" in b"".join(each.body for each in run.stream.frames))
    seen = b"".join(frame.body for frame in await stage.frames(run))
    await stage.give_up(run)

    later = stage.after_crash(says("a whole summary"))
    await later.recover()
    view = await later.runs.view(PROJECT, run.id)
    assert view.status == "completed"
    assert [held.item["type"] for held in view.output] == ["compaction"]
    frames = await later.journal.frames(PROJECT, run.branch.branch, run.state.start)
    assert b"".join(frame.body for frame in frames).startswith(seen)
    names = [name for name, _ in events(list(frames))]
    assert names.count("response.output_item.added") == names.count("response.output_item.done") == 1
    again = await later.ask("two", previous=run.id)
    assert again.failure is None
    assert asked(later)[0].endswith("a whole summary")


async def test_a_compaction_that_a_crash_left_open_is_done_even_if_nothing_asks_for_it_any_more() -> None:
    gate = asyncio.Event()
    stage = Stage(FIRST, [gate])
    first = await stage.ask("one")
    run = await stage.start("two", previous=first.id, compact_from=4000, stream=True)
    await until(lambda: run.stream is not None and b"compacting" in b"".join(each.body for each in run.stream.frames))
    await stage.give_up(run)
    later = stage.after_crash(says("summary"), says("second"))
    await later.recover()
    view = await later.runs.view(PROJECT, run.id)
    assert [held.item.get("type", "message") for held in view.output] == ["compaction", "message"]
    assert [held.index for held in view.output] == [0, 1]


async def test_a_crash_after_the_compaction_does_not_compact_again() -> None:
    gate = asyncio.Event()
    stage = Stage(FIRST, says("summary"), [gate])
    first = await stage.ask("one")
    run = await stage.start("two", previous=first.id, compact_from=4000, stream=True)
    await until(lambda: len(stage.backend.asked) == 3)
    await stage.give_up(run)
    later = stage.after_crash(says("second"))
    await later.recover()
    view = await later.runs.view(PROJECT, run.id)
    assert [held.item.get("type", "message") for held in view.output] == ["compaction", "message"]
    assert len(later.backend.asked) == 1


@pytest.mark.parametrize("fault", [Fault.DIE_BEFORE, Fault.DIE_AFTER])
@pytest.mark.parametrize("write", range(1, 9))
@pytest.mark.parametrize("stream", [False, True])
async def test_wherever_the_process_dies_the_conversation_goes_on_with_one_compaction(
    fault: Fault, write: int, stream: bool
) -> None:
    clock = MovedClock()
    inner = Stage(clock=clock).journal
    stage = Stage(FIRST, journal=inner, clock=clock)
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    await stage.ask("one", conversation=conversation.id)
    dying = Stage(
        says("summary"),
        says("second"),
        journal=FaultyStore(inner, Plan({write: fault})),
        blobs=stage.blobs,
        clock=clock,
    )
    try:
        run = await dying.start("two", conversation=conversation.id, compact_from=4000, stream=stream)
        await asyncio.wait_for(asyncio.shield(run.done), 5)
    except Exception:  # it died before the run was there: nobody was told of it
        pass
    clock.seconds += 60
    later = Stage(says("summary"), says("second"), journal=inner, blobs=stage.blobs, clock=clock)
    await later.recover()
    items = await later.conversations.items(PROJECT, conversation.id)
    kinds = [held.item.get("type", "message") for held in items]
    assert kinds in (["message"] * 2, ["message", "message", "message", "compaction", "message"])
    run = await later.ask("three", conversation=conversation.id)
    assert run.failure is None
    assert asked(later)[-1] == "three"
    for row in await inner.runs(PROJECT, after="", limit=10, descending=False):
        frames = await inner.frames(PROJECT, row.branch, row.start)
        if frames:
            names = [name for name, _ in events(list(frames))]
            assert names.count("response.compaction.compacting") <= 1
            assert names.count("response.output_item.added") == names.count("response.output_item.done")


async def test_the_item_works_in_another_chain_and_unstored() -> None:
    stage = Stage(says("Paris"), says("They asked about France."), says("Tokyo"), says("Oslo"))
    first = await stage.ask("capital of France?")
    run = await stage.ask([], previous=first.id, compact_now=True)
    shown = {"type": "compaction", "encrypted_content": compaction_of(run)["encrypted_content"]}
    for store in (True, False):
        await stage.ask([shown, user("and of Japan?")], store=store)
        assert asked(stage)[0].endswith("They asked about France.")
        assert asked(stage)[1:] == ["capital of France?", "Paris", "and of Japan?"]


@pytest.mark.parametrize("content", ["", "x", "sr1.AAAA", "gAAAA-of-somebody-else"])
async def test_content_that_is_not_ours_is_refused(content: str) -> None:
    stage = Stage()
    with pytest.raises(InvalidRequest) as refused:
        await stage.start([user("a"), {"type": "compaction", "encrypted_content": content}])
    assert refused.value.code == "invalid_encrypted_content"
    assert refused.value.param == "input[1].encrypted_content"


async def test_content_of_another_project_or_another_kind_is_refused() -> None:
    stage = Stage(says("summary"))
    run = await stage.ask("hi", compact_now=True)
    theirs = {"type": "compaction", "encrypted_content": compaction_of(run)["encrypted_content"]}
    with pytest.raises(InvalidRequest):
        await stage.start([theirs], project="q")
    reasoning = {"type": "compaction", "encrypted_content": stage.sealer.seal(PROJECT, "a thought")}
    with pytest.raises(InvalidRequest):
        await stage.start([reasoning])


async def test_pictures_of_the_tail_are_still_seen_and_old_ones_are_not_read() -> None:
    stage = Stage(says("first " + "long " * 800), says("summary"), says("a cat"))
    first = await stage.ask([picture(), user("what is this?")])
    run = await stage.ask([picture(), user("and this?")], previous=first.id, compact_from=1000)
    assert told(run) == ["message"]
    compacted = await stage.ask([picture()], previous=first.id, compact_now=True, compact_from=20_000)
    later = stage.after_crash(says("ok"))
    await later.ask("next", previous=compacted.id)
    last = [
        held.item["content"] for held in later.backend.asked[-1].items if isinstance(held.item.get("content"), list)
    ]
    assert all(part["type"] == "input_image" for parts in last for part in parts if part["type"] != "input_text")
    assert any(part["type"] == "input_image" for parts in last for part in parts)


async def test_the_endpoint_s_output_is_the_user_s_messages_and_one_item() -> None:
    stage = Stage(says("Paris"), calls("look"), says("They asked for capitals."), says("Oslo"))
    first = await chain(stage, [{"role": "developer", "content": "be brief"}, user("capital of France?")])
    second = await stage.ask("look!", previous=first.id, tools=[TOOL])
    settings = RunSettings(model="m")
    branch, items = await stage.runs.context_of(
        PROJECT, RunRequest(settings, [user("done?")], previous=second.id, store=False), key="0" * 26
    )
    output, usage = await stage.compactor.standalone(PROJECT, settings, [*branch.items, *items], "cmp_1")
    assert [text_of(held.item) for held in output[:-1]] == ["capital of France?", "look!", "done?"]
    assert output[-1].item["type"] == "compaction"
    assert usage == USAGE
    await stage.ask([*[held.item for held in output], user("and Norway's?")])
    seen = stage.backend.asked[-1].texts()
    assert sorted(seen[:2]) == ["be brief", seen[1]] or "be brief" in seen
    assert [text for text in seen if text in ("capital of France?", "look!", "done?", "and Norway's?")] == [
        "capital of France?",
        "look!",
        "done?",
        "and Norway's?",
    ]


async def test_a_context_that_stays_too_long_is_not_compacted_at_every_turn() -> None:
    class Counting(PlayedBackend):
        async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
            return 9_000, True

    stage = Stage(backend=Counting(FIRST, *[says(f"s{n}", usage=FULL) for n in range(20)]))
    run = await chain(stage, *[f"q{n}" for n in range(6)], compact_from=4000, instructions="long " * 4_000)
    assert told(run) == ["message"]
    items = await stage.runs.input_items(PROJECT, run.id)
    assert sum(held.item.get("type") == "compaction" for held in items) == 1


async def test_a_long_question_is_not_compacted_for_nothing() -> None:
    class Counting(PlayedBackend):
        async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
            return 9_000, True

    stage = Stage(backend=Counting(says("short")))
    run = await stage.ask("long " * 8_000, compact_from=4000)
    assert told(run) == ["message"]


async def test_without_a_threshold_the_model_s_length_decides() -> None:
    class Short(PlayedBackend):
        async def models(self) -> list[Model]:
            return [Model("m", context_tokens=6_000)]

    stage = Stage(backend=Short(FIRST, says("summary"), says("second")))
    run = await chain(stage, "one", "two", compact_from=-1)
    assert told(run) == ["compaction", "message"]


async def test_a_cancelled_compaction_changes_nothing() -> None:
    gate = asyncio.Event()
    stage = Stage(says("first"), [gate], says("ok"))
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    await stage.ask("one", conversation=conversation.id)
    run = await stage.start([], conversation=conversation.id, compact_now=True, background=True)
    await until(lambda: len(stage.backend.asked) == 2)
    await stage.runs.cancel(PROJECT, run.id)
    assert not any(isinstance(record, ItemFinished) for record in await stage.records(run))
    await stage.ask("two", conversation=conversation.id)
    assert asked(stage) == ["one", "first", "two"]


async def test_the_prompt_says_how_long_the_summary_may_be() -> None:
    said = text_of(compaction.prompt(compaction.budget(8_000)))
    assert "at most 800 words" in said


@pytest.mark.parametrize("erased", ["response", "item"])
async def test_erasing_what_was_compacted_erases_the_summary_of_it(erased: str) -> None:
    secret = "the password is hunter2 "
    stage = Stage(says(secret + "long " * 2_500, usage=FULL), says(f"{secret} indeed"), says("second"))
    conversation = await stage.conversations.create(PROJECT, metadata={}, items=[])
    first = await stage.ask("one", conversation=conversation.id)
    second = await stage.ask("two", conversation=conversation.id, compact_from=4000, stream=True)
    assert told(second) == ["compaction", "message"]
    fork = await stage.conversations.fork(PROJECT, conversation.id)
    if erased == "response":
        await stage.runs.delete(PROJECT, first.id)
    else:
        await stage.conversations.delete_item(PROJECT, conversation.id, first.state.output[0].id)
    entries = await stage.journal.read(PROJECT, second.branch.branch)
    assert all(b"hunter2" not in entry.body for entry in entries)
    view = await stage.runs.view(PROJECT, second.id)
    assert [held.item.get("type", "message") for held in view.output] == ["message"]
    for place in (conversation.id, fork.id):
        await stage.ask("three", conversation=place)
        kept = [] if erased == "response" else ["one"]
        assert asked(stage)[: len(kept) + 2] == [*kept, "two", "second"]
        assert asked(stage)[-1] == "three"
