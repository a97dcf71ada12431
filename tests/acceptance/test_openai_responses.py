"""The official Python client against a real server: creating, chaining, reading back, cancelling and deleting."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import EasyInputMessageParam, Response

from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import get, told


def ask(client: OpenAI, said: str, **more: Any) -> Response:
    return client.responses.create(**{"model": "scripted", "input": said, **more})


def test_an_answer_comes_back_and_can_be_retrieved(client: OpenAI) -> None:
    answered = ask(client, "say: hello there")
    assert answered.output_text == "hello there"
    assert answered.status == "completed"
    assert answered.usage is not None
    assert answered.usage.total_tokens == answered.usage.input_tokens + answered.usage.output_tokens
    assert client.responses.retrieve(answered.id) == answered


def test_a_chain_remembers_what_came_before_it(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "my dog is Biscuit")
    second = ask(client, "say: nice", previous_response_id=first.id)
    third = ask(client, "what is my dog?", previous_response_id=second.id)
    assert third.output_text == "Your dog is Biscuit."
    assert third.previous_response_id == second.id
    assert told(seen.messages) == [
        ("user", "my dog is Biscuit"),
        ("assistant", "You said: my dog is Biscuit"),
        ("user", "say: nice"),
        ("assistant", "nice"),
        ("user", "what is my dog?"),
    ]


def test_two_children_of_one_response_do_not_see_each_other(client: OpenAI, seen: Seen) -> None:
    root = ask(client, "say: root")
    left = ask(client, "say: left", previous_response_id=root.id)
    right = ask(client, "say: right", previous_response_id=root.id)
    ask(client, "say: end", previous_response_id=left.id)
    assert [text for _, text in told(seen.messages)] == ["say: root", "root", "say: left", "left", "say: end"]
    ask(client, "say: end", previous_response_id=right.id)
    assert [text for _, text in told(seen.messages)] == ["say: root", "root", "say: right", "right", "say: end"]


def test_instructions_are_not_carried_over(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "say: one", instructions="Talk like a pirate.")
    assert told(seen.messages)[0] == ("system", "Talk like a pirate.")
    assert first.instructions == "Talk like a pirate."
    second = ask(client, "say: two", previous_response_id=first.id)
    assert "system" not in [role for role, _ in told(seen.messages)]
    assert second.instructions is None


def test_settings_go_to_the_model_server_and_are_echoed(client: OpenAI, seen: Seen) -> None:
    answered = ask(
        client,
        "say: ok",
        temperature=0.25,
        top_p=0.5,
        max_output_tokens=64,
        reasoning={"effort": "high"},
        text={"verbosity": "low"},
        service_tier="flex",
        safety_identifier="user-1",
        prompt_cache_key="cache-1",
        parallel_tool_calls=False,
        metadata={"purpose": "test"},
        extra_body={"presence_penalty": 0.5, "frequency_penalty": -0.5},
    )
    sent = seen.last
    assert sent["model"] == "scripted"
    assert sent["temperature"] == 0.25
    assert sent["top_p"] == 0.5
    assert sent["max_tokens"] == 64
    assert sent["reasoning_effort"] == "high"
    assert sent["verbosity"] == "low"
    assert sent["service_tier"] == "flex"
    assert sent["user"] == "user-1"
    assert sent["prompt_cache_key"] == "cache-1"
    assert sent["presence_penalty"] == 0.5
    assert sent["frequency_penalty"] == -0.5
    assert answered.temperature == 0.25
    assert answered.top_p == 0.5
    assert answered.max_output_tokens == 64
    assert answered.reasoning is not None
    assert answered.reasoning.effort == "high"
    assert answered.text is not None
    assert answered.text.verbosity == "low"
    assert answered.service_tier == "flex"
    assert answered.safety_identifier == "user-1"
    assert answered.prompt_cache_key == "cache-1"
    assert answered.metadata == {"purpose": "test"}
    assert answered.parallel_tool_calls is False


def test_what_was_not_set_is_not_sent(client: OpenAI, seen: Seen) -> None:
    ask(client, "say: ok")
    assert set(seen.last) == {"model", "messages"}


def test_the_token_limit_makes_a_response_incomplete(client: OpenAI) -> None:
    cut = ask(client, "chunks: 50", max_output_tokens=20)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.output[0].status == "incomplete"
    assert len(cut.output_text.split()) == 20


def test_an_incomplete_response_can_be_continued(client: OpenAI, seen: Seen) -> None:
    cut = ask(client, "chunks: 50", max_output_tokens=20)
    ask(client, "say: go on", previous_response_id=cut.id)
    assert told(seen.messages)[1] == ("assistant", cut.output_text)


def test_an_unknown_model_goes_to_the_default_one(client: OpenAI, seen: Seen) -> None:
    answered = client.responses.create(model="gpt-4.1", input="say: hi")
    assert answered.model == "scripted"
    assert seen.last["model"] == "scripted"


def test_models_can_be_listed_and_retrieved(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted", "all-minilm-l6-v2"]
    assert client.models.retrieve("scripted").owned_by
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("nothing/like-it")
    assert caught.value.code == "model_not_found"


def test_input_items_are_the_context_and_the_input_and_page_both_ways(client: OpenAI) -> None:
    first = ask(client, "say: one")
    inputs: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "input_text", "text": "say: two"}]},
    ]
    second = client.responses.create(model="scripted", input=inputs, previous_response_id=first.id)
    oldest_first = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    newest_first = list(client.responses.input_items.list(second.id, limit=2))
    assert [item.id for item in newest_first] == [item.id for item in reversed(oldest_first)]
    assert [item.role for item in oldest_first] == ["user", "assistant", "developer", "user"]
    assert oldest_first[1].id == first.output[0].id
    page = client.responses.input_items.list(second.id, order="asc", limit=2)
    assert page.has_more is True
    assert page.last_id == oldest_first[1].id
    rest = client.responses.input_items.list(second.id, order="asc", limit=2, after=page.last_id)
    assert [item.id for item in rest.data] == [item.id for item in oldest_first[2:]]
    assert rest.has_more is False


def test_input_tokens_are_counted_without_running_anything(client: OpenAI, seen: Seen) -> None:
    short = client.responses.input_tokens.count(model="scripted", input="hello")
    long = client.responses.input_tokens.count(model="scripted", input="hello " * 200)
    assert 0 < short.input_tokens < long.input_tokens
    first = ask(client, "say: " + "word " * 100)
    before = len(seen.requests)
    chained = client.responses.input_tokens.count(model="scripted", input="hello", previous_response_id=first.id)
    assert chained.input_tokens > short.input_tokens
    conversation = client.conversations.create(items=[{"role": "user", "content": "word " * 100}])
    in_it = client.responses.input_tokens.count(model="scripted", input="hello", conversation=conversation.id)
    assert in_it.input_tokens > short.input_tokens
    assert len(seen.requests) == before


def test_counting_says_when_it_is_an_estimate(client: OpenAI) -> None:
    raw = client.responses.input_tokens.with_raw_response.count(model="scripted", input="hello")
    assert raw.headers["x-stateroom-token-count"] == "estimate"


def test_an_unstored_response_leaves_nothing_behind(client: OpenAI) -> None:
    answered = ask(client, "say: gone", store=False)
    assert answered.output_text == "gone"
    with pytest.raises(NotFoundError):
        client.responses.retrieve(answered.id)
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: more", previous_response_id=answered.id)
    assert caught.value.code == "previous_response_not_found"


def test_an_unstored_response_may_continue_a_stored_one_and_changes_nothing(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "my cat is Tom")
    aside = ask(client, "what is my cat?", previous_response_id=first.id, store=False)
    assert aside.output_text == "Your cat is Tom."
    ask(client, "say: on", previous_response_id=first.id)
    assert [text for _, text in told(seen.messages)] == ["my cat is Tom", "You said: my cat is Tom", "say: on"]


def test_a_deleted_response_is_gone_everywhere(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "say: secret one")
    second = ask(client, "say: two", previous_response_id=first.id)
    client.responses.delete(first.id)
    for call in (
        lambda: client.responses.retrieve(first.id),
        lambda: client.responses.delete(first.id),
        lambda: client.responses.input_items.list(first.id),
        lambda: client.responses.cancel(first.id),
        lambda: client.responses.retrieve(first.id, stream=True),
    ):
        with pytest.raises(NotFoundError) as missing:
            call()
        assert missing.value.code == "response_not_found"
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: more", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"
    assert [item.role for item in client.responses.input_items.list(second.id)] == ["user"]
    ask(client, "say: three", previous_response_id=second.id)
    assert "secret" not in str(seen.messages)
    with pytest.raises(NotFoundError) as referred:
        ask(client, "x", **{"input": [{"type": "item_reference", "id": first.output[0].id}]})
    assert referred.value.code == "item_not_found"


def test_a_background_response_is_polled_to_its_end(client: OpenAI) -> None:
    queued = ask(client, "say: done in the background", background=True)
    assert queued.status in ("queued", "in_progress")
    assert queued.background is True
    ended = until(lambda: finished(client, queued.id), "the run ends")
    assert ended.output_text == "done in the background"
    assert ended.background is True
    assert ended.completed_at is not None


def test_a_background_response_can_be_cancelled_and_cancelled_again(
    client: OpenAI, model_host: ModelHost, seen: Seen
) -> None:
    queued = ask(client, "gate: never-cancel 3\nchunks: 10", background=True)
    seen.wait(1)
    dropped = model_host.script.dropped
    cancelled = client.responses.cancel(queued.id)
    assert cancelled.status == "cancelled"
    assert client.responses.cancel(queued.id) == cancelled
    assert client.responses.retrieve(queued.id) == cancelled
    until(lambda: model_host.script.dropped > dropped, "the request to the model server is dropped")


def test_cancelling_what_has_ended_changes_nothing(client: OpenAI) -> None:
    queued = ask(client, "say: done", background=True)
    ended = until(lambda: finished(client, queued.id), "the run ends")
    assert client.responses.cancel(queued.id) == ended


def test_a_synchronous_response_cannot_be_cancelled(client: OpenAI) -> None:
    answered = ask(client, "say: hi")
    with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(answered.id)


def test_a_response_in_progress_can_be_read_but_not_continued(client: OpenAI, model_host: ModelHost) -> None:
    queued = ask(client, "gate: in-progress\nsay: done", background=True)
    running = client.responses.retrieve(queued.id)
    assert running.status in ("queued", "in_progress")
    assert running.usage is None
    assert [item.role for item in client.responses.input_items.list(queued.id)] == ["user"]
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: more", previous_response_id=queued.id)
    assert caught.value.code == "previous_response_in_progress"
    model_host.open_gate("in-progress")
    until(lambda: finished(client, queued.id), "the run ends")
    assert ask(client, "say: more", previous_response_id=queued.id).output_text == "more"


def test_a_running_response_can_be_deleted(client: OpenAI, seen: Seen) -> None:
    queued = ask(client, "gate: never-delete 2\nchunks: 9", background=True)
    seen.wait(1)
    client.responses.delete(queued.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(queued.id)


def test_a_failed_response_leaves_nothing_in_its_chain(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "say: one")
    failed = ask(client, "fail: 400 no\n", previous_response_id=first.id, background=True)
    ended = until(lambda: finished(client, failed.id), "the run fails")
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == "invalid_prompt"
    ask(client, "say: two", previous_response_id=first.id)
    assert [text for _, text in told(seen.messages)] == ["say: one", "one", "say: two"]
    ask(client, "say: three", previous_response_id=failed.id)
    assert [text for _, text in told(seen.messages)] == ["say: one", "one", "say: three"]


def test_an_item_reference_stands_for_an_item_of_any_response(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "say: a fact")
    given = list(client.responses.input_items.list(first.id))[0]
    other = client.responses.create(
        model="scripted",
        input=[
            {"type": "item_reference", "id": given.id},
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": "say: then"},
        ],
    )
    assert [text for _, text in told(seen.messages)] == ["say: a fact", "a fact", "say: then"]
    ids = [item.id for item in client.responses.input_items.list(other.id, order="asc")]
    assert ids[:2] == [given.id, first.output[0].id]


def test_an_item_reference_finds_items_of_conversations_and_of_clients_own_ids(client: OpenAI, seen: Seen) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "from a conversation"}])
    held = list(client.conversations.items.list(conversation.id))[0]
    message: Any = {"type": "message", "id": "msg_chosen_by_the_client", "role": "user", "content": "say: mine"}
    client.responses.create(model="scripted", input=[message])
    client.responses.create(
        model="scripted",
        input=[
            {"type": "item_reference", "id": str(held.id)},
            {"id": "msg_chosen_by_the_client"},
            {"role": "user", "content": "say: then"},
        ],
    )
    assert [text for _, text in told(seen.messages)] == ["from a conversation", "say: mine", "say: then"]


def test_a_reference_to_what_is_in_the_context_already_adds_nothing(client: OpenAI, seen: Seen) -> None:
    first = ask(client, "say: one")
    client.responses.create(
        model="scripted",
        previous_response_id=first.id,
        input=[{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "say: two"}],
    )
    assert [text for _, text in told(seen.messages)] == ["say: one", "one", "say: two"]


def test_a_reference_to_nothing_says_so(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.responses.create(model="scripted", input=[{"type": "item_reference", "id": "msg_nowhere"}])
    assert caught.value.code == "item_not_found"
    assert caught.value.param == "input[0].id"


def test_a_context_that_is_too_long_is_refused_or_cut_as_asked(client: OpenAI, seen: Seen) -> None:
    turns: list[EasyInputMessageParam] = [{"role": "developer", "content": "stay"}]
    for number in range(6):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    turns.append({"role": "user", "content": "overflow: 8\nsay: fits now"})
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="scripted", input=list(turns))
    assert caught.value.code == "context_length_exceeded"
    cut = client.responses.create(model="scripted", input=list(turns), truncation="auto")
    assert cut.output_text == "fits now"
    assert cut.truncation == "auto"
    texts = [text for _, text in told(seen.messages)]
    assert len(texts) <= 8
    assert texts[0] == "stay"
    assert texts[-2:] == ["a5", "overflow: 8\nsay: fits now"]
    assert "q0" not in texts


def test_cutting_the_context_does_not_shorten_what_is_kept(client: OpenAI, url: str) -> None:
    first = client.responses.create(model="scripted", input=[{"role": "user", "content": f"m{n}"} for n in range(6)])
    second = ask(client, "overflow: 4\nsay: ok", previous_response_id=first.id, truncation="auto")
    assert len(get(url, f"/responses/{second.id}/input_items?limit=100")["data"]) == 8


def test_listing_responses_pages_by_age(client: OpenAI, url: str) -> None:
    made = [ask(client, f"say: {n}").id for n in range(5)]
    newest = get(url, "/responses?limit=3")
    assert [one["id"] for one in newest["data"]] == made[:1:-1]
    assert newest["has_more"] is True
    older = get(url, f"/responses?limit=2&after={newest['last_id']}")
    assert [one["id"] for one in older["data"]] == [made[1], made[0]]
    after_first = get(url, f"/responses?order=asc&limit=2&after={made[0]}")
    assert [one["id"] for one in after_first["data"]] == made[1:3]


def test_a_response_can_be_forked_into_a_conversation(client: OpenAI, url: str, seen: Seen) -> None:
    first = ask(client, "my boat is Argo")
    second = ask(client, "say: later", previous_response_id=first.id)
    forked: Any = client.post(f"/responses/{first.id}/fork", cast_to=object, body={"metadata": {"why": "try"}})
    assert forked["metadata"] == {"why": "try"}
    answered = ask(client, "what is my boat?", conversation=forked["id"])
    assert answered.output_text == "Your boat is Argo."
    assert "later" not in str(seen.messages)
    ask(client, "say: on", previous_response_id=second.id)
    assert "boat?" not in str(seen.messages)


def test_every_answer_has_a_request_id_of_its_own(client: OpenAI) -> None:
    first = client.responses.with_raw_response.create(model="scripted", input="say: hi")
    second = client.responses.with_raw_response.create(model="scripted", input="say: hi")
    assert str(first.headers["x-request-id"]).startswith("req_")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.parse()._request_id == first.headers["x-request-id"]
    with pytest.raises(NotFoundError) as caught:
        client.responses.retrieve("resp_nothing")
    assert str(caught.value.request_id).startswith("req_")


def test_many_turns_at_once_all_get_their_own_answer(client: OpenAI) -> None:
    answers: dict[int, str] = {}

    def turn(number: int) -> None:
        first = ask(client, f"my number is n{number}")
        answers[number] = ask(client, "what is my number?", previous_response_id=first.id).output_text

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {number: f"Your number is n{number}." for number in range(24)}


def finished(client: OpenAI, response_id: str) -> Response | None:
    held = client.responses.retrieve(response_id)
    return held if held.status not in ("queued", "in_progress") else None
