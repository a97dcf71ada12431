"""MCP servers that break off, flood, lie, lead astray or fall silent."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from stateroom.testing.mcp_server import CALLS, ScriptedMcp, served
from stateroom.tools.mcp.attempt import McpFailed
from tests.unit.tools.mcp_places import at, calling, until

Answer = Callable[[Request, dict[str, Any]], Any]


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """A server over streamable HTTP that says for each method just this; and the methods that it was asked."""
    asked: list[str] = []
    hello = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "x", "version": "1"},
    }

    async def serve(request: Request) -> Response:
        if request.method == "GET" and "GET" in answers:
            asked.append(f"GET after {request.headers['last-event-id']}")
            return answers["GET"](None)
        body = msgspec.json.decode(await request.body() or b"{}")
        method = body.get("method", request.method)
        asked.append(method)
        if "id" not in body:
            return Response(status_code=202)
        answer = answers.get(method, {"result": hello} if method == "initialize" else Response(status_code=500))
        if callable(answer) and not isinstance(answer, Response):
            answer = answer(body)
        if isinstance(answer, Response):
            return answer
        return JSONResponse({"jsonrpc": "2.0", "id": body["id"], **answer})

    with served(Starlette(routes=[Route("/mcp", serve, methods=["GET", "POST", "DELETE"])])) as url:
        yield url, asked


def listing(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"tools/list": {"result": {"tools": list(tools)}}}


async def failure(answers: dict[str, Any], **settings: Any) -> McpFailed:
    with answering(answers) as (url, _):
        async with calling(**settings) as servers:
            with pytest.raises(McpFailed) as caught:
                await servers.list_tools(at(url, transport="streamable_http"), project="p")
    return caught.value


@contextmanager
def living(log: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that can be killed."""
    command = [sys.executable, "-m", "stateroom.testing.mcp_server", "http", *options]
    environment = {**os.environ, CALLS: str(log)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("options", [(), ("--sse",)])
async def test_a_call_whose_server_is_killed_in_the_middle_is_not_made_again(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    log = tmp_path / "calls"
    async with calling() as servers:
        with living(log, *options) as (url, process):
            assert await servers.list_tools(at(url), project="p")
            hanging = asyncio.create_task(servers.call(at(url), "hang", "{}", project="p"))
            await until(lambda: log.exists() and "begin hang" in log.read_text())
            os.kill(process.pid, signal.SIGKILL)
            result = await asyncio.wait_for(hanging, 10)
    assert result.unknown
    assert result.error is not None
    assert result.error["type"] == "mcp_protocol_error"
    assert "not known" in result.error["message"]
    assert log.read_text().count("begin") == 1


async def test_a_list_that_broke_off_is_asked_for_again() -> None:
    broken = iter([True])

    def answer(body: dict[str, Any]) -> Any:
        if next(broken, False):
            return StreamingResponse(cut_off(), media_type="text/event-stream")
        return {"result": {"tools": [{"name": "a", "inputSchema": {"type": "object"}}]}}

    with answering({"tools/list": answer}) as (url, asked):
        async with calling() as servers:
            tools = await servers.list_tools(at(url), project="p")
    assert [tool.name for tool in tools] == ["a"]
    assert asked.count("tools/list") == 2
    assert asked.count("initialize") == 2


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/json"])
async def test_a_call_that_broke_off_is_not_made_again(media_type: str) -> None:
    answers = {"tools/call": lambda _: StreamingResponse(cut_off(), media_type=media_type)}
    with answering(answers) as (url, asked):
        async with calling() as servers:
            result = await servers.call(at(url), "write", "{}", project="p")
    assert result.unknown
    assert asked.count("tools/call") == 1


async def test_a_stream_that_broke_off_is_resumed_where_the_server_can_do_that() -> None:
    async def beginning() -> AsyncIterator[bytes]:
        yield b"id: 7\r\nretry: 10\r\ndata: \r\n\r\n"

    async def rest() -> AsyncIterator[bytes]:
        answer = {"jsonrpc": "2.0", "id": 99, "result": {"content": [{"type": "text", "text": "resumed"}]}}
        yield b"id: 8\r\ndata: " + msgspec.json.encode(answer) + b"\r\n\r\n"

    answers = {
        "tools/call": lambda _: StreamingResponse(beginning(), media_type="text/event-stream"),
        "GET": lambda _: StreamingResponse(rest(), media_type="text/event-stream"),
    }
    with answering(answers) as (url, asked):
        async with calling() as servers:
            result = await servers.call(at(url), "write", "{}", project="p")
    assert result.output == "resumed"
    assert asked.count("tools/call") == 1
    assert "GET after 7" in asked


async def test_a_call_that_breaks_off_takes_no_other_with_it() -> None:
    broken = asyncio.Event()

    async def breaking() -> AsyncIterator[bytes]:
        yield b"{"
        broken.set()
        raise ConnectionResetError

    async def waiting(number: Any) -> AsyncIterator[bytes]:
        await broken.wait()
        answer = {"jsonrpc": "2.0", "id": number, "result": {"content": [{"type": "text", "text": "whole"}]}}
        yield msgspec.json.encode(answer)

    def answer(body: dict[str, Any]) -> Any:
        broke = body["params"]["name"] == "breaks"
        return StreamingResponse(breaking() if broke else waiting(body["id"]), media_type="application/json")

    with answering({"tools/call": answer}) as (url, asked):
        async with calling() as servers:
            whole = asyncio.create_task(servers.call(at(url), "waits", "{}", project="p"))
            await until(lambda: "tools/call" in asked)
            torn = await servers.call(at(url), "breaks", "{}", project="p")
            result = await asyncio.wait_for(whole, 10)
    assert torn.unknown
    assert result.output == "whole"
    assert asked.count("initialize") == 1


async def test_an_answer_without_an_end_is_cut_off() -> None:
    sent = 0

    async def flood() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1600):
            sent += 65536
            yield b"x" * 65536
            await asyncio.sleep(0)

    for media_type in ("application/json", "text/event-stream"):
        sent = 0
        answers = {"tools/call": lambda _, kind=media_type: StreamingResponse(flood(), media_type=kind)}
        with answering(answers) as (url, asked):
            async with calling(response_bytes=1024 * 1024) as servers:
                result = await servers.call(at(url), "write", "{}", project="p")
        assert result.unknown
        assert result.error is not None
        assert sent < 50 * 1024 * 1024
        assert asked.count("tools/call") == 1


async def test_a_handshake_without_an_end_is_cut_off() -> None:
    async def flood() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)

    told = await failure({"initialize": lambda _: StreamingResponse(flood(), media_type="application/json")},
                         response_bytes=1024 * 1024)  # fmt: skip
    assert "`mcp.response_bytes`" in told.message
    assert not told.unknown


