"""Asking MCP servers: which tools they have, and to carry one out.

A list is a read: it is asked for again when the connection broke. A call is not: when it was cut off, nobody knows
whether it was carried out, and the result says so. It is made again only where it certainly did not reach the server:
the server had ended the session, or there was no connection any more.

Secrets are sent to the server and appear nowhere else: they are masked in whatever it says.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from stateroom.settings import McpSettings
from stateroom.tools.mcp.attempt import UNKNOWN, McpFailed, too_much
from stateroom.tools.mcp.connections import Connections
from stateroom.tools.mcp.results import McpResult, masked, masked_within, read_result
from stateroom.tools.mcp.seams import Outbound, Place, Progress
from stateroom.wire.mcp import McpServer
from stateroom.wire.mcp_tools import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    REQUEST_TIMED_OUT,
    McpTool,
    protocol_error,
)

if TYPE_CHECKING:
    from stateroom.tools.mcp.session import Session

T = TypeVar("T")

_PAGES_MAX: Final = 64


class McpServers:
    """All MCP servers that this process talks to."""

    def __init__(self, outbound: Outbound, settings: McpSettings) -> None:
        self._outbound = outbound
        self._settings = settings
        self._connections = Connections(settings.connections, settings.idle_seconds)
        self._version = version("stateroom")

    def check(self, server: McpServer, path: str) -> None:
        """Refuse a server that could never be reached from here. Secrets go over https only. Raises InvalidRequest."""
        if server.url:
            has_secrets = bool(server.authorization or server.headers)
            self._outbound.check(server.url, param=f"{path}.server_url", https=has_secrets)

    async def list_tools(self, server: McpServer, *, project: str, place: Place | None = None) -> list[McpTool]:
        """All tools that a server has, those too that the client does not want. Raises McpFailed."""

        async def ask(session: Session) -> list[McpTool]:
            return await self._all_pages(session)

        seconds = self._settings.list_seconds
        try:
            async with asyncio.timeout(seconds):
                tools = await self._asked(server, project, place, ask, is_read=True)
        except TimeoutError:
            message = f"The MCP server did not list its tools within {seconds:g} seconds."
            raise McpFailed(protocol_error(REQUEST_TIMED_OUT, message)) from None
        except McpFailed as failure:
            raise McpFailed(self._told(server, failure, is_read=True)) from None
        secrets = server.secrets()
        # A name cannot be another one, or the server would not know it: a tool that has a secret for it is left out.
        named = [tool for tool in tools if masked(tool.name, secrets) == tool.name]
        return [
            msgspec.structs.replace(
                tool,
                description=masked(tool.description, secrets),
                input_schema=masked_within(tool.input_schema, secrets),
                annotations=masked_within(tool.annotations, secrets),
            )
            for tool in named
        ]

    async def call(
        self,
        server: McpServer,
        name: str,
        arguments: str,
        *,
        project: str,
        place: Place | None = None,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> McpResult:
        """Have a tool carried out once, or not at all. What goes wrong is in the result; it raises nothing."""
        given = _arguments(arguments)
        if given is None:
            return McpResult(error=protocol_error(INVALID_PARAMS, "The arguments are not a JSON object."))
        limit = self._settings.call_seconds_max
        seconds = min(timeout or server.timeout_seconds or self._settings.call_seconds, limit)
        secrets = server.secrets()

        async def progress(done: float, total: float | None, words: str) -> None:
            if on_progress is not None:
                await on_progress(done, total, masked(words[:1024], secrets))

        async def ask(session: Session) -> dict[str, Any]:
            return await session.call(name, given, seconds, progress if on_progress is not None else None)

        try:
            told = await self._asked(server, project, place, ask, is_read=False)
        except McpFailed as failure:
            return McpResult(error=self._told(server, failure, is_read=False), unknown=failure.unknown)
        return read_result(told, output_bytes=self._settings.output_bytes, secrets=secrets)

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def leave(self, place_id: str) -> None:
        """End the servers that run in a workspace."""
        await self._connections.leave(place_id)

    async def close(self) -> None:
        """End all connections. What is being asked fails."""
        await self._connections.close()

    async def _asked(
        self,
        server: McpServer,
        project: str,
        place: Place | None,
        ask: Callable[[Session], Awaitable[T]],
        *,
        is_read: bool,
    ) -> T:
        """Ask over a connection that was kept or is opened; once more over another, if that does no harm."""
        key = _key(server, project, place)
        where = place.id if place is not None and server.command else ""
        for is_last in (False, True):
            held = await self._connections.borrow(key, where, lambda: self._opened(server, place))
            try:
                return await ask(held.session)
            except McpFailed as failure:
                if failure.again or failure.unknown:
                    self._connections.drop(held)
                broke = failure.unknown and failure.error["code"] == CONNECTION_CLOSED
                if is_last or not (failure.again or (is_read and broke)):
                    raise
            finally:
                self._connections.give_back(held)
        raise AssertionError  # the loop returns or raises

    async def _opened(self, server: McpServer, place: Place | None) -> Session:
        # lazy and in a thread: half a second and 30 MiB, for servers that never call an MCP server
        module = await asyncio.to_thread(importlib.import_module, "stateroom.tools.mcp.opening")
        session: Session = await module.open_session(server, place, self._outbound, self._settings, self._version)
        return session

    async def _all_pages(self, session: Session) -> list[McpTool]:
        settings = self._settings
        found: dict[str, McpTool] = {}
        cursor, seen, size = None, set[str](), 0
        for _ in range(_PAGES_MAX):
            tools, cursor = await session.list_page(cursor, settings.list_seconds)
            for tool in tools:
                found.setdefault(tool.name, tool)
                size += len(msgspec.json.encode(tool))
            if len(found) > settings.tools:
                raise too_much(f"more than {settings.tools} tools (`mcp.tools`)")
            if size > settings.schemas_bytes:
                raise too_much(f"tools of more than {settings.schemas_bytes} bytes (`mcp.schemas_bytes`)")
            if not cursor:
                return list(found.values())
            if cursor in seen:
                break
            seen.add(cursor)
        raise too_much("a list of tools that does not end")

    def _told(self, server: McpServer, failure: McpFailed, *, is_read: bool) -> dict[str, Any]:
        """A failure as it may be kept and shown."""
        message = failure.message.replace(UNKNOWN, "").strip() if is_read else failure.message
        return {**failure.error, "message": masked(message, server.secrets())}


def _arguments(text: str) -> dict[str, Any] | None:
    """The arguments as the model wrote them; None if a tool cannot be given them."""
    try:
        given = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def _key(server: McpServer, project: str, place: Place | None) -> bytes:
    """What a connection is kept under: a digest, since secrets go into it."""
    inside = [place.id, id(place.spawner)] if place is not None and server.command else None
    parts = [
        project,
        inside,
        server.url,
        server.transport,
        server.command,
        sorted(server.environment.items()),
        sorted(server.sent_headers().items()),
    ]
    return hashlib.sha256(msgspec.json.encode(parts)).digest()
