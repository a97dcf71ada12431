"""Programs that a model writes: what they call becomes items, what they wait for outlives the run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from stateroom.api.surface import ResponsesSurface
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import ContextItem, Effect, RunEnded, RunSettings, ToolDecided, ToolIntent
from stateroom.runtime.live import LiveRun
from stateroom.settings import PolicyRule
from tests.unit.runtime.stage import PROJECT, CountedTool, Stage, answer_of, calls, says, user

PROGRAMS: Any = {"type": "programmatic_tool_calling"}
COUNTED: Any = {"type": "stateroom:counted", "allowed_callers": ["programmatic"]}


def function(name: str = "look", *callers: str, **more: Any) -> Any:
    parameters = {"type": "object", "properties": {"of": {"type": "string"}}}
    callers = callers or ("programmatic",)
    return {"type": "function", "name": name, "parameters": parameters, "allowed_callers": list(callers), **more}


def writes(code: str) -> Any:
    return calls("program", json.dumps({"code": code}))


def kinds(run: LiveRun) -> list[str]:
    return [output.item.get("type", "message") for output in run.state.output]


def items(run: LiveRun, kind: str) -> list[Any]:
    return [output.item for output in run.state.output if output.item.get("type") == kind]


def result_of(run: LiveRun) -> str:
    [output] = items(run, "program_output")
    return str(output["result"])


def answered(run: LiveRun, *outputs: str) -> list[Any]:
    """Answers to the client's calls of a run, in their order."""
    made = [held.item for held in run.state.output if held.item.get("type") in ("function_call", "custom_tool_call")]
    return [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": output}
        for item, output in zip(made, outputs, strict=True)
    ]


async def test_a_program_calls_hosted_tools_and_the_model_sees_its_result_only() -> None:
    tool = CountedTool()
    code = "const a = await counted({}); const b = await counted({}); return [a, b]"
    stage = Stage(writes(code), says("well"), tools=[tool])
    run = await stage.ask(tools=[PROGRAMS, COUNTED])
    assert kinds(run) == ["program", "stateroom:tool_call", "stateroom:tool_call", "program_output", "message"]
    assert result_of(run) == '["counted 1","counted 2"]'
    program, first = run.state.output[0].item, run.state.output[1].item
    assert first["caller"] == {"type": "program", "caller_id": program["call_id"]}
    assert first["call_id"] == tool.made[0].call_id
    asked = stage.backend.asked[1]
    assert [held.item["type"] for held in asked.items[1:]] == ["function_call", "function_call_output"]
    assert asked.texts()[1:] == [json.dumps({"code": code}, separators=(",", ":")), '["counted 1","counted 2"]']


async def test_what_only_programs_may_call_is_not_offered_to_the_model() -> None:
    stage = Stage(says("ok"))
    await stage.ask(tools=[PROGRAMS, function(), function("both", "direct", "programmatic"), function("own", "direct")])
    offered = {each.name: each.description for each in stage.backend.asked[0].functions}
    assert list(offered) == ["program", "both", "own"]
    assert "look: (args" in offered["program"]
    assert "both: (args" in offered["program"]
    assert "own: (args" not in offered["program"]


async def test_a_program_waits_for_its_client_and_goes_on() -> None:
    tool = CountedTool()
    code = """
        const before = await counted({});
        const [a, b] = await Promise.all([look({of: "a"}), look({of: "b"})]);
        return {before, a, b, after: await counted({})};
    """
    stage = Stage(writes(code), says("done"), tools=[tool])
    tools = [PROGRAMS, COUNTED, function()]
    first = await stage.ask(tools=tools)
    assert first.state.ended == RunEnded("completed")
    assert kinds(first) == ["program", "stateroom:tool_call", "function_call", "function_call"]
    assert [json.loads(item["arguments"]) for item in items(first, "function_call")] == [{"of": "a"}, {"of": "b"}]
    run = await stage.ask(answered(first, '{"n": 1}', "two"), previous=first.id, tools=tools)
    assert kinds(run) == ["stateroom:tool_call", "program_output", "message"]
    assert json.loads(result_of(run)) == {"before": "counted 1", "a": {"n": 1}, "b": "two", "after": "counted 2"}
    assert len(tool.made) == 2
    assert len(stage.backend.asked) == 2
    assert [held.item.get("type", "message") for held in stage.backend.asked[1].items] == [
        "message",
        "function_call",
        "function_call_output",
    ]


