"""What stands between a model's hosted call and the tool: the policy, approvals, the search for deferred tools."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import RunEnded, ToolDecided, ToolIntent
from stateroom.settings import PolicyRule
from tests.unit.runtime.stage import CountedTool, Stage, answer_of, calls, says

COUNTED: Any = [{"type": "stateroom:counted"}]


def kinds(run: Any) -> list[str]:
    return [output.item.get("type", "message") for output in run.state.output]


async def decisions(stage: Stage, run: Any) -> list[tuple[str, str]]:
    return [(each.decision, each.by) for each in await stage.records(run) if isinstance(each, ToolDecided)]


async def test_a_call_that_is_denied_is_not_made_and_the_model_is_told_why() -> None:
    tool = CountedTool()
    rule = PolicyRule("deny", tool="stateroom:*", reason="not on Sundays")
    stage = Stage(calls("counted"), says("understood"), tools=[tool], policy=[rule])
    run = await stage.ask(tools=COUNTED)
    assert tool.made == []
    assert "not on Sundays" in stage.backend.asked[1].texts()[2]
    assert answer_of(run) == "understood"
    assert await decisions(stage, run) == [("deny", "rule 1")]


async def test_what_is_asked_for_is_carried_out_once_it_is_approved() -> None:
    tool = CountedTool()
    rule = PolicyRule("ask", tool="stateroom:counted")
    stage = Stage(calls("counted"), says("done"), tools=[tool], policy=[rule])
    asked = await stage.ask(tools=COUNTED)
    assert kinds(asked) == ["stateroom:tool_call", "mcp_approval_request"]
    assert asked.state.ended == RunEnded("completed")
    assert tool.made == []
    request = asked.state.output[1]
    assert (request.item["server_label"], request.item["name"]) == ("stateroom", "counted")
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    run = await stage.ask([answer], previous=asked.id, tools=COUNTED)
    assert kinds(run) == ["stateroom:tool_call", "message"]
    assert len(tool.made) == 1
    assert run.state.output[0].item["approval_request_id"] == request.id
    assert await decisions(stage, asked) == [("ask", "rule 1")]
    assert await decisions(stage, run) == [("allow", request.id)]
    with pytest.raises(InvalidRequest) as refused:
        await stage.ask([answer], previous=run.id, tools=COUNTED)
    assert refused.value.code == "approval_already_answered"


async def test_what_is_refused_by_a_person_is_not_carried_out() -> None:
    tool = CountedTool()
    stage = Stage(calls("counted"), says("well"), tools=[tool], policy=[PolicyRule("ask")])
    asked = await stage.ask(tools=COUNTED)
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": asked.state.output[1].id,
        "approve": False,
        "reason": "too dear",
    }
    run = await stage.ask([answer], previous=asked.id, tools=COUNTED)
    assert tool.made == []
    assert "too dear" in stage.backend.asked[1].texts()[-1]
    assert await decisions(stage, run) == [("deny", asked.state.output[1].id)]


async def test_an_approval_that_nobody_asked_for_is_refused() -> None:
    stage = Stage(tools=[CountedTool()])
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_x", "approve": True}
    with pytest.raises(InvalidRequest) as refused:
        await stage.ask([answer], tools=COUNTED)
    assert refused.value.code == "approval_request_not_found"


async def test_what_is_denied_cannot_be_approved() -> None:
    tool = CountedTool()
    stage = Stage(calls("counted"), says("done"), tools=[tool], policy=[PolicyRule("ask")])
    asked = await stage.ask(tools=COUNTED)
    answer = {"type": "mcp_approval_response", "approval_request_id": asked.state.output[1].id, "approve": True}
    stricter = stage.after_crash(says("no"), tools=[tool], policy=[PolicyRule("deny")])
    run = await stricter.ask([answer], previous=asked.id, tools=COUNTED)
    assert tool.made == []
    assert answer_of(run) == "no"


async def test_an_approved_call_that_a_crash_cut_off_is_not_repeated() -> None:
    tool = CountedTool()
    stage = Stage(calls("counted"), tools=[tool], policy=[PolicyRule("ask")])
    asked = await stage.ask(tools=COUNTED)
    answer = {"type": "mcp_approval_response", "approval_request_id": asked.state.output[1].id, "approve": True}
    tool.gate = asyncio.Event()
    begun = asyncio.Event()
    tool.before = begun.set
    run = await stage.start([answer], previous=asked.id, tools=COUNTED)
    await begun.wait()
    await stage.give_up(run)
    after = stage.after_crash(says("I looked"), tools=[tool], policy=[PolicyRule("ask")])
    await after.recover()
    assert len(tool.made) == 1
    assert "unknown" in after.backend.asked[0].texts()[-1]
    assert sum(isinstance(each, ToolIntent) for each in await after.records(run)) == 1


async def test_deferred_tools_are_offered_once_they_are_found() -> None:
    late = {
        "type": "function",
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {}},
        "defer_loading": True,
    }
    tools: Any = [late, {"type": "tool_search"}]
    stage = Stage(calls("tool_search", '{"query":"weather"}'), calls("get_weather"), says("sunny"))
    run = await stage.ask(tools=tools)
    assert kinds(run) == ["tool_search_call", "tool_search_output", "function_call"]
    assert [each.name for each in stage.backend.asked[0].functions] == ["tool_search"]
    assert [each.name for each in stage.backend.asked[1].functions] == ["tool_search", "get_weather"]
    result = {"type": "function_call_output", "call_id": "call_get_weather", "output": "warm"}
    await stage.ask([result], previous=run.id, tools=tools)
    assert [each.name for each in stage.backend.asked[2].functions] == ["tool_search", "get_weather"]


async def test_arguments_that_are_no_sense_fail_and_the_model_sees_what_it_wrote() -> None:
    stage = Stage(calls("tool_search", '{"q": 1}'), says("sorry"))
    run = await stage.ask(tools=[{"type": "tool_search"}])
    assert answer_of(run) == "sorry"
    texts = stage.backend.asked[1].texts()
    assert texts[1] == '{"q": 1}'
