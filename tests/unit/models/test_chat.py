"""The chat backend over a real socket, against the scripted server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
from stateroom.models.backend import Delta, Finished, FunctionSpec, Model, ModelCall, TextDelta
from stateroom.models.chat import ChatBackend
from stateroom.models.chat_request import Dialect, encode_request
from stateroom.settings import BackendSettings
from stateroom.testing.backend_conformance import calls_of, collect, make_call, text_of, user
from stateroom.testing.script import Call, Reply, Script, numbered
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.scripted import ScriptedServer


class RecordingClock:
    """Real time, but nobody sleeps: what was asked for is written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Bench:
    """A scripted server and a backend over it."""

    def __init__(self, server: ScriptedServer, backend: ChatBackend, clock: RecordingClock) -> None:
        self.server = server
        self.backend = backend
        self.clock = clock
        self.script = server.script

    async def ask(self, text: str = "hello", **options: Any) -> list[Delta]:
        return await collect(self.backend, make_call("scripted", user(text), **options))

    def body(self, position: int = -1) -> Any:
        return self.script.requests[position].json()


@asynccontextmanager
async def bench(
    *replies: Reply, key: str | None = None, server: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Bench]:
    clock = RecordingClock()
    async with ScriptedServer(Script(replies), **(server or {})) as scripted:
        backend = ChatBackend(BackendSettings(scripted.url, **options), key, clock=clock)
        try:
            yield Bench(scripted, backend, clock)
        finally:
            await backend.close()


