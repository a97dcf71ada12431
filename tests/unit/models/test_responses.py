"""The Responses backend over a real socket, against the scripted server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import pytest

from stateroom.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from stateroom.models.backend import (
    ContextItem,
    Delta,
    Finished,
    FunctionSpec,
    ItemDelta,
    ReasoningDelta,
    RefusalDelta,
    SummaryDelta,
    TextDelta,
)
from stateroom.models.chat import ChatBackend
from stateroom.models.dialects import ProbedBackend, dialect_of, server_backend
from stateroom.models.emulation import ToolEmulation
from stateroom.models.responses import ResponsesBackend
from stateroom.settings import BackendSettings
from stateroom.testing.backend_conformance import calls_of, collect, make_call, text_of, user
from stateroom.testing.script import Call, Reply, Script, numbered
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.script_responses import seal
from stateroom.testing.scripted import ScriptedServer

LOOK = FunctionSpec("look", "Looks.", {"type": "object", "properties": {}}, strict=True)
HIDDEN: dict[str, Any] = {"quirks": Quirks(hidden_reasoning=True)}


class RecordingClock:
    """Real time, but nobody sleeps: what was asked for is written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.ahead = 0.0

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Bench:
    """A scripted server and a backend over it."""

    def __init__(self, server: ScriptedServer, backend: ResponsesBackend, clock: RecordingClock) -> None:
        self.server = server
        self.backend = backend
        self.clock = clock
        self.script = server.script

    async def ask(self, text: str = "hello", **options: Any) -> list[Delta]:
        return await collect(self.backend, make_call("scripted", user(text), **options))

    async def ask_in_vain(self) -> tuple[str, BackendError]:
        """What is said before it fails."""
        said = ""
        try:
            async for batch in self.backend.generate(make_call("scripted", user("x"))):
                said += text_of(list(batch))
        except BackendError as error:
            return said, error
        raise AssertionError("it did not fail")

    def body(self, position: int = -1) -> Any:
        return self.script.requests[position].json()


@asynccontextmanager
async def bench(
    *replies: Reply, key: str | None = None, server: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Bench]:
    clock = RecordingClock()
    async with ScriptedServer(Script(replies), **(server or {})) as scripted:
        settings = BackendSettings(scripted.url, dialect="responses", **options)
        backend = ResponsesBackend(settings, key, clock=clock)
        try:
            yield Bench(scripted, backend, clock)
        finally:
            await backend.close()


