"""Programs without an output, folded from items: who waits for what, and what a program is told of its calls."""

from __future__ import annotations

from typing import Any

import pytest

from stateroom import ids
from stateroom.agent.context import Context
from stateroom.agent.programs import NestedCall, OpenPrograms, answer_of, same_call, take, to_carry
from stateroom.agent.state import BranchState, RunState
from stateroom.agent.steps import (
    CallTool,
    End,
    Generate,
    GiveUpProgram,
    RunProgram,
    SettleUnknown,
    TakeUpApproval,
    next_step,
)
from stateroom.journal.entries import (
    ContextItem,
    Effect,
    Item,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunSettings,
    RunStarted,
    ToolIntent,
    ToolOutcome,
)

CALLER: Item = {"type": "program", "caller_id": "call_p"}
PROGRAM: Item = {"type": "program", "call_id": "call_p", "code": "", "fingerprint": "f"}
OUTPUT: Item = {"type": "program_output", "call_id": "call_p", "result": "r"}
LOOK: Item = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}", "caller": CALLER}
HOSTED: Item = {
    "type": "stateroom:tool_call",
    "call_id": "call_2",
    "tool": "t",
    "name": "t",
    "arguments": "{}",
    "caller": CALLER,
}
ASKED: Item = {
    "type": "mcp_approval_request",
    "server_label": "s",
    "name": "n",
    "arguments": "{}",
    "call_id": "call_3",
    "caller": CALLER,
}
SEEN: Item = {"type": "function_call_output", "call_id": "call_1", "output": "seen"}
USER: Item = {"role": "user", "content": "and?"}


def run_with(*records: Any, before: OpenPrograms | None = None, said: tuple[Item, ...] = ()) -> RunState:
    settings = RunSettings(model="m")
    run = RunState(0, RunStarted("resp_01m81nb0fb5ts032anen7hy8hq", settings, list(said)), 0, before)
    for record in records:
        run.apply(record, 0)
    return run


def own(index: int, item: Item) -> ItemFinished:
    return ItemFinished(index, item, own=True)


def step(run: RunState) -> Any:
    return next_step(run, steps_max=8)


def waiting(*items: Item) -> OpenPrograms:
    programs: OpenPrograms = {}
    for position, item in enumerate(items):
        take(programs, ContextItem(item.get("id") or f"i{position}", item))
    return programs


WROTE = ItemFinished(0, PROGRAM, "stop")


def test_a_program_is_run_until_it_has_an_output_and_then_the_model_goes_on() -> None:
    assert step(run_with(WROTE)) == RunProgram("call_p")
    assert step(run_with(WROTE, own(1, OUTPUT))) == Generate()


def test_what_a_program_began_is_settled_before_it_is_run_again() -> None:
    begun = (WROTE, own(1, HOSTED))
    assert step(run_with(*begun)) == CallTool(1, 1)
    assert step(run_with(*begun, ToolIntent(1, "t"))) == SettleUnknown(1)
    assert step(run_with(*begun, ToolIntent(1, "t", Effect.READ))) == CallTool(1, 2)
    assert step(run_with(*begun, ToolIntent(1, "t"), ToolOutcome(1, "did"))) == RunProgram("call_p")


def test_a_program_that_waits_ends_the_run() -> None:
    assert step(run_with(WROTE, own(1, LOOK))) == End("completed")
    assert step(run_with(WROTE, own(1, ASKED))) == End("completed")


def test_programs_and_hosted_calls_of_one_answer_go_in_order() -> None:
    direct = {name: value for name, value in HOSTED.items() if name != "caller"}
    run = run_with(ItemFinished(0, PROGRAM), ItemFinished(1, direct, "stop"))
    assert step(run) == RunProgram("call_p")
    run.apply(own(2, LOOK), 0)
    assert step(run) == CallTool(1, 1)
    run.apply(ToolOutcome(1, "did"), 0)
    assert step(run) == End("completed")


def test_a_program_that_was_cut_off_is_never_run() -> None:
    run = run_with(ItemFinished(0, {**PROGRAM, "status": "incomplete"}, "length"))
    assert step(run) == End("incomplete", "max_output_tokens")


def test_a_program_goes_on_once_all_its_calls_are_answered() -> None:
    before = waiting(PROGRAM, LOOK, {**LOOK, "call_id": "call_9"})
    assert step(run_with(before=before, said=(SEEN,))) == End("completed")
    assert step(run_with(before=before, said=(SEEN, {**SEEN, "call_id": "call_9"}))) == RunProgram("call_p")
    assert step(run_with(before=before, said=(SEEN, USER))) == GiveUpProgram("call_p")
    assert before["call_p"].waits == ["call_1", "call_9"], "the fold of a run changes nothing of its branch"