async def test_a_program_may_wait_several_times() -> None:
    code = "let all = ''; for (const of of ['a', 'b', 'c']) all += await look({of}); return all"
    stage = Stage(writes(code), says("done"))
    run = await stage.ask(tools=[PROGRAMS, function()])
    for answer in ("x", "y", "z"):
        assert kinds(run)[-1] == "function_call"
        run = await stage.ask(answered(run, answer), previous=run.id, tools=[PROGRAMS, function()])
    assert kinds(run) == ["program_output", "message"]
    assert result_of(run) == "xyz"


async def test_custom_tools_take_and_give_text() -> None:
    custom = {"type": "custom", "name": "sql", "allowed_callers": ["programmatic"]}
    stage = Stage(writes("""return (await sql('{"input": 1}')).length"""), says("done"))
    first = await stage.ask(tools=[PROGRAMS, custom])
    assert items(first, "custom_tool_call")[0]["input"] == '{"input": 1}'
    run = await stage.ask(answered(first, "[1, 2]"), previous=first.id, tools=[PROGRAMS, custom])
    assert result_of(run) == "6"


async def test_a_fork_of_a_waiting_program_is_answered_in_its_own_way() -> None:
    stage = Stage(writes("return await look({of: 'x'})"), says("one"), says("two"))
    first = await stage.ask(tools=[PROGRAMS, function()])
    one = await stage.ask(answered(first, "left"), previous=first.id, tools=[PROGRAMS, function()])
    two = await stage.ask(answered(first, "right"), previous=first.id, tools=[PROGRAMS, function()])
    assert one.branch.branch != two.branch.branch
    assert (result_of(one), result_of(two)) == ("left", "right")


async def test_a_waiting_program_outlives_the_process() -> None:
    tool = CountedTool()
    stage = Stage(writes("return await counted({}) + await look({})"), tools=[tool])
    tools = [PROGRAMS, COUNTED, function()]
    first = await stage.ask(tools=tools)
    after = stage.after_crash(says("done"), tools=[tool])
    run = await after.ask(answered(first, " and more"), previous=first.id, tools=tools)
    assert result_of(run) == "counted 1 and more"
    assert len(tool.made) == 1


async def test_a_client_that_keeps_its_history_itself_sends_everything_again() -> None:
    tool = CountedTool()
    stage = Stage(writes("return await counted({}) + await look({})"), says("done"), says("again"), tools=[tool])
    tools: Any = [PROGRAMS, {**COUNTED, "allowed_callers": ["programmatic"]}, function()]
    first = await stage.ask(tools=tools, store=False)
    history = [user("hi"), *(output.item for output in first.state.output), *answered(first, "!")]
    run = await stage.ask(history, tools=tools, store=False)
    assert result_of(run) == "counted 1!"
    assert len(tool.made) == 1
    history += [output.item for output in run.state.output]
    more = await stage.ask([*history, user("and?")], tools=tools, store=False)
    assert answer_of(more) == "again"
    assert len(tool.made) == 1