async def failure(asked: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await asked
    return caught.value


def refusal(message: str, code: str | None = None) -> Reply:
    return Reply(status=400, error={"message": message, "type": "invalid_request_error", "code": code, "param": None})


# What is sent.


async def test_a_request_holds_what_the_call_says_and_has_nothing_kept() -> None:
    async with bench() as it:
        await it.ask("say: x")
        assert it.body() == {
            "model": "scripted",
            "input": [{"role": "user", "content": "say: x"}],
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "stream": True,
        }
        format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        await it.ask(
            "say: x", stream=False, instructions="Be kind.", functions=(LOOK, FunctionSpec("go")), tool_choice=("go",),
            parallel_tool_calls=False, temperature=0.0, top_p=0.5, presence_penalty=0.1, frequency_penalty=0.2,
            max_output_tokens=90, top_logprobs=2, reasoning_effort="low", reasoning_summary="auto", format=format,
            verbosity="high", service_tier="flex", user="u", prompt_cache_key="k",
        )  # fmt: skip
        nothing: dict[str, Any] = {"type": "object", "properties": {}}
        assert it.body() == {
            "model": "scripted",
            "input": [{"role": "user", "content": "say: x"}],
            "instructions": "Be kind.",
            "tools": [
                {"type": "function", "name": "look", "description": "Looks.", "parameters": nothing, "strict": True},
                {"type": "function", "name": "go", "parameters": nothing, "strict": False},
            ],
            "tool_choice": {"type": "function", "name": "go"},
            "parallel_tool_calls": False,
            "temperature": 0.0,
            "top_p": 0.5,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "max_output_tokens": 90,
            "top_logprobs": 2,
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": format, "verbosity": "high"},
            "service_tier": "flex",
            "user": "u",
            "prompt_cache_key": "k",
            "store": False,
            "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        }


async def test_one_of_several_functions_must_be_called_and_all_stay_in_the_prompt() -> None:
    functions = (LOOK, FunctionSpec("go"), FunctionSpec("stay"))
    async with bench() as it:
        calls = calls_of(await it.ask("x", functions=functions, tool_choice=("go", "stay")))
        assert calls[0][1] == "go"
        assert len(it.body()["tools"]) == 3
        assert it.body()["tool_choice"]["type"] == "allowed_tools"


async def test_a_server_that_knows_no_choice_among_several_is_shown_those_alone() -> None:
    functions = (LOOK, FunctionSpec("go"), FunctionSpec("stay"))
    async with bench(refusal("Unknown tool_choice type 'allowed_tools'.")) as it:
        calls = calls_of(await it.ask("x", functions=functions, tool_choice=("go", "stay")))
        assert calls[0][1] == "go"
        assert [tool["name"] for tool in it.body()["tools"]] == ["go", "stay"]
        assert it.body()["tool_choice"] == "required"


async def test_a_growing_context_is_encoded_once_and_sent_whole() -> None:
    async with bench() as it:
        call = make_call("scripted", user("say: x"), functions=(LOOK,))
        await collect(it.backend, call)
        history = call.cache["responses:history"]
        items = [
            *call.items,
            ContextItem("msg_1", {"role": "assistant", "content": "x"}),
            ContextItem("item_2", user("say: y")),
        ]
        await collect(it.backend, msgspec.structs.replace(call, items=items))
        assert call.cache["responses:history"] is history
        assert [item["role"] for item in it.body()["input"]] == ["user", "assistant", "user"]


async def test_sealed_reasoning_of_an_answer_can_go_back() -> None:
    async with bench(server=HIDDEN) as it:
        call = make_call("scripted", user("reason: secret\nsummarise: hm\ncall: look"), functions=(LOOK,))
        deltas = await collect(it.backend, call)
        whole = [delta for delta in deltas if isinstance(delta, ItemDelta) and delta.done]
        assert whole[0].origin == it.backend.name
        assert not any(isinstance(delta, ReasoningDelta) for delta in deltas)
        assert [delta.text for delta in deltas if isinstance(delta, SummaryDelta)] == ["hm"]
        upstream = {"at": whole[0].origin, "id": whole[0].item["id"]}
        upstream["encrypted_content"] = whole[0].item["encrypted_content"]
        ((call_id, name, arguments),) = calls_of(deltas)
        shown = {"type": "reasoning", "summary": whole[0].item["summary"], "upstream": upstream}
        made = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        items = [
            *call.items,
            ContextItem("rs", shown),
            ContextItem("fc", made),
            ContextItem("fco", {"type": "function_call_output", "call_id": call_id, "output": "sea"}),
        ]
        answer = await collect(it.backend, msgspec.structs.replace(call, items=items))
        assert text_of(answer) == "The tool answered: sea"
        assert it.body()["input"][1] == whole[0].item


async def test_reasoning_that_the_server_cannot_open_any_more_is_left_out() -> None:
    async with bench(server=HIDDEN) as it:
        upstream = {"at": it.backend.name, "id": "rs_1", "encrypted_content": seal("rs_of_another_key", "x")}
        items = (
            user("hi"),
            {"type": "reasoning", "summary": [], "upstream": upstream},
            {"role": "assistant", "content": "hello"},
            user("say: fine"),
        )
        call = make_call("scripted", *items)
        assert text_of(await collect(it.backend, call)) == "fine"
        assert it.script.received == 2
        assert text_of(await collect(it.backend, call)) == "fine"
        assert it.script.received == 3, "it is known for this context"
        assert it.body()["include"] == ["reasoning.encrypted_content"]


async def test_a_model_that_seals_no_reasoning_is_not_asked_to_again() -> None:
    async with bench(refusal("Encrypted content is not supported with this model.")) as it:
        assert text_of(await it.ask("say: ok")) == "ok"
        assert "include" not in it.body()
        assert text_of(await it.ask("say: ok")) == "ok"
        assert it.script.received == 3


async def test_a_lesson_counts_for_calls_that_were_under_way_when_it_was_learnt() -> None:
    told = "Encrypted content is not supported with this model."
    async with bench(*[refusal(told)] * 4) as it:
        answers = await asyncio.gather(*(it.ask("say: ok") for _ in range(4)))
        assert [text_of(answer) for answer in answers] == ["ok"] * 4


async def test_a_refusal_that_teaches_nothing_is_given_on() -> None:
    told = refusal("Encrypted content is not supported with this model.")
    async with bench(told, told) as it:
        assert isinstance(await failure(it.ask()), BackendRejected)
        assert it.script.received == 2


# What comes back.


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_text_reasoning_calls_and_what_they_used(stream: bool) -> None:
    reply = Reply(text="Let me see.", reasoning="hm", calls=(Call("look", '{"a":1}'), Call("look", '{"b":2}')))
    async with bench(reply) as it:
        deltas = await it.ask(stream=stream, functions=(LOOK,))
        assert text_of(deltas) == "Let me see."
        assert [delta.text for delta in deltas if isinstance(delta, ReasoningDelta)] == ["hm"]
        assert [arguments for _, _, arguments in calls_of(deltas)] == ['{"a":1}', '{"b":2}']
        assert isinstance(deltas[-1], Finished)
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.reasoning == 1


async def test_a_refusal_is_a_refusal_and_log_probabilities_are_given() -> None:
    async with bench() as it:
        deltas = await it.ask("refuse: I will not.")
        assert "".join([delta.text for delta in deltas if isinstance(delta, RefusalDelta)]) == "I will not."
        probable = [delta for delta in await it.ask("say: a b", top_logprobs=1) if isinstance(delta, TextDelta)]
        assert [one["token"] for delta in probable for one in delta.logprobs or ()] == ["a", " b"]


async def test_a_server_that_ignores_stream_is_understood() -> None:
    body = {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]}
    async with bench(Reply(raw=json.dumps(body).encode())) as it:
        assert text_of(await it.ask()) == "hi"


# Failures.


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (Reply(status=401, error={"message": "no"}), BackendFailed, "backend_auth_failed"),
        (Reply(status=503, error={"message": "loading"}), BackendUnavailable, "backend_unavailable"),
        (refusal("This model's maximum context length is 8 tokens."), BackendRejected, "context_length_exceeded"),
        (refusal("No such thing.", "unknown_parameter"), BackendRejected, "unknown_parameter"),
        (Reply(status=429, error={"message": "slow"}), BackendBusy, "backend_busy"),
    ],
)
async def test_failures_are_the_same_as_with_chat_servers(reply: Reply, kind: type[BackendError], code: str) -> None:
    async with bench(reply, retries=0) as it:
        error = await failure(it.ask())
        assert isinstance(error, kind)
        assert error.code == code


