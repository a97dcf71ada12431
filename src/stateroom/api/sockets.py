"""The Responses API over WebSockets: handshakes, and what becomes of the connections when the server stops."""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope, Send

from stateroom.api.gate import Gate
from stateroom.api.http import error_response
from stateroom.api.lanes import SERVICE_RESTART, Connection, Means, stopping
from stateroom.errors import NotFound, StateroomError
from stateroom.runtime.local import LocalMemory
from stateroom.runtime.runs import Runs
from stateroom.wire.decoding import Bounds

PATH: Final = "/v1/responses"


class Sockets:
    """The WebSocket side of the application, which is asked behind the gate as everything is."""

    def __init__(
        self, runs: Runs, memory: LocalMemory, gate: Gate, bounds: Bounds, *, body_bytes: int, seconds: float
    ) -> None:
        self._means = Means(runs, memory, gate, bounds, PATH, body_bytes, seconds)
        self._connections: set[Connection] = set()
        self._stopping = False

    @property
    def count(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its handshake to its end."""
        refusal = self._refusal(scope["path"])
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        connection = Connection(self._means, authorization, send)
        self._connections.add(connection)
        if self._stopping:
            connection.end_with(stopping(), SERVICE_RESTART)
        try:
            await connection.serve(receive)
        finally:
            self._connections.discard(connection)
            connection.lose()

    def _refusal(self, path: str) -> StateroomError | None:
        if path.rstrip("/") != PATH:
            return NotFound(f"There is no WebSocket at {path}; use {PATH}.", code="unknown_url")
        return stopping() if self._stopping else None

    def stop(self) -> None:
        """Take no more requests; connections are closed as soon as nothing goes on on them."""
        self._stopping = True
        for connection in list(self._connections):
            connection.end_with(stopping(), SERVICE_RESTART)
