"""What became of one request to an MCP server on its way: the difference between "not done" and "nobody knows".

The SDK tells a caller what the server answered, and little about why there is no answer. Its transports run in the
context of whoever asks, so that what carries a request out can note down here how far it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from stateroom.wire.mcp_tools import CONNECTION_CLOSED, PARSE_ERROR, http_error, protocol_error

UNKNOWN = "Whether the call was carried out is not known; it is not made again."


class McpFailed(Exception):
    """A server could not be asked, or did not answer as it should."""

    def __init__(self, error: dict[str, Any], *, unknown: bool = False, again: bool = False) -> None:
        super().__init__(error["message"])
        self.error = error
        """In OpenAI's shape."""
        self.unknown = unknown
        """Whether what was asked for may have been done."""
        self.again = again
        """Whether it was certainly not done, and another connection may fare better."""

    @property
    def message(self) -> str:
        return str(self.error["message"])


def too_much(what: str) -> McpFailed:
    """What a server has goes beyond a bound."""
    return McpFailed(protocol_error(PARSE_ERROR, f"The MCP server has {what}."))


class Attempt:
    """One request, or the opening of a connection."""

    def __init__(self) -> None:
        self.sent = False
        """Whether any of it may have reached the server."""
        self.in_session = False
        """Whether it went to a session that the server had opened."""
        self.status: int | None = None
        """HTTP status of the answer, where HTTP is spoken and the answer is no JSON-RPC."""
        self.ended = False
        """Whether the stream that the answer was to come on ended."""
        self.lost = False
        """Of the opening of a connection: whether the stream ended that the answers to all requests come on."""
        self.closed = False
        self.failure: McpFailed | None = None
        self.failed = asyncio.Event()
        """Set when waiting for the answer is no use any more."""
        self._open: set[Callable[[], object]] = set()

    def fail(self, failure: McpFailed) -> None:
        """Nothing will come of it."""
        if self.failure is None:
            self.failure = failure
            self.failed.set()

    def fail_unreached(self, reason: str) -> None:
        self.sent = False
        self.fail(
            McpFailed(protocol_error(CONNECTION_CLOSED, f"The MCP server could not be reached: {reason}."), again=True)
        )

    def fail_with_status(self, status: int, reason: str) -> None:
        self.status = status
        gone = status == 404 and self.in_session  # so does a server answer that has ended the session
        message = f"The MCP server answered with HTTP status {status}{f' ({reason})' if reason else ''}."
        self.fail(McpFailed(http_error(status, message), unknown=status >= 500, again=gone))

    def hold(self, close: Callable[[], object]) -> None:
        """Have something closed when nobody waits for the answer any more."""
        self._open.add(close)

    def let_go(self, close: Callable[[], object]) -> None:
        self._open.discard(close)

    def close(self) -> None:
        self.closed = True
        while self._open:
            self._open.pop()()


current: ContextVar[Attempt | None] = ContextVar("stateroom_mcp_attempt", default=None)
"""The attempt that a transport works for."""
