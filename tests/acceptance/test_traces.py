"""Traces: what a run was, from the request to the model server and back, across threads, crashes and other servers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from stateroom.app import Application
from stateroom.journal.entries import Effect
from stateroom.settings import BackendSettings, Settings
from stateroom.telemetry.otel import OtelTracer
from stateroom.testing.process import ServerProcess
from stateroom.testing.scripted import ScriptedServer
from stateroom.tools.tool import HostedFunction, Printed, ToolCall, ToolResult
from tests.acceptance.collector import Collector
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import get, post, send
from tests.unit.api.driver import HOST, call

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"
SECRET = "SECRET-CONTENT"
SECONDS = 20.0


class Lookup:
    """A hosted tool."""

    type = "stateroom:lookup"
    function = HostedFunction("lookup", "Looks something up.", {"type": "object", "properties": {}})

    def effect(self, call: ToolCall) -> Effect:
        return Effect.READ

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        return ToolResult(f"found {SECRET}")


class Traced:
    """An application in this process, whose spans are kept in memory."""

    def __init__(self, app: Application, exporter: InMemorySpanExporter, model: ScriptedServer) -> None:
        self.app = app
        self.exporter = exporter
        self.model = model

    async def ask(self, body: dict[str, Any], *headers: tuple[bytes, bytes]) -> Any:
        answer = await call(self.app.asgi, "POST", "/v1/responses", body, headers=(HOST, *headers))
        return answer.json

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with ScriptedServer() as model:
        settings = Settings(data=str(tmp_path / "data"), backends=(BackendSettings(url=model.url, name="gpu-1"),))
        app = Application(settings, tools=[Lookup()], tracer=OtelTracer(provider))
        await app.start()
        yield Traced(app, exporter, model)
        await app.stop()


def identity(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str:
    return f"{span.parent.span_id:016x}" if span.parent is not None else ""


async def test_a_turn_is_a_tree_of_spans_in_the_words_of_the_conventions(traced: Traced) -> None:
    made = await traced.ask(
        {"model": "scripted", "input": f"say: {SECRET}", "instructions": SECRET, "temperature": 0.5},
        (b"traceparent", GIVEN.encode()),
    )
    request, run, chat = (traced.span(name) for name in ("POST /v1/responses", "invoke_agent", "chat scripted"))
    assert {identity(span)[0] for span in (request, run, chat)} == {TRACE}
    assert (parent(request), parent(run), parent(chat)) == (PARENT, identity(request)[1], identity(run)[1])
    assert (request.kind, run.kind, chat.kind) == (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT)
    told = dict(request.attributes or {})
    assert (told["http.request.method"], told["http.route"], told["http.response.status_code"]) == (
        "POST",
        "/v1/responses",
        200,
    )
    told = dict(run.attributes or {})
    assert told["gen_ai.operation.name"] == "invoke_agent"
    assert told["gen_ai.request.model"] == "scripted"
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.response.id"] == made["id"]
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert told["gen_ai.usage.input_tokens"] == made["usage"]["input_tokens"]
    assert told["gen_ai.usage.output_tokens"] == made["usage"]["output_tokens"]
    assert told["stateroom.run.status"] == "completed"
    told = dict(chat.attributes or {})
    assert told["gen_ai.operation.name"] == "chat"
    assert told["stateroom.backend"] == "gpu-1"
    assert (told["server.address"], told["server.port"]) == ("127.0.0.1", int(traced.model.url.split(":")[2][:-3]))
    assert told["gen_ai.response.time_to_first_chunk"] > 0  # type: ignore[operator]  # a number, as the conventions say
    assert {event.name for event in run.events} == {"stateroom.journal.commit"}
    shown = "".join(span.to_json() for span in traced.exporter.get_finished_spans())
    assert SECRET not in shown


async def test_a_model_server_is_sent_the_span_of_its_call(traced: Traced) -> None:
    await traced.ask({"model": "scripted", "input": "hi"}, (b"traceparent", GIVEN.encode()), (b"tracestate", b"a=b"))
    sent = traced.model.script.requests[-1].headers
    assert sent["traceparent"] == f"00-{TRACE}-{identity(traced.span('chat scripted'))[1]}-01"
    assert sent["tracestate"] == "a=b"


async def test_each_try_and_each_call_of_a_tool_is_a_span(traced: Traced) -> None:
    await traced.ask(
        {"model": "scripted", "input": f'call: lookup {{"q": "{SECRET}"}}', "tools": [{"type": "stateroom:lookup"}]}
    )
    tool, run = traced.span("execute_tool stateroom:lookup"), traced.span("invoke_agent")
    assert parent(tool) == identity(run)[1]
    told = dict(tool.attributes or {})
    assert (told["gen_ai.operation.name"], told["gen_ai.tool.name"]) == ("execute_tool", "stateroom:lookup")
    assert [parent(span) for span in traced.spans("chat scripted")] == [identity(run)[1]] * 2
    assert traced.app.instruments.tool_calls.values == {("stateroom:lookup", "ok"): 1}
    assert sum(traced.app.instruments.tool_seconds.values[("stateroom:lookup",)].counts) == 1
    assert SECRET not in "".join(span.to_json() for span in traced.exporter.get_finished_spans())


async def test_what_failed_says_why_in_one_word(traced: Traced) -> None:
    answer = await traced.ask({"model": "scripted", "input": f"fail: 422 {SECRET}"})
    assert answer["error"]["message"].endswith(SECRET)
    for name in ("chat scripted", "invoke_agent"):
        span = traced.span(name)
        assert span.status.status_code is StatusCode.ERROR
        assert dict(span.attributes or {})["error.type"] == answer["error"]["code"]
        assert SECRET not in span.to_json()


async def test_a_request_without_a_trace_begins_one_and_a_client_that_does_not_sample_is_heeded(traced: Traced) -> None:
    await traced.ask({"model": "scripted", "input": "hi"})
    first = traced.span("POST /v1/responses")
    assert first.parent is None
    assert len({identity(span)[0] for span in traced.exporter.get_finished_spans()}) == 1
    traced.exporter.clear()
    await traced.ask({"model": "scripted", "input": "hi"}, (b"traceparent", f"{GIVEN[:-2]}00".encode()))
    assert traced.exporter.get_finished_spans() == ()
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", traced.model.script.requests[-1].headers["traceparent"])


# A real server.


@pytest.fixture(scope="module")
def host() -> Iterator[ModelHost]:
    with ModelHost() as host:
        yield host


def headers_of_the_last_call(host: ModelHost) -> dict[str, str]:
    return host.script.requests[-1].headers


def test_a_trace_goes_through_a_server_that_records_none(host: ModelHost, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=(host.url,)) as server:
        ask = {"model": "scripted", "input": "hi"}
        made = send(server.url, "POST", "/responses", ask, headers={"traceparent": GIVEN, "tracestate": "a=b"}).json
        sent = headers_of_the_last_call(host)
        version, trace, span, flags = sent["traceparent"].split("-")
        assert (version, trace, flags, sent["tracestate"]) == ("00", TRACE, "01", "a=b")
        assert span != PARENT
        begin = get(server.url, f"/responses/{made['id']}/events")["data"][0]
        assert begin["trace_id"] == TRACE
        for headers in ({}, {"traceparent": "not-a-trace"}):
            made = send(server.url, "POST", "/responses", ask, headers=headers).json
            assert "traceparent" not in headers_of_the_last_call(host)
            assert "trace_id" not in get(server.url, f"/responses/{made['id']}/events")["data"][0]


def test_a_run_that_outlives_its_request_and_its_server_stays_in_its_trace(host: ModelHost, tmp_path: Path) -> None:
    with Collector() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        server = ServerProcess(tmp_path / "data", backends=(host.url,), environment=environment)
        with server.start():
            asked = host.script.received
            ask = {"model": "scripted", "input": "gate: crash 2\nchunks: 5", "background": True}
            run_id = send(server.url, "POST", "/responses", ask, headers={"traceparent": GIVEN}).json["id"]
            until(lambda: host.asked_since(asked), "the model was asked")
            (request,) = collector.wait("POST /v1/responses")
            server.kill()
            host.open_gate("crash")
            server.start()
            until(lambda: get(server.url, f"/responses/{run_id}")["status"] == "completed", "the run has ended")
            (run,) = collector.wait("invoke_agent")
            assert server.terminate() == 0
    assert run.attributes["gen_ai.response.id"] == run_id
    assert run.attributes["stateroom.taken_up"] is True
    assert run.resource["service.name"] == "stateroom"
    assert (run.trace_id, run.parent_id) == (TRACE, request.span_id)
    assert run.links == [(TRACE, request.span_id)]
    assert headers_of_the_last_call(host)["traceparent"].startswith(f"00-{TRACE}-")


def test_a_collector_that_is_gone_holds_up_nothing(host: ModelHost, tmp_path: Path) -> None:
    environment = {"STATEROOM_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:9", "STATEROOM_LOG_FORMAT": "json"}
    with ServerProcess(tmp_path / "data", backends=(host.url,), environment=environment) as server:
        assert post(server.url, "/responses", {"model": "scripted", "input": "say: yes"})["status"] == "completed"
        assert server.terminate(SECONDS) == 0
        lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
        assert {line["logger"].split(".")[0] for line in lines} <= {"stateroom", "opentelemetry"}
        assert "Traceback" not in re.sub(r"^\{.*$", "", server.output, flags=re.MULTILINE)
