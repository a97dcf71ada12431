"""Conversations through the official client: all calls, paging, turns, and two writers at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import get, send, told


def texts(client: OpenAI, conversation_id: str) -> list[str]:
    return [item.content[0].text for item in items(client, conversation_id) if item.type == "message"]


def items(client: OpenAI, conversation_id: str) -> list[Any]:
    return list(client.conversations.items.list(conversation_id, order="asc", limit=100))


def say(client: OpenAI, text: str, conversation: Any, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=text, conversation=conversation, **more)


def test_a_conversation_is_created_read_changed_and_deleted(client: OpenAI) -> None:
    made = client.conversations.create(
        metadata={"topic": "demo"}, items=[{"type": "message", "role": "user", "content": "Hello!"}]
    )
    assert made.id.startswith("conv_")
    assert made.object == "conversation"
    assert made.metadata == {"topic": "demo"}
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    assert client.conversations.retrieve(made.id).metadata == {"topic": "other"}
    assert client.conversations.update(made.id, metadata=None).metadata == {}
    deleted = client.conversations.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "conversation.deleted")
    for call in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.delete(made.id),
        lambda: client.conversations.update(made.id, metadata={}),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.items.create(made.id, items=[{"role": "user", "content": "x"}]),
        lambda: say(client, "x", made.id),
    ):
        with pytest.raises(NotFoundError) as caught:
            call()
        assert caught.value.code == "conversation_not_found"


def test_an_empty_conversation_needs_no_body(client: OpenAI, url: str) -> None:
    assert client.conversations.create().metadata == {}
    assert send(url, "POST", "/conversations").status == 200


def test_items_are_added_read_and_deleted(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    added = client.conversations.items.create(
        conversation,
        items=[
            {"type": "message", "role": "user", "content": "one"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        ],
    )
    assert [item.type for item in added.data] == ["message", "message", "function_call", "function_call_output"]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[-1].id, False)
    for item in added.data:
        assert client.conversations.items.retrieve(str(item.id), conversation_id=conversation) == item
    second: Any = added.data[1]
    assert client.conversations.items.delete(second.id, conversation_id=conversation).id == conversation
    assert [item.id for item in items(client, conversation)] == [item.id for item in added.data if item.id != second.id]
    with pytest.raises(NotFoundError) as caught:
        client.conversations.items.retrieve(second.id, conversation_id=conversation)
    assert caught.value.code == "item_not_found"
    with pytest.raises(NotFoundError):
        client.conversations.items.delete(second.id, conversation_id=conversation)


@pytest.mark.parametrize("limit", [1, 3, 7, 20])
def test_items_page_in_both_orders(client: OpenAI, limit: int) -> None:
    conversation = client.conversations.create(
        items=[{"role": "user", "content": f"m{number}"} for number in range(7)]
    ).id
    oldest = [item.content[0].text for item in client.conversations.items.list(conversation, order="asc", limit=limit)]
    newest = [item.content[0].text for item in client.conversations.items.list(conversation, limit=limit)]
    assert oldest == [f"m{number}" for number in range(7)]
    assert newest == oldest[::-1]


def test_an_id_names_one_item_so_that_lists_come_to_their_end(client: OpenAI) -> None:
    def message(text: str) -> Any:
        return {"type": "message", "role": "user", "id": "msg_mine", "content": text}

    def told_of(items: Iterable[Any]) -> list[str]:
        return [item.content[0].text for item in islice(items, 20)]

    conversation = client.conversations.create(items=[message("a"), message("b")]).id
    client.conversations.items.create(conversation, items=[message("c")])
    response = client.responses.create(
        model="m", conversation=conversation, input=[message("say: d"), message("say: e")]
    )
    said = ["a", "b", "c", "say: d", "say: e", "e"]
    for limit in (1, 2, 20):
        assert told_of(client.conversations.items.list(conversation, order="asc", limit=limit)) == said
        assert told_of(client.conversations.items.list(conversation, limit=limit)) == said[::-1]
    assert told_of(client.responses.input_items.list(response.id, order="asc", limit=1)) == said[:-1]
    assert told_of([client.conversations.items.retrieve("msg_mine", conversation_id=conversation)]) == ["a"]
    client.conversations.items.delete("msg_mine", conversation_id=conversation)
    assert told_of(client.conversations.items.list(conversation, order="asc")) == said[1:]


def test_an_empty_list_has_null_ends(client: OpenAI, url: str) -> None:
    conversation = client.conversations.create().id
    page = get(url, f"/conversations/{conversation}/items")
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=no", "after")],
)
def test_wrong_paging_is_refused(client: OpenAI, url: str, query: str, param: str) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "x"}]).id
    refused = send(url, "GET", f"/conversations/{conversation}/items?{query}")
    assert refused.status == 400
    assert refused.error["param"] == param


def test_a_turn_sees_the_conversation_and_adds_to_it(client: OpenAI, seen: Seen) -> None:
    conversation = client.conversations.create(items=[{"role": "developer", "content": "be brief"}])
    first = say(client, "my cat is Tom", conversation.id)
    second = say(client, "what is my cat?", {"id": conversation.id})
    assert second.output_text == "Your cat is Tom."
    assert first.conversation.id == second.conversation.id == conversation.id
    assert told(seen.messages)[0] == ("system", "be brief")
    assert texts(client, conversation.id) == [
        "be brief",
        "my cat is Tom",
        "You said: my cat is Tom",
        "what is my cat?",
        "Your cat is Tom.",
    ]
    assert [item.id for item in items(client, conversation.id)][-1] == second.output[0].id
    assert client.responses.retrieve(second.id) == second


def test_a_turn_may_come_without_input(client: OpenAI) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "say: from the items"}])
    answered = client.responses.create(model="scripted", conversation=conversation.id)
    assert answered.output_text == "from the items"


def test_items_added_between_turns_reach_the_model(client: OpenAI, seen: Seen) -> None:
    conversation = client.conversations.create().id
    say(client, "say: one", conversation)
    client.conversations.items.create(conversation, items=[{"role": "user", "content": "by the way"}])
    say(client, "say: two", conversation)
    assert [text for _, text in told(seen.messages)] == ["say: one", "one", "by the way", "say: two"]


def test_nothing_of_a_turn_shows_before_it_ends(client: OpenAI, model_host: ModelHost, seen: Seen) -> None:
    conversation = client.conversations.create().id
    running = say(client, "gate: turn 1\nsay: one two", conversation, background=True)
    seen.wait(1)
    assert texts(client, conversation) == []
    model_host.open_gate("turn")
    until(lambda: client.responses.retrieve(running.id).status == "completed", "the turn ends")
    assert texts(client, conversation) == ["gate: turn 1\nsay: one two", "one two"]


def test_a_failed_turn_leaves_the_conversation_as_it_was(client: OpenAI) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "before"}]).id
    with pytest.raises(BadRequestError):
        say(client, "fail: 400 no", conversation)
    assert texts(client, conversation) == ["before"]


def test_a_cancelled_turn_leaves_what_was_finished(client: OpenAI, seen: Seen) -> None:
    conversation = client.conversations.create().id
    running = say(client, "gate: never-turn 2\nsay: one two three", conversation, background=True)
    seen.wait(1)
    client.responses.cancel(running.id)
    assert texts(client, conversation)[0] == "gate: never-turn 2\nsay: one two three"
    assert say(client, "say: on", conversation).output_text == "on"


def test_a_turn_that_is_not_stored_is_refused(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    with pytest.raises(BadRequestError) as caught:
        say(client, "x", conversation, store=False)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == "store"
    assert texts(client, conversation) == []


def test_a_conversation_and_a_response_cannot_both_be_continued(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    first = say(client, "say: one", conversation)
    with pytest.raises(BadRequestError) as caught:
        say(client, "x", conversation, previous_response_id=first.id)
    assert caught.value.code == "mutually_exclusive_parameters"


def test_two_turns_at_once_take_turns(client: OpenAI, model_host: ModelHost, seen: Seen) -> None:
    conversation = client.conversations.create().id
    running = say(client, "gate: queue 1\nsay: first", conversation, background=True)
    seen.wait(1)
    later: list[Any] = []
    thread = threading.Thread(target=lambda: later.append(say(client, "say: second", conversation)))
    thread.start()
    model_host.open_gate("queue")
    thread.join(20)
    assert later[0].output_text == "second"
    assert client.responses.retrieve(running.id).status == "completed"
    assert texts(client, conversation) == ["gate: queue 1\nsay: first", "first", "say: second", "second"]
    assert [text for _, text in told(seen.messages)] == ["gate: queue 1\nsay: first", "first", "say: second"]


def test_many_writers_never_lose_an_item(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    problems: list[Exception] = []

    def write(writer: int) -> None:
        for number in range(6):
            try:
                if writer % 2:
                    said = f"w{writer} n{number}"
                    client.conversations.items.create(conversation, items=[{"role": "user", "content": said}])
                else:
                    say(client, f"say: w{writer} n{number}", conversation)
            except Exception as error:  # shown by the assertion below
                problems.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    written = texts(client, conversation)
    for writer in range(6):
        own = [text for text in written if text.startswith((f"w{writer} ", f"say: w{writer} "))]
        asked = [f"say: w{writer} n{n}" if writer % 2 == 0 else f"w{writer} n{n}" for n in range(6)]
        assert [text for text in own if text in asked] == asked
    assert len(written) == 3 * 6 + 3 * 12


@pytest.fixture(scope="module")
def narrow(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a server on which few may wait for a conversation, and not for long."""
    settings = {
        "STATEROOM_LIMITS__CONVERSATION_QUEUE": "2",
        "STATEROOM_LIMITS__CONVERSATION_WAIT_SECONDS": "0.3",
    }
    data = tmp_path_factory.mktemp("narrow") / "data"
    with (
        ServerProcess(data, backends=(model_host.url,), environment=settings) as process,
        OpenAI(base_url=process.url, api_key="unused", max_retries=0) as client,
    ):
        yield client


