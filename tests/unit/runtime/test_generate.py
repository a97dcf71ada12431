"""One answer of the model: tool choice that is kept, bounds, counts, and what is asked again."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stateroom.errors import BackendFailed, BackendRejected, BackendUnavailable
from stateroom.journal.entries import ItemAbandoned, ItemFinished
from stateroom.models.backend import Finished, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta
from stateroom.settings import Limits
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan
from tests.unit.runtime.stage import (
    USAGE,
    MovedClock,
    PlayedBackend,
    Stage,
    answer_of,
    calls,
    says,
    text_of,
    until,
    user,
)


def function(name: str) -> dict[str, object]:
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}


TOOLS = [function("a"), function("b")]
FORCED = '{"tool": "a", "arguments": {}}'


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_another_function_than_the_demanded_one_is_dropped_and_asked_for_again(stream: bool) -> None:
    stage = Stage(calls("b", '{"x": 1}'), says(FORCED))
    run = await stage.ask(tools=TOOLS, tool_choice={"type": "function", "name": "a"}, stream=stream)
    assert run.state.ended is not None
    assert run.state.ended.status == "completed"
    assert [held.item["name"] for held in run.state.output] == ["a"]
    assert stage.backend.asked[1].format is not None


async def test_a_demanded_call_that_does_not_come_is_obtained_by_a_schema() -> None:
    stage = Stage(says("I would rather talk."), says(FORCED))
    run = await stage.ask(tools=TOOLS, tool_choice="required")
    assert [held.item.get("name") for held in run.state.output] == [None, "a"]


async def test_a_model_that_never_makes_the_demanded_call_has_failed_the_run() -> None:
    stage = Stage(says("no"), says('{"tool": "c"'), says("no"))
    run = await stage.ask(tools=TOOLS, tool_choice="required")
    assert run.failure is not None
    assert run.failure.code in ("tool_choice_not_honoured", "tool_call_unreadable")
    assert len(stage.backend.asked) <= 3


async def test_a_model_that_calls_what_nobody_declared_is_said_to_have_done_that() -> None:
    stage = Stage(calls("zzz"), calls("zzz"), calls("zzz"))
    run = await stage.ask(tools=TOOLS)
    assert run.failure is not None
    assert run.failure.code == "tool_choice_not_honoured"
    assert "'zzz'" in run.failure.message
    assert "`tool_choice`" not in run.failure.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_may_not_be_made_is_answered_by_text_the_second_time(stream: bool) -> None:
    stage = Stage(calls("b"), says("fine, no call"))
    run = await stage.ask(tools=TOOLS, tool_choice="none", stream=stream)
    assert [text_of(held.item) for held in run.state.output] == ["fine, no call"]
    assert stage.backend.asked[1].functions == []


async def test_allowed_tools_bind_even_a_model_that_calls_another_one() -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "a"}]}
    stage = Stage(calls("b"), calls("a"))
    run = await stage.ask(tools=TOOLS, tool_choice=allowed)
    assert [held.item["name"] for held in run.state.output] == ["a"]
    assert [each.name for each in stage.backend.asked[0].functions] == ["a", "b"]
    assert [each.name for each in stage.backend.asked[1].functions] == ["a"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_call_behind_a_text_leaves_the_text_alone(stream: bool) -> None:
    answer = [
        [TextDelta("well")],
        [ToolCallDelta(0, "c", "b", "{}")],
        [TextDelta(", no")],
        [Finished("stop", USAGE)],
    ]
    stage = Stage(answer)
    run = await stage.ask(tools=TOOLS, tool_choice="none", stream=stream)
    assert [text_of(held.item) for held in run.state.output] == ["well, no"]


async def test_truncation_auto_drops_the_oldest_and_keeps_the_system_and_the_newest() -> None:
    too_long = BackendRejected("too long", code="context_length_exceeded")
    stage = Stage([too_long], [too_long], says("fits"))
    history = [{"role": "system", "content": "be kind"}, *[user(f"u{n}") for n in range(8)]]
    run = await stage.ask(history, truncation="auto")
    assert answer_of(run) == "fits"
    asked = [each.texts() for each in stage.backend.asked]
    assert [len(texts) for texts in asked] == [9, 8, 7]
    assert all(texts[0] == "be kind" and texts[-1] == "u7" for texts in asked)
    assert "u0" not in asked[1]


async def test_a_context_that_is_too_long_is_the_callers_error_without_truncation() -> None:
    stage = Stage([BackendRejected("too long", code="context_length_exceeded", param="input")])
    run = await stage.ask()
    assert run.failure is not None
    assert (run.failure.status, run.failure.code) == (400, "context_length_exceeded")
    assert len(stage.backend.asked) == 1


async def test_truncation_ends_when_nothing_can_go() -> None:
    too_long = [BackendRejected("too long", code="context_length_exceeded")]
    stage = Stage(*[too_long] * 9)
    run = await stage.ask([user("a"), user("b"), user("c")], truncation="auto")
    assert run.failure is not None
    assert len(stage.backend.asked) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_cut_off_at_the_bound_and_the_model_is_stopped(stream: bool) -> None:
    endless = [[ReasoningDelta("hm")], *[[TextDelta("x" * 100)] for _ in range(1000)], [Finished("stop", USAGE)]]
    stage = Stage(endless, limits=Limits(output_bytes=1_000))
    run = await stage.ask(stream=stream)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.state.ended.reason) == ("incomplete", "max_output_tokens")
    assert len(answer_of(run)) == 998
    assert stage.backend.closed == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_comes_in_one_piece_is_cut_off_at_the_bound(stream: bool) -> None:
    stage = Stage([[TextDelta("x" * 100_000), Finished("stop", USAGE)]], limits=Limits(output_bytes=1_000))
    run = await stage.ask(stream=stream)
    assert run.state.ended is not None
    assert (run.state.ended.status, run.state.ended.reason) == ("incomplete", "max_output_tokens")
    assert answer_of(run) == "x" * 1_000
    assert run.state.usage == USAGE


async def test_calls_without_arguments_count_towards_the_bound() -> None:
    endless = [[ToolCallDelta(number, f"c{number}", "a", "")] for number in range(10_000)]
    stage = Stage(endless, limits=Limits(output_bytes=1_000))
    run = await stage.ask(tools=TOOLS)
    assert run.state.ended is not None
    assert run.state.ended.status == "incomplete"
    assert len(run.state.output) < 1_000


async def test_an_answer_that_is_cut_off_never_shows_an_item_that_the_journal_lacks() -> None:
    gate = asyncio.Event()

    class Lingering(PlayedBackend):
        """Takes its time when it is told to stop."""

        async def generate(self, call):  # type: ignore[no-untyped-def]  # as the protocol has it
            try:
                yield [ReasoningDelta("hm" * 400), TextDelta("a")]
                yield [TextDelta("b" * 1_000)]
            finally:
                await gate.wait()

    stage = Stage(backend=Lingering(), limits=Limits(output_bytes=1_000))
    run = await stage.start(stream=True)
    await until(lambda: run.stream is not None and b"output_item.done" in b"".join(f.body for f in run.stream.frames))
    finished = [record for record in await stage.records(run) if isinstance(record, ItemFinished)]
    shown = b"".join(frame.body for frame in await stage.frames(run)).count(b"event: response.output_item.done")
    assert len(finished) == shown == 1
    gate.set()
    await asyncio.wait_for(asyncio.shield(run.done), 5)


async def test_missing_counts_are_estimated_and_marked() -> None:
    stage = Stage(says("four", usage=None))
    run = await stage.ask("hello" * 100)
    usage = run.state.usage
    assert usage is not None
    assert usage.estimated
    assert 100 < usage.input < 200
    assert usage.output >= 1


async def test_estimating_measures_only_what_is_new() -> None:
    stage = Stage(*[says("ok", usage=None) for _ in range(3)])
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    inputs = []
    for _ in range(3):
        run = await stage.ask("x" * 400, conversation=conversation.id)
        assert run.state.usage is not None
        inputs.append(run.state.usage.input)
        context = run.branch.context
        assert context._measured == (
            len(context.items),
            sum(len(msgspec.json.encode(held.item)) for held in context.items),
        )
    assert inputs[0] < inputs[1] < inputs[2]


async def test_an_answer_that_just_stops_is_an_error() -> None:
    stage = Stage([[TextDelta("half")]])
    run = await stage.ask()
    assert run.failure is not None
    assert run.failure.code == "backend_failed"


async def test_what_was_shown_is_never_asked_for_again() -> None:
    stage = Stage([[ToolCallDelta(0, "c", "a", "")], BackendUnavailable("gone")], says("never"))
    run = await stage.start(tools=TOOLS)
    run.patience_seconds = 60.0
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert run.failure is not None
    assert len(stage.backend.asked) == 1


async def test_a_run_that_was_taken_up_waits_for_its_model_and_not_for_ever() -> None:
    stage = Stage(*[[BackendUnavailable("starting")]] * 300)
    run = await stage.start()
    run.patience_seconds = 60.0
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert run.failure is not None
    assert 100 < len(stage.backend.asked) < 130


async def test_nobody_is_asked_anything_for_a_run_that_was_given_up() -> None:
    clock = MovedClock()
    gate = asyncio.Event()
    inner = Stage(clock=clock).journal
    store = FaultyStore(inner, Plan({2: Fault.DIE_BEFORE}))
    endless = [[TextDelta("a")], gate, *[[TextDelta("b")] for _ in range(10_000)]]
    stage = Stage(endless, journal=store, clock=clock)
    run = await stage.start(stream=True)
    await until(lambda: store.writes == 2)
    gate.set()
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert store.dead
    assert stage.backend.closed == 1
    assert run.assembler is not None
    assert run.assembler.size < 5_000


async def test_a_refusal_is_kept_as_one() -> None:
    stage = Stage([[RefusalDelta("I will "), RefusalDelta("not")], [Finished("stop", USAGE)]])
    run = await stage.ask()
    assert run.state.output[0].item["content"] == [{"type": "refusal", "refusal": "I will not"}]


@pytest.mark.parametrize("can_prefill", [True, False])
async def test_a_message_that_a_crash_cut_off_goes_on_or_is_closed_and_begun_anew(can_prefill: bool) -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("Hello, ")], gate])
    run = await stage.start(stream=True)
    await until(lambda: run.stream is not None and b"Hello" in b"".join(frame.body for frame in run.stream.frames))
    seen = b"".join(frame.body for frame in await stage.frames(run))
    await stage.give_up(run)

    later = stage.after_crash(backend=PlayedBackend(says("world"), can_prefill=can_prefill))
    await later.recover()
    view = await later.runs.view("p", run.id)
    body = b"".join(frame.body for frame in await later.journal.frames("p", run.branch.branch, 0))
    assert body.startswith(seen)
    numbers = [int(part.split(b"}")[0]) for part in body.split(b'"sequence_number":')[1:]]
    assert numbers == list(range(len(numbers)))
    if can_prefill:
        assert later.backend.asked[0].prefill == "Hello, "
        assert [text_of(held.item) for held in view.output] == ["Hello, world"]
    else:
        assert [text_of(held.item) for held in view.output] == ["world"]
        assert view.output[0].index == 1


async def test_a_message_that_goes_on_after_a_crash_keeps_its_log_probabilities() -> None:
    gate = asyncio.Event()
    hello, world = ({"token": text, "bytes": [], "logprob": -0.5, "top_logprobs": []} for text in ("Hello, ", "world"))
    stage = Stage([[TextDelta("Hello, ", [hello])], gate])
    run = await stage.start(stream=True)
    await until(lambda: run.stream is not None and b"Hello" in b"".join(frame.body for frame in run.stream.frames))
    await stage.give_up(run)
    says_world = [[TextDelta("world", [world])], [Finished("stop", USAGE)]]
    later = stage.after_crash(backend=PlayedBackend(says_world, can_prefill=True))
    await later.recover()
    (held,) = (await later.runs.view("p", run.id)).output
    assert held.item["content"] == [{"type": "output_text", "text": "Hello, world", "logprobs": [hello, world]}]


async def test_a_backend_that_cannot_prefill_after_all_begins_anew() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("Hello, ")], gate])
    run = await stage.start(stream=True)
    await until(lambda: run.stream is not None and b"Hello" in b"".join(frame.body for frame in run.stream.frames))
    await stage.give_up(run)

    class Replaced(PlayedBackend):
        """Between the run's being taken up and its being asked, another one took its place."""

        looks = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "can_prefill":
                return super().__getattribute__(name)
            self.looks += 1
            return self.looks == 1

    later = stage.after_crash(backend=Replaced(says("world")))
    await later.recover()
    view = await later.runs.view("p", run.id)
    assert view.status == "completed"
    assert [text_of(held.item) for held in view.output] == ["world"]
    assert any(isinstance(record, ItemAbandoned) for record in await later.records(run))


async def test_a_steered_error_of_the_backend_keeps_its_status_and_code() -> None:
    stage = Stage([BackendFailed("broke off", code="backend_bad_answer")])
    run = await stage.ask()
    assert run.state.ended is not None
    assert run.state.ended.error == {
        "code": "backend_bad_answer",
        "message": "broke off",
        "type": "server_error",
        "status": 502,
    }
