"""What the tests of MCP clients share: ready-made clients, and processes as a workspace would start them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from stateroom.access.outbound import OutboundGuard
from stateroom.settings import McpSettings
from stateroom.tools.mcp.servers import McpServers
from stateroom.wire.mcp import McpServer, parse_mcp

PRIVATE = OutboundGuard(allow_private=True, bytes_max=1, timeout_seconds=1)
PUBLIC = OutboundGuard(allow_private=False, bytes_max=1, timeout_seconds=1)


@asynccontextmanager
async def calling(guard: OutboundGuard = PRIVATE, **settings: Any) -> AsyncIterator[McpServers]:
    servers = McpServers(guard, McpSettings(**settings))
    try:
        yield servers
    finally:
        await servers.close()


def at(url: str, **fields: Any) -> McpServer:
    return parse_mcp({"type": "mcp", "server_label": "scripted", "server_url": url, **fields}, "tools[0]")


async def until(held: Callable[[], bool]) -> None:
    """Wait for something that gives no sign."""
    async with asyncio.timeout(10):
        while not held():  # noqa: ASYNC110 # it happens in another thread or process
            await asyncio.sleep(0.01)


class LocalProcess:
    """A process of this machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def read(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]:
        said: asyncio.Queue[tuple[Literal["stdout", "stderr"], bytes] | None] = asyncio.Queue(16)

        async def pump(name: Literal["stdout", "stderr"], stream: asyncio.StreamReader) -> None:
            while chunk := await stream.read(65536):
                await said.put((name, chunk))
            await said.put(None)

        assert self.process.stdout is not None
        assert self.process.stderr is not None
        pumps = [
            asyncio.create_task(pump("stdout", self.process.stdout)),
            asyncio.create_task(pump("stderr", self.process.stderr)),
        ]
        try:
            left = 2
            while left:
                chunk = await said.get()
                if chunk is None:
                    left -= 1
                else:
                    yield chunk
        finally:
            for each in pumps:
                each.cancel()

    async def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def wait(self) -> int:
        return await self.process.wait()


class LocalSpawner:
    """Starts processes on this machine, and remembers them."""

    def __init__(self) -> None:
        self.started: list[LocalProcess] = []

    async def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bool = False
    ) -> LocalProcess:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **(env or {})}, start_new_session=True
        )
        self.started.append(LocalProcess(process))
        return self.started[-1]

    async def kill(self) -> None:
        for process in self.started:
            process.kill()
            await process.wait()
            process.process._transport.close()  # type: ignore[attr-defined] # its pipes outlive the loop otherwise
