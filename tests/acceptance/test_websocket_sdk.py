"""The `openai` package and the Agents SDK over a WebSocket, as their own documentation uses them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI, OpenAI
from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketAccumulator,
    ResponsesWebSocketError,
    ResponsesWebSocketLimits,
    ResponsesWebSocketSession,
)

LIMITS = ResponsesWebSocketLimits(
    max_lanes=33,
    max_events_per_lane=4096,
    max_events=16_384,
    max_bytes_per_lane=1 << 24,
    max_bytes=1 << 26,
)


def test_the_connection_of_the_sdk(client: OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model="scripted", input="say: hello", store=False)
        events = []
        for event in connection:
            events.append(event)
            if event.type == "response.completed":
                break
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"
        assert events[-1].response.output_text == "hello"
        connection.response.create(model="scripted", input="hi", previous_response_id="resp_missing")
        failed = connection.recv()
        assert failed.type == "error"
        assert (failed.status, failed.error.code) == (400, "previous_response_not_found")


def test_the_session_of_the_sdk_with_its_lanes(client: OpenAI) -> None:
    with (
        client.responses.connect(websocket_connection_options={"max_size": None}) as connection,
        ResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        lane = session.lane("conversation")
        lane.send({"type": "response.create", "model": "scripted", "input": "my name is Ada"})
        first = lane.get_final_response(timeout=20)
        fork = session.lane("fork")
        said = {"type": "response.create", "model": "scripted", "input": "what is my name?"}
        fork.send({**said, "previous_response_id": first.id})
        lane.send({**said, "previous_response_id": first.id})
        assert fork.get_final_response(timeout=20).output_text == "Your name is Ada."
        assert lane.get_final_response(timeout=20).output_text == "Your name is Ada."
        session.default.send({**said, "previous_response_id": "resp_missing"})
        with pytest.raises(ResponsesWebSocketError):
            session.default.get_final_response(timeout=20)


async def test_the_session_of_the_async_sdk_with_as_many_lanes_as_there_may_be(async_client: AsyncOpenAI) -> None:
    async with (
        async_client.responses.connect(websocket_connection_options={"max_size": None}) as connection,
        AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        lanes = [session.lane(f"lane-{number}") for number in range(32)]

        async def talk(number: int) -> str:
            create: dict[str, Any] = {"type": "response.create", "model": "scripted", "store": False}
            await lanes[number].send({**create, "input": f"my number is {number}"})
            first = await lanes[number].get_final_response()
            asked = {**create, "input": "what is my number?", "previous_response_id": first.id}
            await lanes[number].send(asked)
            return (await lanes[number].get_final_response()).output_text

        answers = await asyncio.wait_for(asyncio.gather(*(talk(number) for number in range(32))), 60)
        assert answers == [f"Your number is {number}." for number in range(32)]


async def test_the_warm_up_and_the_accumulator_of_the_sdk(async_client: AsyncOpenAI) -> None:
    async with async_client.responses.connect() as connection:
        warm = {"type": "response.create", "model": "scripted", "input": "my cat is Tom", "generate": False}
        await connection.send(warm)  # type: ignore[arg-type]  # its own documentation sends it so
        accumulator = ResponsesWebSocketAccumulator()
        async for event in connection:
            accumulator.add_event(event)
            if event.type == "response.completed":
                break
        prepared = accumulator.get_final_response()
        assert prepared.output == []
        accumulator.reset()
        await connection.response.create(model="scripted", input="what is my cat?", previous_response_id=prepared.id)
        async for event in connection:
            accumulator.add_event(event)
            if event.type == "response.completed":
                break
        assert accumulator.snapshot().output_text == "Your cat is Tom."


async def test_steering_with_the_sdk(async_client: AsyncOpenAI) -> None:
    async with async_client.responses.connect() as connection:
        await connection.response.create(model="scripted", input="gate: sdk-steer 2\nsay: one two three")
        finals: list[Any] = []
        async for event in connection:
            if event.type == "response.created" and not finals:
                identifier = event.response.id
            elif event.type == "response.output_text.delta" and not finals and event.delta == "one":
                await connection.response.steer(previous_response_id=identifier, input="say: as you wish")
            elif event.type in ("response.completed", "response.incomplete"):
                finals.append(event.response)
                if len(finals) == 2:
                    break
        assert finals[0].incomplete_details.reason == "steered"
        assert finals[1].output_text == "as you wish"
        assert finals[1].previous_response_id == identifier


async def test_the_agents_sdk_over_a_websocket(async_client: AsyncOpenAI) -> None:
    set_tracing_disabled(True)
    called = []

    @function_tool
    def look(place: str = "garden") -> str:
        """Look somewhere."""
        called.append(place)
        return "a tree"

    agent = Agent(name="assistant", model="scripted", instructions="Be brief.", tools=[look])
    provider = OpenAIProvider(openai_client=async_client, use_responses=True, use_responses_websocket=True)
    config = RunConfig(model_provider=provider)
    first = await Runner.run(agent, 'call: look {"place": "park"}', run_config=config, auto_previous_response_id=True)
    assert first.final_output == "The tool answered: a tree"
    assert called == ["park"]
    streamed = Runner.run_streamed(agent, "echo", run_config=config, previous_response_id=first.last_response_id)
    async for _ in streamed.stream_events():
        pass
    assert streamed.final_output == "6 messages. echo"
    await provider.aclose()
