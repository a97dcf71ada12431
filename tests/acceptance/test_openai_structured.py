"""Structured output through the official client: what is parsed is what was asked for, or the response has failed."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from openai import BadRequestError, InternalServerError, OpenAI
from pydantic import BaseModel

from tests.acceptance.modelhost import Seen, until

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


class Step(BaseModel):
    explanation: str
    kind: Literal["guess", "proof"]


class Solution(BaseModel):
    steps: list[Step]
    answer: int | None


def schema(**more: Any) -> Any:
    return {"format": {"type": "json_schema", "name": "point", "schema": POINT, "strict": True, **more}}


def test_an_answer_is_parsed_into_a_model(client: OpenAI, seen: Seen) -> None:
    said = 'json: {"steps": [{"explanation": "1+1", "kind": "proof"}], "answer": 2}'
    parsed = client.responses.parse(model="scripted", input=said, text_format=Solution)
    assert parsed.output_parsed == Solution(steps=[Step(explanation="1+1", kind="proof")], answer=2)
    sent = seen.last["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["strict"] is True
    assert sent["json_schema"]["schema"]["required"] == ["steps", "answer"]


def test_the_streamed_answer_is_parsed_too(client: OpenAI) -> None:
    said = 'json: {"steps": [], "answer": null}'
    with client.responses.stream(model="scripted", input=said, text_format=Solution) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == Solution(steps=[], answer=None)


def test_arguments_of_a_tool_are_parsed(client: OpenAI) -> None:
    from openai import pydantic_function_tool

    declared: Any = pydantic_function_tool(Step)["function"]
    tool: Any = {"type": "function", **declared}
    said = 'call: Step {"explanation": "why", "kind": "guess"}'
    parsed = client.responses.parse(model="scripted", input=said, tools=[tool])
    made: Any = parsed.output[0]
    assert made.parsed_arguments == {"explanation": "why", "kind": "guess"} or made.parsed_arguments.kind == "guess"


def test_the_format_is_echoed(client: OpenAI) -> None:
    response = client.responses.create(model="scripted", input='json: {"x": 1, "y": 2}', text=schema())
    shown: Any = response.text
    assert shown.format.type == "json_schema"
    assert shown.format.schema_ == POINT
    assert json.loads(response.output_text) == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    "answer", ['{"x": 1}', '{"x": 1, "y": "two"}', '{"x": 1, "y": 2, "z": 3}', "[1, 2]", "no JSON at all", '{"x": 1']
)
def test_an_answer_that_does_not_fit_fails_the_response(client: OpenAI, answer: str) -> None:
    with pytest.raises(InternalServerError) as caught:
        client.responses.create(model="scripted", input=f"json: {answer}", text=schema())
    assert caught.value.code == "invalid_output"
    assert caught.value.status_code == 502


def test_an_answer_that_does_not_fit_fails_a_stream_at_its_end(client: OpenAI) -> None:
    events: list[Any] = list(
        client.responses.create(model="scripted", input='json: {"x": 1}', text=schema(), stream=True)
    )
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2].code == "invalid_output"
    assert events[-1].response.status == "failed"


def test_a_schema_that_is_not_strict_is_advice(client: OpenAI) -> None:
    response = client.responses.create(model="scripted", input='json: {"x": 1}', text=schema(strict=False))
    assert json.loads(response.output_text) == {"x": 1}


def test_a_refusal_is_no_violation(client: OpenAI) -> None:
    response = client.responses.create(model="scripted", input="refuse: I will not.", text=schema())
    part: Any = response.output[0].content[0]
    assert response.status == "completed"
    assert (part.type, part.refusal) == ("refusal", "I will not.")
    parsed = client.responses.parse(model="scripted", input="refuse: I will not.", text_format=Solution)
    assert parsed.output_parsed is None


def test_an_answer_cut_by_the_token_limit_is_incomplete_rather_than_failed(client: OpenAI) -> None:
    said = "json: " + json.dumps({"x": 1, "y": " ".join("w" for _ in range(60))})
    response = client.responses.create(model="scripted", input=said, text=schema(), max_output_tokens=16)
    assert response.status == "incomplete"


def test_a_call_in_the_place_of_an_answer_is_not_checked(client: OpenAI) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    response = client.responses.create(model="scripted", input="call: look {}", tools=[tool], text=schema())
    assert [item.type for item in response.output] == ["function_call"]


def test_a_json_object_is_checked_to_be_one(client: OpenAI, seen: Seen) -> None:
    form: Any = {"format": {"type": "json_object"}}
    response = client.responses.create(model="scripted", input='json: {"any": ["thing"]}', text=form)
    assert json.loads(response.output_text) == {"any": ["thing"]}
    assert seen.last["response_format"] == {"type": "json_object"}
    with pytest.raises(InternalServerError) as caught:
        client.responses.create(model="scripted", input="json: [1]", text=form)
    assert caught.value.code == "invalid_output"


def test_a_schema_that_is_none_is_refused_before_anything_runs(client: OpenAI, seen: Seen) -> None:
    wrong: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "objekt"}, "strict": True}}
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="scripted", input="hi", text=wrong)
    assert caught.value.code == "invalid_json_schema"
    assert caught.value.param == "text.format.schema"
    assert "at /type: " in caught.value.message
    assert seen.requests == []


@pytest.mark.parametrize(
    "form",
    [{"type": "xml"}, {"type": "json_schema", "schema": {}}, {"type": "json_schema", "name": "a b", "schema": {}}],
)
def test_formats_that_are_not_known_are_refused(client: OpenAI, form: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="scripted", input="hi", text={"format": form})
    assert str(caught.value.param).startswith("text.format")


def test_a_violation_leaves_nothing_in_the_chain(client: OpenAI, seen: Seen) -> None:
    first = client.responses.create(model="scripted", input="say: one")
    failing = client.responses.create(
        model="scripted", input='json: {"x": 1}', text=schema(), previous_response_id=first.id, background=True
    )
    ended = until(lambda: _failed(client, failing.id), "the response fails")
    assert ended.error.code == "server_error"
    assert "does not fit the JSON schema" in ended.error.message
    client.responses.create(model="scripted", input="say: two", previous_response_id=first.id)
    assert len(seen.messages) == 3


def _failed(client: OpenAI, response_id: str) -> Any:
    held = client.responses.retrieve(response_id)
    return held if held.status == "failed" else None
