"""The legacy Completions API through the real `openai` SDK."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import get, post, send


def ask(url: str, **body: Any) -> dict[str, Any]:
    """A completion, as the SDK's own type reads it, strictly."""
    shown: dict[str, Any] = post(url, "/completions", {"model": "scripted", "max_tokens": 100, **body})
    Completion.model_validate(shown, strict=True)
    return shown


def chunks(url: str, **body: Any) -> list[dict[str, Any]]:
    """All chunks of a stream; the framing is held to rule."""
    sent = {"model": "scripted", "max_tokens": 100, "stream": True, **body}
    with httpx.stream("POST", f"{url}/completions", json=sent, timeout=30) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        blocks = "".join(response.iter_text()).split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def text_of(shown: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in shown for choice in chunk["choices"] if choice["index"] == index)


# One answer.


def test_a_prompt_is_answered(client: OpenAI, seen: Seen) -> None:
    made = client.completions.create(model="scripted", prompt="say: Hello there", max_tokens=50, temperature=0.5)
    assert (made.object, made.choices[0].text, made.choices[0].finish_reason) == (
        "text_completion",
        "Hello there",
        "stop",
    )
    assert made.id.startswith("cmpl")
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens > 2
    assert seen.messages == [{"role": "user", "content": "say: Hello there"}]
    assert (seen.last["max_tokens"], seen.last["temperature"]) == (50, 0.5)


def test_all_parameters_reach_the_model_server(url: str, seen: Seen) -> None:
    given = {"top_p": 0.3, "presence_penalty": 0.1, "frequency_penalty": -0.2, "user": "ada", "seed": 7, "stop": "END"}
    ask(url, prompt="say: hello", **given)
    assert {name: seen.last[name] for name in given} == {**given, "stop": ["END"]}


def test_without_a_bound_an_answer_has_sixteen_tokens(url: str, seen: Seen) -> None:
    shown = ask(url, prompt="chunks: 40", max_tokens=None)
    assert seen.last["max_tokens"] == 16
    assert shown["choices"][0]["finish_reason"] == "length"


def test_echo_puts_the_prompt_in_front(client: OpenAI, url: str) -> None:
    made = client.completions.create(model="scripted", prompt="say: yes", echo=True)
    assert made.choices[0].text == "say: yesyes"
    assert text_of(chunks(url, prompt=["say: yes", "say: no"], echo=True, n=2), index=3) == "say: nono"


def test_no_tokens_and_echo_give_the_prompt_alone(url: str, seen: Seen) -> None:
    shown = ask(url, prompt="say: yes", echo=True, max_tokens=0)
    assert (shown["choices"][0]["text"], shown["choices"][0]["finish_reason"]) == ("say: yes", "length")
    assert shown["usage"]["completion_tokens"] == 0 < shown["usage"]["prompt_tokens"]
    assert seen.requests == []


def test_nothing_is_stored(url: str) -> None:
    before = get(url, "/responses?limit=1")["data"]
    ask(url, prompt="say: nothing of this stays")
    assert get(url, "/responses?limit=1")["data"] == before


# Several answers.


def test_each_prompt_gets_its_own_choices_in_order(client: OpenAI, seen: Seen) -> None:
    prompts = [f"say: answer {number}" for number in range(3)]
    made = client.completions.create(model="scripted", prompt=prompts, n=2, seed=10)
    assert [choice.index for choice in made.choices] == list(range(6))
    assert [choice.text for choice in made.choices] == [f"answer {number}" for number in (0, 0, 1, 1, 2, 2)]
    assert len(seen.requests) == 6
    assert sorted(request["seed"] for request in seen.requests) == [10, 10, 10, 11, 11, 11]


def test_a_prompt_counts_once_however_often_it_is_answered(url: str) -> None:
    one = ask(url, prompt="say: a b c")["usage"]
    three = ask(url, prompt="say: a b c", n=3)["usage"]
    assert three["prompt_tokens"] == one["prompt_tokens"]
    assert three["completion_tokens"] == 3 * one["completion_tokens"]