def test_a_conversation_is_locked_when_waiting_takes_too_long(
    narrow: OpenAI, model_host: ModelHost, seen: Seen
) -> None:
    conversation = narrow.conversations.create().id
    say(narrow, "gate: lock 1\nsay: x", conversation, background=True)
    seen.wait(1)
    for call in (
        lambda: say(narrow, "say: y", conversation),
        lambda: narrow.conversations.items.create(conversation, items=[{"role": "user", "content": "y"}]),
        lambda: narrow.conversations.update(conversation, metadata={"a": "b"}),
        lambda: narrow.conversations.delete(conversation),
    ):
        with pytest.raises(BadRequestError) as caught:
            call()
        assert caught.value.code == "conversation_locked"
        assert caught.value.param == "conversation"
    assert texts(narrow, conversation) == []
    model_host.open_gate("lock")
    until(lambda: len(texts(narrow, conversation)) == 2, "the turn ends")
    assert say(narrow, "say: z", conversation).output_text == "z"


def test_a_conversation_is_locked_at_once_when_its_queue_is_full(
    narrow: OpenAI, model_host: ModelHost, seen: Seen
) -> None:
    conversation = narrow.conversations.create().id
    running = say(narrow, "gate: full 1\nsay: x", conversation, background=True)
    seen.wait(1)
    results: list[str] = []

    def write() -> None:
        try:
            say(narrow, "say: y", conversation)
            results.append("done")
        except BadRequestError as error:
            results.append(str(error.code))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(results) >= 6, "all but two are turned away")
    model_host.open_gate("full")
    for thread in threads:
        thread.join(20)
    assert results.count("conversation_locked") + results.count("done") == 8
    assert results.count("conversation_locked") >= 6
    until(lambda: narrow.responses.retrieve(running.id).status == "completed", "the turn ends")
    assert len(texts(narrow, conversation)) == 2 + 2 * results.count("done")


