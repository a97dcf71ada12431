"""The scripted Responses server is as strict as OpenAI, and its answers have OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from stateroom.testing.script import Call, ChatRequest, Message, Reply
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.script_responses import Refused, ResponsesAnswer, ResponsesRequest, read_request, seal

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}
USER = {"role": "user", "content": "hi"}
REPLY = Reply(text="a b", reasoning="hm", summary="I thought.", calls=(Call("look", '{"a": 1}'),), phase="commentary")


def answer(reply: Reply, **quirks: Any) -> ResponsesAnswer:
    asked = ChatRequest([Message("user", "x")], stream=True)
    return ResponsesAnswer(reply, ResponsesRequest(asked, sealed=True), Quirks(done=False, **quirks), 1)


def events(made: ResponsesAnswer) -> list[dict[str, Any]]:
    data = b"".join([*made.events(), *made.closing()])
    lines = [line for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line[6:]) for line in lines]


def read(*items: dict[str, Any], **more: Any) -> ResponsesRequest:
    return read_request(json.dumps({"model": "m", "input": list(items), **more}).encode())


@pytest.mark.parametrize("reply", [REPLY, Reply(refusal="No."), Reply(text="x", finish="length"), Reply()])
@pytest.mark.parametrize("quirk", ["hidden_reasoning", "whole_items", "whole_calls", ""])
def test_every_event_is_one_of_openais_in_all_its_fields(reply: Reply, quirk: str) -> None:
    told = events(answer(reply, **({quirk: True} if quirk else {})))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        known = EVENT.validate_python(event)
        assert known.type == event["type"]
        assert set(event) <= set(type(known).model_fields)


def test_a_whole_answer_is_a_response() -> None:
    shown = json.loads(answer(REPLY).whole())
    Response.model_validate(shown)
    assert [item["type"] for item in shown["output"]] == ["reasoning", "message", "function_call"]
    assert shown["status"] == "completed"


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([USER, CALL], "No tool output found for function call c"),
        ([USER, OUTPUT], "No tool call found"),
        ([CALL, CALL, OUTPUT], "Two function calls"),
        ([USER, {"type": "reasoning", "id": "rs", "encrypted_content": seal("rs", "x")}, USER], "required following"),
        ([{"type": "reasoning", "id": "rs", "encrypted_content": "gAAA"}, CALL, OUTPUT], "could not be verified"),
        ([{"type": "reasoning", "id": "rs", "encrypted_content": seal("rs_2", "x")}, CALL, OUTPUT], "another item"),
        ([{"type": "reasoning", "id": "rs", "summary": []}, CALL, OUTPUT], "not found"),
    ],
)
def test_a_history_that_is_not_complete_is_refused(items: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read(*items)


def test_the_script_is_asked_as_by_a_chat_request() -> None:
    tools = [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    asked = read(USER, CALL, OUTPUT, instructions="Be kind.", tools=tools, tool_choice=choice, text={"format": schema})
    assert [message.role for message in asked.chat.messages] == ["system", "user", "assistant", "tool"]
    assert [tool["function"]["name"] for tool in asked.chat.tools or ()] == ["g"]
    assert asked.chat.tool_choice == "required"
    assert asked.chat.response_format is not None
    assert asked.chat.response_format["json_schema"]["schema"] == {"type": "object"}
