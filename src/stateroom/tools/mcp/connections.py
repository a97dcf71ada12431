"""The connections to MCP servers that are kept for a while, for whoever asks the same server next.

They are told apart by a key: who asks, which server, with which secrets. What is broken is not handed out again. How
one is opened and what is said over it is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from stateroom.tools.mcp.attempt import McpFailed
from stateroom.wire.mcp_tools import CONNECTION_CLOSED, protocol_error

if TYPE_CHECKING:
    from stateroom.tools.mcp.session import Session


class Held:
    """A connection and who uses it."""

    def __init__(self, key: bytes, place: str, session: Session) -> None:
        self.key = key
        self.place = place
        """The workspace that its process is in; empty for servers elsewhere."""
        self.session = session
        self.users = 0
        self.dropped = False
        self.closing = False
        self.timer: asyncio.TimerHandle | None = None


class Connections:
    """Those that are open. All methods are for one event loop."""

    def __init__(self, limit: int, idle_seconds: float) -> None:
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._held: dict[bytes, Held] = {}
        """The one that is idle for longest comes first."""
        self._opening = 0
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    async def borrow(self, key: bytes, place: str, opened: Callable[[], Awaitable[Session]]) -> Held:
        """The connection of this key, opened if there is none. Raises McpFailed. Give it back."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            held = self._held.get(key)
            if held is not None and not held.session.is_usable:
                self.drop(held)
                held = None
            if held is None:
                held = await self._open(key, place, opened)
        held.users += 1
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        return held

    def give_back(self, held: Held) -> None:
        held.users -= 1
        if held.users:
            return
        if held.dropped or not held.session.is_usable:
            self._retire(held)
            return
        self._held[held.key] = self._held.pop(held.key)
        held.timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._retire, held)

    def drop(self, held: Held) -> None:
        """Hand it out no more; it is closed when its last user has given it back."""
        if self._held.get(held.key) is held:
            del self._held[held.key]
        held.dropped = True
        if not held.users:
            self._close(held)

    async def leave(self, place: str) -> None:
        """Close what runs in a workspace."""
        for held in [held for held in self._held.values() if held.place == place]:
            self._retire(held)
        await self._settle()

    async def close(self) -> None:
        self._closed = True
        for held in list(self._held.values()):
            self._retire(held)
        await self._settle()

    async def _open(self, key: bytes, place: str, opened: Callable[[], Awaitable[Session]]) -> Held:
        self._check_open()
        if len(self._held) + self._opening >= self._limit:
            idle = next((held for held in self._held.values() if not held.users), None)
            if idle is None:
                message = (
                    f"All {self._limit} connections to MCP servers are in use (`mcp.connections`). Try again later."
                )
                raise McpFailed(protocol_error(CONNECTION_CLOSED, message))
            self._retire(idle)
        self._opening += 1
        try:
            session = await opened()
        finally:
            self._opening -= 1
        try:
            self._check_open()
        except McpFailed:
            await session.close()
            raise
        held = self._held[key] = Held(key, place, session)
        return held

    def _check_open(self) -> None:
        if self._closed:
            raise McpFailed(protocol_error(CONNECTION_CLOSED, "This server is stopping."))

    def _retire(self, held: Held) -> None:
        """Close it now, whoever uses it."""
        if self._held.get(held.key) is held:
            del self._held[held.key]
        held.dropped = True
        self._close(held)

    def _close(self, held: Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        if held.closing:
            return
        held.closing = True
        task = asyncio.get_running_loop().create_task(held.session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _settle(self) -> None:
        while self._closing:
            await asyncio.wait(set(self._closing))