def test_an_approval_is_taken_up_before_the_program_goes_on() -> None:
    before = waiting(PROGRAM, {**ASKED, "id": "mcpr_1"})
    answer: Item = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    run = run_with(before=before, said=(answer,))
    assert step(run) == TakeUpApproval("mcpr_1", approve=True)
    made: Item = {**HOSTED, "call_id": "call_3", "approval_request_id": "mcpr_1"}
    run.apply(own(0, made), 0)
    assert step(run) == CallTool(0, 1)
    run.apply(ToolOutcome(0, "did"), 0)
    assert step(run) == RunProgram("call_p")
    assert answer_of(run.programs["call_p"].calls["call_3"]) == ("did", False)


def branch_with(*items: Item) -> BranchState:
    state = BranchState()
    state.apply_record(0, -1, 0, ItemsAdded(ids.new_key(), list(items)))
    return state


def test_forks_share_what_waits_and_not_what_is_answered() -> None:
    state = branch_with(USER, PROGRAM, LOOK)
    fork = state.fork(0)
    fork.apply_record(1, -1, 0, ItemsAdded(ids.new_key(), [SEEN]))
    assert fork.programs["call_p"].waits == []
    assert state.programs["call_p"].waits == ["call_1"]
    assert state.first(1).programs == {}
    assert list(state.first(3).programs) == ["call_p"]


def test_a_run_that_fails_leaves_the_program_waiting() -> None:
    state = branch_with(PROGRAM, LOOK)
    for seq, record in enumerate((RunStarted(ids.new_id("resp"), RunSettings(), [SEEN]), own(0, OUTPUT)), 1):
        state.apply_record(seq, 1, 0, record)
    state.apply_record(3, 1, 0, RunEnded("failed"))
    assert state.programs["call_p"].waits == ["call_1"]


def test_an_erased_answer_is_waited_for_again() -> None:
    state = branch_with(PROGRAM, LOOK, SEEN)
    assert state.programs["call_p"].waits == []
    state.erase({(state.items[2].id, 0)})
    assert state.programs["call_p"].waits == ["call_1"]


def test_the_model_sees_the_program_and_its_output_only() -> None:
    context = Context()
    context.extend([ContextItem(f"i{n}", item) for n, item in enumerate((USER, PROGRAM, LOOK, HOSTED, ASKED))], {})
    context.extend([ContextItem(f"j{n}", item) for n, item in enumerate((SEEN, OUTPUT))], {})
    assert [held.item.get("type", "message") for held in context.items] == [
        "message",
        "function_call",
        "function_call_output",
    ]
    assert [held.item.get("call_id") for held in context.items[1:]] == ["call_p", "call_p"]


def test_what_is_carried_is_the_same_when_it_is_taken_in_again() -> None:
    programs = waiting(PROGRAM, LOOK, SEEN, ASKED, HOSTED)
    again: OpenPrograms = {}
    compaction: Item = {"type": "compaction", "compacted": {"summary": "s", "programs": to_carry(programs)}}
    take(again, ContextItem("cmp_1", compaction))
    assert again["call_p"].waits == programs["call_p"].waits
    told = [[answer_of(nested) for nested in each["call_p"].calls.values()] for each in (again, programs)]
    assert told[0] == told[1]


SHELL: Item = {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}}
CHUNK: Item = {"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}


@pytest.mark.parametrize(
    ("call", "result", "told"),
    [
        (LOOK, SEEN, ("seen", False)),
        (LOOK, {**SEEN, "output": [{"type": "input_text", "text": "a"}, {"type": "input_image"}]}, ("a", False)),
        (
            SHELL,
            {"output": [CHUNK]},
            ('{"output":[{"stdout":"a","stderr":"","outcome":{"type":"exit","exit_code":0}}]}', False),
        ),
        (SHELL, {"output": [{**CHUNK, "stderr": "unknown"}], "status": "incomplete"}, ("unknown", True)),
        ({"type": "apply_patch_call"}, {"output": "no such file", "status": "failed"}, ("no such file", True)),
        ({"type": "code_interpreter_call", "outputs": [{"type": "logs", "logs": "1"}]}, {}, ("1", False)),
        ({"type": "code_interpreter_call", "outputs": None, "status": "failed"}, {}, ("", True)),
        ({"type": "mcp_call", "output": "x"}, {}, ("x", False)),
        ({"type": "mcp_call", "error": {"type": "http_error", "message": "no"}, "output": None}, {}, ("no", True)),
        ({"type": "stateroom:tool_call", "output": "x", "status": "failed"}, {}, ("x", True)),
    ],
)
def test_what_a_program_is_told(call: Item, result: Item, told: tuple[str, bool]) -> None:
    held = ContextItem("o", result) if result else None
    assert answer_of(NestedCall(ContextItem("c", call), result=held)) == told


def test_the_same_call_may_be_spelled_in_another_way() -> None:
    assert same_call(LOOK, {**LOOK, "arguments": "{ }", "status": "completed"})
    assert same_call(SHELL, {**SHELL, "action": {"commands": ["ls"], "timeout_ms": None}})
    assert same_call({**ASKED, "type": "mcp_call", "output": "x"}, ASKED)
    assert not same_call(LOOK, {**LOOK, "arguments": '{"of":1}'})
    assert not same_call(LOOK, {**LOOK, "name": "other"})
