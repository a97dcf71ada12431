"""An MCP server that is a process of a workspace, as the pair of streams that the SDK speaks over.

Imports the SDK: to be imported only when an MCP server is to be called.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

from stateroom.errors import StateroomError
from stateroom.tools.mcp.attempt import Attempt, McpFailed, current
from stateroom.tools.mcp.seams import Place, Process
from stateroom.wire.mcp import McpServer
from stateroom.wire.mcp_tools import CONNECTION_CLOSED, PARSE_ERROR, protocol_error

_LAST_WORDS: Final = 2048
"""Bytes of standard error that are told when it ends by itself."""
_LINES_AT_ONCE: Final = 64
_PATIENCE: Final = 2.0
"""Seconds in which a server may end when its input ends, and then when it is asked to."""


@asynccontextmanager
async def process_streams(
    server: McpServer, place: Place, opening: Attempt, response_bytes: int
) -> AsyncIterator[tuple[Any, Any]]:
    """Start the server's command; what the SDK reads and writes. It is ended on leaving."""
    try:
        process = await place.spawner.spawn(server.command, env=server.environment, stdin=True)
    except (StateroomError, OSError) as error:
        message = error.message if isinstance(error, StateroomError) else error.strerror or type(error).__name__
        raise McpFailed(protocol_error(CONNECTION_CLOSED, f"The MCP server was not started: {message}")) from None
    send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    reading = asyncio.create_task(_read(process, send, opening, response_bytes))
    try:
        yield receive, _Input(process)
    finally:
        await _end(process)
        reading.cancel()
        await asyncio.wait({reading})
        send.close()
        receive.close()


async def _read(
    process: Process, messages: MemoryObjectSendStream[SessionMessage | Exception], opening: Attempt, limit: int
) -> None:
    """Hand on what the process says, line by line, and note how it ended."""
    last_words = bytearray()
    code, message = CONNECTION_CLOSED, "The MCP server ended"
    async with messages:
        try:
            await _read_lines(process, messages, last_words, limit)
        except _TooLong:
            code, message = (
                PARSE_ERROR,
                f"The MCP server wrote a line of more than {limit} bytes (`mcp.response_bytes`)",
            )
        except (StateroomError, OSError):
            message = "The sandbox of the MCP server ended"
        opening.lost = True
        said = last_words.decode(errors="replace").strip()
        opening.fail(McpFailed(protocol_error(code, f"{message}; its last words: {said}" if said else f"{message}.")))


async def _read_lines(
    process: Process, messages: MemoryObjectSendStream[SessionMessage | Exception], last_words: bytearray, limit: int
) -> None:
    """To the end of it. What is no JSON-RPC is passed over: programs print. Raises _TooLong."""
    line = bytearray()
    async for stream, chunk in process.read():
        if stream == "stderr":
            last_words[:] = (last_words + chunk)[-_LAST_WORDS:]
            continue
        *ends, rest = chunk.split(b"\n")
        for number, end in enumerate(ends, 1):
            if not number % _LINES_AT_ONCE:
                await asyncio.sleep(0)  # others have their turn
            line += end
            if len(line) > limit:
                raise _TooLong
            await _hand_on(bytes(line), messages)
            line.clear()
        line += rest
        if len(line) > limit:
            raise _TooLong


class _TooLong(Exception):
    """A line of more bytes than an answer may have."""


async def _hand_on(line: bytes, messages: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    if not line.strip():
        return
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        return
    await messages.send(SessionMessage(message))


async def _end(process: Process) -> None:
    """Let it end by itself, then see to it."""
    try:
        process.close_stdin()
        for end in (partial(process.signal, signal.SIGTERM), process.kill):
            try:
                async with asyncio.timeout(_PATIENCE):
                    await process.wait()
                    return
            except TimeoutError:
                end()
    except (StateroomError, OSError):
        return  # the sandbox is gone, and the process with it


class _Input:
    """What the SDK writes goes to the process in the context of whoever asks."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def send(self, item: SessionMessage, /) -> None:
        attempt = current.get()
        if attempt is not None:
            attempt.sent = True
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        try:
            await self._process.write(line)
        except (StateroomError, OSError):
            raise anyio.BrokenResourceError from None

    async def aclose(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
