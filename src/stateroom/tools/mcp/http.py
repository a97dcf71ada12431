"""How the SDK's HTTP transports reach an MCP server: through the guard for users' URLs, within bounds, taking notes.

Imports the SDK: to be imported only when an MCP server is to be called.

The SDK's own client would resolve names by itself, and an exception on one request's way ends everything that shares
its connection. So this never raises for what a server or the network does. What went wrong is noted in the attempt,
whose caller is woken, and the SDK is given an answer that it knows how to handle.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import aiohttp
import httpx2
import msgspec
from yarl import URL

from stateroom.errors import InvalidRequest
from stateroom.tools.mcp.attempt import UNKNOWN, Attempt, McpFailed, current
from stateroom.tools.mcp.seams import Outbound
from stateroom.wire.mcp_tools import CONNECTION_CLOSED, PARSE_ERROR, protocol_error

_REFUSAL_BYTES: Final = 64 * 1024
_PER_CONNECTION: Final = 64
"""Sockets for one session: each call that has not been answered takes one."""
_STREAM_FACTOR: Final = 16
"""The stream of the SSE transport holds the answers of many calls."""
_NOT_PASSED: Final = frozenset(
    ("accept-encoding", "connection", "content-length", "host", "transfer-encoding", "user-agent")
)
_NOT_TOLD: Final = frozenset(("content-encoding", "content-length", "transfer-encoding"))


class _Head(msgspec.Struct):
    """Of a JSON-RPC message: a request has both."""

    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, object] | msgspec.UnsetType = msgspec.UNSET


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Carries the SDK's requests to one server. Made in a running event loop."""

    def __init__(
        self,
        outbound: Outbound,
        headers: dict[str, str],
        *,
        response_bytes: int,
        connect_seconds: float,
        is_streamable: bool,
    ) -> None:
        self._outbound = outbound
        self._headers = headers
        self._response_bytes = response_bytes
        self._is_streamable = is_streamable
        self._client = aiohttp.ClientSession(
            connector=outbound.connector(_PER_CONNECTION),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        attempt = current.get() or Attempt()
        if attempt.closed:
            return httpx2.Response(410)
        resumes = "last-event-id" in request.headers
        if request.method == "GET" and self._is_streamable and not resumes:
            return httpx2.Response(405)  # nothing that a server says unasked is of use here
        body = await request.aread()
        matters = not resumes if request.method == "GET" else request.method == "POST" and _is_request(body)
        noted = attempt if matters else Attempt()
        noted.in_session = "mcp-session-id" in request.headers
        answer = await self._send(request, body, noted, attempt)
        return httpx2.Response(502) if answer is None else await self._told(request, answer, noted, attempt)

    async def aclose(self) -> None:
        await self._client.close()

    async def _send(
        self, request: httpx2.Request, body: bytes, noted: Attempt, attempt: Attempt
    ) -> aiohttp.ClientResponse | None:
        """The answer's head; None when there is none, which is noted."""
        headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED}
        headers |= {**self._headers, "accept-encoding": "identity", "user-agent": "Stateroom"}
        url = str(request.url)
        try:
            self._outbound.check(url, param="server_url")
        except InvalidRequest as refusal:
            noted.fail_unreached(refusal.message.split(". ")[0].rstrip(".").lower())
            return None
        noted.sent = True
        sending = asyncio.ensure_future(
            self._client.request(
                request.method, URL(url, encoded=True), data=body or None, headers=headers, allow_redirects=False
            )
        )
        attempt.hold(abandon := partial(sending.cancel, None))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if sending.cancel() or not attempt.closed or (task is not None and task.cancelling()):
                raise  # the SDK gave this request up
            return None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            noted.fail_unreached(self._why(error))
        except (aiohttp.ClientError, OSError, UnicodeError, ValueError) as error:
            if self._outbound.is_refusal(error):
                noted.fail_unreached(self._why(error))
            else:
                message = f"The connection to the MCP server broke before it answered ({type(error).__name__})."
                noted.fail(McpFailed(protocol_error(CONNECTION_CLOSED, f"{message} {UNKNOWN}"), unknown=True))
        finally:
            attempt.let_go(abandon)
        return None

    async def _told(
        self, request: httpx2.Request, answer: aiohttp.ClientResponse, noted: Attempt, attempt: Attempt
    ) -> httpx2.Response:
        """What the SDK is given for an answer."""
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_TOLD]
        noted.status = answer.status
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            answer.close()
            message = "The MCP server insists on compressing its answer."
            noted.fail(McpFailed(protocol_error(PARSE_ERROR, f"{message} {UNKNOWN}"), unknown=True))
            return httpx2.Response(502)
        if answer.status >= 400:
            refusal = await _beginning(answer)
            gone = answer.status == 404 and noted.in_session
            if gone or not (self._is_streamable and _is_refusal(refusal)):
                noted.fail_with_status(answer.status, answer.reason or "")
            return httpx2.Response(answer.status, headers=headers, content=refusal, request=request)
        if 300 <= answer.status < 400:
            answer.close()  # the SDK follows it where it stays with this server, and says so where it does not
            return httpx2.Response(answer.status, headers=headers, request=request)
        is_shared = request.method == "GET" and not self._is_streamable
        limit = self._response_bytes * (_STREAM_FACTOR if is_shared else 1)
        body = _Body(answer, limit, noted, attempt, is_shared=is_shared)
        return httpx2.Response(answer.status, headers=headers, stream=body, request=request)

    def _why(self, error: Exception) -> str:
        if self._outbound.is_refusal(error):
            return "its name leads to a private address, which this server does not call"
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return "its certificate is not trusted"
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return "its name is not known"
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return "it takes no connection"
        return type(error).__name__


class _Body(httpx2.AsyncByteStream):
    """The content of an answer, up to a bound. It ends, rather than raises, where the connection breaks."""

    def __init__(
        self, answer: aiohttp.ClientResponse, limit: int, noted: Attempt, attempt: Attempt, *, is_shared: bool
    ) -> None:
        self._is_shared = is_shared
        self._answer = answer
        self._limit = limit
        self._noted = noted
        self._attempt = attempt
        attempt.hold(answer.close)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        try:
            async for chunk in self._answer.content.iter_any():
                total += len(chunk)
                if total > self._limit:
                    message = f"The MCP server answered with more than {self._limit} bytes (`mcp.response_bytes`)."
                    self._noted.fail(McpFailed(protocol_error(PARSE_ERROR, f"{message} {UNKNOWN}"), unknown=True))
                    return
                yield chunk
        except (aiohttp.ClientError, OSError):
            pass  # the SDK takes the end of a stream better than an exception
        if self._is_shared:
            self._noted.lost = True
        else:
            self._noted.ended = True

    async def aclose(self) -> None:
        self._attempt.let_go(self._answer.close)
        self._answer.close()


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    """The content of a refusal, as far as it is worth reading."""
    try:
        async with asyncio.timeout(5):
            body = bytearray()
            while len(body) < _REFUSAL_BYTES and (chunk := await answer.content.read(_REFUSAL_BYTES - len(body))):
                body += chunk
            return bytes(body)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return b""
    finally:
        answer.close()


def _is_request(body: bytes) -> bool:
    head = _head(body)
    return head is not None and head.id is not msgspec.UNSET and head.method is not msgspec.UNSET


def _is_refusal(body: bytes) -> bool:
    """Whether this is a JSON-RPC error, which says more than the status that it came with."""
    head = _head(body)
    return head is not None and head.error is not msgspec.UNSET


def _head(body: bytes) -> _Head | None:
    try:
        return msgspec.json.decode(body, type=_Head)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
