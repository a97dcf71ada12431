"""MCP servers that are processes, spoken to over their standard streams."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import anyio
import pytest
from mcp.shared.message import SessionMessage

from stateroom.errors import SandboxFailed
from stateroom.testing.mcp_server import CALLS, TOOLS
from stateroom.tools.mcp.attempt import McpFailed
from stateroom.tools.mcp.seams import Place
from stateroom.tools.mcp.stdio import _read_lines
from stateroom.wire.mcp import McpServer, parse_mcp
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.drivers.unsafe import UnsafeDriver
from stateroom.workspaces.workspace import SandboxSpec
from tests.unit.tools.mcp_places import LocalProcess, LocalSpawner, calling, until

SERVER = (sys.executable, "-m", "stateroom.testing.mcp_server", "stdio")


def command(*argv: str, **environment: str) -> McpServer:
    declared = {"type": "mcp", "server_label": "local", "command": list(argv or SERVER), "environment": environment}
    return parse_mcp(declared, "tools[0]")


@pytest.fixture
async def spawner() -> AsyncIterator[LocalSpawner]:
    ready = LocalSpawner()
    yield ready
    await ready.kill()


async def test_a_command_lists_and_carries_out_its_tools(spawner: LocalSpawner) -> None:
    place = Place("cntr_1", spawner)
    server = command(VISIBLE="to the process, and secret")
    async with calling() as servers:
        tools = await servers.list_tools(server, project="p", place=place)
        wrote = await servers.call(server, "write_note", '{"text": "a"}', project="p", place=place)
        wrote = await servers.call(server, "write_note", '{"text": "b"}', project="p", place=place)
        told = await servers.call(server, "environ", '{"text": "VISIBLE"}', project="p", place=place)
    assert [tool.name for tool in tools] == [tool.name for tool in TOOLS]
    assert wrote.output == "the note is: ab"
    assert told.output == "<redacted>"
    assert len(spawner.started) == 1
    assert await spawner.started[0].wait() == 0


async def test_a_command_without_a_workspace_is_an_error() -> None:
    async with calling() as servers:
        result = await servers.call(command(), "read_note", "{}", project="p")
    assert result.error is not None
    assert "no workspace" in result.error["message"]


async def test_a_process_that_dies_in_mid_call_leaves_the_outcome_unknown(
    spawner: LocalSpawner, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    place, server = Place("cntr_1", spawner), command(**{CALLS: str(log)})
    async with calling() as servers:
        hanging = asyncio.create_task(servers.call(server, "hang", "{}", project="p", place=place))
        await until(lambda: log.exists() and "begin hang" in log.read_text())
        spawner.started[0].kill()
        result = await asyncio.wait_for(hanging, 10)
        assert result.unknown
        assert len(spawner.started) == 1
        again = await servers.call(server, "read_note", "{}", project="p", place=place)
    assert again.error is None
    assert len(spawner.started) == 2
    assert log.read_text().count("begin hang") == 1


async def test_each_sandbox_has_processes_of_its_own_and_leaving_it_ends_them(spawner: LocalSpawner) -> None:
    other = LocalSpawner()
    async with calling() as servers:
        for place in (Place("cntr_1", spawner), Place("cntr_1", other), Place("cntr_2", spawner)):
            await servers.call(command(), "read_note", "{}", project="p", place=place)
        assert (len(spawner.started), len(other.started)) == (2, 1)
        await servers.leave("cntr_1")
        assert await spawner.started[0].wait() == 0
        assert await other.started[0].wait() == 0
        assert spawner.started[1].process.returncode is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such package as thing')", "no such package as thing"),
        ("print('x' * 3_000_000)", "`mcp.response_bytes`"),
        ("import time; time.sleep(60)", "did not get ready"),
    ],
)
async def test_a_command_that_is_no_server_is_an_error_with_a_reason(
    spawner: LocalSpawner, code: str, message: str
) -> None:
    async with calling(connect_seconds=1.0, response_bytes=1024 * 1024) as servers:
        with pytest.raises(McpFailed) as caught:
            await servers.list_tools(command(sys.executable, "-c", code), project="p", place=Place("c", spawner))
    assert message in caught.value.message


async def test_what_a_server_prints_beside_the_protocol_is_passed_over(spawner: LocalSpawner) -> None:
    code = (
        "import sys; print('starting'); print('{}'); print('[' * 5000); sys.stderr.write('noise' * 50000); "
        "sys.argv = ['x', 'stdio']; from stateroom.testing.mcp_server import main; main()"
    )
    async with calling() as servers:
        server, place = command(sys.executable, "-u", "-c", code), Place("c", spawner)
        assert (await servers.call(server, "read_note", "{}", project="p", place=place)).error is None


async def test_a_sandbox_that_cannot_be_used_is_an_error() -> None:
    class Broken:
        async def spawn(self, *_: object, **__: object) -> LocalProcess:
            raise SandboxFailed("The sandbox did not start.")

    async with calling() as servers:
        result = await servers.call(command(), "read_note", "{}", project="p", place=Place("c", Broken()))
    assert result.error is not None
    assert "The sandbox did not start." in result.error["message"]
    assert not result.unknown


async def test_a_server_runs_in_a_sandbox_and_is_spoken_to_through_its_agent(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    sandbox = await UnsafeDriver(tmp_path / "data").start(
        SandboxSpec(id="cntr_mcp", files=str(files), memory_bytes=2**30, processes=64, disk_bytes=2**30)
    )
    agent = await Agent.connect(sandbox)
    place = Place("cntr_mcp", agent)
    try:
        async with calling(response_bytes=1024 * 1024) as servers:
            wrote = await servers.call(command(), "write_note", '{"text": "inside"}', project="p", place=place)
            big = await servers.call(command(), "big", '{"count": 900000}', project="p", place=place)
            absent = await servers.call(command("/no/such/program"), "a", "{}", project="p", place=place)
            hanging = asyncio.create_task(servers.call(command(), "hang", "{}", project="p", place=place))
            await asyncio.wait({hanging}, timeout=0.2)
            await agent.close()
            await sandbox.stop()
            cut_off = await asyncio.wait_for(hanging, 10)
    finally:
        await agent.close()
        await sandbox.stop()
    assert wrote.output == "the note is: inside"
    assert len(big.output) > 200_000
    assert absent.error is not None
    assert not absent.unknown
    assert cut_off.unknown


async def test_a_flood_of_lines_holds_nobody_up() -> None:
    class Flooding(LocalProcess):
        def __init__(self) -> None:
            pass

        async def read(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
            yield "stdout", b'{"no": "message"}\n' * 100_000

    turns: list[float] = []
    send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    reading = asyncio.create_task(_read_lines(Flooding(), send, bytearray(), 1_000))
    while not reading.done():
        turns.append(time.process_time())
        await asyncio.sleep(0)
    turns.append(time.process_time())
    send.close()
    receive.close()
    assert max(later - earlier for earlier, later in itertools.pairwise(turns)) < 0.25
    await reading
