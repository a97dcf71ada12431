"""What calling MCP servers needs from others: a way out to the network, and processes inside a workspace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import aiohttp

Progress: TypeAlias = Callable[[float, float | None, str], Awaitable[None]]
"""Told how far a call is: done, of how much, in which words."""


class Outbound(Protocol):
    """The guard for users' URLs: what it does not permit is not connected to, whatever a name resolves to."""

    def check(self, url: str, *, param: str, https: bool = False) -> None:
        """Refuse a URL that could never be reached. Raises InvalidRequest."""
        ...

    def connector(self, limit: int, *, keepalive_seconds: float = 3.0) -> aiohttp.TCPConnector: ...

    def is_refusal(self, error: BaseException) -> bool:
        """Whether this was its doing."""
        ...


class Process(Protocol):
    """A process inside a workspace."""

    def read(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]: ...

    async def write(self, data: bytes) -> None: ...

    def close_stdin(self) -> None: ...

    def signal(self, number: int) -> None: ...

    def kill(self) -> None:
        """End it and all that came of it."""
        ...

    async def wait(self) -> int: ...


class Spawner(Protocol):
    """Starts processes inside one sandbox."""

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bool = False) -> Process:
        """Raises SandboxFailed or OSError."""
        ...


class Place(NamedTuple):
    """The workspace in which a server's command runs."""

    id: str
    spawner: Spawner
    """Another one when the sandbox was started anew: what ran in the old one is gone."""