async def test_a_changed_fingerprint_or_program_is_refused() -> None:
    stage = Stage(writes("return await look({})"))
    first = await stage.ask(tools=[PROGRAMS, function()], store=False)
    program, call = (output.item for output in first.state.output)
    answer = answered(first, "x")
    for changed in ({"code": "return 1"}, {"fingerprint": program["fingerprint"][:-2] + "aa"}):
        with pytest.raises(InvalidRequest) as refused:
            await stage.ask([user("hi"), {**program, **changed}, call, *answer], tools=[PROGRAMS, function()])
        assert refused.value.code == "invalid_fingerprint"
    with pytest.raises(InvalidRequest) as other:
        await stage.ask([user("hi"), program, call, *answer], tools=[PROGRAMS, function()], project="another")
    assert other.value.code == "invalid_fingerprint"


async def test_a_call_that_was_changed_ends_the_program_as_diverged() -> None:
    stage = Stage(writes("return await look({of: 'mine'})"), says("hm"))
    first = await stage.ask(tools=[PROGRAMS, function()], store=False)
    program, call = (output.item for output in first.state.output)
    history = [user("hi"), program, {**call, "arguments": '{"of":"yours"}'}, *answered(first, "x")]
    run = await stage.ask(history, tools=[PROGRAMS, function()], store=False)
    [output] = items(run, "program_output")
    assert output["status"] == "incomplete"
    assert "another call than before" in output["result"]
    assert answer_of(run) == "hm"


async def test_answers_that_are_missing_are_asked_for() -> None:
    stage = Stage(writes("return await Promise.all([look({}), look({})])"), says("done"))
    tools = [PROGRAMS, function()]
    first = await stage.ask(tools=tools)
    one, two = answered(first, "1", "2")
    with pytest.raises(InvalidRequest) as refused:
        await stage.ask([one], previous=first.id, tools=tools)
    assert refused.value.code == "program_calls_unanswered"
    assert two["call_id"] in refused.value.message
    assert one["call_id"] not in refused.value.message
    with pytest.raises(InvalidRequest) as bare:
        await stage.ask([one, two], previous=first.id)
    assert bare.value.code == "program_tools_missing"
    run = await stage.ask([two, one], previous=first.id, tools=tools)
    assert result_of(run) == '["1","2"]'


async def test_a_user_who_goes_on_instead_gives_the_program_up() -> None:
    stage = Stage(writes("return await look({})"), says("as you like"), says("late"))
    tools = [PROGRAMS, function()]
    first = await stage.ask(tools=tools)
    run = await stage.ask("never mind", previous=first.id, tools=tools)
    assert kinds(run) == ["program_output", "message"]
    assert "given up" in result_of(run)
    assert items(run, "program_output")[0]["status"] == "incomplete"
    late = await stage.ask([*answered(first, "x"), user("and?")], previous=run.id, tools=tools)
    assert kinds(late) == ["message"]


async def test_an_answer_without_its_program_is_refused() -> None:
    stage = Stage()
    caller = {"type": "program", "caller_id": "call_gone"}
    answer: Any = {"type": "function_call_output", "call_id": "call_x", "output": "1", "caller": caller}
    with pytest.raises(InvalidRequest) as refused:
        await stage.ask([answer], tools=[PROGRAMS, function()])
    assert refused.value.code == "program_not_found"


async def test_a_program_that_fails_is_told_to_the_model() -> None:
    stage = Stage(writes("text('so far'); throw new Error('no luck')"), says("sorry"))
    run = await stage.ask(tools=[PROGRAMS, function()])
    [output] = items(run, "program_output")
    assert output["status"] == "incomplete"
    assert output["result"].startswith("so far\nThe program failed. Error: no luck")
    assert answer_of(run) == "sorry"


async def test_arguments_without_code_are_no_program() -> None:
    stage = Stage(calls("program", '{"kode": 1}'), says("sorry"))
    run = await stage.ask(tools=[PROGRAMS])
    assert items(run, "program_output")[0]["status"] == "incomplete"
    assert stage.backend.asked[1].texts()[1] == '{"kode": 1}'


