"""Searching for tools, carried out here or by the client, as the official client declares and answers it."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from tests.acceptance.modelhost import Seen

PRICE: Any = {
    "type": "function",
    "name": "price",
    "description": "The price of an article.",
    "parameters": {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]},
    "strict": False,
    "defer_loading": True,
}
SHOP: Any = {"type": "namespace", "name": "shop", "description": "The shop.", "tools": [PRICE]}
HERE: Any = {"type": "tool_search"}
THERE: Any = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools by the goal.",
    "parameters": {"type": "object", "properties": {"goal": {"type": "string"}}, "required": ["goal"]},
}


def ask(client: OpenAI, said: Any, *tools: Any, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=said, tools=list(tools), **more)


def offered(seen: Seen) -> list[str]:
    return [tool["function"]["name"] for tool in seen.last.get("tools", ())]


@pytest.mark.parametrize("store", [True, False])
def test_a_call_of_a_function_that_was_found_has_its_name_as_its_namespace(
    client: OpenAI, seen: Seen, store: bool
) -> None:
    said: list[Any] = [{"role": "user", "content": 'call: tool_search {"query":"price"}\ncall: price {"of":"tea"}'}]
    found = ask(client, said, PRICE, HERE, store=store)
    assert [item.type for item in found.output] == ["tool_search_call", "tool_search_output", "function_call"]
    call = found.output[2]
    assert (call.namespace, call.name) == ("price", "price")
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    if store:
        done = ask(client, [answer], PRICE, HERE, previous_response_id=found.id)
    else:
        done = ask(client, [*said, *found.output, answer], PRICE, HERE, store=False)
    assert done.output_text.endswith("; 3")
    assert offered(seen) == ["tool_search", "price"]
    [told] = [call for message in seen.messages for call in message.get("tool_calls") or () if "of" in str(call)]
    assert told["function"]["name"] == "price"


def test_a_call_in_a_namespace_keeps_that(client: OpenAI) -> None:
    words = 'call: tool_search {"query":"price"}\ncall: shop__price {"of":"tea"}'
    found = ask(client, words, SHOP, HERE)
    assert (found.output[2].namespace, found.output[2].name) == ("shop", "price")


def test_a_client_that_searches_itself_is_asked_in_its_own_words(client: OpenAI, seen: Seen) -> None:
    asked = ask(client, 'call: tool_search {"goal":"to know a price"}', PRICE, THERE)
    [search] = asked.output
    assert (search.execution, search.arguments) == ("client", {"goal": "to know a price"})
    assert offered(seen) == ["tool_search"]
    found = {"type": "tool_search_output", "call_id": search.call_id, "execution": "client", "status": "completed"}
    said = [{**found, "tools": [PRICE]}, {"role": "user", "content": 'call: price {"of":"tea"}'}]
    called = ask(client, said, PRICE, THERE, previous_response_id=asked.id)
    assert (called.output[0].namespace, called.output[0].name) == ("price", "price")
    assert offered(seen) == ["tool_search", "price"]