async def test_a_failure_before_the_first_delta_is_tried_again() -> None:
    busy = Reply(error_after=0, error={"message": "Slowly.", "code": "rate_limit_exceeded"})
    async with bench(Reply(status=500, error={"message": "x"}), busy, Reply(drop_after=0, text="a b")) as it:
        assert isinstance(await failure(it.ask("x")), BackendFailed)
        assert it.script.received == 3
        assert len(it.clock.slept) == 2


async def test_nothing_is_tried_again_once_a_delta_was_given() -> None:
    async with bench(Reply(text="a b c", drop_after=2)) as it:
        said, error = await it.ask_in_vain()
        assert (said, it.script.received) == ("a b", 1)
        assert isinstance(error, BackendFailed)


async def test_an_error_inside_the_stream_is_raised_after_the_text() -> None:
    async with bench(Reply(text="a b c", error_after=2, error={"message": "Oh no.", "code": "server_error"})) as it:
        said, error = await it.ask_in_vain()
        assert said == "a b"
        assert "Oh no." in error.message


async def test_silence_before_the_first_byte_and_between_chunks_times_out() -> None:
    async with bench(Reply(hang_after=0), first_byte_timeout_seconds=0.1) as it:
        assert isinstance(await failure(it.ask()), BackendTimeout)
        await it.script.until(lambda script: script.dropped == 1)
    async with bench(Reply(text="a b c", hang_after=2), idle_timeout_seconds=0.1) as it:
        assert isinstance(await failure(it.ask()), BackendTimeout)
        await it.script.until(lambda script: script.dropped == 1)


async def test_a_model_may_think_in_silence_for_as_long_as_the_first_byte_may_take() -> None:
    begun = {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}}
    over = {"type": "response.completed", "response": {"status": "completed", "output": []}}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b"data: " + json.dumps(begun).encode() + b"\n\n")
        await writer.drain()
        await asyncio.wait_for(thought.wait(), 10)
        writer.write(b"data: " + json.dumps(over).encode() + b"\n\n")
        writer.close()

    thought = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        backend = ResponsesBackend(BackendSettings(url, idle_timeout_seconds=0.05, first_byte_timeout_seconds=10))
        answer = backend.generate(make_call("m", user("x")))
        assert isinstance((await anext(answer))[0], ItemDelta)
        asyncio.get_running_loop().call_later(0.2, thought.set)
        assert [delta async for batch in answer for delta in batch][-1] == Finished("stop")
        await backend.close()


@pytest.mark.parametrize("raw", [b"<html>hi</html>", b'{"no": "output"}', b"", b"[[[["])
@pytest.mark.parametrize("stream", [True, False])
async def test_nonsense_is_a_clear_failure(raw: bytes, stream: bool) -> None:
    async with bench(*[Reply(raw=raw, content_type="text/html")] * 3) as it:
        assert isinstance(await failure(it.ask(stream=stream)), BackendFailed)