async def failure(asked: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await asked
    return caught.value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_an_answer_streams_and_says_what_it_used() -> None:
    async with bench() as it:
        deltas = await it.ask("say: one two three")
        assert [delta.text for delta in deltas[:-1] if hasattr(delta, "text")] == ["one", " two", " three"]
        assert isinstance(deltas[-1], Finished)
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.output == 3


async def test_a_request_holds_what_the_call_says_and_nothing_else() -> None:
    look = FunctionSpec("look", "Looks.", {"type": "object", "properties": {}}, strict=True)
    async with bench() as it:
        await it.ask("say: x")
        assert it.body() == {
            "model": "scripted",
            "messages": [{"role": "user", "content": "say: x"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        await it.ask(
            "say: x", stream=False, instructions="Be kind.", functions=(look, FunctionSpec("go")), tool_choice=("go",),
            parallel_tool_calls=False, temperature=0.0, top_p=0.5, presence_penalty=0.1, frequency_penalty=0.2,
            max_output_tokens=9, top_logprobs=2, reasoning_effort="low", format=format, verbosity="high",
            service_tier="flex", user="u", prompt_cache_key="k",
        )  # fmt: skip
        assert it.body() == {
            "model": "scripted",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "say: x"}],
            "tools": [
                {"type": "function", "function": {"name": "look", "description": "Looks.", "strict": True,
                                                  "parameters": {"type": "object", "properties": {}}}},
                {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}},
            ],
            "tool_choice": {"type": "function", "function": {"name": "go"}},
            "parallel_tool_calls": False, "temperature": 0.0, "top_p": 0.5, "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "max_tokens": 9, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low",
            "response_format": {"type": "json_schema",
                                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
            "verbosity": "high", "service_tier": "flex", "user": "u", "prompt_cache_key": "k",
        }  # fmt: skip


async def test_when_one_of_several_functions_must_be_called_only_those_are_declared() -> None:
    functions = [FunctionSpec(name) for name in "abc"]
    async with bench() as it:
        calls = calls_of(await it.ask("hm", functions=functions, tool_choice=("b", "c")))
        assert [name for _, name, _ in calls] == ["b"]
        assert [tool["function"]["name"] for tool in it.body()["tools"]] == ["b", "c"]
        assert it.body()["tool_choice"] == "required"


async def test_tool_settings_are_left_out_without_functions() -> None:
    async with bench() as it:
        await it.ask("hm", tool_choice="required", parallel_tool_calls=False)
        assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(it.body())


async def test_a_growing_context_is_sent_whole_each_time() -> None:
    async with bench() as it:
        call = make_call("scripted", user("one"))
        items = list(call.items)
        for turn in range(5):
            call = msgspec.structs.replace(call, items=items)
            answer = text_of(await collect(it.backend, call))
            assert len(it.body()["messages"]) == 2 * turn + 1
            more = make_call("scripted", {"role": "assistant", "content": answer}, user(f"turn {turn}")).items
            items = [*items, *(msgspec.structs.replace(one, id=f"{turn}{one.id}") for one in more)]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_goes_back_under_the_name_that_the_server_used(field: str) -> None:
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = (user("q"), reasoning, {"role": "assistant", "content": "a"}, user("say: x"))
    async with bench(server={"quirks": Quirks(reasoning_field=field)}) as it:
        call = make_call("scripted", *items)
        await collect(it.backend, call)
        assert it.body()["messages"][1] == {"role": "assistant", "content": "a"}
        await it.ask("reason: well\nsay: x")
        await collect(it.backend, call)
        assert it.body()["messages"][1] == {"role": "assistant", "content": "a", field: "hm"}


async def test_reasoning_goes_back_as_the_settings_say() -> None:
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = (reasoning, {"role": "assistant", "content": "a"}, user("reason: w\nsay: x"))
    for setting, expected in (("none", None), ("reasoning", "hm")):
        async with bench(reasoning_field=setting) as it:
            for _ in range(2):
                await collect(it.backend, make_call("scripted", *items))
                assert it.body()["messages"][0].get("reasoning") == expected
                assert "reasoning_content" not in it.body()["messages"][0]


@pytest.mark.parametrize("way", ["assistant", "continue_final_message"])
async def test_an_answer_goes_on_from_a_given_text(way: str) -> None:
    async with bench(prefill=way) as it:
        assert it.backend.can_prefill
        deltas = await it.ask("chunks: 10", prefill="w0 w1 w")
        assert "w0 w1 w" + text_of(deltas) == numbered(10)
        assert it.body()["messages"][-1] == {"role": "assistant", "content": "w0 w1 w"}
        assert it.body().get("continue_final_message", False) is (way == "continue_final_message")


async def test_a_server_that_ignores_stream_is_understood() -> None:
    whole = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    events = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    async with bench(Reply(raw=whole), Reply(raw=events, content_type="text/event-stream")) as it:
        assert text_of(await it.ask(stream=True)) == "hi"
        assert text_of(await it.ask(stream=False)) == "hi"


# Failures.


async def test_a_server_that_is_not_there_is_named_and_tried_again() -> None:
    clock = RecordingClock()
    url = f"http://user:secret@127.0.0.1:{free_port()}/v1"
    backend = ChatBackend(BackendSettings(url, retries=2), clock=clock)
    error = await failure(collect(backend, make_call("m", user("x"))))
    assert isinstance(error, BackendUnavailable)
    assert "127.0.0.1" in error.message
    assert "Check that it runs" in error.message
    assert "secret" not in error.message
    assert len(clock.slept) == 2
    assert 0 < clock.slept[0] <= 0.25 < clock.slept[1] * 2 <= 1.0
    await backend.close()


async def test_a_host_that_does_not_exist_is_named() -> None:
    backend = ChatBackend(BackendSettings("http://no-such-host.invalid/v1", retries=0))
    error = await failure(backend.models())
    assert isinstance(error, BackendUnavailable)
    assert "no-such-host.invalid" in error.message
    await backend.close()


async def test_tls_to_a_server_without_it_is_said() -> None:
    async with bench() as it:
        backend = ChatBackend(BackendSettings(it.server.url.replace("http:", "https:")), clock=it.clock)
        error = await failure(collect(backend, make_call("m", user("x"))))
        assert isinstance(error, BackendUnavailable | BackendFailed)
        assert error.code in ("backend_tls_failed", "backend_unavailable")
        await backend.close()


@pytest.mark.parametrize("url", ["", "localhost:1/v1", "ftp://x/v1", "http://"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(BackendFailed, match="not the URL"):
        ChatBackend(BackendSettings(url))


async def test_a_connection_that_is_not_accepted_times_out() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(8):  # fill the backlog, so that the kernel answers no more
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", port))
        backend = ChatBackend(BackendSettings(f"http://127.0.0.1:{port}/v1", connect_timeout_seconds=0.1, retries=0))
        error = await failure(collect(backend, make_call("m", user("x"))))
        assert isinstance(error, BackendTimeout)
        assert error.code == "backend_connect_timeout"
        await backend.close()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_the_operators_fault_and_stays_secret(status: int) -> None:
    told = {"message": "Incorrect API key provided: sk-secret"}
    async with bench(*[Reply(status=status, error=told)] * 3, key="sk-secret") as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendFailed)
        assert (error.status, error.code) == (502, "backend_auth_failed")
        assert "sk-secret" not in error.message
        assert it.script.received == 1
        assert it.script.requests[0].headers["authorization"] == "Bearer sk-secret"


async def test_an_error_of_the_server_never_repeats_the_key() -> None:
    async with bench(Reply(status=400, error={"message": "bad sk-secret"}), key="sk-secret") as it:
        assert "sk-secret" not in (await failure(it.ask())).message


async def test_an_unknown_model_is_404_model_not_found() -> None:
    async with bench(server={"strict_models": True}) as it:
        error = await failure(collect(it.backend, make_call("other", user("x"))))
        assert isinstance(error, BackendRejected)
        assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


async def test_a_wrong_path_is_the_operators_fault() -> None:
    async with bench() as it:
        backend = ChatBackend(BackendSettings(it.server.url + "/more"))
        error = await failure(collect(backend, make_call("m", user("x"))))
        assert isinstance(error, BackendFailed)
        assert error.code == "backend_misconfigured"
        await backend.close()


@pytest.mark.parametrize(
    ("base", "path"), [("/v1", "/v1/models"), ("/v1/", "/v1/models"), ("", "/models"), ("/", "/models")]
)
async def test_a_base_url_may_have_no_path_and_may_end_in_a_slash(base: str, path: str) -> None:
    async with bench() as it:
        backend = ChatBackend(BackendSettings(it.server.url.removesuffix("/v1") + base))
        with contextlib.suppress(BackendFailed):
            await backend.models()
        assert it.script.requests[-1].path == path
        await backend.close()


async def test_a_redirect_is_not_followed() -> None:
    async with bench(Reply(raw=b"", status=307, headers={"location": "http://127.0.0.1:1/"}), key="k") as it:
        error = await failure(it.ask())
        assert error.code == "backend_misconfigured"
        assert it.script.received == 1


@pytest.mark.parametrize(
    "told",
    [
        {"message": "the request exceeds the available context size", "type": "exceed_context_size_error", "code": 400},
        {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."},
        {"message": "The input (5000 tokens) is longer than the model's context length (4096 tokens)."},
        {"message": "You passed 9 input tokens. However, the model's context length is only 8 tokens.", "code": 400},
        {"message": "too much", "code": "context_length_exceeded"},
    ],
)
async def test_a_context_that_is_too_long_has_one_code_for_all_servers(told: dict[str, Any]) -> None:
    async with bench(Reply(status=400, error=told)) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendRejected)
        assert (error.status, error.code) == (400, "context_length_exceeded")


async def test_other_refusals_keep_their_status_and_message() -> None:
    told = {"message": "top_p must be below 1", "code": "bad_value", "param": "top_p"}
    async with bench(Reply(status=422, error=told)) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendRejected)
        assert (error.status, error.message, error.code, error.param) == (422, told["message"], "bad_value", "top_p")
        assert it.script.received == 1


async def test_a_busy_server_is_given_the_time_it_asks_for() -> None:
    busy = Reply(status=429, error={"message": "busy"}, headers={"retry-after": "7"})
    async with bench(busy, Reply(text="ok")) as it:
        assert text_of(await it.ask()) == "ok"
        assert it.clock.slept == [7.0]


async def test_a_busy_server_that_asks_for_too_long_is_reported() -> None:
    busy = Reply(status=429, error={"message": "busy"}, headers={"retry-after": "600"})
    async with bench(busy, Reply(text="ok")) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendBusy)
        assert error.headers() == {"retry-after": "600"}
        assert it.clock.slept == []


@pytest.mark.parametrize("status", [408, 500, 502, 503, 529])
async def test_a_passing_failure_is_tried_again(status: int) -> None:
    async with bench(Reply(status=status, error={"message": "x"}), Reply(text="ok")) as it:
        assert text_of(await it.ask()) == "ok"
        assert it.script.received == 2


async def test_tries_are_counted() -> None:
    async with bench(*[Reply(status=503, error={"message": "Loading model"})] * 9, retries=3) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendUnavailable)
        assert "Loading model" in error.message
        assert it.script.received == 4
        assert it.clock.slept == sorted(it.clock.slept)


