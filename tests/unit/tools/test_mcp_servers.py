"""Calling real MCP servers over real sockets: lists, calls, what comes of them, and the secrets that go along."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from stateroom.errors import InvalidRequest
from stateroom.settings import McpSettings
from stateroom.testing.mcp_server import TOOLS, Kind, ScriptedMcp, served
from stateroom.tools.mcp.attempt import McpFailed
from stateroom.tools.mcp.servers import McpServers
from tests.unit.tools.mcp_places import PUBLIC, at, calling, until

TOKEN = "a-token-that-nobody-may-see"
KINDS: tuple[Kind, ...] = ("streamable_http", "sse")


@contextmanager
def scripted(kind: Kind = "streamable_http", **options: Any) -> Iterator[tuple[ScriptedMcp, str]]:
    script = ScriptedMcp(**options)
    with served(script.app(kind)) as url:
        yield script, url


@pytest.fixture
async def servers() -> AsyncIterator[McpServers]:
    async with calling() as ready:
        yield ready


@pytest.mark.parametrize("kind", KINDS)
async def test_all_pages_of_a_servers_tools_are_listed(servers: McpServers, kind: Kind) -> None:
    with scripted(kind) as (script, url):
        tools = await servers.list_tools(at(url), project="p")
    assert [tool.name for tool in tools] == [tool.name for tool in TOOLS]
    assert script.lists == 3
    assert tools[0].annotations == {"readOnlyHint": True}
    assert tools[1].input_schema["required"] == ["text"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_is_carried_out_once_and_its_text_comes_back(servers: McpServers, kind: Kind) -> None:
    with scripted(kind) as (script, url):
        result = await servers.call(at(url), "write_note", '{"text": "hello"}', project="p")
    assert (result.output, result.error, result.unknown) == ("the note is: hello", None, False)
    assert script.calls == [("write_note", {"text": "hello"})]


@pytest.mark.parametrize("options", [{"json_response": True}, {"stateless": True}, {}])
async def test_every_way_of_streamable_http_is_understood(servers: McpServers, options: dict[str, bool]) -> None:
    script = ScriptedMcp()
    with served(script.app(**options)) as url:
        for number in range(3):
            result = await servers.call(at(url), "write_note", f'{{"text": "{number}"}}', project="p")
    assert result.output == "the note is: 012"


async def test_a_transport_that_is_named_is_the_only_one_tried(servers: McpServers) -> None:
    with scripted("sse") as (script, url):
        assert await servers.list_tools(at(url, transport="sse"), project="p")
        assert [method for method, _ in script.requests][:1] == ["GET"]
        with pytest.raises(McpFailed) as caught:
            await servers.list_tools(at(url, transport="streamable_http"), project="p")
    assert caught.value.error["type"] == "http_error"
    assert caught.value.error["code"] == 405


async def test_every_kind_of_content_becomes_text(servers: McpServers) -> None:
    with scripted() as (_, url):
        gallery = await servers.call(at(url), "gallery", "{}", project="p")
        structured = await servers.call(at(url), "structured", "{}", project="p")
    assert gallery.output.splitlines() == [
        "a text",
        "[image of type image/png, 15 bytes, not shown]",
        "[audio of type audio/wav, 15 bytes, not shown]",
        "[resource note://1: first, a link]",
        "[resource note://2]",
        "inside",
        "[resource note://3 of type application/zip, 15 bytes, not shown]",
    ]
    assert structured.output == '{"answer":42}'


async def test_a_tool_that_fails_a_server_that_refuses_and_a_wrong_call_are_told_apart(servers: McpServers) -> None:
    with scripted() as (script, url):
        failed = await servers.call(at(url), "fail", '{"text": "no such city"}', project="p")
        refused = await servers.call(at(url), "refuse", '{"text": "not today"}', project="p")
        unheard = await servers.call(at(url), "nobody", "{}", project="p")
        odd = [await servers.call(at(url), "fail", text, project="p") for text in ("[]", "{", '"a"', "[" * 5000)]
    assert failed.error == {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no such city"}]}
    assert refused.error == {"type": "mcp_protocol_error", "code": -32050, "message": "not today"}
    assert unheard.error is not None
    assert unheard.error["code"] == -32602
    assert {result.error["code"] for result in odd if result.error} == {-32602}
    assert not any(result.unknown for result in (failed, refused, unheard, *odd))
    assert len(script.calls) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_progress_is_told_while_a_call_goes_on(servers: McpServers, kind: Kind) -> None:
    told: list[tuple[float, float | None, str]] = []

    async def hear(done: float, total: float | None, words: str) -> None:
        told.append((done, total, words))

    with scripted(kind) as (_, url):
        result = await servers.call(at(url), "count", '{"count": 3}', project="p", on_progress=hear)
    assert result.output == "3"
    assert told == [(1.0, 3.0, "at 1"), (2.0, 3.0, "at 2"), (3.0, 3.0, "at 3")]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_does_not_answer_leaves_the_outcome_unknown(servers: McpServers, kind: Kind) -> None:
    with scripted(kind) as (script, url):
        result = await servers.call(at(url), "hang", "{}", project="p", timeout=0.3)
        assert result.unknown
        assert result.error is not None
        assert (result.error["type"], result.error["code"]) == ("mcp_protocol_error", -32001)
        assert "not known" in result.error["message"]
        assert script.calls == [("hang", {})]
        assert not (await servers.call(at(url), "read_note", "{}", project="p")).error


async def test_a_calls_time_is_what_the_client_says_within_the_settings() -> None:
    async with calling(call_seconds_max=0.2) as servers:
        with scripted() as (_, url):
            result = await servers.call(at(url, timeout_seconds=3600), "hang", "{}", project="p")
    assert result.error is not None
    assert "0.2 seconds" in result.error["message"]


@pytest.mark.parametrize("kind", KINDS)
async def test_many_calls_go_over_one_connection_and_one_that_hangs_holds_up_no_other(
    servers: McpServers, kind: Kind
) -> None:
    with scripted(kind) as (script, url):
        hanging = asyncio.create_task(servers.call(at(url), "hang", "{}", project="p"))
        await asyncio.to_thread(script.called.wait, 10)
        results = await asyncio.gather(
            *(servers.call(at(url), "set_note", f'{{"text": "{number}"}}', project="p") for number in range(8))
        )
        assert {result.output for result in results} == {"done"}
        posts = [headers for method, headers in script.requests if method == "POST"]
        sessions = {headers["mcp-session-id"] for headers in posts if "mcp-session-id" in headers}
        assert len(sessions) == (1 if kind == "streamable_http" else 0)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging


async def test_a_connection_that_nobody_uses_is_closed() -> None:
    async with calling(idle_seconds=0.05) as servers:
        with scripted() as (script, url):
            await servers.call(at(url), "read_note", "{}", project="p")
            await until(lambda: "DELETE" in [method for method, _ in script.requests])
            assert (await servers.call(at(url), "read_note", "{}", project="p")).error is None


async def test_connections_are_not_shared_between_projects_or_secrets(servers: McpServers) -> None:
    with scripted() as (script, url):
        for project, headers in (("p", {}), ("q", {}), ("p", {"X-Key": "secret-one"}), ("p", {"X-Key": "secret-two"})):
            await servers.call(at(url, headers=headers), "read_note", "{}", project=project)
        sessions = {headers.get("mcp-session-id") for _, headers in script.requests} - {None}
    assert len(sessions) == 4


async def test_connections_are_bounded_and_the_idle_one_makes_room() -> None:
    async with calling(connections=1) as servers:
        with scripted() as (script, one), scripted() as (_, two):
            assert (await servers.call(at(one), "read_note", "{}", project="p")).error is None
            assert (await servers.call(at(two), "read_note", "{}", project="p")).error is None
            hanging = asyncio.create_task(servers.call(at(one), "hang", "{}", project="p"))
            await until(lambda: ("hang", {}) in script.calls)
            refused = await servers.call(at(two), "read_note", "{}", project="p")
            hanging.cancel()
    assert refused.error is not None
    assert "`mcp.connections`" in refused.error["message"]
    assert not refused.unknown


async def test_a_session_that_the_server_has_ended_is_opened_anew_and_the_call_made_once(servers: McpServers) -> None:
    with scripted() as (script, url):
        for number in range(3):
            result = await servers.call(at(url), "write_note", f'{{"text": "{number}"}}', project="p")
            assert result.error is None
            script.forget_sessions()
        await servers.list_tools(at(url), project="p")
    assert result.output == "the note is: 012"
    assert len(script.calls) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_the_token_reaches_the_server_and_nothing_else(
    servers: McpServers, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted(kind, token=TOKEN) as (script, url):
        server = at(url, authorization=TOKEN, headers={"X-Other-Key": "another-secret"})
        whoami = await servers.call(server, "whoami", "{}", project="p")
        failed = await servers.call(server, "fail", msgspec.json.encode({"text": TOKEN}).decode(), project="p")
        refused = await servers.call(server, "refuse", msgspec.json.encode({"text": f"x{TOKEN}"}).decode(), project="p")
        with pytest.raises(McpFailed) as caught:
            await servers.list_tools(at(url, authorization=TOKEN + "-wrong"), project="p")
    sent = [headers for _, headers in script.requests]
    assert any(headers["authorization"] == f"Bearer {TOKEN}" for headers in sent)
    assert all(
        headers["x-other-key"] == "another-secret" for headers in sent if headers["authorization"][-5:] != "wrong"
    )
    assert caught.value.error["type"] == "http_error"
    assert caught.value.error["code"] == 401
    logged = "".join(record.getMessage() for record in caplog.records if record.threadName == "MainThread")
    told = f"{whoami} {failed} {refused} {caught.value.error} {caught.value}"
    assert "Bearer <redacted>" in whoami.output
    for secret in (TOKEN, "another-secret"):
        assert secret not in told
        assert secret not in logged


async def test_a_secret_in_the_address_is_masked_in_what_a_server_says(servers: McpServers) -> None:
    with scripted() as (_, url):
        server = at(f"{url}?key=hidden-in-the-address")
        result = await servers.call(server, "fail", '{"text": "key=hidden-in-the-address"}', project="p")
    assert result.error == {
        "type": "mcp_tool_execution_error",
        "content": [{"type": "text", "text": "key=<redacted>"}],
    }


async def test_output_that_is_too_long_loses_its_middle() -> None:
    async with calling(output_bytes=1000) as servers:
        with scripted() as (_, url):
            result = await servers.call(at(url), "big", '{"count": 5000}', project="p")
    assert result.output == "x" * 500 + "\n[4000 bytes left out]\n" + "x" * 500


async def test_more_tools_than_the_settings_allow_are_an_error() -> None:
    async with calling(tools=5) as servers:
        with scripted() as (_, url), pytest.raises(McpFailed) as caught:
            await servers.list_tools(at(url), project="p")
    assert "`mcp.tools`" in caught.value.message


async def test_a_server_that_is_not_there_is_told_of_without_doubt_about_the_call(servers: McpServers) -> None:
    with scripted() as (_, url):
        pass
    result = await servers.call(at(url), "write_note", '{"text": "a"}', project="p")
    assert result.error is not None
    assert "could not be reached" in result.error["message"]
    assert not result.unknown


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "localhost"])
async def test_private_addresses_are_not_called(host: str) -> None:
    script = ScriptedMcp()
    with served(script.app()) as url:
        async with calling(PUBLIC) as servers:
            server = at(url.replace("127.0.0.1", host))
            result = await servers.call(server, "read_note", "{}", project="p")
            with pytest.raises(McpFailed) as caught:
                await servers.list_tools(server, project="p")
    assert script.requests == []
    assert result.error is not None
    assert "private" in result.error["message"]
    assert "private" in caught.value.message
    assert not result.unknown


def test_a_request_is_refused_when_its_server_could_never_be_called() -> None:
    for guard, fields, code in (
        (PUBLIC, {"server_url": "https://127.0.0.1/mcp"}, "private_address_refused"),
        (PUBLIC, {"server_url": "http://mcp.example/", "authorization": "secret"}, "invalid_value"),
    ):
        tool = {k: v for k, v in fields.items() if k != "server_url"}
        with pytest.raises(InvalidRequest) as caught:
            McpServers(guard, McpSettings()).check(at(fields["server_url"], **tool), "tools[1]")
        assert (caught.value.code, caught.value.param) == (code, "tools[1].server_url")


async def test_closing_ends_what_is_open_and_lets_nothing_new_in() -> None:
    async with calling() as servers:
        with scripted() as (script, url):
            hanging = asyncio.create_task(servers.call(at(url), "hang", "{}", project="p"))
            await asyncio.to_thread(script.called.wait, 10)
            await servers.close()
            result = await asyncio.wait_for(hanging, 10)
            assert result.unknown
            after = await servers.call(at(url), "read_note", "{}", project="p")
    assert after.error is not None
    assert "stopping" in after.error["message"]


async def test_nothing_is_left_running_when_all_is_closed() -> None:
    before = len(asyncio.all_tasks())
    async with calling() as servers:
        for kind in KINDS:
            with scripted(kind) as (_, url):
                await servers.call(at(url), "read_note", "{}", project="p")
                await servers.call(at(url), "hang", "{}", project="p", timeout=0.1)
    await until(lambda: len(asyncio.all_tasks()) == before)
    assert not [thread for thread in threading.enumerate() if "mcp" in thread.name]


def test_the_sdk_is_not_loaded_before_a_server_is_called() -> None:
    code = "import stateroom.app, stateroom.tools.mcp.servers, sys; print({'mcp', 'pydantic'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
