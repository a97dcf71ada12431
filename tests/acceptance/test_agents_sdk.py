"""The OpenAI Agents SDK for Python against a real server: runs, streams, tools, handoffs, sessions, kept state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesCompactionSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from agents.exceptions import ModelBehaviorError, ModelRefusalError
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import assert_paired, told

QUIET = RunConfig(tracing_disabled=True)


class Fruit(BaseModel):
    name: str
    weight: int


@pytest.fixture(autouse=True)
def no_traces() -> None:
    """Nothing is sent to OpenAI."""
    set_tracing_disabled(True)


@pytest.fixture
def model(async_client: AsyncOpenAI) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(model="scripted", openai_client=async_client)


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@function_tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


async def test_an_agent_answers(model: OpenAIResponsesModel, seen: Seen) -> None:
    agent = Agent(name="plain", instructions="Be brief.", model=model)
    result = await Runner.run(agent, "say: hello", run_config=QUIET)
    assert result.final_output == "hello"
    assert told(seen.messages) == [("system", "Be brief."), ("user", "say: hello")]
    assert result.context_wrapper.usage.total_tokens > 0


async def test_an_agent_calls_functions_until_it_can_answer(model: OpenAIResponsesModel, seen: Seen) -> None:
    agent = Agent(name="weather", tools=[get_weather, add], model=model)
    said = 'call: get_weather {"city": "Paris"}\ncall: add {"a": 2, "b": 3}'
    result = await Runner.run(agent, said, run_config=QUIET)
    assert result.final_output == "The tool answered: sunny in Paris; 5"
    assert len(seen.requests) == 3
    for request in seen.requests:
        assert_paired(request["messages"])


async def test_an_agent_calls_functions_in_parallel(model: OpenAIResponsesModel, seen: Seen) -> None:
    agent = Agent(name="weather", tools=[get_weather, add], model=model)
    weather, sum_ = (
        {"name": "get_weather", "arguments": {"city": "Rome"}},
        {"name": "add", "arguments": {"a": 1, "b": 1}},
    )
    said = f"calls: {json.dumps([weather, sum_])}"
    result = await Runner.run(agent, said, run_config=QUIET)
    assert result.final_output == "The tool answered: sunny in Rome; 2"
    assert_paired(seen.messages)


async def test_a_streamed_agent_gives_text_calls_and_results(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="weather", tools=[get_weather], model=model)
    result = Runner.run_streamed(agent, 'reason: hm\ncall: get_weather {"city": "Oslo"}', run_config=QUIET)
    names, text = [], ""
    async for event in result.stream_events():
        if event.type == "run_item_stream_event":
            names.append(event.name)
        elif event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert result.final_output == text == "The tool answered: sunny in Oslo"
    assert [name for name in names if name != "reasoning_item_created"] == [
        "tool_called",
        "tool_output",
        "message_output_created",
    ]


async def test_a_handoff_goes_to_the_other_agent(model: OpenAIResponsesModel, seen: Seen) -> None:
    expert = Agent(name="expert", instructions="You are the expert.", model=model)
    desk = Agent(name="desk", handoffs=[handoff(expert)], model=model)
    result = await Runner.run(desk, "call: transfer_to_expert {}\nsay: solved", run_config=QUIET)
    assert result.last_agent.name == "expert"
    assert result.final_output == "solved"
    assert told(seen.messages)[0] == ("system", "You are the expert.")
    assert_paired(seen.messages)


async def test_structured_output_becomes_an_object(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="fruit", output_type=Fruit, model=model)
    result = await Runner.run(agent, 'json: {"name": "pear", "weight": 120}', run_config=QUIET)
    assert result.final_output == Fruit(name="pear", weight=120)


async def test_a_refusal_is_told_as_the_sdk_tells_it(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="plain", model=model)
    with pytest.raises(ModelRefusalError, match=r"I would rather not\."):
        await Runner.run(agent, "refuse: I would rather not.", run_config=QUIET)


async def test_a_violated_schema_does_not_become_an_object(model: OpenAIResponsesModel) -> None:
    agent = Agent(name="fruit", output_type=Fruit, model=model)
    with pytest.raises(Exception) as caught:  # noqa: PT011  # either the server's 502 or the SDK's own refusal
        await Runner.run(agent, 'json: {"name": "pear"}', run_config=QUIET)
    assert getattr(caught.value, "code", "") == "invalid_output" or isinstance(caught.value, ModelBehaviorError)


@pytest.mark.parametrize("choice", ["required", "get_weather"])
async def test_a_forced_call_is_made(model: OpenAIResponsesModel, choice: str) -> None:
    settings = ModelSettings(tool_choice=choice)
    agent = Agent(name="weather", tools=[add, get_weather], model=model, model_settings=settings)
    agent.tool_use_behavior = "stop_on_first_tool"
    result = await Runner.run(agent, "hello", run_config=QUIET)
    assert result.final_output in (("sunny in text",) if choice == "get_weather" else (2, "2"))


async def test_a_session_keeps_the_dialogue_in_a_conversation(
    model: OpenAIResponsesModel, async_client: AsyncOpenAI, seen: Seen
) -> None:
    session = OpenAIConversationsSession(openai_client=async_client)
    agent = Agent(name="memory", tools=[get_weather], model=model)
    await Runner.run(agent, "my dog is Biscuit", session=session, run_config=QUIET)
    await Runner.run(agent, 'reason: look\ncall: get_weather {"city": "Bern"}', session=session, run_config=QUIET)
    result = await Runner.run(agent, "what is my dog?", session=session, run_config=QUIET)
    assert result.final_output == "Your dog is Biscuit."
    assert_paired(seen.messages)
    held = await session.get_items()
    assert [item.get("role") or item["type"] for item in held] == [
        "user",
        "assistant",
        "user",
        "reasoning",
        "function_call",
        "function_call_output",
        "reasoning",
        "assistant",
        "user",
        "assistant",
    ]
    assert len(await session.get_items(limit=2)) == 2
    popped: Any = await session.pop_item()
    assert popped["content"][0]["text"] == "Your dog is Biscuit."
    assert len(await session.get_items()) == len(held) - 1
    conversation = session.session_id
    await session.clear_session()
    assert await session.get_items() == []
    assert session.session_id != conversation


async def test_a_long_session_is_added_in_batches(async_client: AsyncOpenAI) -> None:
    session = OpenAIConversationsSession(openai_client=async_client)
    await session.add_items([{"role": "user", "content": f"m{number}"} for number in range(45)])
    held: Any = await session.get_items()
    assert [item["content"][0]["text"] for item in held] == [f"m{number}" for number in range(45)]
    latest: Any = await session.get_items(limit=3)
    assert [item["content"][0]["text"] for item in latest] == ["m42", "m43", "m44"]


async def test_a_streamed_run_with_a_session(model: OpenAIResponsesModel, async_client: AsyncOpenAI) -> None:
    session = OpenAIConversationsSession(openai_client=async_client)
    agent = Agent(name="memory", model=model)
    for said in ("my cat is Tom", "what is my cat?"):
        result = Runner.run_streamed(agent, said, session=session, run_config=QUIET)
        async for _ in result.stream_events():
            pass
    assert result.final_output == "Your cat is Tom."


async def test_a_run_goes_on_from_the_last_response(model: OpenAIResponsesModel, seen: Seen) -> None:
    agent = Agent(name="chain", tools=[get_weather], model=model)
    first = await Runner.run(agent, "my bird is Polly", run_config=QUIET)
    second = await Runner.run(
        agent,
        'call: get_weather {"city": "Lima"}',
        previous_response_id=first.last_response_id,
        auto_previous_response_id=True,
        run_config=QUIET,
    )
    third = await Runner.run(agent, "what is my bird?", previous_response_id=second.last_response_id, run_config=QUIET)
    assert third.final_output == "Your bird is Polly."
    assert_paired(seen.messages)


async def test_a_run_in_a_conversation_sends_only_what_is_new(
    model: OpenAIResponsesModel, async_client: AsyncOpenAI, seen: Seen
) -> None:
    conversation = await async_client.conversations.create()
    agent = Agent(name="conversation", tools=[get_weather], model=model)
    await Runner.run(agent, "my fish is Wanda", conversation_id=conversation.id, run_config=QUIET)
    await Runner.run(agent, 'call: get_weather {"city": "Quito"}', conversation_id=conversation.id, run_config=QUIET)
    result = await Runner.run(agent, "what is my fish?", conversation_id=conversation.id, run_config=QUIET)
    assert result.final_output == "Your fish is Wanda."
    assert_paired(seen.messages)
    held = [item.type async for item in async_client.conversations.items.list(conversation.id, order="asc")]
    assert held == [
        "message",
        "message",
        "message",
        "function_call",
        "function_call_output",
        "message",
        "message",
        "message",
    ]


async def test_an_agent_carries_its_own_reasoning(model: OpenAIResponsesModel, seen: Seen) -> None:
    settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"])
    agent = Agent(name="private", tools=[add], model=model, model_settings=settings)
    result = await Runner.run(agent, 'reason: the secret plan\ncall: add {"a": 1, "b": 2}', run_config=QUIET)
    assert result.final_output == "The tool answered: 3"
    assert [m["reasoning_content"] for m in seen.messages if "reasoning_content" in m] == ["the secret plan"]


async def test_an_agent_as_a_tool_of_another(model: OpenAIResponsesModel) -> None:
    helper = Agent(name="helper", model=model)
    tool = helper.as_tool("ask_helper", "Asks the helper.")
    agent = Agent(name="boss", tools=[tool], model=model)
    result = await Runner.run(agent, 'call: ask_helper {"input": "say: from the helper"}', run_config=QUIET)
    assert result.final_output == "The tool answered: from the helper"


async def test_a_compaction_session_replaces_its_history_and_goes_on(
    model: OpenAIResponsesModel, async_client: AsyncOpenAI, seen: Seen, tmp_path: Path
) -> None:
    """The session insists on a name of OpenAI's and posts to /responses/compact by itself, after a turn."""
    session = OpenAIResponsesCompactionSession(
        session_id="s",
        underlying_session=SQLiteSession("s", tmp_path / "session.db"),
        client=async_client,
        should_trigger_compaction=lambda context: len(context["compaction_candidate_items"]) >= 3,
    )
    agent = Agent(name="memory", tools=[get_weather], model=model)
    await Runner.run(agent, "summary: The dog is Biscuit.\nsay: noted", session=session, run_config=QUIET)
    await Runner.run(agent, 'call: get_weather {"city": "Bern"}', session=session, run_config=QUIET)
    held = await session.get_items()
    assert [item.get("type", "message") for item in held] == ["message", "message", "compaction"]
    await Runner.run(agent, "say: still here", session=session, run_config=QUIET)
    texts = [text for _, text in told(seen.messages)]
    assert any(text.endswith("The dog is Biscuit.") for text in texts)
    assert texts[-1] == "say: still here"
    assert_paired(seen.messages)