async def test_calls_of_programs_count_among_those_that_the_caller_allows() -> None:
    tool = CountedTool()
    code = "return (await Promise.allSettled([counted({}), counted({})])).map((each) => each.status)"
    stage = Stage(writes(code), says("done"), tools=[tool])
    run = await stage.ask(tools=[PROGRAMS, COUNTED], max_tool_calls=1)
    assert result_of(run) == '["fulfilled","rejected"]'
    assert len(tool.made) == 1


async def test_what_a_policy_denies_is_denied_to_programs() -> None:
    tool = CountedTool()
    rule = PolicyRule("deny", tool="stateroom:*", reason="not here")
    stage = Stage(writes("return await counted({})"), says("done"), tools=[tool], policy=[rule])
    run = await stage.ask(tools=[PROGRAMS, COUNTED])
    assert tool.made == []
    assert "not here" in result_of(run)
    denied = Stage(writes("return 1"), says("done"), policy=[PolicyRule("deny", tool="programmatic_tool_calling")])
    run = await denied.ask(tools=[PROGRAMS])
    assert result_of(run) == "Programs are not allowed here."


@pytest.mark.parametrize("approve", [True, False])
async def test_an_approval_is_asked_for_inside_a_program(approve: bool) -> None:
    tool = CountedTool()
    code = "try { return await counted({}) } catch (error) { return 'no: ' + error.message }"
    stage = Stage(writes(code), says("done"), tools=[tool], policy=[PolicyRule("ask", tool="stateroom:*")])
    first = await stage.ask(tools=[PROGRAMS, COUNTED])
    assert kinds(first) == ["program", "mcp_approval_request"]
    assert tool.made == []
    request = first.state.output[1]
    assert request.item["caller"]["caller_id"] == first.state.output[0].item["call_id"]
    answer: Any = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": approve}
    run = await stage.ask([{**answer, "reason": "too dear"}], previous=first.id, tools=[PROGRAMS, COUNTED])
    assert kinds(run) == ["stateroom:tool_call", "program_output", "message"]
    assert len(tool.made) == approve
    assert result_of(run) == ("counted 1" if approve else "no: The user refused this call. Reason: too dear")
    decided = [each.decision for each in await stage.records(run) if isinstance(each, ToolDecided)]
    assert decided == ["allow" if approve else "deny"]


@pytest.mark.parametrize("effect", [Effect.EFFECT, Effect.READ])
async def test_a_crash_in_the_middle_of_a_call_repeats_only_what_may_be_repeated(effect: Effect) -> None:
    tool = CountedTool(effect)
    code = """
        const first = await counted({});
        try { return [first, await counted({})] } catch (error) { return [first, error.message] }
    """
    stage = Stage(writes(code), tools=[tool])
    begun = asyncio.Event()

    def at_the_second() -> None:
        if len(tool.made) == 2:
            tool.gate = asyncio.Event()
            begun.set()

    tool.before = at_the_second
    run = await stage.start(tools=[PROGRAMS, COUNTED])
    await begun.wait()
    await stage.give_up(run)
    tool.gate = None
    after = stage.after_crash(says("done"), tools=[tool])
    await after.recover()
    told = json.loads(after.backend.asked[0].texts()[-1])
    assert told[0] == "counted 1"
    assert ("unknown" in told[1]) == (effect is Effect.EFFECT)
    assert len(tool.made) == (2 if effect is Effect.EFFECT else 3)
    attempts = [each.attempt for each in await after.records(run) if isinstance(each, ToolIntent)]
    assert attempts == ([1, 1] if effect is Effect.EFFECT else [1, 1, 2])


async def test_a_cancelled_run_ends_its_program() -> None:
    tool = CountedTool()
    tool.gate = asyncio.Event()
    begun = asyncio.Event()
    tool.before = begun.set
    stage = Stage(writes("return await counted({})"), says("next"), tools=[tool])
    run = await stage.start(tools=[PROGRAMS, COUNTED], background=True)
    await begun.wait()
    await stage.runs.cancel(run.project, run.id)
    assert kinds(run) == ["program", "stateroom:tool_call", "program_output"]
    assert "unknown" in run.state.output[1].item["output"]
    later = await stage.ask("and?", previous=run.id, tools=[PROGRAMS, COUNTED])
    assert answer_of(later) == "next"
    assert len(tool.made) == 1