async def test_a_connection_lost_before_the_first_delta_is_tried_again() -> None:
    async with bench(Reply(text="x", drop_after=0), Reply(text="ok")) as it:
        assert text_of(await it.ask()) == "ok"


async def test_nothing_is_tried_again_once_a_delta_was_given() -> None:
    gate = asyncio.Event()
    async with bench(Reply(text="a b c d", gate=gate, gate_after=2, drop_after=2), Reply(text="never")) as it:
        got = ""
        with pytest.raises(BackendFailed, match="broke off"):  # noqa: PT012 - the text before the failure matters
            async for batch in it.backend.generate(make_call("scripted", user("x"))):
                got += text_of(list(batch))
                if got == "a b":
                    gate.set()
        assert got == "a b"
        assert it.script.received == 1


async def test_an_error_inside_the_stream_is_raised_after_the_text() -> None:
    async with bench() as it:
        got = ""
        with pytest.raises(BackendFailed):  # noqa: PT012 - the text before the failure matters
            async for batch in it.backend.generate(make_call("scripted", user("error_after: 3\nchunks: 9"))):
                got += text_of(list(batch))
        assert got == "w0 w1 w2"


async def test_silence_before_the_first_byte_times_out() -> None:
    async with bench(Reply(hang_after=0), Reply(text="never"), first_byte_timeout_seconds=0.1) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendTimeout)
        assert it.script.received == 1
        await it.script.until(lambda script: script.dropped == 1)


