"""Tools as the official client declares, forces, calls and answers them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, InternalServerError, OpenAI, pydantic_function_tool
from openai.types.responses import Response
from pydantic import BaseModel

from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import assert_paired, told

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": False}
TIME: Any = {"type": "function", "name": "get_time", "parameters": CITY, "strict": False}
FILE: Any = {"type": "custom", "name": "write_file", "description": "Writes a file."}


def ask(client: OpenAI, said: str, **more: Any) -> Response:
    return client.responses.create(**{"model": "scripted", "input": said, **more})


def calls(response: Response) -> list[tuple[str, str]]:
    return [(item.name, item.arguments) for item in response.output if item.type == "function_call"]


def output(item: Any, text: str) -> Any:
    return {"type": "function_call_output", "call_id": item.call_id, "output": text}


def test_a_call_is_answered_through_the_chain(client: OpenAI, seen: Seen) -> None:
    first = ask(client, 'call: get_weather {"city":"Paris"}', tools=[WEATHER])
    assert first.status == "completed"
    assert calls(first) == [("get_weather", '{"city":"Paris"}')]
    second = ask(client, "", input=[output(first.output[0], "sunny")], previous_response_id=first.id, tools=[WEATHER])
    assert second.output_text == "The tool answered: sunny"
    assert told(seen.messages) == [
        ("user", 'call: get_weather {"city":"Paris"}'),
        ("assistant", 'get_weather({"city":"Paris"})'),
        ("tool", "sunny"),
    ]
    assert_paired(seen.messages)


def test_a_call_is_answered_by_sending_everything_again(client: OpenAI, seen: Seen) -> None:
    asked: list[Any] = [{"role": "user", "content": 'call: get_weather {"city":"Paris"}'}]
    first = ask(client, "", input=asked, tools=[WEATHER], store=False)
    asked += [item.model_dump() for item in first.output]
    asked.append(output(first.output[0], "rainy"))
    second = ask(client, "", input=asked, tools=[WEATHER], store=False)
    assert second.output_text == "The tool answered: rainy"
    assert_paired(seen.messages)


def test_parallel_calls_are_answered_in_any_order(client: OpenAI, seen: Seen) -> None:
    said = (
        'calls: [{"name": "get_weather", "arguments": {"city": "A"}}, {"name": "get_time", "arguments": {"city": "B"}}]'
    )
    first = ask(client, said, tools=[WEATHER, TIME])
    assert calls(first) == [("get_weather", '{"city":"A"}'), ("get_time", '{"city":"B"}')]
    answers = [output(first.output[1], "noon"), output(first.output[0], "fog")]
    ask(client, "", input=answers, previous_response_id=first.id, tools=[WEATHER, TIME])
    assert_paired(seen.messages)
    assert sorted(text for role, text in told(seen.messages) if role == "tool") == ["fog", "noon"]


def test_without_parallel_calls_only_one_is_made(client: OpenAI, seen: Seen) -> None:
    said = 'calls: [{"name": "get_weather", "arguments": {}}, {"name": "get_time", "arguments": {}}]'
    response = ask(client, said, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert seen.last["parallel_tool_calls"] is False
    assert calls(response) == [("get_weather", "{}")]


def test_a_strict_function_reaches_the_model_as_strict(client: OpenAI, seen: Seen) -> None:
    class GetWeather(BaseModel):
        """Weather of a city."""

        city: str

    declared: Any = pydantic_function_tool(GetWeather)["function"]
    ask(client, "say: no call", tools=[{"type": "function", **declared}])
    sent = seen.last["tools"][0]["function"]
    assert sent["strict"] is True
    assert sent["name"] == "GetWeather"
    assert sent["parameters"]["additionalProperties"] is False


def test_declared_tools_are_echoed_whole(client: OpenAI) -> None:
    response = ask(client, "say: hi", tools=[WEATHER, FILE, {"type": "web_search"}])
    assert [tool.type for tool in response.tools] == ["function", "custom", "web_search"]
    assert response.tools[0].parameters == CITY


def test_a_required_call_is_made(client: OpenAI, seen: Seen) -> None:
    response = ask(client, "hello", tools=[WEATHER, TIME], tool_choice="required")
    assert seen.last["tool_choice"] == "required"
    assert calls(response) == [("get_weather", '{"city":"text"}')]
    assert response.tool_choice == "required"


def test_a_required_call_is_made_by_a_model_that_would_not(client: OpenAI) -> None:
    said = 'say: {"tool": "get_weather", "arguments": {"city": "Rome"}}'
    response = ask(client, said, tools=[WEATHER], tool_choice="required")
    assert calls(response) == [("get_weather", '{"city":"Rome"}')]


def test_a_named_function_is_called(client: OpenAI, seen: Seen) -> None:
    choice: Any = {"type": "function", "name": "get_time"}
    response = ask(client, "hello", tools=[WEATHER, TIME], tool_choice=choice)
    assert calls(response) == [("get_time", '{"city":"text"}')]
    assert seen.last["tool_choice"] == {"type": "function", "function": {"name": "get_time"}}
    assert len(seen.last["tools"]) == 2


def test_with_tool_choice_none_no_call_comes_through(client: OpenAI, seen: Seen) -> None:
    response = ask(client, "stubborn: get_weather\nsay: fine", tools=[WEATHER], tool_choice="none")
    assert calls(response) == []
    assert response.output_text == "fine"
    assert seen.requests[0]["tools"]
    assert seen.requests[0]["tool_choice"] == "none"


def test_allowed_tools_are_a_hard_constraint_while_all_stay_in_the_prompt(client: OpenAI, seen: Seen) -> None:
    choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
    response = ask(client, "stubborn: get_weather\nsay: as you wish", tools=[WEATHER, TIME], tool_choice=choice)
    assert calls(response) == []
    assert response.output_text == "as you wish"
    assert [tool["function"]["name"] for tool in seen.requests[0]["tools"]] == ["get_weather", "get_time"]
    allowed = ask(client, 'call: get_time {"city":"X"}', tools=[WEATHER, TIME], tool_choice=choice)
    assert calls(allowed) == [("get_time", '{"city":"X"}')]


def test_a_forbidden_call_beside_an_allowed_one_is_dropped(client: OpenAI) -> None:
    choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
    said = 'calls: [{"name": "get_weather", "arguments": {}}, {"name": "get_time", "arguments": {"city": "B"}}]'
    response = ask(client, said, tools=[WEATHER, TIME], tool_choice=choice)
    assert calls(response) == [("get_time", '{"city":"B"}')]


def test_required_among_allowed_tools_gives_an_allowed_call(client: OpenAI) -> None:
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_time"}]}
    response = ask(client, "stubborn: get_weather", tools=[WEATHER, TIME], tool_choice=choice)
    assert [name for name, _ in calls(response)] == ["get_time"]


def test_a_model_that_never_keeps_to_the_choice_fails_clearly(client: OpenAI) -> None:
    with pytest.raises(InternalServerError) as caught:
        ask(client, "say: never", tools=[FILE, WEATHER], tool_choice={"type": "function", "name": "get_weather"})
    assert caught.value.status_code == 502
    assert caught.value.code in ("tool_choice_not_honoured", "tool_call_unreadable")


def test_calls_of_functions_that_were_not_declared_are_dropped(client: OpenAI) -> None:
    response = ask(client, "stubborn: get_weather\nsay: fine", tools=[TIME])
    assert calls(response) == []


def test_a_custom_tool_takes_free_text(client: OpenAI, seen: Seen) -> None:
    response = ask(client, 'call: write_file {"input": "two\\nlines"}', tools=[FILE])
    made = response.output[0]
    assert made.type == "custom_tool_call"
    assert made.input == "two\nlines"
    answer: Any = {"type": "custom_tool_call_output", "call_id": made.call_id, "output": "written"}
    after = ask(client, "", input=[answer], previous_response_id=response.id, tools=[FILE])
    assert after.output_text == "The tool answered: written"
    assert_paired(seen.messages)
    choice: Any = {"type": "custom", "name": "write_file"}
    forced = ask(client, "hello", tools=[FILE, WEATHER], tool_choice=choice)
    assert [item.type for item in forced.output] == ["custom_tool_call"]


def test_a_grammar_is_told_to_the_model(client: OpenAI, seen: Seen) -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "yes" | "no"'}
    ask(client, "say: hi", tools=[{**FILE, "format": grammar}])
    assert 'start: "yes" | "no"' in json.dumps(seen.last["tools"]).replace('\\\\\\"', '"').replace('\\"', '"')


def test_tools_of_a_namespace_come_back_with_name_and_namespace_apart(client: OpenAI, seen: Seen) -> None:
    space: Any = {
        "type": "namespace",
        "name": "mcp__mail",
        "description": "Mail.",
        "tools": [{"type": "function", "name": "send", "parameters": CITY, "strict": False}],
    }
    response = ask(client, 'call: mcp__mail__send {"city":"x"}', tools=[space])
    made: Any = response.output[0]
    assert (made.namespace, made.name) == ("mcp__mail", "send")
    ask(client, "", input=[output(made, "sent")], previous_response_id=response.id, tools=[space])
    assert_paired(seen.messages)
    assert seen.messages[1]["tool_calls"][0]["function"]["name"] == "mcp__mail__send"


def test_an_async_function_is_marked_in_its_call(client: OpenAI) -> None:
    response = ask(client, "call: get_weather {}", tools=[{**WEATHER, "async": True}])
    made: Any = response.output[0]
    assert made.async_ is True


def test_tools_of_an_additional_tools_item_are_callable_from_then_on(client: OpenAI, seen: Seen) -> None:
    item: Any = {"type": "additional_tools", "role": "developer", "tools": [TIME]}
    first = ask(client, "", input=[item, {"role": "user", "content": 'call: get_time {"city":"Oslo"}'}])
    assert calls(first) == [("get_time", '{"city":"Oslo"}')]
    ask(client, "", input=[output(first.output[0], "noon")], previous_response_id=first.id)
    assert [tool["function"]["name"] for tool in seen.last["tools"]] == ["get_time"]


def test_output_of_a_call_may_hold_images(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "call: get_weather {}", tools=[WEATHER])
    pixel = "data:image/png;base64,iVBORw0KGgo="
    parts = [{"type": "input_text", "text": "a map"}, {"type": "input_image", "image_url": pixel}]
    answer: Any = {**output(first.output[0], ""), "output": parts}
    ask(client, "", input=[answer], previous_response_id=first.id, tools=[WEATHER])
    assert_paired(seen.messages)
    assert seen.messages[-1]["role"] == "user"
    assert seen.messages[-1]["content"][-1] == {"type": "image_url", "image_url": {"url": pixel}}


def test_a_call_left_unanswered_does_not_break_the_chain(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "call: get_weather {}", tools=[WEATHER])
    second = ask(client, "say: never mind", previous_response_id=first.id)
    assert second.output_text == "never mind"
    assert_paired(seen.messages)


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "image_generation"])
def test_hosted_tools_that_clients_declare_by_default_are_tolerated(client: OpenAI, seen: Seen, kind: str) -> None:
    response = ask(client, "say: hi", tools=[{"type": kind}, WEATHER])
    assert [tool["function"]["name"] for tool in seen.last["tools"]] == ["get_weather"]
    assert response.tools[0].type == kind
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: hi", tools=[{"type": kind}], tool_choice={"type": kind})
    assert caught.value.code == "unsupported_tool"
    with pytest.raises(BadRequestError) as required:
        ask(client, "say: hi", tools=[{"type": kind}], tool_choice="required")
    assert required.value.code == "unsupported_tool"


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "file_search", "vector_store_ids": ["vs_1"]},
        {"type": "computer_use_preview", "display_height": 1, "display_width": 1, "environment": "linux"},
        {"type": "made_up"},
    ],
    ids=lambda tool: tool["type"],
)
def test_other_hosted_tools_are_refused_with_advice(client: OpenAI, tool: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: hi", tools=[tool])
    assert caught.value.code == "unsupported_tool"
    assert caught.value.param == "tools[0].type"
    assert "no hosted tool of type" in caught.value.message


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"name": "x"}]}, "tools[0].type"),
    ],
)
def test_wrong_declarations_are_refused_where_they_are_wrong(client: OpenAI, more: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: hi", **more)
    assert caught.value.param == param


def test_a_context_that_is_cut_keeps_calls_and_results_together(client: OpenAI, seen: Seen) -> None:
    said: list[Any] = []
    for number in range(5):
        said.append({"role": "user", "content": f"question {number}"})
        said.append({"type": "function_call", "call_id": f"c{number}", "name": "get_time", "arguments": "{}"})
        said.append({"type": "function_call_output", "call_id": f"c{number}", "output": f"noon {number}"})
        said.append({"role": "assistant", "content": f"answer {number}"})
    for most in range(3, 16):
        asked: Any = [*said, {"role": "user", "content": f"overflow: {most}\nsay: fits"}]
        response = ask(client, "", input=asked, tools=[TIME], truncation="auto")
        assert response.output_text == "fits"
        assert_paired(seen.messages)
        assert len(seen.messages) <= most
