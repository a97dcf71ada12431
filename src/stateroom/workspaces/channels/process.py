"""One process in a sandbox, as seen from outside: its streams, its end, and what it leaves running."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from stateroom.workspaces.inside import agent as wire

if TYPE_CHECKING:
    from stateroom.workspaces.channels.agent import Agent

Stream: TypeAlias = Literal["stdout", "stderr"]

WINDOW: Final = 262_144
"""Bytes of one process that the agent may send ahead of whoever reads them."""
_PIECES: Final = 1_024


class Job(msgspec.Struct, frozen=True):
    """Processes that outlived the command that started them."""

    number: int
    command: str
    log: str
    """Where in the sandbox their output goes from then on; empty: nobody holds the command's output open."""
    pids: tuple[int, ...]
    """As numbered inside. Empty: all have ended."""


class Finished(msgspec.Struct, frozen=True):
    """What came of a command that was waited for."""

    code: int | None
    """Negative: the signal that ended it. None: it was killed because its time was over."""
    stdout: bytes
    stderr: bytes
    dropped: dict[Stream, int]
    """Bytes left out of the middle."""
    job: Job | None


class Process:
    """One process, and all that it starts. Read its output or wait for it: one that nobody reads comes to a halt."""

    def __init__(self, agent: Agent, number: int, allowed: int | None) -> None:
        self._agent = agent
        self._number = number
        self._granted = WINDOW
        self._owed = 0
        self._allowed = allowed
        self._gaps: set[Stream] = set()
        self._pieces: deque[tuple[Stream, bytearray | int]] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._unacknowledged = 0
        self._code: int | None = None
        self._ended = False
        self._is_read = False
        self._discards = False
        self.pid = 0
        """As numbered inside."""
        self.dropped: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        """Bytes left out of the middle, as far as `read` has come."""
        self.killed = False
        self.job: Job | None = None
        """What it left running; known once it has ended."""

    async def read(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Its output as it comes, to the end. Raises SandboxFailed."""
        self._is_read = True
        while True:
            while self._pieces:
                stream, piece = self._pieces.popleft()
                if isinstance(piece, int):
                    self.dropped[stream] += piece
                else:
                    self._took(len(piece))
                    yield stream, bytes(piece)
            if self._ended:
                return
            self._agent.check()
            self._news.clear()
            await self._news.wait()

    async def write(self, data: bytes) -> None:
        """Give it input, at the pace it takes it. What it no longer wants is dropped. Raises SandboxFailed."""
        for at in range(0, len(data), wire.BODY_BYTES):
            part = data[at : at + wire.BODY_BYTES]
            while self._unacknowledged + len(part) > wire.INPUT_WINDOW and not self._ended:
                self._agent.check()
                self._room.clear()
                await self._room.wait()
            if self._ended:
                return
            self._unacknowledged += len(part)
            self._agent.send(wire.INPUT, self._number, part)

    def close_stdin(self) -> None:
        if not self._ended:
            self._agent.send(wire.INPUT_END, self._number)

    def signal(self, number: int) -> None:
        """To its process group."""
        if not self._ended:
            self._agent.send(wire.SIGNAL, self._number, b"%d" % number)

    def kill(self) -> None:
        """End it and everything that came of it, background and all."""
        if not self._ended:
            self._agent.send(wire.KILL, self._number)

    async def wait(self) -> int:
        """Its exit code; negative: the signal that ended it. Output that nobody reads is dropped.

        Raises SandboxFailed.
        """
        if not self._is_read:
            self._discards = True
            self._drop_pieces()
        while not self._ended:
            self._agent.check()
            self._news.clear()
            await self._news.wait()
            if self._discards:
                self._drop_pieces()
        return self._code or 0

    @property
    def has_ended(self) -> bool:
        return self._ended

    def _drop_pieces(self) -> None:
        while self._pieces:
            stream, piece = self._pieces.popleft()
            self.dropped[stream] += piece if isinstance(piece, int) else len(piece)
            self._took(0 if isinstance(piece, int) else len(piece))

    def _took(self, count: int) -> None:
        self._owed += count
        if self._owed >= WINDOW // 4 and not self._ended:
            self._granted += self._owed
            self._agent.send(wire.CREDIT, self._number, b"%d" % self._owed)
            self._owed = 0

    def output(self, stream: Stream, data: bytes) -> None:
        """The agent sent some. Raises ValueError."""
        if not data or len(data) > self._granted:
            raise ValueError("output that was not asked for")
        self._granted -= len(data)
        if self._allowed is not None:
            self._allowed -= len(data)
            if self._allowed < 0:
                raise ValueError("more output than was to be kept")
        if self._discards:
            self._took(len(data))
            return
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last[0] == stream and isinstance(last[1], bytearray):
            last[1].extend(data)
        elif len(self._pieces) >= _PIECES:  # their order is worth less than the memory of a thousand tiny pieces
            self._into_an_earlier(stream, data)
        else:
            self._pieces.append((stream, bytearray(data)))
        self._news.set()

    def _into_an_earlier(self, stream: Stream, data: bytes) -> None:
        for earlier, piece in reversed(self._pieces):
            if earlier == stream and isinstance(piece, bytearray):
                piece.extend(data)
                return
        raise ValueError("more gaps than output")

    def gap(self, stream: Stream, count: int) -> None:
        """Raises ValueError. There is one in each stream at most: it is what lies between its two ends."""
        if self._allowed is None or count <= 0 or stream in self._gaps:
            raise ValueError("a gap in what is to be complete")
        self._gaps.add(stream)
        self._pieces.append((stream, count))
        self._news.set()

    def acknowledged(self, count: int) -> None:
        """Raises ValueError."""
        if not 0 < count <= self._unacknowledged:
            raise ValueError("input that was not sent has arrived")
        self._unacknowledged -= count
        self._room.set()

    def exited(self, code: int, killed: bool, job: Job | None) -> None:
        self._code, self.killed, self.job = code, killed, job
        self._ended = True
        self.wake()

    def wake(self) -> None:
        self._news.set()
        self._room.set()


def after_gap(count: int) -> bytes:
    return b"\n[... %d bytes left out ...]\n" % count if count else b""