# Stop texts.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "stop", "shown"),
    [
        ("one two three", "two", "one "),
        ("one two three", ["four", "three"], "one two "),
        ("one two three", ["ne t"], "o"),
        ("one two three", "o", ""),
        ("one two three", "two threes", "one two three"),
        ("aaab", "aab", "a"),
        ("a\n\nb", "\n\n", "a"),
        ("tick tock", ["tock tick", "tick"], ""),
    ],
)
def test_an_answer_ends_before_a_stop_text(url: str, said: str, stop: Any, shown: str, stream: bool) -> None:
    """The scripted server heeds no stop texts: they are cut here, also where they come in pieces."""
    body = {"prompt": f"say: {said}", "stop": stop}
    if stream:
        made = chunks(url, **body)
        assert text_of(made) == shown
        assert made[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        assert ask(url, **body)["choices"][0]["text"] == shown


def test_a_stop_text_ends_the_answer_upstream(url: str, model_host: ModelHost) -> None:
    before = model_host.script.dropped
    chunks(url, prompt="say: one two STOP\nchunks: 1000\nslow: 50", stop="two")
    until(lambda: model_host.script.dropped > before, "the model server was hung up on")


# Streams.


def test_a_stream_gives_the_answer_in_pieces(client: OpenAI) -> None:
    pieces = list(client.completions.create(model="scripted", prompt="say: one two three", stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == "one two three"
    assert len({piece.id for piece in pieces}) == 1
    assert [piece.choices[0].finish_reason for piece in pieces][-1] == "stop"
    assert all(piece.object == "text_completion" and piece.usage is None for piece in pieces)


def test_the_last_chunk_of_a_stream_has_the_usage_when_it_is_asked_for(client: OpenAI, url: str) -> None:
    options: Any = {"include_usage": True}
    pieces = list(
        client.completions.create(model="scripted", prompt="say: one two", stream=True, stream_options=options)
    )
    assert pieces[-1].choices == []
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens >= 2
    made = chunks(url, prompt="say: one", stream_options=options)
    assert [chunk["usage"] for chunk in made[:-1]] == [None] * (len(made) - 1)
    assert "usage" not in chunks(url, prompt="say: one")[-1]


def test_streamed_choices_say_which_they_are(url: str) -> None:
    made = chunks(url, prompt=["say: first one", "say: second one"], n=2)
    assert [text_of(made, index) for index in range(4)] == ["first one", "first one", "second one", "second one"]
    ends = [choice for chunk in made for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(choice["index"] for choice in ends) == [0, 1, 2, 3]


async def test_the_asynchronous_client_streams_alike(async_client: AsyncOpenAI) -> None:
    stream = await async_client.completions.create(model="scripted", prompt="say: one two", stream=True)
    assert "".join([piece.choices[0].text async for piece in stream]) == "one two"


def test_what_fails_at_once_has_a_status_in_a_stream_too(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        client.completions.create(model="scripted", prompt="fail: 422 nonsense", stream=True)
    assert failed.value.status_code == 422


def test_what_fails_later_is_told_in_the_stream(client: OpenAI) -> None:
    stream = client.completions.create(model="scripted", prompt="say: one two three\nfail_after: 2", stream=True)
    text: list[str] = []
    with pytest.raises(openai.APIError) as failed:
        text.extend(piece.choices[0].text for piece in stream)
    assert "".join(text) == "one two"
    assert failed.value.code == "backend_failed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_takes_its_answers_with_it(url: str, model_host: ModelHost, stream: bool) -> None:
    before = model_host.script.dropped
    body = {"model": "scripted", "prompt": ["chunks: 1000\nslow: 100"] * 3, "max_tokens": 2000, "stream": stream}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", f"{url}/completions", json=body, timeout=0.5) as response,
    ):
        next(response.iter_raw())
    until(lambda: model_host.script.dropped >= before + 3, "the answers upstream were dropped")


# What is refused.


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"prompt": []}, "array_below_min_length", "prompt"),
        ({"prompt": [1, 2]}, "tokens_not_supported", "prompt[0]"),
        ({"prompt": ["a", [1, 2]]}, "tokens_not_supported", "prompt[1]"),
        ({"prompt": 7}, "invalid_type", "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "array_above_max_length", "n"),
        ({"prompt": ["a"] * 129}, "array_above_max_length", "prompt"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
        ({"temperature": 3}, "decimal_above_max_value", "temperature"),
        ({"stop": ["a"] * 5}, "array_above_max_length", "stop"),
        ({"stop": ""}, "string_below_min_length", "stop"),
        ({"stop": ["a" * 513]}, "string_above_max_length", "stop[0]"),
        ({"logprobs": 0}, "unsupported_parameter", "logprobs"),
        ({"suffix": "the end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"best_of": 1, "n": 2}, "invalid_value", "best_of"),
        ({"logit_bias": {"50256": -100}}, "unsupported_parameter", "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
        ({"prompt": "overflow: 0"}, "context_length_exceeded", "prompt"),
    ],
)
def test_what_cannot_be_honoured_is_refused(url: str, change: dict[str, Any], code: str, param: str) -> None:
    answer = send(url, "POST", "/completions", {"model": "scripted", "prompt": "say: hello", **change})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


def test_what_changes_nothing_is_taken(url: str) -> None:
    nothing = {"best_of": 1, "n": 1, "suffix": "", "logit_bias": {}, "logprobs": None, "stop": None, "echo": False}
    assert ask(url, prompt="say: hello", **nothing)["choices"][0]["text"] == "hello"
    assert ask(url, prompt="say: hello", stop=[])["choices"][0]["text"] == "hello"


def test_a_failure_of_one_answer_fails_all(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        client.completions.create(model="scripted", prompt=["say: one", "fail: 422 nonsense"])
    assert failed.value.status_code == 422


# A server that stops.


@pytest.fixture
def own_server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process:
        yield process


def test_an_answer_that_has_begun_is_finished_before_the_server_stops(
    own_server: ServerProcess, model_host: ModelHost
) -> None:
    body = {"model": "scripted", "prompt": "say: one two three\ngate: stopping 1", "stream": True}
    with httpx.stream("POST", f"{own_server.url}/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        assert '"text":"one"' in next(lines)
        assert own_server.process is not None
        own_server.process.terminate()
        until(lambda: "server.stopping" in own_server.output or refuses(own_server.url), "the server is stopping")
        model_host.open_gate("stopping")
        assert "data: [DONE]" in list(lines)
    assert own_server.wait() == 0


def refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/models", timeout=1)
    except httpx.TransportError:
        return True
    return False
