"""Chat completions as the official client asks for them, streams them, parses them and keeps them."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, BadRequestError, ConflictError, InternalServerError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, TypeAdapter

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import assert_fits, assert_paired, get, post, send, told

COMPLETION: TypeAdapter[Any] = TypeAdapter(ChatCompletion)
CHUNK: TypeAdapter[Any] = TypeAdapter(ChatCompletionChunk)
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": CITY}}
FILE: Any = {"type": "custom", "custom": {"name": "write_file", "description": "Writes a file."}}


def ask(client: OpenAI, said: str, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "scripted", "messages": [{"role": "user", "content": said}], **more}
    )


def stream(url: str, said: str, **more: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, each held to the client's type, and the framing to rule."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": said}], "stream": True, **more}
    answer = send(url, "POST", "/chat/completions", body)
    assert answer.status == 200, answer.body
    blocks = [block for block in answer.body.decode().split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    for chunk in chunks:
        if "error" not in chunk and '"custom"' not in json.dumps(chunk):  # of which the client's types know nothing
            assert_fits(CHUNK, chunk)
            assert None not in chunk.values()
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks if "id" in chunk}) == 1
    return chunks


def text_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    deltas = [one["delta"] for chunk in chunks for one in chunk["choices"] if one["index"] == choice]
    return "".join(delta.get("content") or "" for delta in deltas)


# Answers.


def test_an_answer_has_all_that_clients_read_and_nothing_that_is_absent(url: str) -> None:
    shown = post(url, "/chat/completions", {"model": "scripted", "messages": [{"role": "user", "content": "say: Hi."}]})
    assert_fits(COMPLETION, shown)
    assert shown["id"].startswith("chatcmpl-")
    [choice] = shown["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": []}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert shown["usage"]["total_tokens"] == shown["usage"]["prompt_tokens"] + shown["usage"]["completion_tokens"]
    assert {"system_fingerprint", "service_tier", "metadata"} & set(shown) == set()


def test_an_unstored_answer_leaves_nothing_behind(client: OpenAI) -> None:
    answer = ask(client, "say: Hi.")
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.retrieve(answer.id)
    assert caught.value.code == "completion_not_found"
    assert answer.id not in [held.id for held in client.chat.completions.list(limit=100)]


def test_reasoning_comes_beside_the_answer_and_can_go_back(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, "reason: Hm, hm.\nsay: So it is.")
    assert answer.choices[0].message.reasoning_content == "Hm, hm."
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    history: Any = [
        {"role": "user", "content": "say: x"},
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "user", "content": "say: Yes."},
    ]
    assert client.chat.completions.create(model="scripted", messages=history).choices[0].message.content == "Yes."
    assert told(seen.messages)[1] == ("assistant", "So it is.")


def test_a_refusal_is_told_as_one(client: OpenAI) -> None:
    message = ask(client, "refuse: I will not.").choices[0].message
    assert (message.content, message.refusal) == (None, "I will not.")


def test_an_answer_that_was_cut_short_says_so(client: OpenAI) -> None:
    answer = ask(client, "say: one two three four", max_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two", "length")
    assert ask(client, "finish: content_filter").choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stop", ["STOP", ["never", "STOP"]])
def test_stop_sequences_are_heeded_even_where_the_model_server_does_not(
    url: str, client: OpenAI, seen: Seen, stop: Any, streamed: bool
) -> None:
    said = "say: one two STOP three"
    text = (
        text_of(stream(url, said, stop=stop)) if streamed else ask(client, said, stop=stop).choices[0].message.content
    )
    assert text == "one two "
    assert seen.last["stop"] == ([stop] if isinstance(stop, str) else stop)


def test_log_probabilities_are_those_of_the_tokens(client: OpenAI, url: str) -> None:
    answer = ask(client, "say: one two", logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert [token.token for token in content] == ["one", " two"]
    assert [len(token.top_logprobs) for token in content] == [2, 2]
    chunks = stream(url, "say: one two", logprobs=True)
    told_with = [one["logprobs"]["content"] for chunk in chunks for one in chunk["choices"] if "logprobs" in one]
    assert [[token["token"] for token in tokens] for tokens in told_with] == [["one"], [" two"]]


def test_every_setting_reaches_the_model(client: OpenAI, seen: Seen) -> None:
    settings: dict[str, Any] = {
        "temperature": 0.3,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 7,
        "logit_bias": {"50256": -100},
        "reasoning_effort": "low",
        "verbosity": "low",
        "user": "someone",
        "service_tier": "flex",
        "prompt_cache_key": "k",
    }
    answer = ask(client, "say: Hi.", max_completion_tokens=50, **settings)
    assert {name: seen.last[name] for name in settings} == settings
    assert seen.last["max_tokens"] == 50
    assert answer.service_tier == "flex"


def test_several_choices_are_answered_together(client: OpenAI, url: str, seen: Seen) -> None:
    answer = ask(client, "say: Hi.", n=3, seed=5)
    assert [(one.index, one.message.content, one.finish_reason) for one in answer.choices] == [
        (number, "Hi.", "stop") for number in range(3)
    ]
    assert sorted(request["seed"] for request in seen.wait(3)) == [5, 6, 7]
    one = ask(client, "say: Hi.")
    assert answer.usage.prompt_tokens < 2 * one.usage.prompt_tokens
    assert answer.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_several_choices_stream_side_by_side(url: str) -> None:
    chunks = stream(url, "say: one two", n=2, stream_options={"include_usage": True})
    assert [text_of(chunks, choice) for choice in (0, 1)] == ["one two", "one two"]
    finished = [one["index"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]
    assert sorted(finished) == [0, 1]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 4)


# Streams.


def test_a_stream_says_who_speaks_what_and_why_it_ended(url: str) -> None:
    chunks = stream(url, "say: one two")
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == "one two"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert not any("usage" in chunk for chunk in chunks)


def test_the_usage_comes_last_when_it_is_asked_for(url: str) -> None:
    last = stream(url, "say: one two", stream_options={"include_usage": True})[-1]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 2)


def test_the_stream_helper_accumulates_text_reasoning_and_refusals(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="scripted", messages=[{"role": "user", "content": "say: one two"}], stream_options={"include_usage": True}
    ) as events:
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    assert {"content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.content == "one two"
    assert final.usage is not None
    with client.chat.completions.stream(
        model="scripted", messages=[{"role": "user", "content": "refuse: Never."}]
    ) as events:
        assert events.get_final_completion().choices[0].message.refusal == "Never."


def test_reasoning_is_streamed_beside_the_answer(url: str) -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(url, "reason: Hm, hm.\nsay: Yes.")]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."


def test_padding_blurs_the_size_of_chunks_when_it_is_asked_for(url: str) -> None:
    chunks = stream(url, "say: one two", stream_options={"include_obfuscation": True})
    assert all("obfuscation" in chunk for chunk in chunks)
    assert text_of(chunks) == "one two"


def test_what_fails_before_a_stream_begins_has_a_status(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="too much of it"):
        ask(client, "fail: 400 too much of it", stream=True)
    with pytest.raises(BadRequestError, match="too much of it"):
        ask(client, "fail: 400 too much of it", stream=True, n=2)


def test_what_fails_in_the_middle_of_a_stream_is_told_in_it(client: OpenAI) -> None:
    chunks = iter(ask(client, "chunks: 10\nerror_after: 3", stream=True))
    assert next(chunks).choices
    with pytest.raises(APIError, match="asked to fail"):
        list(chunks)


def test_a_client_that_goes_away_takes_its_unstored_answer_with_it(client: OpenAI, model_host: ModelHost) -> None:
    dropped = model_host.script.dropped
    chunks = ask(client, "chunks: 100\nslow: 50", stream=True)
    next(iter(chunks))
    chunks.close()
    until(lambda: model_host.script.dropped > dropped, "the model's answer was cut off")


# Messages.


def test_all_roles_and_parts_reach_the_model(client: OpenAI, seen: Seen) -> None:
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "system", "content": "Be kind.", "name": "rules"},
        {"role": "user", "content": "Hello.", "name": "ann"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": PIXEL}}, {"type": "text", "text": "say: Seen."}],
        },
    ]
    answer = client.chat.completions.create(model="scripted", messages=messages)
    assert answer.choices[0].message.content == "Seen."
    assert [message["role"] for message in seen.messages] == [
        *("system", "system", "user", "assistant", "assistant", "user")
    ]
    assert seen.messages[2]["name"] == "ann"
    assert seen.messages[-1]["content"][0] == {"type": "image_url", "image_url": {"url": PIXEL}}


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", "array_below_min_length"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "invalid_value"),
        ([{"content": "x"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": None}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": [{"type": "thought"}]}], "messages[0].content[0].type", "invalid_value"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]", "unsupported_parameter"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            [
                {"role": "user", "content": "x"},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}]},
            ],
            "messages[1].content[0].image_url",
            "invalid_base64_image",
        ),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "missing_required_parameter"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].name", "invalid_value"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "missing_required_parameter",
        ),
    ],
)
def test_a_message_that_is_wrong_is_named(client: OpenAI, messages: Any, param: str, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="scripted", messages=messages)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 2, "store": True}, "n", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "mutually_exclusive_parameters"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "decimal_above_max_value"),
        ({"function_call": "auto"}, "function_call", "invalid_value"),
        ({"functions": [{"name": "f"}], "tools": [WEATHER]}, "functions", "mutually_exclusive_parameters"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "duplicate_tool_name"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type", "unsupported_tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function", "invalid_type"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_tool"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "nothing"}},
                }
            },
            "response_format.json_schema.schema",
            "invalid_json_schema",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"metadata": {"k": "x" * 513}}, "metadata", "string_above_max_length"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(client: OpenAI, more: Any, param: str, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, "hi", **more)
    assert (str(caught.value.param).split("[...]")[0], caught.value.code) == (param, code)


def test_what_is_only_a_hint_or_unknown_is_tolerated(client: OpenAI) -> None:
    hints: dict[str, Any] = {
        "prediction": {"type": "content", "content": "Hi."},
        "web_search_options": {"search_context_size": "low"},
        "modalities": ["text"],
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "metadata": None,
        "stop": None,
        "tools": [],
        "tool_choice": "none",
        "extra_body": {"top_k": 40, "reasoning": {"summary": "auto"}},
    }
    assert ask(client, "say: Hi.", **hints).choices[0].message.content == "Hi."


# Tools.


def test_a_call_is_made_answered_and_built_upon(client: OpenAI, seen: Seen) -> None:
    asked: Any = {"role": "user", "content": 'call: get_weather {"city": "Oslo"}'}
    first = client.chat.completions.create(model="scripted", messages=[asked], tools=[WEATHER])
    message = first.choices[0].message
    assert (first.choices[0].finish_reason, message.content) == ("tool_calls", None)
    [call] = message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    answered: Any = [asked, message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    second = client.chat.completions.create(model="scripted", messages=answered, tools=[WEATHER])
    assert second.choices[0].message.content == "The tool answered: rain"
    assert_paired(seen.messages)


def test_parallel_calls_stream_side_by_side(client: OpenAI, url: str) -> None:
    said = 'calls: [{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "get_time", "arguments": {}}]'
    with client.chat.completions.stream(
        model="scripted", messages=[{"role": "user", "content": said}], tools=[WEATHER, TIME]
    ) as events:
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    calls = final.choices[0].message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Oslo"}),
        ("get_time", {}),
    ]
    whole = ask(client, said, tools=[WEATHER, TIME]).choices[0].message.tool_calls
    assert [call.function.name for call in whole] == ["get_weather", "get_time"]


def test_one_call_at_a_time_when_that_is_asked_for(client: OpenAI) -> None:
    said = 'calls: [{"name": "get_weather", "arguments": {}}, {"name": "get_time", "arguments": {}}]'
    answer = ask(client, said, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1


def test_custom_tools_take_free_text(client: OpenAI, url: str, seen: Seen) -> None:
    said = 'call: write_file {"input": "x = 1"}'
    message = ask(client, said, tools=[FILE]).choices[0].message
    [call] = message.tool_calls
    assert (call.type, call.custom.name, call.custom.input) == ("custom", "write_file", "x = 1")
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(url, said, tools=[FILE])]
    pieces = [one for delta in deltas for one in delta.get("tool_calls", ())]
    assert (pieces[0]["type"], pieces[0]["custom"]["name"]) == ("custom", "write_file")
    assert "".join(piece["custom"]["input"] for piece in pieces) == "x = 1"
    answered: Any = [
        {"role": "user", "content": said},
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "written"},
    ]
    final = client.chat.completions.create(model="scripted", messages=answered, tools=[FILE])
    assert final.choices[0].message.content == "The tool answered: written"
    assert_paired(seen.messages)


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", None),
        ("required", "get_weather"),
        ({"type": "function", "function": {"name": "get_time"}}, "get_time"),
        ({"type": "custom", "custom": {"name": "write_file"}}, "write_file"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_time"}}],
                },
            },
            "get_time",
        ),
    ],
)
def test_every_form_of_tool_choice_is_kept_to(client: OpenAI, choice: Any, called: str | None) -> None:
    message = ask(client, "Hello!", tools=[WEATHER, TIME, FILE], tool_choice=choice).choices[0].message
    names = [(call.function if call.type == "function" else call.custom).name for call in message.tool_calls or ()]
    assert names == ([called] if called else [])


def test_a_model_that_calls_nothing_although_it_must_is_an_error(client: OpenAI) -> None:
    with pytest.raises(InternalServerError) as caught:
        ask(client, "say: I will not call.", tools=[WEATHER], tool_choice="required")
    assert caught.value.code in ("tool_choice_not_honoured", "tool_call_unreadable")


def test_functions_as_before_there_were_tools(client: OpenAI, url: str, seen: Seen) -> None:
    legacy: Any = {"functions": [{"name": "get_weather", "parameters": CITY}], "function_call": "auto"}
    said = 'call: get_weather {"city": "Oslo"}'
    first = ask(client, said, **legacy)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "function_call"
    assert (message.function_call.name, message.tool_calls) == ("get_weather", None)
    answered: Any = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": None, "function_call": message.function_call.model_dump()},
        {"role": "function", "name": "get_weather", "content": "rain"},
    ]
    second = client.chat.completions.create(model="scripted", messages=answered, **legacy)
    assert second.choices[0].message.content == "The tool answered: rain"
    assert_paired(seen.messages)
    deltas = [chunk["choices"][0]["delta"].get("function_call") or {} for chunk in stream(url, said, **legacy)]
    assert "".join(delta.get("arguments", "") for delta in deltas) == '{"city": "Oslo"}'


def test_fields_of_a_call_that_nobody_knows_come_back_to_the_model(client: OpenAI, seen: Seen) -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": "{}"},
        "extra_content": {"signature": "abc"},
    }
    messages: Any = [
        {"role": "user", "content": "say: ok"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    client.chat.completions.create(model="scripted", messages=messages, tools=[WEATHER])
    assert seen.messages[1]["tool_calls"][0]["extra_content"] == {"signature": "abc"}


# Structured output.


class Point(BaseModel):
    x: int
    label: str


def test_parse_gives_the_object_that_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="scripted", messages=[{"role": "user", "content": "A point, please."}], response_format=Point
    )
    assert isinstance(answer.choices[0].message.parsed, Point)
    with client.chat.completions.stream(
        model="scripted", messages=[{"role": "user", "content": "A point, please."}], response_format=Point
    ) as events:
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Point)


def test_an_answer_that_does_not_fit_is_never_given_out(client: OpenAI) -> None:
    schema = {"name": "point", "schema": Point.model_json_schema(), "strict": True}
    with pytest.raises(InternalServerError) as caught:
        ask(client, 'json: {"x": "one"}', response_format={"type": "json_schema", "json_schema": schema})
    assert caught.value.code == "invalid_output"
    with pytest.raises(InternalServerError, match="`response_format`"):
        ask(client, "say: no", response_format={"type": "json_object"})


# What is kept.


@pytest.fixture
def kept(client: OpenAI) -> Iterator[Callable[..., ChatCompletion]]:
    """Stores completions, and takes them away again."""
    made: list[str] = []

    def store(said: str, **more: Any) -> ChatCompletion:
        answer: ChatCompletion = ask(client, said, store=True, **more)
        made.append(answer.id)
        return answer

    yield store
    for identifier in made:
        send(str(client.base_url).rstrip("/"), "DELETE", f"/chat/completions/{identifier}")


def test_a_stored_completion_is_looked_up_changed_and_deleted(client: OpenAI, url: str, kept: Any) -> None:
    answer = kept("say: Hi.", metadata={"topic": "greeting"})
    assert client.chat.completions.retrieve(answer.id).to_dict() == answer.to_dict()
    changed = client.chat.completions.update(answer.id, metadata={"topic": "hello"})
    assert changed.metadata == {"topic": "hello"}
    assert client.chat.completions.retrieve(answer.id).metadata == {"topic": "hello"}
    assert client.chat.completions.update(answer.id, metadata={"topic": "again"}).metadata == {"topic": "again"}
    assert client.chat.completions.delete(answer.id).to_dict() == {
        "id": answer.id,
        "object": "chat.completion.deleted",
        "deleted": True,
    }
    for path in ("", "/messages"):
        assert send(url, "GET", f"/chat/completions/{answer.id}{path}").error["code"] == "completion_not_found"
    assert send(url, "DELETE", f"/chat/completions/{answer.id}").status == 404
    assert send(url, "POST", f"/chat/completions/{answer.id}", {"metadata": {}}).status == 404


def test_stored_completions_are_listed_by_age_model_and_metadata(client: OpenAI, url: str, kept: Any) -> None:
    made = [kept("say: Hi.", metadata={"run": "a", "n": str(n)}).id for n in range(3)]
    other = kept("say: Hi.", metadata={"run": "b"}).id

    def listed(**query: Any) -> list[str]:
        return [held.id for held in client.chat.completions.list(**query)]

    assert listed(metadata={"run": "a"}) == made
    assert listed(metadata={"run": "a"}, limit=1) == made  # page by page
    assert listed(metadata={"run": "a"}, order="desc") == made[::-1]
    assert listed(metadata={"run": "a", "n": "1"}) == [made[1]]
    assert listed(after=made[2]) == [other]
    assert listed(after=made[0], metadata={"run": "a"}) == made[1:]
    assert listed(model="nobody's") == []
    assert other in listed(model="scripted", limit=100)
    client.chat.completions.update(other, metadata={"run": "a"})
    assert listed(metadata={"run": "a"}) == [*made, other]
    page = get(url, "/chat/completions?limit=2&metadata%5Brun%5D=a")
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[0], made[1], True)


def test_the_messages_of_a_stored_completion_are_those_it_was_asked_with(client: OpenAI, kept: Any) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
        },
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a dot"},
        {"role": "user", "content": "say: A dot."},
    ]
    answer = kept("", messages=messages)
    shown = [message.to_dict() for message in client.chat.completions.messages.list(answer.id, limit=2)]
    assert [message["id"] for message in shown] == [f"{answer.id}-{n}" for n in range(5)]
    assert [message["role"] for message in shown] == ["system", "user", "assistant", "tool", "user"]
    assert shown[0]["content"] == "Be brief."
    assert shown[1]["content_parts"][1]["image_url"]["url"] == PIXEL
    assert shown[2]["tool_calls"] == messages[2]["tool_calls"]
    assert (shown[3]["tool_call_id"], shown[3]["content"]) == ("c1", "a dot")
    newest = [message.id for message in client.chat.completions.messages.list(answer.id, order="desc")]
    assert newest == [f"{answer.id}-{n}" for n in range(4, -1, -1)]


def test_completions_and_responses_do_not_see_each_other(client: OpenAI, url: str, kept: Any) -> None:
    completion = kept("say: Hi.")
    response = client.responses.create(model="scripted", input="say: Hi.")
    key = completion.id.removeprefix("chatcmpl-")
    for method, path in (
        ("GET", f"/responses/resp_{key}"),
        ("DELETE", f"/responses/resp_{key}"),
        ("POST", f"/responses/resp_{key}/cancel"),
        ("POST", f"/responses/resp_{key}/fork"),
        ("GET", f"/responses/resp_{key}/input_items"),
        ("GET", f"/responses/resp_{key}?stream=true"),
    ):
        answer = send(url, method, path, {} if method == "POST" else None)
        assert (answer.status, answer.error["code"]) == (404, "response_not_found"), path
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="scripted", input="x", previous_response_id=f"resp_{key}")
    assert caught.value.code == "previous_response_not_found"
    other = response.id.removeprefix("resp_")
    for identifier in (f"chatcmpl-{other}", response.id, "chatcmpl-", "nothing"):
        for method in ("GET", "DELETE"):
            assert send(url, method, f"/chat/completions/{identifier}").error["code"] == "completion_not_found"
    assert completion.id not in str(get(url, "/responses?limit=100"))
    assert key not in str(get(url, "/responses?limit=100"))
    assert other not in str(get(url, "/chat/completions?limit=100"))
    assert client.responses.retrieve(response.id).id == response.id
    assert client.chat.completions.retrieve(completion.id).id == completion.id


def test_a_stored_stream_is_kept_as_it_was_heard(client: OpenAI, url: str) -> None:
    chunks = stream(url, "reason: Hm.\nsay: one two", store=True, metadata={"a": "b"})
    held = client.chat.completions.retrieve(chunks[0]["id"])
    assert held.choices[0].message.content == text_of(chunks)
    assert held.metadata == {"a": "b"}
    client.chat.completions.delete(held.id)


def test_a_stored_completion_goes_on_when_its_client_goes_away(client: OpenAI, model_host: ModelHost) -> None:
    chunks = ask(client, "gate: left 2\nsay: one two three", stream=True, store=True)
    identifier = next(iter(chunks)).id
    with pytest.raises(ConflictError) as caught:
        client.chat.completions.retrieve(identifier)
    assert caught.value.code == "completion_in_progress"
    chunks.close()
    model_host.open_gate("left")

    def found() -> ChatCompletion | None:
        try:
            return client.chat.completions.retrieve(identifier)
        except ConflictError:
            return None

    held = until(found, "it is finished")
    assert held.choices[0].message.content == "one two three"
    client.chat.completions.delete(identifier)


def test_one_that_is_being_made_can_be_deleted(client: OpenAI, model_host: ModelHost) -> None:
    chunks = iter(ask(client, "gate: chat-stored 1\nsay: one two three", stream=True, store=True))
    identifier = next(chunks).id
    assert client.chat.completions.delete(identifier).deleted
    with pytest.raises(APIError, match="deleted"):
        list(chunks)
    model_host.open_gate("chat-stored")
    with pytest.raises(NotFoundError):
        client.chat.completions.retrieve(identifier)


def test_one_that_failed_is_not_kept(client: OpenAI, url: str) -> None:
    with pytest.raises(BadRequestError):
        ask(client, "fail: 400 no", store=True, metadata={"failed": "yes"})
    chunks = stream(url, "chunks: 9\nerror_after: 3", store=True, metadata={"failed": "yes"})
    assert chunks[-1]["error"]["code"]
    identifier = chunks[0]["id"]
    assert send(url, "GET", f"/chat/completions/{identifier}").status == 404
    assert client.chat.completions.list(metadata={"failed": "yes"}).data == []
    until(lambda: send(url, "DELETE", f"/chat/completions/{identifier}").status == 404, "it is erased")


@pytest.mark.parametrize("store", [True, False])
def test_a_request_that_is_sent_again_under_its_key_makes_nothing_again(
    client: OpenAI, seen: Seen, kept: Any, store: bool
) -> None:
    headers = {"idempotency-key": f"chat-{store}"}
    first = ask(client, "say: Once.", store=store, extra_headers=headers)
    again = ask(client, "say: Once.", store=store, extra_headers=headers)
    assert again.to_dict() == first.to_dict()
    assert len(seen.requests) == 1
    with pytest.raises(BadRequestError) as caught:
        ask(client, "say: Twice.", store=store, extra_headers=headers)
    assert caught.value.code == "idempotency_conflict"


def test_a_stream_that_is_asked_for_again_says_the_same(url: str, seen: Seen) -> None:
    said = 'reason: Hm.\npreface: Let me see.\ncall: get_weather {"city": "Oslo"}'
    bodies = []
    for _ in range(2):
        body = {"model": "scripted", "messages": [{"role": "user", "content": said}], "stream": True, "store": True}
        headers = {"idempotency-key": "chat-stream"}
        answer = send(url, "POST", "/chat/completions", {**body, "tools": [WEATHER, FILE]}, headers=headers)
        bodies.append([json.loads(one[6:]) for one in answer.body.decode().split("\n\n") if one.startswith("data: {")])
    assert len(seen.requests) == 1
    first, again = ([one["choices"][0]["delta"] for one in chunks] for chunks in bodies)
    assert bodies[0][0]["id"] == bodies[1][0]["id"]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in first) == "".join(delta.get(name) or "" for delta in again)
    calls = [[call for delta in deltas for call in delta.get("tool_calls", ())] for deltas in (first, again)]
    assert calls[0][0] == calls[1][0]
    arguments = ["".join(call["function"]["arguments"] for call in made) for made in calls]
    assert arguments == ['{"city": "Oslo"}'] * 2
    assert bodies[1][-1]["choices"][0]["finish_reason"] == "tool_calls"
    send(url, "DELETE", f"/chat/completions/{bodies[0][0]['id']}")


# A crash.


@pytest.mark.parametrize("streamed", [True, False])
def test_what_kill_9_cut_off_is_finished_and_can_be_looked_up(
    tmp_path: Path, model_host: ModelHost, seen: Seen, streamed: bool
) -> None:
    gate = f"crash-{streamed}"
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server:
        asked = {
            "model": "scripted",
            "store": True,
            "stream": streamed,
            "metadata": {"crash": gate},
            "messages": [{"role": "user", "content": f"gate: {gate} 2\nsay: one two three four"}],
        }
        heard = b""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"content-type": "application/json"})
        if streamed:
            answer = connection.getresponse()
            while b" two" not in heard:
                heard += answer.readline()
        seen.wait(1)
        server.kill()
        connection.close()
        server.start()
        model_host.open_gate(gate)
        with OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
            [held] = until(lambda: client.chat.completions.list(metadata={"crash": gate}).data, "it is finished")
            if streamed:
                assert held.id in heard.decode()
            assert held.choices[0].message.content == "one two three four"
            assert client.chat.completions.retrieve(held.id).to_dict() == held.to_dict()
