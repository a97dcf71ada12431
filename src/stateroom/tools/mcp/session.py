"""One connection to an MCP server: the SDK's session, in a task of its own.

Imports the SDK, which takes half a second and 30 MiB: to be imported only when an MCP server is to be called. What the
SDK opens has to be closed by the task that opened it; so a task opens it, waits until it is told to, and closes it.
Others ask over it from their own tasks, many at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, TypeVar

import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.transport_context import TransportContext
from mcp_types import methods
from mcp_types.version import LATEST_HANDSHAKE_VERSION
from pydantic import TypeAdapter, ValidationError

from stateroom.settings import McpSettings
from stateroom.tools.mcp.attempt import UNKNOWN, Attempt, McpFailed, current, too_much
from stateroom.tools.mcp.seams import Progress
from stateroom.wire.mcp_tools import (
    CONNECTION_CLOSED,
    PARSE_ERROR,
    REQUEST_TIMED_OUT,
    McpTool,
    protocol_error,
    read_tool,
)

T = TypeVar("T")
Streams = AbstractAsyncContextManager[tuple[Any, Any]]

_CLOSE_SECONDS: Final = 3.0
_GIVE_UP_SECONDS: Final = 1.0
"""For telling a server that nobody waits for its answer any more."""
_MESSAGE_MAX: Final = 4096
_TOOLS_AT_ONCE: Final = 4
_RAW_FACTOR: Final = 2
"""As a server sends it, much is longer than what is kept of it."""
_CLOSED: Final = "Connection closed"
"""What the SDK says of calls that were going on when their connection ended, at this end of it or the other."""
_RESULT: Final[TypeAdapter[types.CallToolResult | types.InputRequiredResult]] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)


class Session:
    """A connection. Open it before anything else."""

    def __init__(self, streams: Callable[[Attempt], Streams], version: str, settings: McpSettings) -> None:
        self._streams = streams
        self._settings = settings
        self._client = types.Implementation(name="stateroom", version=version)
        self._opening = Attempt()
        self._ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_listed = False

    @property
    def status(self) -> int | None:
        """HTTP status that the server answered the handshake with, where HTTP is spoken."""
        return self._opening.status

    @property
    def is_usable(self) -> bool:
        """Whether it is open, as far as can be known without asking the server."""
        if self._task is None or self._task.done() or not self._ready.done():
            return False
        return not (self._opening.lost or self._opening.failed.is_set() or self._stopping.is_set())

    async def open(self, seconds: float) -> None:
        """Connect and shake hands. Raises McpFailed; nothing is left open then."""
        self._task = asyncio.create_task(self._live())
        failed = asyncio.create_task(self._opening.failed.wait())
        try:
            signs: list[asyncio.Future[Any]] = [self._task, failed, self._ready]
            await asyncio.wait(signs, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._ready.done() and not self._opening.failed.is_set():
                return
        except BaseException:
            await self._end()
            raise
        finally:
            failed.cancel()
        timed_out = not self._task.done() and not self._opening.failed.is_set()
        failure = self._opening.failure or _of(self._task.exception() if self._task.done() else None)
        await self._end()
        if timed_out:
            message = f"The MCP server did not get ready within {seconds:g} seconds."
            failure = McpFailed(protocol_error(REQUEST_TIMED_OUT, message))
        error = {**failure.error, "message": failure.message.replace(UNKNOWN, "").strip()}
        raise McpFailed(error)  # nothing was asked for yet, so nothing is unknown

    async def list_page(self, cursor: str | None, seconds: float) -> tuple[list[McpTool], str | None]:
        """One page of the list of tools, and where the next one begins. Raises McpFailed."""
        params = types.PaginatedRequestParams(cursor=cursor) if cursor else None
        listed = await self._ask(lambda session: session.list_tools(params=params), seconds)
        self._is_listed = True
        tools: list[McpTool] = []
        async for tool in _one_by_one(listed.tools):
            read = read_tool(tool.name, tool.description, tool.input_schema, _dumped(tool.annotations))
            if read is not None:
                tools.append(read)
        return tools, listed.next_cursor

    async def call(
        self, name: str, arguments: dict[str, Any], seconds: float, on_progress: Progress | None
    ) -> dict[str, Any]:
        """What the server answers to `tools/call`. Raises McpFailed."""
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=arguments))

        async def told_progress(progress: float, total: float | None, message: str | None) -> None:
            if on_progress is not None:
                await on_progress(progress, total, message or "")

        async def ask(session: ClientSession) -> types.CallToolResult | types.InputRequiredResult:
            # Not `call_tool`: it would hold the result against the server's own schema, whose patterns may never end.
            return await session.send_request(
                request, _RESULT, progress_callback=told_progress if on_progress is not None else None
            )

        session = self._ready.result()
        if session.initialize_result is None and not self._is_listed:
            await self.list_page(None, seconds)  # servers of the newest protocol have headers declared in schemas
        told = await self._ask(ask, seconds)
        if not isinstance(told, types.CallToolResult):
            message = "The MCP server asks for further input, which this server cannot give."
            raise McpFailed(protocol_error(types.INVALID_REQUEST, message))
        return told.model_dump(by_alias=True, mode="json", exclude_none=True)

    async def close(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
            await self._end()

    async def _live(self) -> None:
        current.set(self._opening)
        async with AsyncExitStack() as stack:
            read, write = await stack.enter_async_context(self._streams(self._opening))
            said = _Dispatcher(read, write)
            said.tools_max, said.bytes_max = self._settings.tools, self._settings.schemas_bytes
            session = await stack.enter_async_context(ClientSession(client_info=self._client, dispatcher=said))
            try:
                await session.initialize()
            except MCPError as error:
                if error.code not in (types.UNSUPPORTED_PROTOCOL_VERSION, types.METHOD_NOT_FOUND):
                    raise
                await session.discover()  # it knows only the newest protocol, which has no handshake
            self._ready.set_result(session)
            await self._stopping.wait()

    async def _end(self) -> None:
        """Leave nothing behind."""
        self._stopping.set()
        self._opening.close()
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # seen: what matters of it was told to whoever opened it

    async def _ask(self, what: Callable[[ClientSession], Awaitable[T]], seconds: float) -> T:
        """Ask over the session, and give up when no answer can come any more."""
        if not self.is_usable or self._task is None:
            raise McpFailed(
                protocol_error(CONNECTION_CLOSED, "The connection to the MCP server is closed."), again=True
            )
        attempt, session = Attempt(), self._ready.result()

        async def ask() -> T:
            current.set(attempt)
            return await what(session)

        asking = asyncio.create_task(ask())
        signs = [asyncio.create_task(each.failed.wait()) for each in (attempt, self._opening)]
        try:
            waited: list[asyncio.Future[Any]] = [asking, self._task, *signs]
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and attempt.failure is None:
                return asking.result()
            raise attempt.failure or self._lost(attempt) or _timed_out(seconds)
        except (MCPError, ValidationError, RuntimeError) as error:
            raise self._explained(error, attempt) from None
        finally:
            for sign in signs:
                sign.cancel()
            if attempt.failure is not None:
                attempt.close()
            await _give_up(asking)
            attempt.close()

    def _lost(self, attempt: Attempt) -> McpFailed | None:
        """Why the connection as a whole does not stand any more."""
        failure = self._opening.failure
        if failure is None and self._task is not None and not self._task.done():
            return None
        message = failure.message if failure is not None else "The connection to the MCP server broke."
        if not attempt.sent:
            return McpFailed(protocol_error(CONNECTION_CLOSED, message), again=True)
        code = failure.error["code"] if failure is not None else CONNECTION_CLOSED
        words = message if UNKNOWN in message else f"{message} {UNKNOWN}"
        return McpFailed(protocol_error(code, words), unknown=True)

    def _explained(self, error: Exception, attempt: Attempt) -> McpFailed:
        """Why there is no answer, from what the SDK raised and what was noted on the way."""
        if attempt.failure is not None:
            return attempt.failure
        ended = attempt.ended or self._opening.lost or not attempt.sent
        if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED and (ended or error.message == _CLOSED):
            message = "The connection to the MCP server broke before it answered."
            if not attempt.sent:
                return McpFailed(protocol_error(CONNECTION_CLOSED, message), again=True)
            return McpFailed(protocol_error(CONNECTION_CLOSED, f"{message} {UNKNOWN}"), unknown=True)
        return _of(error)


class _Dispatcher(JSONRPCDispatcher[TransportContext]):
    """Lets one odd tool spoil itself alone: the SDK would refuse the whole list that it is in."""

    tools_max = 0
    bytes_max = 0

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None, **more: Any
    ) -> dict[str, Any]:
        told = await super().send_raw_request(method, params, opts, **more)
        if method == "tools/list" and isinstance(told.get("tools"), list):
            told = {**told, "tools": await self._tolerable(told["tools"])}
        return told

    async def _tolerable(self, tools: list[Any]) -> list[dict[str, Any]]:
        """Bounded before anything else is done with it: a single answer can hold a million. Raises McpFailed."""
        if len(tools) > self.tools_max:
            raise too_much(f"more than {self.tools_max} tools (`mcp.tools`)")
        size, found = 0, []
        async for tool in _one_by_one(tools):
            size += len(repr(tool))
            if size > _RAW_FACTOR * self.bytes_max:
                raise too_much(f"tools of more than {self.bytes_max} bytes (`mcp.schemas_bytes`)")
            if (sane := _tolerable(tool)) is not None:
                found.append(sane)
        return found


async def _one_by_one(tools: Sequence[T]) -> AsyncIterator[T]:
    """Others have their turn in between: looking at a tool takes a while."""
    for number, tool in enumerate(tools, 1):
        yield tool
        if not number % _TOOLS_AT_ONCE:
            await asyncio.sleep(0)


def _tolerable(tool: Any) -> dict[str, Any] | None:
    """A tool that the SDK takes; as it is, if it does."""
    try:
        methods.validate_server_result("tools/list", LATEST_HANDSHAKE_VERSION, {"tools": [tool]})
        types.Tool.model_validate(tool)
    except ValidationError:
        if not isinstance(tool, dict):
            return None
        read = read_tool(*(tool.get(field) for field in ("name", "description", "inputSchema", "annotations")))
        if read is None:
            return None
        hints = {name: said for name, said in (read.annotations or {}).items() if isinstance(said, bool)}
        return {
            "name": read.name,
            "description": read.description,
            "inputSchema": read.input_schema,
            "annotations": hints,
        }
    return dict(tool)


def _dumped(annotations: types.ToolAnnotations | None) -> dict[str, Any] | None:
    return annotations.model_dump(by_alias=True, mode="json", exclude_none=True) if annotations is not None else None


async def _give_up(task: asyncio.Task[Any]) -> None:
    """End a task, with a moment for what it has to say."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_GIVE_UP_SECONDS)
    if task.done() and not task.cancelled():
        task.exception()  # seen


