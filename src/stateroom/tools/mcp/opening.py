"""Opening a connection to an MCP server, over the transport that it knows.

Imports the SDK, which takes half a second and 30 MiB: to be imported only when an MCP server is to be called.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from stateroom.settings import McpSettings
from stateroom.tools.mcp.attempt import McpFailed
from stateroom.tools.mcp.http import GuardedTransport
from stateroom.tools.mcp.seams import Outbound, Place
from stateroom.tools.mcp.session import Session
from stateroom.tools.mcp.stdio import process_streams
from stateroom.wire.mcp import McpServer
from stateroom.wire.mcp_tools import CONNECTION_CLOSED, protocol_error

_OLDER: Final = (400, 404, 405)
"""What servers answer that know only the older transport."""


async def open_session(
    server: McpServer, place: Place | None, outbound: Outbound, settings: McpSettings, version: str
) -> Session:
    """A connection to a server, over the first transport that it knows. Raises McpFailed."""
    _quieten()
    seconds = settings.connect_seconds
    if server.command:
        if place is None:
            message = "This MCP server is a command, and there is no workspace to run it in."
            raise McpFailed(protocol_error(CONNECTION_CLOSED, message))
        session = Session(
            lambda opening: process_streams(server, place, opening, settings.response_bytes), version, settings
        )
        await session.open(seconds)
        return session
    if server.transport != "sse":
        session = Session(lambda _: _streamable(server, outbound, settings), version, settings)
        try:
            await session.open(seconds)
        except McpFailed as failure:
            if server.transport != "auto" or session.status not in _OLDER:
                raise
            return await _open_older(server, outbound, settings, version, failure)
        return session
    return await _open_older(server, outbound, settings, version, None)


async def _open_older(
    server: McpServer, outbound: Outbound, settings: McpSettings, version: str, first: McpFailed | None
) -> Session:
    """Over HTTP with SSE. `first` is what came of the newer transport, told if this one is no better."""
    session = Session(lambda _: _sse(server, outbound, settings), version, settings)
    try:
        await session.open(settings.connect_seconds)
    except McpFailed:
        if first is not None:
            raise first from None
        raise
    return session


@asynccontextmanager
async def _streamable(server: McpServer, outbound: Outbound, settings: McpSettings) -> AsyncIterator[Any]:
    transport = _transport(server, outbound, settings, is_streamable=True)
    async with (
        httpx2.AsyncClient(transport=transport, timeout=None, trust_env=False) as client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=settings.response_bytes) as streams,
    ):
        yield streams


@asynccontextmanager
async def _sse(server: McpServer, outbound: Outbound, settings: McpSettings) -> AsyncIterator[Any]:
    def client(
        headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None
    ) -> httpx2.AsyncClient:
        transport = _transport(server, outbound, settings, is_streamable=False)
        return httpx2.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async with sse_client(server.url, httpx_client_factory=client) as streams:
        yield streams


def _transport(
    server: McpServer, outbound: Outbound, settings: McpSettings, *, is_streamable: bool
) -> GuardedTransport:
    return GuardedTransport(
        outbound,
        server.sent_headers(),
        response_bytes=settings.response_bytes,
        connect_seconds=settings.connect_seconds,
        is_streamable=is_streamable,
    )


def _quieten() -> None:
    """Keep the SDK's log lines out of ours: they quote what servers say, and addresses that may be keys."""
    for name in ("mcp", "client", "httpx2"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