async def test_silence_between_chunks_times_out() -> None:
    async with bench(Reply(text="a b c", hang_after=2), idle_timeout_seconds=0.1) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendTimeout)
        await it.script.until(lambda script: script.dropped == 1)


async def test_comments_and_the_role_do_not_count_as_a_first_delta() -> None:
    limits = {"first_byte_timeout_seconds": 0.3, "idle_timeout_seconds": 0.05}
    async with bench(Reply(text="a", gate=asyncio.Event()), server={"quirks": Quirks(comments=True)}, **limits) as it:
        started = time.monotonic()
        assert isinstance(await failure(it.ask()), BackendTimeout)
        assert time.monotonic() - started > 0.2


@pytest.mark.parametrize("raw", [b"<html>hi</html>", b'{"no": "choices"}', b"", b"[[[["])
@pytest.mark.parametrize("stream", [True, False])
async def test_nonsense_is_a_clear_failure(raw: bytes, stream: bool) -> None:
    async with bench(*[Reply(raw=raw, content_type="text/html")] * 3) as it:
        error = await failure(it.ask(stream=stream))
        assert isinstance(error, BackendFailed)


async def test_a_long_error_body_is_read_in_part() -> None:
    async with bench(Reply(raw=b"x" * 5_000_000, status=400)) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendRejected)
        assert len(error.message) < 3000


