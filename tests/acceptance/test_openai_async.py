"""The asynchronous official client: the same answers, many at once."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.acceptance.modelhost import ModelHost, Seen
from tests.acceptance.wire import check_response


class Answer(BaseModel):
    value: int


async def test_a_chain_over_the_async_client(async_client: AsyncOpenAI) -> None:
    first = await async_client.responses.create(model="scripted", input="my dog is Rex")
    second = await async_client.responses.create(
        model="scripted", input="what is my dog?", previous_response_id=first.id
    )
    assert second.output_text == "Your dog is Rex."
    assert await async_client.responses.retrieve(second.id) == second
    assert len([item async for item in async_client.responses.input_items.list(second.id, limit=1)]) == 3
    await async_client.responses.delete(first.id)


async def test_streams_and_helpers_of_the_async_client(async_client: AsyncOpenAI) -> None:
    events = [event async for event in await async_client.responses.create(model="m", input="say: hi", stream=True)]
    assert events[-1].type == "response.completed"
    async with async_client.responses.stream(model="m", input='json: {"value": 3}', text_format=Answer) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_parsed == Answer(value=3)
    parsed = await async_client.responses.parse(model="m", input='json: {"value": 4}', text_format=Answer)
    assert parsed.output_parsed == Answer(value=4)


async def test_conversations_of_the_async_client(async_client: AsyncOpenAI) -> None:
    conversation = await async_client.conversations.create(items=[{"role": "user", "content": "my fish is Wanda"}])
    answered = await async_client.responses.create(model="m", input="what is my fish?", conversation=conversation.id)
    assert answered.output_text == "Your fish is Wanda."
    held = [item async for item in async_client.conversations.items.list(conversation.id, order="asc", limit=2)]
    assert len(held) == 3
    await async_client.conversations.items.delete(str(held[0].id), conversation_id=conversation.id)
    await async_client.conversations.delete(conversation.id)


async def test_a_background_response_is_followed_by_the_async_client(
    async_client: AsyncOpenAI, model_host: ModelHost, seen: Seen
) -> None:
    queued = await async_client.responses.create(model="m", input="gate: async 2\nsay: one two three", background=True)
    numbers: list[int] = []
    stream = await async_client.responses.retrieve(queued.id, stream=True, starting_after=1)
    model_host.open_gate("async")
    async for event in stream:
        numbers.append(event.sequence_number)
    assert numbers == list(range(2, 2 + len(numbers)))
    assert (await async_client.responses.retrieve(queued.id)).output_text == "one two three"


async def test_a_hundred_requests_at_once_get_their_own_answers(async_client: AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        if number % 3 == 0:
            conversation = await async_client.conversations.create()
            more: dict[str, Any] = {"conversation": conversation.id}
        else:
            more = {"store": False} if number % 3 == 1 else {}
        response = await async_client.responses.create(model="m", input=f"say: {number}", **more)
        check_response(response.to_dict(mode="json"))
        return response.output_text

    assert await asyncio.gather(*(one(number) for number in range(100))) == [str(number) for number in range(100)]