async def test_a_refused_key_stays_secret() -> None:
    async with bench(server={"key": "other"}, key="s3cret") as it:
        error = await failure(it.ask())
        assert error.code == "backend_auth_failed"
        assert "s3cret" not in error.message


# Cancellation.


async def test_closing_the_iterator_drops_the_connection_at_once() -> None:
    async with bench(Reply(text=numbered(100), hang_after=5)) as it:
        answer = it.backend.generate(make_call("scripted", user("x")))
        async with contextlib.aclosing(answer):
            await anext(answer)
        await it.script.until(lambda script: script.dropped == 1)


async def test_cancelling_the_task_drops_the_connection_at_once() -> None:
    async with bench(Reply(text="a", hang_after=0)) as it:
        task = asyncio.create_task(it.ask())
        await it.script.until(lambda script: script.received == 1)
        task.cancel()
        await it.script.until(lambda script: script.dropped == 1)


# Counting.


async def test_tokens_are_counted_by_the_server_when_it_can() -> None:
    async with bench(server={"counting": "responses"}) as it:
        count, exact = await it.backend.count_tokens(make_call("scripted", user("hello"), functions=(LOOK,)))
        assert exact
        assert it.script.requests[-1].path.endswith("/responses/input_tokens")
        assert set(it.body()) == {"model", "input", "tools"}
        assert count > 5


async def test_tokens_are_estimated_when_the_server_cannot_count_and_it_is_not_asked_again() -> None:
    async with bench() as it:
        first = await it.backend.count_tokens(make_call("scripted", user("hello")))
        assert first[1] is False
        assert await it.backend.count_tokens(make_call("scripted", user("hello"))) == first
        assert it.script.received == 1


# Finding out.


@pytest.mark.parametrize(("responses", "dialect"), [(True, "responses"), (False, "chat")])
async def test_auto_speaks_responses_where_they_are_and_asks_once(responses: bool, dialect: str) -> None:
    async with ScriptedServer(responses=responses) as server:
        backend = server_backend(BackendSettings(server.url, dialect="auto"), None)
        await asyncio.gather(*(backend.models() for _ in range(4)))
        assert text_of(await collect(backend, make_call("scripted", user("say: hi")))) == "hi"
        assert dialect_of(backend) == dialect
        paths = [request.path for request in server.script.requests]
        assert paths.count("/v1/responses") == (2 if responses else 1)
        assert paths.count("/v1/chat/completions") == (0 if responses else 1)
        await backend.close()


async def test_a_server_that_is_not_up_is_asked_again_later() -> None:
    clock = RecordingClock()
    server = ScriptedServer()
    await server.start()
    port = int(server.url.split(":")[2].split("/")[0])
    await server.stop()
    backend = ProbedBackend(BackendSettings(server.url, dialect="auto", retries=0), clock=clock)
    assert isinstance(await failure(backend.models()), BackendUnavailable)
    assert dialect_of(backend) == ""
    await server.start(port=port)
    assert text_of(await collect(backend, make_call("scripted", user("say: hi")))) == "hi"
    assert (backend.known, backend.dialect) == (False, "chat")
    clock.ahead = 60.0
    assert text_of(await collect(backend, make_call("scripted", user("say: hi")))) == "hi"
    assert (backend.known, backend.dialect) == (True, "responses")
    await backend.close()
    await server.stop()


async def test_a_server_that_refuses_the_key_tells_nothing_about_its_dialect() -> None:
    async with ScriptedServer(key="k") as server:
        backend = ProbedBackend(BackendSettings(server.url, dialect="auto"))
        assert (await failure(backend.models())).code == "backend_auth_failed"
        assert not backend.known
        await backend.close()


@pytest.mark.parametrize(("dialect", "kind"), [("chat", ChatBackend), ("responses", ResponsesBackend)])
def test_a_dialect_that_is_named_is_not_asked_for(dialect: Literal["chat", "responses"], kind: type[Any]) -> None:
    backend = server_backend(BackendSettings("http://127.0.0.1:1/v1", dialect=dialect), None)
    assert isinstance(backend, kind)
    assert dialect_of(ToolEmulation(backend)) == dialect


async def test_emulated_calls_are_not_preceded_by_an_empty_message() -> None:
    said = json.dumps({"tool": "look", "arguments": {}})
    async with bench(Reply(text=said, phase="final_answer")) as it:
        emulated = ToolEmulation(it.backend)
        call = make_call("scripted", user("x"), functions=(FunctionSpec("look"),), tool_choice="required")
        deltas = await collect(emulated, call)
        assert calls_of(deltas)[0][1] == "look"
        assert not any(isinstance(delta, ItemDelta) for delta in deltas)