async def test_an_endless_event_is_cut_off() -> None:
    raw = b"data: " + b"x" * (17 << 20)
    async with bench(Reply(raw=raw, content_type="text/event-stream")) as it:
        error = await failure(it.ask())
        assert isinstance(error, BackendFailed)
        assert "more than" in error.message


async def test_max_completion_tokens_is_learnt_from_a_refusal() -> None:
    told = {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
        "code": "unsupported_parameter",
    }
    async with bench(Reply(status=400, error=told)) as it:
        assert text_of(await it.ask("say: ok", max_output_tokens=5)) == "ok"
        assert it.body()["max_completion_tokens"] == 5
        await it.ask("say: ok", max_output_tokens=6)
        assert it.body()["max_completion_tokens"] == 6
        assert it.script.received == 3


async def test_stream_options_are_left_out_once_refused() -> None:
    told = {"message": "extra_forbidden: stream_options", "code": None}
    async with bench(Reply(status=422, error=told)) as it:
        assert text_of(await it.ask("say: ok")) == "ok"
        assert "stream_options" not in it.body()


# Cancellation.


async def test_closing_the_iterator_drops_the_connection_at_once() -> None:
    async with bench(Reply(text=numbered(100), hang_after=5)) as it:
        answer = it.backend.generate(make_call("scripted", user("x")))
        await anext(answer)
        started = time.monotonic()
        await answer.aclose()
        await it.script.until(lambda script: script.dropped == 1)
        assert time.monotonic() - started < 5  # by itself it would go on for minutes


@pytest.mark.parametrize("reply", [Reply(hang_after=0), Reply(text=numbered(9), hang_after=3)])
async def test_cancelling_the_task_drops_the_connection_at_once(reply: Reply) -> None:
    async with bench(reply) as it:
        task = asyncio.create_task(it.ask())
        await it.script.until(lambda script: script.received == 1)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await it.script.until(lambda script: script.dropped == 1)
        assert time.monotonic() - started < 5  # by itself it would go on for minutes


async def test_a_finished_answer_leaves_the_connection_for_the_next() -> None:
    async with bench() as it:
        for stream in (True, False, True):
            await it.ask("say: x", stream=stream)
        assert len(it.server.connections) == 1
        assert it.script.dropped == 0


