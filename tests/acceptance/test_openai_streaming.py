"""The official client's streams: raw, through its helper, resumed, from several readers, and dropped."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import ResponseStreamEvent

from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import iter_stream, post, told


def kinds(events: list[ResponseStreamEvent]) -> list[str]:
    return [event.type for event in events]


def numbers(events: list[ResponseStreamEvent]) -> list[int]:
    return [event.sequence_number for event in events]


def test_a_raw_stream_has_its_events_in_order(client: OpenAI) -> None:
    events = list(client.responses.create(model="scripted", input="say: one two", stream=True))
    assert kinds(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert numbers(events) == list(range(10))


def test_the_stream_helper_gathers_the_final_response(client: OpenAI) -> None:
    said = ""
    with client.responses.stream(model="scripted", input="reason: hm\nsay: one two three") as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                said += event.delta
                assert event.snapshot == said
        final = stream.get_final_response()
    assert final.output_text == said == "one two three"
    assert client.responses.retrieve(final.id).output_text == said


def test_the_stream_helper_gathers_calls(client: OpenAI) -> None:
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    asked = 'calls: [{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"b": 22222222}}]'
    with client.responses.stream(model="scripted", input=asked, tools=[tool]) as stream:
        pieces = [event for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert [item.arguments for item in final.output if item.type == "function_call"] == ['{"a":1}', '{"b":22222222}']
    assert pieces[-1].snapshot == '{"b":22222222}'


def test_the_first_events_come_before_the_model_has_answered(client: OpenAI, model_host: ModelHost, seen: Seen) -> None:
    with client.responses.create(model="scripted", input="gate: first-events\nsay: later", stream=True) as stream:
        events = iter(stream)
        assert next(events).type == "response.created"
        assert next(events).type == "response.in_progress"
        seen.wait(1)
        model_host.open_gate("first-events")
        assert list(events)[-1].type == "response.completed"


def test_deltas_come_as_the_model_gives_them(client: OpenAI, model_host: ModelHost) -> None:
    with client.responses.create(model="scripted", input="gate: flow 2\nsay: one two three", stream=True) as stream:
        events = iter(stream)
        deltas = [event for event in (next(events) for _ in range(6)) if event.type == "response.output_text.delta"]
        assert [event.delta for event in deltas] == ["one", " two"]
        model_host.open_gate("flow")
        assert [event.delta for event in events if event.type == "response.output_text.delta"] == [" three"]


def test_a_background_stream_can_be_left_and_taken_up_where_it_was(client: OpenAI, model_host: ModelHost) -> None:
    seen: list[ResponseStreamEvent] = []
    asked = "gate: resume 5\nchunks: 12"
    with client.responses.create(model="scripted", input=asked, stream=True, background=True) as stream:
        for event in stream:
            seen.append(event)
            if len(seen) == 7:
                break
    assert kinds(seen)[:3] == ["response.created", "response.queued", "response.in_progress"]
    first: Any = seen[0]
    model_host.open_gate("resume")
    rest = list(client.responses.retrieve(first.response.id, stream=True, starting_after=seen[-1].sequence_number))
    assert numbers(seen + rest) == list(range(len(seen) + len(rest)))
    whole = list(client.responses.retrieve(first.response.id, stream=True))
    assert whole == [*seen, *rest]
    final: Any = rest[-1]
    assert final.response.output_text == " ".join(f"w{n}" for n in range(12))


def test_the_helper_takes_up_a_background_response_by_its_id(client: OpenAI) -> None:
    queued = client.responses.create(model="scripted", input="say: one two three", background=True)
    with client.responses.stream(response_id=queued.id, starting_after=4) as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == "one two three"
    assert events[0].sequence_number == 5


def test_starting_after_the_end_gives_an_empty_stream(client: OpenAI) -> None:
    events = list(client.responses.create(model="scripted", input="say: x", stream=True))
    first: Any = events[0]
    after = client.responses.retrieve(first.response.id, stream=True, starting_after=numbers(events)[-1])
    assert list(after) == []


@pytest.mark.parametrize("value", ["x", "1.5", "99999999999999999999999"])
def test_a_starting_point_that_is_no_number_is_refused(client: OpenAI, value: str) -> None:
    queued = client.responses.create(model="scripted", input="say: x", background=True)
    with pytest.raises(BadRequestError) as caught:
        client.responses.retrieve(queued.id, stream=True, extra_query={"starting_after": value})
    assert caught.value.param == "starting_after"


def test_several_readers_see_the_same_stream_live(client: OpenAI, model_host: ModelHost) -> None:
    queued = client.responses.create(model="scripted", input="gate: readers 3\nchunks: 30", background=True)
    read: dict[int, list[ResponseStreamEvent]] = {}

    def reader(number: int) -> None:
        read[number] = list(client.responses.retrieve(queued.id, stream=True))

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    model_host.open_gate("readers")
    for thread in threads:
        thread.join(30)
    assert len(read) == 6
    assert all(events == read[0] for events in read.values())
    assert numbers(read[0]) == list(range(len(read[0])))


def test_a_stored_run_goes_on_when_its_reader_leaves(client: OpenAI, url: str, model_host: ModelHost) -> None:
    events = iter_stream(
        url, "POST", "/responses", {"model": "m", "input": "gate: leave 2\nsay: one two three", "stream": True}
    )
    identifier = next(events)["response"]["id"]
    events.close()
    model_host.open_gate("leave")
    ended = until(lambda: completed(client, identifier), "the run ends without its reader")
    assert ended.output_text == "one two three"


def test_an_unstored_run_ends_with_its_reader(url: str, model_host: ModelHost, seen: Seen) -> None:
    dropped = model_host.script.dropped
    body = {"model": "m", "input": "gate: never-unstored 2\nsay: one two three", "stream": True, "store": False}
    events = iter_stream(url, "POST", "/responses", body)
    next(events)
    seen.wait(1)
    events.close()
    until(lambda: model_host.script.dropped > dropped, "the request to the model server is dropped")


def test_a_cancelled_stream_ends_in_an_event_that_clients_know(
    client: OpenAI, url: str, model_host: ModelHost, seen: Seen
) -> None:
    queued = client.responses.create(model="scripted", input="gate: never-live 3\nchunks: 9", background=True)
    seen.wait(1)
    with client.responses.retrieve(queued.id, stream=True) as stream:
        events = iter(stream)
        read = [next(events)]
        client.responses.cancel(queued.id)
        read += list(events)
    assert read[-1].type == "response.incomplete"
    final: Any = read[-1]
    assert final.response.status == "cancelled"
    assert client.responses.retrieve(queued.id) == final.response
    assert numbers(read) == list(range(len(read)))


def test_a_stream_that_fails_says_why_and_ends_as_failed(client: OpenAI) -> None:
    said = "say: one two three\nerror_after: 1"
    events: list[Any] = list(client.responses.create(model="scripted", input=said, stream=True))
    assert kinds(events)[-2:] == ["error", "response.failed"]
    assert "asked to fail in the stream" in events[-2].message
    assert events[-1].response.error.message == events[-2].message
    with client.responses.stream(model="scripted", input=said) as stream:
        assert [event.type for event in stream][-1] == "response.failed"


def test_a_response_without_a_stream_says_so(client: OpenAI) -> None:
    plain = client.responses.create(model="scripted", input="say: x")
    with pytest.raises(BadRequestError) as caught:
        client.responses.retrieve(plain.id, stream=True)
    assert caught.value.code == "response_not_streamed"
    with pytest.raises(NotFoundError):
        client.responses.retrieve("resp_nothing", stream=True)


def test_a_streamed_response_can_be_continued_as_soon_as_it_is_complete(client: OpenAI, seen: Seen) -> None:
    previous = None
    for number in range(20):
        asked: Any = {"previous_response_id": previous} if previous else {}
        events = list(client.responses.create(model="scripted", input=f"say: {number}", stream=True, **asked))
        final: Any = events[-1]
        previous = final.response.id
    assert [text for role, text in told(seen.messages) if role == "assistant"] == [str(n) for n in range(19)]


def test_a_slow_reader_does_not_hold_up_the_run(client: OpenAI, url: str) -> None:
    body = {"model": "m", "input": "chunks: 4000", "stream": True, "background": True}
    events = iter_stream(url, "POST", "/responses", body)
    identifier = next(events)["response"]["id"]
    ended = until(lambda: completed(client, identifier), "the run ends though nobody reads its stream")
    rest = list(events)
    assert rest[-1]["response"]["id"] == ended.id
    assert [event["sequence_number"] for event in rest] == list(range(1, len(rest) + 1))


def test_sixty_four_streams_at_once_are_all_whole(url: str, model_host: ModelHost, seen: Seen) -> None:
    ended: dict[int, str] = {}

    def run(number: int) -> None:
        body = {"model": "m", "input": f"gate: sixty-four 3\nsay: {' '.join([f's{number}'] * 20)}", "stream": True}
        events = list(iter_stream(url, "POST", "/responses", body))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        ended[number] = events[-1]["response"]["output"][0]["content"][0]["text"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    seen.wait(64)
    model_host.open_gate("sixty-four")
    for thread in threads:
        thread.join(60)
    assert ended == {number: " ".join([f"s{number}"] * 20) for number in range(64)}


def completed(client: OpenAI, response_id: str) -> Any:
    held = client.responses.retrieve(response_id)
    return held if held.status == "completed" else None


def test_posting_twice_makes_two_responses(url: str) -> None:
    body = {"model": "m", "input": "say: again"}
    assert post(url, "/responses", body)["id"] != post(url, "/responses", body)["id"]