async def test_what_waits_is_known_after_a_compaction() -> None:
    stage = Stage(writes("return await look({})"), says("a summary"), says("done"))
    tools = [PROGRAMS, function()]
    first = await stage.ask("x" * 4000, tools=tools)
    compacted = await stage.ask([], previous=first.id, tools=tools, compact_now=True)
    assert kinds(compacted)[-1] == "compaction"
    run = await stage.ask(answered(first, "still here"), previous=compacted.id, tools=tools)
    assert result_of(run) == "still here"
    assert answer_of(run) == "done"


async def test_a_compaction_item_carries_what_waits_to_where_nothing_else_is() -> None:
    tool = CountedTool()
    code = "return await counted({}) + await look({})"
    stage = Stage(writes(code), says("a summary"), says("done"), tools=[tool])
    tools = [PROGRAMS, COUNTED, function()]
    first = await stage.ask("x" * 4000, tools=tools)
    held = [ContextItem("msg_1", user("x" * 4000)), *first.state.output_items(0)]
    output, _ = await stage.compactor.standalone(PROJECT, RunSettings(model="m"), held, "cmp_1")
    run = await stage.ask([*(each.item for each in output), *answered(first, "!")], tools=tools)
    assert result_of(run) == "counted 1!"
    assert len(tool.made) == 1
    assert [each.item.get("type", "message") for each in stage.backend.asked[2].items][-2:] == [
        "function_call",
        "function_call_output",
    ]


async def test_a_program_from_elsewhere_ends_and_the_conversation_goes_on() -> None:
    stage = Stage(writes("return await look({})"), says("sorry"))
    tools = [PROGRAMS, function()]
    first = await stage.ask(tools=tools)
    moved = Stage(says("sorry"), journal=stage.journal, blobs=stage.blobs, clock=stage.clock)
    moved.programs.fingerprints._key = b"another installation's key"
    run = await moved.ask(answered(first, "x"), previous=first.id, tools=tools)
    assert "begun in another place" in result_of(run)
    assert answer_of(run) == "sorry"


async def test_an_approval_for_a_program_that_was_given_up_comes_too_late() -> None:
    tool = CountedTool()
    stage = Stage(writes("return await counted({})"), says("well"), tools=[tool], policy=[PolicyRule("ask")])
    tools = [PROGRAMS, COUNTED]
    first = await stage.ask(tools=tools)
    second = await stage.ask("never mind", previous=first.id, tools=tools)
    late: Any = {"type": "mcp_approval_response", "approval_request_id": first.state.output[1].id, "approve": True}
    with pytest.raises(InvalidRequest) as refused:
        await stage.ask([late], previous=second.id, tools=tools)
    assert refused.value.code == "approval_request_not_found"
    assert tool.made == []


async def test_a_fork_of_an_unstored_chain_has_its_own_answers() -> None:
    stage = Stage(writes("return [await look({of: 'a'}), await look({of: 'b'})]"), says("one"), says("two"))
    tools = [PROGRAMS, function()]
    first = await stage.ask(tools=tools)
    second = await stage.ask(answered(first, "1"), previous=first.id, tools=tools)
    both = [await stage.ask(answered(second, n), previous=second.id, tools=tools, store=False) for n in ("2", "3")]
    assert [result_of(run) for run in both] == ['["1","2"]', '["1","3"]']


def test_programs_are_refused_where_there_is_no_engine() -> None:
    with pytest.raises(InvalidRequest) as refused:
        ResponsesSurface({}).plan(RunSettings(tools=[PROGRAMS]), [])
    assert refused.value.code == "programs_unavailable"
    assert refused.value.param == "tools[0].type"