@asynccontextmanager
async def raw_server(events: bytes, late: bytes = b"") -> AsyncIterator[tuple[str, list[int]]]:
    """Answers every request with these events at once, and the late bytes a little after; counts connections."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"}}")
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                writer.write(b"%x\r\n%b\r\n" % (len(events), events))
                asyncio.get_running_loop().call_later(0.02, writer.write, late)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", connections


LAST = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'


async def test_a_connection_whose_last_byte_comes_late_is_used_again() -> None:
    async with raw_server(LAST + b"data: [DONE]\n\n", b"0\r\n\r\n") as (url, connections):
        backend = ChatBackend(BackendSettings(url))
        for _ in range(2):
            assert text_of(await collect(backend, make_call("m", user("x")))) == "x"
        await backend.close()
    assert len(connections) == 1


async def test_a_stream_that_stays_open_after_its_finish_reason_is_complete() -> None:
    async with raw_server(LAST) as (url, _):
        backend = ChatBackend(BackendSettings(url, idle_timeout_seconds=0.1))
        assert await collect(backend, make_call("m", user("x"))) == [TextDelta("x"), Finished("stop")]
        await backend.close()


async def test_no_more_connections_are_opened_than_the_settings_allow() -> None:
    gates = [asyncio.Event() for _ in range(4)]
    async with bench(*[Reply(text="a b", gate=gate) for gate in gates], concurrency=2) as it:
        tasks = [asyncio.create_task(it.ask()) for _ in range(4)]
        await it.script.until(lambda script: script.received == 2)
        assert len(it.server.connections) == 2
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks)
        assert it.script.received == 4


# Models and tokens.


async def test_models_come_from_the_server_with_their_context_length() -> None:
    async with bench(server={"models": ("a", "b")}) as it:
        models = await it.backend.models()
        assert [(model.id, model.context_tokens) for model in models] == [("a", 32768), ("b", 32768)]
        await it.backend.models()
        assert it.script.received == 1


async def test_named_models_need_no_server() -> None:
    backend = ChatBackend(BackendSettings(f"http://127.0.0.1:{free_port()}/v1", name="here", models=("x",)))
    assert await backend.models() == [Model("x", owned_by="here")]
    await backend.close()


async def test_named_models_are_the_only_ones() -> None:
    async with bench(server={"models": ("a", "b")}, models=("b", "c")) as it:
        assert [(one.id, one.context_tokens) for one in await it.backend.models()] == [("b", 32768), ("c", None)]


@pytest.mark.parametrize(("counting", "requests"), [("vllm", 1), ("llama", 1), ("template", 2)])
async def test_tokens_are_counted_by_the_server_when_it_can(counting: str, requests: int) -> None:
    async with bench(server={"counting": counting}) as it:
        count, exact = await it.backend.count_tokens(make_call("scripted", user("hello " * 10)))
        assert exact
        asked = it.script.received
        assert await it.backend.count_tokens(make_call("scripted", user("hello " * 10))) == (count, True)
        assert it.script.received == asked + requests


async def test_a_template_s_text_does_not_count_images() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    async with bench(server={"counting": "template"}) as it:
        call = make_call("scripted", {"role": "user", "content": [image]})
        for _ in range(2):
            count, exact = await it.backend.count_tokens(call)
            assert not exact
            assert 2000 < count < 3000
        assert (await it.backend.count_tokens(make_call("scripted", user("hello " * 10))))[1]


async def test_tokens_are_estimated_when_the_server_cannot_count() -> None:
    async with bench() as it:
        count, exact = await it.backend.count_tokens(make_call("scripted", user("hello " * 100)))
        assert not exact
        assert 140 < count < 400
        asked = it.script.received
        await it.backend.count_tokens(make_call("scripted", user("hello")))
        assert it.script.received == asked


async def test_an_image_is_estimated_by_its_kind_and_not_by_its_bytes() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    async with bench() as it:
        count, _ = await it.backend.count_tokens(make_call("scripted", {"role": "user", "content": [image]}))
        assert 2000 < count < 3000


@pytest.mark.parametrize(
    "quirks",
    [
        Quirks(whole_calls=True, ids=False, zero_index=True),
        Quirks(dict_arguments=True, ids=False),
        Quirks(interleave=True, split=11),
        Quirks(stop_after_calls=True, crlf=True),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_parallel_calls_come_out_the_same_from_every_dialect(quirks: Quirks, stream: bool) -> None:
    calls = (Call("look", '{"at": "a"}'), Call("look", '{"at": "b"}'), Call("stop"))
    async with bench(Reply(text="hm", calls=calls), server={"quirks": quirks}) as it:
        found = calls_of(await it.ask(stream=stream))
        assert [(name, json.loads(arguments)) for _, name, arguments in found] == [
            ("look", {"at": "a"}),
            ("look", {"at": "b"}),
            ("stop", {}),
        ]


def test_a_call_keeps_its_history_in_the_cache_it_was_given() -> None:
    call: ModelCall = make_call("m", user("a"))
    first = encode_request(call, Dialect())
    assert encode_request(call, Dialect()) == first
    held = call.cache["chat:history"]
    encode_request(call, Dialect(reasoning_field="reasoning"))
    assert call.cache["chat:history"] is not held