@pytest.mark.parametrize("kind", ["streamable_http", "sse"])
async def test_a_large_answer_of_a_real_server_is_refused_with_its_reason(kind: Any) -> None:
    script = ScriptedMcp()
    with served(script.app(kind)) as url:
        async with calling(response_bytes=1024 * 1024) as servers:
            result = await servers.call(at(url), "big", '{"count": 5000000}', project="p")
            assert result.error is not None
            assert result.unknown
            assert (await servers.call(at(url), "read_note", "{}", project="p")).error is None
    assert [name for name, _ in script.calls] == ["big", "read_note"]


async def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    async with calling(connect_seconds=0.3) as servers:
        for transport in ("auto", "sse"):
            result = await servers.call(at(url, transport=transport), "a", "{}", project="p")
            assert result.error is not None
            assert "0.3 seconds" in result.error["message"]
            assert not result.unknown
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_somewhere_else_is_not_followed(status: int) -> None:
    inner = ScriptedMcp()
    with served(inner.app()) as elsewhere:
        told = await failure({"initialize": RedirectResponse(elsewhere, status)})
    assert inner.requests == []
    assert "not followed" in told.message


async def test_a_redirect_within_the_server_is_followed() -> None:
    script = ScriptedMcp(token="a-long-token")
    app = script.app()

    async def redirecting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/old":
            await RedirectResponse("/mcp", 307)(scope, receive, send)
        else:
            await app(scope, receive, send)

    with served(redirecting, path="/old") as url:
        async with calling() as servers:
            server = at(url, authorization="a-long-token")
            assert await servers.list_tools(server, project="p")


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (PlainTextResponse("no", 403), "http_error", 403),
        (PlainTextResponse("no", 500), "http_error", 500),
        (JSONResponse({"jsonrpc": "2.0", "id": None, "error": {"code": -32042, "message": "m"}}, 400),
         "mcp_protocol_error", -32042),
        (PlainTextResponse("hello"), "mcp_protocol_error", -32600),
        (Response(status_code=202), "mcp_protocol_error", -32600),
        (JSONResponse([1, 2]), "mcp_protocol_error", -32700),
        ({"result": {"tools": "none"}}, "mcp_protocol_error", -32700),
        (Response(b"[" * 100_000, media_type="application/json"), "mcp_protocol_error", -32700),
        (Response(b"\x1f\x8b", media_type="application/json", headers={"content-encoding": "gzip"}),
         "mcp_protocol_error", -32700),
    ],
)  # fmt: skip
async def test_whatever_a_server_answers_becomes_a_typed_error(answer: Any, kind: str, code: int) -> None:
    told = await failure({"tools/list": answer})
    assert (told.error["type"], told.error["code"]) == (kind, code)
    with answering({"tools/call": answer}) as (url, asked):
        async with calling() as servers:
            result = await servers.call(at(url), "write", "{}", project="p")
    assert result.error is not None
    assert (result.error["type"], result.error["code"]) == (kind, code)
    assert asked.count("tools/call") == 1
    assert result.unknown == (code not in (403, -32042, -32600))


