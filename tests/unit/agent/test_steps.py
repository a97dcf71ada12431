"""The table of next steps, row by row, fresh and after a crash."""

from __future__ import annotations

from stateroom.agent.state import RunState
from stateroom.agent.steps import CallTool, End, Generate, SettleRefused, SettleUnknown, next_step
from stateroom.journal.entries import (
    Effect,
    Item,
    ItemFinished,
    RunSettings,
    RunStarted,
    ToolIntent,
    ToolOutcome,
)
from stateroom.journal.hosted_items import HOSTED_CALL

HOSTED: Item = {"type": HOSTED_CALL, "call_id": "call_1", "tool": "stateroom:probe", "name": "probe", "arguments": "{}"}
TEXT: Item = {"role": "assistant", "content": "hello"}
CALL: Item = {"type": "function_call", "call_id": "call_2", "name": "f", "arguments": "{}"}


def run_with(*records: object) -> RunState:
    state = RunState(0, RunStarted("resp_01m81nb0fb5ts032anen7hy8hq", RunSettings(model="m"), []), 0)
    for record in records:
        state.apply(record, 0)  # type: ignore[arg-type]  # the tests hand in records only
    return state


def test_a_fresh_run_asks_the_model() -> None:
    assert next_step(run_with(), steps_max=8) == Generate()


def test_an_answer_that_was_cut_off_between_items_is_asked_for_again() -> None:
    assert next_step(run_with(ItemFinished(0, TEXT)), steps_max=8) == Generate()


def test_a_complete_answer_ends_the_run() -> None:
    assert next_step(run_with(ItemFinished(0, TEXT, "stop")), steps_max=8) == End("completed")


def test_an_answer_cut_short_by_length_ends_incomplete() -> None:
    run = run_with(ItemFinished(0, TEXT, "length"))
    assert next_step(run, steps_max=8) == End("incomplete", "max_output_tokens")


def test_a_client_call_ends_the_segment() -> None:
    assert next_step(run_with(ItemFinished(0, CALL, "stop")), steps_max=8) == End("completed")


def test_a_hosted_call_without_intent_is_carried_out() -> None:
    assert next_step(run_with(ItemFinished(0, HOSTED, "stop")), steps_max=8) == CallTool(0, 1)


def test_an_effect_with_an_intent_and_no_outcome_is_never_repeated() -> None:
    run = run_with(ItemFinished(0, HOSTED, "stop"), ToolIntent(0, "stateroom:probe", Effect.EFFECT))
    assert next_step(run, steps_max=8) == SettleUnknown(0)


def test_a_read_with_an_intent_and_no_outcome_is_repeated_as_a_further_attempt() -> None:
    run = run_with(ItemFinished(0, HOSTED, "stop"), ToolIntent(0, "stateroom:probe", Effect.READ))
    assert next_step(run, steps_max=8) == CallTool(0, 2)


def test_settled_hosted_calls_lead_back_to_the_model_until_the_limit() -> None:
    settled = (
        ItemFinished(0, HOSTED, "stop"),
        ToolIntent(0, "stateroom:probe"),
        ToolOutcome(0, "done"),
    )
    assert next_step(run_with(*settled), steps_max=8) == Generate()
    assert next_step(run_with(*settled), steps_max=1) == End("incomplete", "max_output_tokens")


def test_hosted_calls_are_settled_before_a_client_call_ends_the_segment() -> None:
    run = run_with(ItemFinished(0, HOSTED), ItemFinished(1, CALL, "stop"))
    assert next_step(run, steps_max=8) == CallTool(0, 1)
    run.apply(ToolIntent(0, "stateroom:probe"), 0)
    run.apply(ToolOutcome(0, "done"), 0)
    assert next_step(run, steps_max=8) == End("completed")


def test_the_outcome_of_a_hosted_call_is_part_of_its_item() -> None:
    run = run_with(ItemFinished(0, HOSTED, "stop"), ToolIntent(0, "p"), ToolOutcome(0, "who knows", unknown=True))
    assert run.output[0].item["output"] == "who knows"
    assert run.output[0].item["status"] == "incomplete"


def test_hosted_calls_of_an_answer_that_was_cut_short_are_not_carried_out() -> None:
    for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        run = run_with(ItemFinished(0, HOSTED), ItemFinished(1, HOSTED, finish))
        assert next_step(run, steps_max=8) == End("incomplete", reason)


def test_hosted_calls_beyond_the_callers_limit_are_refused_one_by_one() -> None:
    started = RunStarted("resp_01m81nb0fb5ts032anen7hy8hq", RunSettings(model="m", max_tool_calls=1), [])
    run = RunState(0, started, 0)
    for record in (ItemFinished(0, HOSTED), ItemFinished(1, HOSTED, "stop")):
        run.apply(record, 0)
    assert next_step(run, steps_max=8) == CallTool(0, 1)
    run.apply(ToolIntent(0, "stateroom:probe"), 0)
    run.apply(ToolOutcome(0, "done"), 0)
    assert next_step(run, steps_max=8) == SettleRefused(1)
    run.apply(ToolOutcome(1, "no", failed=True), 0)
    assert next_step(run, steps_max=8) == Generate()