def test_conversations_are_listed_newest_first(client: OpenAI, url: str) -> None:
    made = [client.conversations.create(metadata={"n": str(n)}).id for n in range(4)]
    page = get(url, "/conversations?limit=3")
    assert [one["id"] for one in page["data"]] == made[:0:-1]
    assert page["data"][0]["metadata"] == {"n": "3"}
    assert page["has_more"] is True
    assert [one["id"] for one in get(url, f"/conversations?limit=1&after={made[1]}")["data"]] == made[:1]
    client.conversations.delete(made[2])
    assert made[2] not in [one["id"] for one in get(url, "/conversations")["data"]]


def test_more_than_twenty_items_at_a_time_are_refused(client: OpenAI) -> None:
    many: Any = [{"role": "user", "content": "x"}] * 21
    with pytest.raises(BadRequestError) as caught:
        client.conversations.create(items=many)
    assert caught.value.code == "array_above_max_length"


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({str(n): "x" for n in range(17)}, "object_above_max_properties"),
        ({"k" * 65: "x"}, "string_above_max_length"),
        ({"k": "x" * 513}, "string_above_max_length"),
        ({"k": 1}, "invalid_type"),
    ],
)
def test_metadata_is_bounded(client: OpenAI, metadata: Any, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.conversations.create(metadata=metadata)
    assert caught.value.code == code
    assert str(caught.value.param).startswith("metadata")
