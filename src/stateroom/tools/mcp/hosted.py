"""Tools of MCP servers as hosted tools: what the runtime asks of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from stateroom.journal.entries import Effect, Item
from stateroom.tools.mcp.attempt import McpFailed
from stateroom.tools.mcp.seams import Place
from stateroom.tools.mcp.servers import McpServers
from stateroom.tools.tool import HostedFunction, Printed, ToolCall, ToolResult
from stateroom.wire.mcp import McpServer, parse_mcp
from stateroom.wire.mcp_tools import error_text, list_item
from stateroom.workspaces.live.workspace import Workspace


class McpTool:
    """Implements `tools.tool.Tool` for `mcp`, and `runtime.hosted_calls.Lister`."""

    type = "mcp"
    function: HostedFunction | None = None

    def __init__(self, servers: McpServers) -> None:
        self._servers = servers

    def check(self, declaration: Mapping[str, Any], path: str) -> None:
        """Refuse a server that could never be reached from here. Raises InvalidRequest."""
        self._servers.check(parse_mcp(declaration, path), path)

    def effect(self, call: ToolCall) -> Effect:
        return Effect(call.item.get("effect") or Effect.EFFECT)

    async def listing(
        self, declaration: Mapping[str, Any], project: str, workspace: Callable[[], Awaitable[Workspace]] | None
    ) -> Item:
        """The item `mcp_list_tools` of a server; with `error` when it could not be asked."""
        server = parse_mcp(declaration, "tools")
        try:
            async with _place(server, workspace) as place:
                tools = await self._servers.list_tools(server, project=project, place=place)
        except McpFailed as failure:
            return list_item(server.label, (), error_text(failure.error))
        return list_item(server.label, tools)

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        if not call.declaration:
            return ToolResult("The MCP server of this tool is not declared any more.", failed=True)
        server = parse_mcp(call.declaration, "tools")
        name: str = call.item["name"]
        async with _place(server, call.workspace) as place:
            done = await self._servers.call(server, name, call.arguments, project=call.project, place=place)
        if done.error is None:
            return ToolResult(fields={"output": done.output})
        status = "incomplete" if done.unknown else "failed"
        fields: dict[str, Any] = {"error": done.error, "status": status}
        return ToolResult(failed=True, unknown=done.unknown, fields=fields)


@asynccontextmanager
async def _place(
    server: McpServer, workspace: Callable[[], Awaitable[Workspace]] | None
) -> AsyncGenerator[Place | None, None]:
    """Where a server's command runs, which stays meanwhile; None for one that is reached over the network."""
    if not server.command or workspace is None:
        yield None
        return
    opened = await workspace()
    with opened.working():
        yield Place(opened.id, await opened.running())
