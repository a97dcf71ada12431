"""Reasoning items: streamed, stored, sealed for clients that carry them, and given back to the model."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import told

SEALED: Any = ["reasoning.encrypted_content"]


def reasoning_of(seen: Seen) -> list[str]:
    return [message["reasoning_content"] for message in seen.messages if "reasoning_content" in message]


def ask(client: OpenAI, said: str, **more: Any) -> Any:
    return client.responses.create(**{"model": "scripted", "input": said, **more})


def test_reasoning_is_an_item_of_its_own(client: OpenAI) -> None:
    response = ask(client, "reason: first this, then that\nsay: done")
    thought = response.output[0]
    assert thought.type == "reasoning"
    assert thought.id.startswith("rs_")
    assert thought.summary == []
    assert [part.text for part in thought.content] == ["first this, then that"]
    assert thought.encrypted_content is None
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_reasoning_is_streamed(client: OpenAI) -> None:
    events: list[Any] = list(ask(client, "reason: one two three\nsay: done", stream=True))
    pieces = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(pieces) == "one two three"
    assert len(pieces) == 3


def test_stored_reasoning_goes_back_to_the_model_with_its_call(client: OpenAI, seen: Seen) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    first = ask(client, "reason: I should look\ncall: look {}", tools=[tool])
    answer: Any = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "seen"}
    ask(client, "", input=[answer], previous_response_id=first.id, tools=[tool])
    assert reasoning_of(seen) == ["I should look"]
    assert [role for role, _ in told(seen.messages)] == ["user", "assistant", "tool"]


def test_sealed_reasoning_is_carried_by_a_client_that_stores_nothing_here(client: OpenAI, seen: Seen) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    asked: list[Any] = [{"role": "user", "content": "reason: a hidden thought\ncall: look {}"}]
    first = ask(client, "", input=asked, tools=[tool], store=False, include=SEALED)
    sealed = first.output[0].encrypted_content
    assert sealed
    assert "hidden" not in sealed
    carried = {"type": "reasoning", "id": first.output[0].id, "summary": [], "encrypted_content": sealed}
    asked += [carried, first.output[1].model_dump()]
    asked.append({"type": "function_call_output", "call_id": first.output[1].call_id, "output": "x"})
    ask(client, "", input=asked, tools=[tool], store=False, include=SEALED)
    assert reasoning_of(seen) == ["a hidden thought"]


def test_reasoning_sealed_elsewhere_is_passed_over(client: OpenAI, seen: Seen) -> None:
    foreign = {"type": "reasoning", "id": "rs_foreign", "summary": [], "encrypted_content": "gAAAAABmForeign"}
    response = ask(client, "", input=[foreign, {"role": "user", "content": "say: fine"}])
    assert response.output_text == "fine"
    assert [text for _, text in told(seen.messages)] == ["say: fine"]
    items = list(client.responses.input_items.list(response.id, order="asc"))
    assert items[0].encrypted_content == "gAAAAABmForeign"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "summary": []},
        {"type": "reasoning", "id": "rs_1", "summary": [], "status": "in_progress", "encrypted_content": None},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": None},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "long"}]},
    ],
)
def test_reasoning_comes_back_in_every_shape_that_clients_send(client: OpenAI, item: Any) -> None:
    said = [item, {"role": "assistant", "content": "so"}, {"role": "user", "content": "say: ok"}]
    response = ask(client, "", input=said)
    assert response.output_text == "ok"
    held: Any = next(iter(client.responses.input_items.list(response.id, order="asc")))
    assert held.type == "reasoning"
    assert [part.text for part in held.summary] == [part["text"] for part in item["summary"]]


def test_reasoning_without_an_answer_is_still_a_whole_response(client: OpenAI) -> None:
    response = ask(client, "reason: only thoughts\nsay:")
    assert [item.type for item in response.output][0] == "reasoning"
    assert response.status == "completed"
