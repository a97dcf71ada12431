"""Frames to and from one kernel, over a process of the sandbox. What comes is bounded before it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Literal, Protocol

from stateroom.workspaces.inside.kernel import frames

_SAID_BYTES = 4096
_PIECE = 256 * 1024
_AT_ONCE = 64
"""Frames that are seen to before others have their turn."""


class Process(Protocol):
    """A process in the sandbox: `agent_client.Process`."""

    def read(self) -> AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]: ...

    async def write(self, data: bytes, /) -> None: ...

    def signal(self, number: int, /) -> None:
        """To its whole group."""
        ...

    def kill(self) -> None:
        """End it and everything that came of it."""
        ...

    @property
    def has_ended(self) -> bool: ...

    async def wait(self) -> int: ...


class KernelChannel:
    """Between one kernel and one caller at a time."""

    def __init__(self, process: Process) -> None:
        self.is_broken = False
        self.said = ""
        """The end of what it wrote to its own stderr: why it could not start."""
        self._process = process
        self._pieces = process.read()
        self._reading: asyncio.Future[tuple[str, bytes]] | None = None
        self._parser = frames.Parser(frames.LIMITS)
        self._at_once = 0
        self._owed: bytes | None = None
        self._hurry: asyncio.Future[None] | None = None

    async def send(self, kind: bytes, body: bytes, *, within: float) -> None:
        """Raises Broken when it takes no more."""
        data = frames.header(kind, len(body)) + body
        try:
            async with asyncio.timeout(within):
                for at in range(0, len(data), _PIECE):
                    await self._process.write(data[at : at + _PIECE])
        except TimeoutError:
            self.is_broken = True
            raise frames.Broken("it does not listen") from None
        except asyncio.CancelledError:
            self.is_broken = True  # who knows how much of the frame it has got
            raise
        except Exception as error:  # the transport's own: whatever it is, this kernel cannot be spoken to
            self.is_broken = True
            raise frames.Broken(str(error) or type(error).__name__) from error

    async def receive(self, deadline: float, *, hurried: bool = False) -> tuple[bytes, bytes] | None:
        """The next frame; None at the deadline, or, if `hurried`, when somebody calls `hurry`. Raises Broken."""
        while True:
            try:
                frame = self._parser.next()
            except frames.Broken:
                self.is_broken = True
                raise
            if frame is not None:
                self._at_once += 1
                if self._at_once >= _AT_ONCE:  # one piece can hold thousands
                    self._at_once = 0
                    await asyncio.sleep(0)
                return frame
            if not await self._more(deadline, hurried):
                return None

    def hurry(self) -> None:
        """Have `receive` return."""
        if self._hurry is not None and not self._hurry.done():
            self._hurry.set_result(None)

    def owes(self, kind: bytes) -> None:
        """An answer of this kind may still come, which nobody waits for any more."""
        self._owed = kind

    async def is_idle(self, within: float) -> bool:
        """Whether it lives and nothing that was asked earlier is still on its way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within if self._owed else loop.time()
        if self.is_broken:
            return False
        try:
            while True:
                frame = await self.receive(deadline)
                if frame is None:
                    return self._owed is None
                if frame[0] == self._owed:
                    self._owed = None
                    deadline = loop.time()
                elif frame[0] != frames.STATE or self._owed is None:
                    self.is_broken = True
                    return False
        except frames.Broken:
            return False

    @property
    def is_alive(self) -> bool:
        return not self.is_broken and not self._process.has_ended

    def interrupt(self) -> None:
        """What it does now is to end; the variables are to stay."""
        self._process.signal(signal.SIGINT)

    async def end(self) -> None:
        """Kill it with its group, and forget what it still says."""
        self.is_broken = True
        self._process.kill()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            with contextlib.suppress(Exception):  # its own affair
                await close()
        with contextlib.suppress(Exception):  # as above
            async with asyncio.timeout(5):
                await self._process.wait()

    async def _more(self, deadline: float, hurried: bool) -> bool:
        """Whether something came before the deadline. A read is never cancelled: that would end the iterator."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(_next(self._pieces))
        waited: set[asyncio.Future[Any]] = {self._reading}
        loop = asyncio.get_running_loop()
        if hurried:
            self._hurry = self._hurry or loop.create_future()
            waited.add(self._hurry)
        await asyncio.wait(waited, timeout=max(deadline - loop.time(), 0), return_when=asyncio.FIRST_COMPLETED)
        if not self._reading.done():
            self._hurry = None
            return False
        reading, self._reading = self._reading, None
        try:
            stream, data = reading.result()
        except Exception as error:  # the end, or the transport's own: no more will come
            self.is_broken = True
            raise frames.Broken("it has ended") from error
        if stream == "stdout":
            self._parser.feed(data)
        else:
            self.said = (self.said + data.decode(errors="replace"))[-_SAID_BYTES:]
        return True


def _next(pieces: AsyncIterator[tuple[Literal["stdout", "stderr"], bytes]]) -> Coroutine[Any, Any, tuple[str, bytes]]:
    async def read() -> tuple[str, bytes]:
        try:
            return await anext(pieces)
        except StopAsyncIteration:
            raise EOFError from None

    return read()