async def test_tools_that_lie_in_their_schemas_are_cut_down_to_what_can_be_used() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}}
    answers = listing(
        {"name": "deep", "inputSchema": deep},
        {"name": "wide", "inputSchema": {"type": "object", "properties": {str(n): {} for n in range(9999)}}},
        {"name": "odd", "inputSchema": {"type": "object", "properties": {"a": "string"}, "required": "a"}},
        {"name": "away", "inputSchema": {"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/"}}}},
        {"name": "x" * 500, "inputSchema": {"type": "object"}},
        {"name": "odd", "description": "another of this name", "inputSchema": {"type": "object"}},
        {"name": "wordy", "description": "w" * 1_000_000, "inputSchema": {"type": "object"}},
    )
    with answering(answers) as (url, _):
        async with calling() as servers:
            tools = {tool.name: tool for tool in await servers.list_tools(at(url), project="p")}
    assert set(tools) == {"deep", "wide", "odd", "away", "wordy"}
    for tool in tools.values():
        assert tool.input_schema["type"] == "object"
        assert len(msgspec.json.encode(tool)) < 100_000
    assert tools["odd"].description == ""
    assert tools["away"].input_schema["properties"] == {"a": {}}


async def test_a_server_that_shows_its_secret_in_its_tools_shows_it_to_nobody() -> None:
    secret = "tok/en-0123456789"
    told = {"type": "object", "properties": {secret: {"default": f"Bearer {secret}", "enum": [secret, "x"]}}}
    tools = [
        {"name": "one", "description": secret, "inputSchema": told, "annotations": {"title": secret}},
        {"name": secret.replace("/", "_"), "inputSchema": told},
        {"name": secret, "inputSchema": told},
    ]
    with answering(listing(*tools)) as (url, _):
        server = at(f"{url}?key=tok%2Fen-0123456789", authorization=secret, transport="streamable_http")
        async with calling() as servers:
            found = await servers.list_tools(server, project="p")
    assert [tool.name for tool in found] == ["one", secret.replace("/", "_")]
    assert secret not in str(found)
    assert found[0].input_schema["properties"]["<redacted>"]["default"] == "Bearer <redacted>"


@pytest.mark.parametrize(
    ("tools", "bound"),
    [
        ([{"name": f"t{at}", "inputSchema": {}} for at in range(60_000)], "mcp.tools"),
        ([1] * 500_000, "mcp.tools"),
        (
            [
                {"name": f"t{at}", "inputSchema": {"properties": {str(key): {} for key in range(2_000)}}}
                for at in range(200)
            ],
            "mcp.schemas_bytes",
        ),
    ],
    ids=["many", "many that are none", "large"],
)
async def test_a_giant_list_holds_nobody_up(tools: list[Any], bound: str) -> None:
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": 0, "result": {"tools": tools}})

    def answer(request: dict[str, Any]) -> Response:
        return Response(body.replace(b'"id":0', b'"id":%d' % request["id"], 1), media_type="application/json")

    turns = [0.0]

    async def take_turns() -> None:
        while True:
            turns.append(time.process_time())  # of all threads: one may hold up the others
            await asyncio.sleep(0.001)

    taking = asyncio.create_task(take_turns())
    with answering({"tools/list": answer}) as (url, _):
        async with calling() as servers:
            with pytest.raises(McpFailed, match=bound):
                await servers.list_tools(at(url, transport="streamable_http"), project="p")
    turns.append(time.process_time())
    taking.cancel()
    assert max(later - earlier for earlier, later in itertools.pairwise(turns[1:])) < 1.5


async def test_pages_without_an_end_are_given_up() -> None:
    numbers = iter(range(10**6))
    told = await failure({"tools/list": lambda _: {"result": {"tools": [], "nextCursor": str(next(numbers))}}})
    assert "does not end" in told.message
    again = await failure({"tools/list": {"result": {"tools": [], "nextCursor": "same"}}})
    assert "does not end" in again.message


async def test_a_server_that_speaks_an_unknown_version_is_told_so() -> None:
    hello = {"protocolVersion": "1999-01-01", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
    told = await failure({"initialize": {"result": hello}})
    assert "no version" in told.message


async def test_a_server_that_wants_more_input_is_refused() -> None:
    with answering({"tools/call": {"result": {"resultType": "input_required", "inputRequests": {}}}}) as (url, _):
        async with calling() as servers:
            result = await servers.call(at(url), "write", "{}", project="p")
    assert result.error is not None
    assert result.error["type"] == "mcp_protocol_error"


async def test_a_server_without_a_handshake_is_spoken_to_in_the_newest_protocol() -> None:
    script = ScriptedMcp()
    inner = script.app(stateless=True)

    async def modern(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or dict(scope["headers"]).get(b"mcp-method"):
            await inner(scope, receive, send)
            return
        body = msgspec.json.decode((await receive())["body"])
        error = {"code": -32022, "message": "no handshake", "data": {"supported": ["2026-07-28"], "requested": "x"}}
        await JSONResponse({"jsonrpc": "2.0", "id": body.get("id"), "error": error}, 400)(scope, receive, send)

    with served(modern) as url:
        async with calling() as servers:
            result = await servers.call(at(url), "write_note", '{"text": "new"}', project="p")
            tools = await servers.list_tools(at(url), project="p")
    assert result.output == "the note is: new"
    assert len(tools) == len(script.tools)
    assert len(script.calls) == 1


async def cut_off() -> AsyncIterator[bytes]:
    yield b"event: message\r\ndata: {"
    raise ConnectionResetError
