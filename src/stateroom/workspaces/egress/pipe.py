"""Two-way streams of bytes: a socket's, and the TLS that is ended inside one. Times nothing out: callers do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Final, Protocol

CHUNK: Final = 65536


class Pipe(Protocol):
    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises OSError."""
        ...

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises OSError."""
        ...

    def push_back(self, data: bytes) -> None:
        """To be read again before anything else."""
        ...

    async def end(self) -> None:
        """Say that no more will be sent."""
        ...

    def abort(self) -> None:
        """Both ways, at once, whatever is still unsent."""
        ...


class SocketPipe:
    """A socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_tls = writer.get_extra_info("ssl_object") is not None
        # What was sent has left: aborting takes nothing back. TLS pauses at its limit, sockets above theirs.
        writer.transport.set_write_buffer_limits(high=1 if is_tls else 0, low=0)
        self._reader = reader
        self._writer = writer
        self._pushed = b""

    async def read(self) -> bytes:
        if self._pushed:
            data, self._pushed = self._pushed, b""
            return data
        return await self._reader.read(CHUNK)

    async def send(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    def push_back(self, data: bytes) -> None:
        self._pushed = data + self._pushed

    @property
    def is_stale(self) -> bool:
        """Whether the other side has ended it."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def end(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            else:
                self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()


class TlsPipe:
    """The server's side of TLS over another pipe."""

    def __init__(self, under: Pipe, context: ssl.SSLContext) -> None:
        self._under = under
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._pushed = b""

    async def handshake(self) -> None:
        """Raises OSError (which SSLError is)."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                return await self._flush()

    async def read(self) -> bytes:
        if self._pushed:
            data, self._pushed = self._pushed, b""
            return data
        while True:
            try:
                data = self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            else:
                if self._outgoing.pending:
                    self._pushed = data  # a reader that is cancelled now must not take it along
                    await self._flush()
                    self._pushed = b""
                return data

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    def push_back(self, data: bytes) -> None:
        self._pushed = data + self._pushed

    async def end(self) -> None:
        with contextlib.suppress(OSError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            await self._flush()
        await self._under.end()

    def abort(self) -> None:
        self._under.abort()

    async def _more(self) -> None:
        data = await self._under.read()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await self._under.send(data)


async def relay(
    one: Pipe, other: Pipe, idle_seconds: float, shown: Callable[[bytes], bytes] | None = None
) -> tuple[int, int]:
    """Carry bytes both ways until both have ended or nothing came for a while; how many each of them sent.

    `shown`: what the one sees of what the other sends.
    """
    counts = [0, 0]
    loop = asyncio.get_running_loop()

    async def carry(source: Pipe, sink: Pipe, at: int) -> None:
        try:
            while data := await source.read():
                idle.reschedule(loop.time() + idle_seconds)
                counts[at] += len(data)
                data = shown(data) if at and shown is not None else data
                if data:
                    await sink.send(data)
            await sink.end()
        except OSError:
            source.abort()
            sink.abort()

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(idle_seconds) as idle, asyncio.TaskGroup() as both:
            both.create_task(carry(one, other, 0))
            both.create_task(carry(other, one, 1))
    return counts[0], counts[1]
