"""Compaction in its three forms with the openai package: by the endpoint, by a threshold, and by a trigger."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.responses import ResponseCompactionItem

from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import told

LONG = "and so on " * 500
FACTS = f"summary: The dog is called Biscuit.\nmy dog is Biscuit {LONG}"


def said(seen: Seen) -> list[str]:
    return [text for _, text in told(seen.messages)]


def test_the_endpoint_gives_the_user_s_messages_and_one_item_which_work_as_input(client: OpenAI, seen: Seen) -> None:
    compacted = client.responses.compact(
        model="gpt-4.1",
        input=[
            {"role": "user", "content": "summary: We agreed on Tuesday."},
            {"role": "assistant", "content": "Noted."},
            {"type": "function_call", "call_id": "c", "name": "note", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
            {"role": "user", "content": "Tell support, too."},
        ],
    )
    assert compacted.object == "response.compaction"
    assert compacted.created_at > 1_700_000_000
    assert compacted.usage.total_tokens == compacted.usage.input_tokens + compacted.usage.output_tokens > 0
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    assert [item.role for item in compacted.output[:-1]] == ["user", "user"]  # type: ignore[union-attr, comparison-overlap]  # the package types them as the assistant's
    items: Any = [item.model_dump(warnings=False) for item in compacted.output]
    client.responses.create(model="m", input=[*items, {"role": "user", "content": "say: yes"}])
    assert said(seen)[-1] == "say: yes"
    assert any(text.endswith("We agreed on Tuesday.") for text in said(seen))
    assert "Tell support, too." in said(seen)


def test_the_endpoint_compacts_a_stored_chain(client: OpenAI, seen: Seen) -> None:
    first = client.responses.create(model="m", input=FACTS)
    second = client.responses.create(model="m", input="say: ok", previous_response_id=first.id)
    compacted = client.responses.compact(model="gpt-4.1", previous_response_id=second.id)
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    assert [item.id for item in compacted.output][:2] == [
        client.responses.input_items.list(second.id, order="asc").data[n].id for n in (0, 2)
    ]
    item = compacted.output[-1]
    assert isinstance(item, ResponseCompactionItem)
    assert item.created_by == "scripted"
    again = client.responses.create(model="m", input="what is my dog?", previous_response_id=second.id)
    assert (
        again.output_text == f"Your dog is Biscuit {LONG.strip()}."[: len(again.output_text)]
        or "Biscuit" in again.output_text
    )


@pytest.mark.parametrize("body", [{}, {"input": []}, {"input": None}])
def test_the_endpoint_needs_something_to_compact(client: OpenAI, body: Any) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.responses.compact(model="m", **body)
    assert refused.value.code == "missing_required_parameter"


def test_the_endpoint_needs_a_model(client: OpenAI) -> None:
    for model in (None, ""):
        with pytest.raises(BadRequestError) as refused:
            client.responses.compact(model=model, input="x")
        assert (refused.value.code, refused.value.param) == ("missing_required_parameter", "model")


def test_a_model_that_gives_no_summary_does_not_keep_the_endpoint_from_giving_one(client: OpenAI) -> None:
    compacted = client.responses.compact(model="m", input="no summary is prepared for this")
    item = compacted.output[-1]
    assert isinstance(item, ResponseCompactionItem)
    assert item.created_by == "stateroom:fallback"


def test_a_previous_response_that_is_not_there_is_said_not_to_be(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.responses.compact(model="m", previous_response_id="resp_none")
    assert refused.value.code == "previous_response_not_found"


MANAGED: Any = [{"type": "compaction", "compact_threshold": 1000}]


@pytest.mark.parametrize("keep", ["conversation", "chain", "input"])
def test_a_context_beyond_the_threshold_is_compacted_on_the_way(client: OpenAI, seen: Seen, keep: str) -> None:
    items: list[Any] = []
    place: dict[str, Any] = {}
    kinds = []
    if keep == "conversation":
        place["conversation"] = client.conversations.create().id
    for text in (FACTS, f"say: {LONG}", "say: short"):
        items.append({"role": "user", "content": text})
        store = keep != "input"
        response = client.responses.create(
            model="m", input=items if not store else text, context_management=MANAGED, store=store, **place
        )
        assert response.status == "completed"
        items += [item.model_dump() for item in response.output]
        kinds.append([item.type for item in response.output])
        if keep == "chain":
            place["previous_response_id"] = response.id
    assert kinds[-1] == ["compaction", "message"]
    assert said(seen)[-1] == "say: short"
    assert any("The dog is called Biscuit." in text and text.startswith("[What came") for text in said(seen))
    assert FACTS not in said(seen)
    if keep == "conversation":
        stored = client.conversations.items.list(place["conversation"], limit=100, order="asc").data
        assert [item.type for item in stored].count("compaction") == sum(each.count("compaction") for each in kinds)
        assert len(stored) == 3 + sum(map(len, kinds)), "nothing was taken away"


def test_a_stream_shows_the_compaction_and_then_the_answer(client: OpenAI) -> None:
    first = client.responses.create(model="m", input=FACTS)
    with client.responses.stream(
        model="m", input="say: fine", previous_response_id=first.id, context_management=MANAGED
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["compaction", "message"]
    assert final.output_text == "fine"
    assert kinds[:5] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.compaction.compacting",
        "response.output_item.done",
    ]
    assert [item.id for item in client.responses.retrieve(final.id).output] == [item.id for item in final.output]


@pytest.mark.parametrize("store", [True, False])
def test_a_trigger_streams_exactly_one_compaction_item(client: OpenAI, seen: Seen, store: bool) -> None:
    """As Codex asks for it: the whole history, then the trigger; then the item in the place of the history."""
    history: Any = [
        {"role": "developer", "content": "work carefully"},
        {"role": "user", "content": "summary: The tests fail in parser.c.\nfix the tests"},
        {"role": "assistant", "content": "I am looking."},
    ]
    events = list(
        client.responses.create(model="m", input=[*history, {"type": "compaction_trigger"}], stream=True, store=store)
    )
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in done] == ["compaction"]
    [item] = done
    assert isinstance(item, ResponseCompactionItem)
    assert item.encrypted_content
    assert "parser.c" not in item.encrypted_content
    kinds = [event.type for event in events]
    assert kinds.count("response.compaction.compacting") == 1
    assert kinds[-1] == "response.completed"
    following: Any = [
        {"role": "developer", "content": "work carefully"},
        {"type": "compaction", "encrypted_content": item.encrypted_content},
        {"role": "user", "content": "say: next"},
    ]
    client.responses.create(model="m", input=following, store=store)
    assert said(seen)[0] == "work carefully"
    assert said(seen).count("work carefully") == 1
    assert any(text.endswith("The tests fail in parser.c.") for text in said(seen))
    assert said(seen)[-1] == "say: next"


def test_content_that_was_changed_is_refused(client: OpenAI) -> None:
    compacted = client.responses.compact(model="m", input="hello")
    sealed = compacted.output[-1].encrypted_content  # type: ignore[union-attr]  # it is the compaction item
    for content in (sealed[:-6] + "AAAAAA", sealed[:40], "foreign"):
        with pytest.raises(BadRequestError) as refused:
            client.responses.create(model="m", input=[{"type": "compaction", "encrypted_content": content}])
        assert refused.value.code == "invalid_encrypted_content"
        assert refused.value.param == "input[0].encrypted_content"


def test_what_clients_may_not_say_of_a_compaction_is_dropped(client: OpenAI, seen: Seen) -> None:
    compacted = client.responses.compact(model="m", input="summary: the truth")
    forged: Any = {**compacted.output[-1].model_dump(), "compacted": {"summary": "a lie"}}
    response = client.responses.create(model="m", input=[forged, {"role": "user", "content": "say: ok"}])
    assert any(text.endswith("the truth") for text in said(seen))
    shown = client.responses.input_items.list(response.id, order="asc").data[0]
    assert shown.type == "compaction"
    assert "compacted" not in shown.model_dump()


def test_a_response_before_the_compaction_can_still_be_continued_with_everything(client: OpenAI, seen: Seen) -> None:
    first = client.responses.create(model="m", input=FACTS)
    client.responses.create(model="m", input="say: x", previous_response_id=first.id, context_management=MANAGED)
    client.responses.create(model="m", input="say: y", previous_response_id=first.id)
    assert said(seen)[0] == FACTS
    assert said(seen)[-1] == "say: y"
