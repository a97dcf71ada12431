"""Connections to where sandboxes may go: the name is resolved here, and the checked address is what is connected to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from stateroom.addresses import is_address, is_own, is_public
from stateroom.reasons import reason
from stateroom.workspaces.egress.domains import Target
from stateroom.workspaces.egress.pipe import CHUNK, SocketPipe

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""All addresses of a name, as text. Blocks. Raises OSError."""

_THREADS: Final = 64
_LOOKUPS_EACH: Final = 2
"""Look-ups of one workspace at the same time: whoever runs a name server can make one take long."""
_TRIES: Final = 4
"""Addresses of one name that are tried."""


class Unreachable(Exception):
    """Nobody answers there."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class PrivateAddress(Exception):
    """The name leads to where no sandbox may go."""


class Dialer:
    """Makes the connections of all workspaces."""

    def __init__(self, *, allow_private: bool, connect_seconds: float, resolve: Resolve | None = None) -> None:
        self._allow_private = allow_private
        self._connect_seconds = connect_seconds
        self._resolve = resolve or _resolve
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="stateroom-egress-names")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, target: Target, turn: asyncio.Semaphore) -> Sequence[str]:
        """The addresses of a target, each of them checked. Raises PrivateAddress, Unreachable."""
        if is_address(target.host):
            found: Sequence[str] = (target.host,)
        else:
            try:
                async with asyncio.timeout(self._connect_seconds):
                    found = await self._look_up(target, turn)
            except TimeoutError:
                raise Unreachable("its name could not be looked up in time") from None
            except (OSError, UnicodeError) as error:  # UnicodeError: no name server takes the name
                raise Unreachable(reason(error)) from None
        # What listens on a public address of this machine may count on a firewall, which nobody passes from here.
        if not self._allow_private and not all(is_public(address) and not is_own(address) for address in found):
            raise PrivateAddress
        return found

    async def connect(self, target: Target, addresses: Sequence[str], context: ssl.SSLContext | None) -> SocketPipe:
        """A connection to one of these addresses; with a context, in TLS. Raises Unreachable."""
        why = "its name has no address"
        deadline = asyncio.get_running_loop().time() + self._connect_seconds
        for address in addresses[:_TRIES]:
            try:
                async with asyncio.timeout_at(deadline):
                    return await _open(address, target, context)
            except OSError as error:  # TimeoutError and ssl.SSLError are OSErrors too
                why = reason(error)
        raise Unreachable(why)

    async def _look_up(self, target: Target, turn: asyncio.Semaphore) -> Sequence[str]:
        await turn.acquire()
        loop = asyncio.get_running_loop()
        try:
            looking = loop.run_in_executor(self._threads, self._resolve, target.host, target.port)
        except RuntimeError:
            turn.release()
            raise Unreachable("this server is stopping") from None
        looking.add_done_callback(lambda done: _settle(done, turn))
        return await asyncio.shield(looking)


class _LateReader(asyncio.StreamReader):
    """Gives out what came before it tells of a failure: a server that wants no more may have said so."""

    failure: Exception | None = None

    def set_exception(self, exc: Exception) -> None:
        self.failure = exc
        self.feed_eof()

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        if not data and self.failure is not None:
            raise self.failure
        return data


def lookup_turns() -> asyncio.Semaphore:
    """The turns of one workspace. A turn lasts as long as its thread, even when nobody waits for that any more."""
    return asyncio.Semaphore(_LOOKUPS_EACH)


def _settle(done: asyncio.Future[Sequence[str]], turn: asyncio.Semaphore) -> None:
    turn.release()
    if not done.cancelled():
        done.exception()  # taken, so that the loop does not tell of what nobody waited for


async def _open(address: str, target: Target, context: ssl.SSLContext | None) -> SocketPipe:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = _LateReader(limit=CHUNK, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    name = target.host if context is not None else None
    transport, _ = await loop.create_connection(
        lambda: protocol, address, target.port, ssl=context, server_hostname=name
    )
    return SocketPipe(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


def _resolve(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