def _timed_out(seconds: float) -> McpFailed:
    message = f"The MCP server did not answer within {seconds:g} seconds. {UNKNOWN}"
    return McpFailed(protocol_error(REQUEST_TIMED_OUT, message), unknown=True)


def _of(error: BaseException | None) -> McpFailed:
    """An exception of the SDK in our words. What it quotes of the server's answer is left out."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, McpFailed):
        return error
    if isinstance(error, MCPError):
        if error.code == PARSE_ERROR:
            message = f"The MCP server's answer cannot be read. {UNKNOWN}"
            return McpFailed(protocol_error(PARSE_ERROR, message), unknown=True)
        return McpFailed(protocol_error(error.code, error.message[:_MESSAGE_MAX]))
    if isinstance(error, ValidationError):
        message = f"The MCP server's answer is not what its protocol says. {UNKNOWN}"
        return McpFailed(protocol_error(PARSE_ERROR, message), unknown=True)
    if isinstance(error, RuntimeError) and "protocol version" in str(error).lower():
        return McpFailed(protocol_error(types.INVALID_REQUEST, "The MCP server speaks no version that is known here."))
    name = type(error).__name__ if error is not None else "it ended"
    return McpFailed(
        protocol_error(CONNECTION_CLOSED, f"The MCP server could not be spoken to ({name})."), unknown=True
    )
