"""A real MCP server for tests, never for users: made with the official SDK, over sockets or standard streams.

    python -m stateroom.testing.mcp_server stdio
    python -m stateroom.testing.mcp_server http --port 9100 [--sse] [--token SECRET]

Its tools (see `TOOLS`) read, write, fail, hang, report progress and answer with every kind of content. Each call leaves
two lines in the file that STATEROOM_TEST_MCP names, `begin TOOL ARGUMENTS` and `end TOOL`, so that calls can be counted
from outside; within the process they are in `ScriptedMcp.calls`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import mcp_types as types
import msgspec
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLS: Final = "STATEROOM_TEST_MCP"
PIXEL: Final = base64.b64encode(b"\x89PNG not really").decode()

Kind = Literal["streamable_http", "sse"]
Context = ServerRequestContext[Any, Any]

_TEXT: Final = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_COUNT: Final = {"type": "object", "properties": {"count": {"type": "integer"}}}
_NOTHING: Final = {"type": "object", "properties": {}}


def _tool(name: str, description: str, schema: dict[str, Any], **hints: Any) -> types.Tool:
    annotations = types.ToolAnnotations(**hints) if hints else None
    return types.Tool(name=name, description=description, input_schema=schema, annotations=annotations)


TOOLS: Final = (
    _tool("read_note", "Reads the note.", _NOTHING, read_only_hint=True),
    _tool("write_note", "Adds to the note.", _TEXT),
    _tool("set_note", "Replaces the note.", _TEXT, idempotent_hint=True),
    _tool("fail", "Fails.", _TEXT),
    _tool("refuse", "Is answered with a protocol error.", _TEXT),
    _tool("hang", "Never answers.", _NOTHING),
    _tool("count", "Counts and reports progress.", _COUNT),
    _tool("big", "Answers with so many characters.", _COUNT, read_only_hint=True),
    _tool("gallery", "Answers with every kind of content.", _NOTHING, read_only_hint=True),
    _tool("structured", "Answers with structured content alone.", _NOTHING, read_only_hint=True),
    _tool("whoami", "Answers with the headers that it was sent.", _NOTHING, read_only_hint=True),
    _tool("environ", "Answers with a variable of its environment.", _TEXT, read_only_hint=True),
)


class ScriptedMcp:
    """The server and what became of it."""

    def __init__(self, *, tools: tuple[types.Tool, ...] = TOOLS, page: int = 5, token: str = "") -> None:
        self.tools = tools
        self.page = page
        """Tools on one page of the list."""
        self.token = token
        """Asked for as `Authorization: Bearer`, if there is one."""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        """Calls that were begun."""
        self.ended: list[str] = []
        self.lists = 0
        """Pages of the list that were asked for."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """HTTP requests: method and headers."""
        self.called = threading.Event()
        """Set when a call has begun."""
        self.note = ""
        self._sessions: set[str] = set()
        self._forgotten: set[str] = set()
        self.server: Server[Any] = Server("scripted", on_list_tools=self._list, on_call_tool=self._call)

    def forget_sessions(self) -> None:
        """Answer whatever comes over a session of before with a 404, as the protocol says."""
        self._forgotten |= self._sessions

    async def _list(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        self.lists += 1
        begin = int(params.cursor) if params is not None and params.cursor else 0
        end = begin + self.page
        return types.ListToolsResult(
            tools=list(self.tools[begin:end]), next_cursor=str(end) if end < len(self.tools) else None
        )

    async def _call(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        given = params.arguments or {}
        self.calls.append((params.name, given))
        _log(f"begin {params.name} {msgspec.json.encode(given).decode()}")
        self.called.set()
        run: Callable[[Context, dict[str, Any]], Awaitable[types.CallToolResult]] | None = getattr(
            self, f"_tool_{params.name}", None
        )
        if run is None:
            raise types_error(types.INVALID_PARAMS, f"no tool {params.name}")
        result: types.CallToolResult = await run(ctx, given)
        self.ended.append(params.name)
        _log(f"end {params.name}")
        return result

    async def _tool_read_note(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        return _said(self.note)

    async def _tool_write_note(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        self.note += str(given.get("text", ""))
        return _said(f"the note is: {self.note}")

    async def _tool_set_note(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        self.note = str(given.get("text", ""))
        return _said("done")

    async def _tool_fail(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        text = str(given.get("text", "it failed"))
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)

    async def _tool_refuse(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        raise types_error(-32050, str(given.get("text", "refused")))

    async def _tool_hang(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        await asyncio.Event().wait()
        raise AssertionError  # nobody sets it

    async def _tool_count(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        count = int(given.get("count", 3))
        for number in range(1, count + 1):
            await ctx.session.report_progress(number, count, f"at {number}")
        return _said(str(count))

    async def _tool_big(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        return _said("x" * int(given.get("count", 0)))

    async def _tool_gallery(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        text = types.TextResourceContents(uri="note://2", mime_type="text/plain", text="inside")
        blob = types.BlobResourceContents(uri="note://3", mime_type="application/zip", blob=PIXEL)
        return types.CallToolResult(
            content=[
                types.TextContent(text="a text"),
                types.ImageContent(data=PIXEL, mime_type="image/png"),
                types.AudioContent(data=PIXEL, mime_type="audio/wav"),
                types.ResourceLink(uri="note://1", name="first", description="a link"),
                types.EmbeddedResource(resource=text),
                types.EmbeddedResource(resource=blob),
            ]
        )

    async def _tool_structured(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        return types.CallToolResult(content=[], structured_content={"answer": 42})

    async def _tool_whoami(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        sent = dict(ctx.request.headers) if isinstance(ctx.request, Request) else {}
        return _said(msgspec.json.encode(sent).decode())

    async def _tool_environ(self, ctx: Context, given: dict[str, Any]) -> types.CallToolResult:
        return _said(os.environ.get(str(given.get("text", "")), ""))

    def app(self, kind: Kind = "streamable_http", *, json_response: bool = False, stateless: bool = False) -> ASGIApp:
        """What a web server serves, at `/mcp`."""
        if kind == "sse":
            return self._gate(self._sse_app())
        return self._gate(self.server.streamable_http_app(json_response=json_response, stateless_http=stateless))

    def _sse_app(self) -> Starlette:
        transport = SseServerTransport("/messages/")

        async def connect(request: Request) -> Response:
            scope, receive, send = request.scope, request.receive, request._send
            async with transport.connect_sse(scope, receive, send) as (read, write):
                await self.server.run(read, write, self.server.create_initialization_options())
            return Response()

        routes = [
            Route("/mcp", connect, methods=["GET"]),
            Mount("/messages/", app=transport.handle_post_message),
        ]
        return Starlette(routes=routes)

    def _gate(self, inner: ASGIApp) -> ASGIApp:
        """Note requests, ask for the token, and forget sessions."""

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
            self.requests.append((scope["method"], headers))
            if self.token and headers.get("authorization") != f"Bearer {self.token}":
                shown = headers.get("authorization", "nothing")
                await Response(f"not let in with {shown}", 401)(scope, receive, send)
            elif headers.get("mcp-session-id") in self._forgotten:
                await Response("Session not found", 404)(scope, receive, send)
            else:
                await inner(scope, receive, self._noting(send))

        return gate

    def _noting(self, send: Send) -> Send:
        async def note(message: Message) -> None:
            for name, value in message.get("headers", ()):
                if name.lower() == b"mcp-session-id":
                    self._sessions.add(value.decode())
            await send(message)

        return note


def types_error(code: int, message: str) -> Exception:
    """An error that the SDK answers as it is."""
    from mcp.shared.exceptions import MCPError  # lazy: beside its one use

    return MCPError(code, message)


@contextlib.contextmanager
def served(app: ASGIApp, *, path: str = "/mcp") -> Iterator[str]:
    """The URL of an ASGI application that a thread of its own serves on a real socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="auto", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


def _said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)])


def _log(line: str) -> None:
    if path := os.environ.get(CALLS):
        with Path(path).open("a") as file:
            file.write(line + "\n")


async def _serve_stdio(script: ScriptedMcp) -> None:
    async with stdio_server() as (read, write):
        await script.server.run(read, write, script.server.create_initialization_options())


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted MCP server, for tests.")
    parser.add_argument("transport", choices=("stdio", "http"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sse", action="store_true")
    parser.add_argument("--token", default="")
    given = parser.parse_args()
    script = ScriptedMcp(token=given.token)
    if given.transport == "stdio":
        asyncio.run(_serve_stdio(script))
        return
    listener = socket.create_server(("127.0.0.1", given.port))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)  # noqa: T201 # a banner
    app = script.app("sse" if given.sse else "streamable_http")
    uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none")).run(sockets=[listener])


if __name__ == "__main__":
    main()
