"""Live streams: committed frames, shared by all their readers.

A reader holds a position in the run's list of frames and nothing else, so a slow one costs no memory of its own and
never holds up the run. Nothing gets in here before its commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from stateroom.journal.entries import Frame


class LiveStream:
    """The committed frames of one run, while it runs and while somebody still reads it."""

    def __init__(self, frames: list[Frame] | None = None) -> None:
        self.frames: list[Frame] = frames or []
        self.ended = False
        self.cut = False
        """It ended before the run did: this process gave the run up."""
        self._waiting: set[asyncio.Future[None]] = set()

    def publish(self, frame: Frame) -> None:
        """Give a committed frame to the readers."""
        self.frames.append(frame)
        self._wake()

    def end(self, *, cut: bool = False) -> None:
        """No frame will follow: the run has ended, or (`cut`) this process gives it up."""
        self.ended = True
        self.cut = self.cut or cut
        self._wake()

    async def follow(self, after: int) -> AsyncGenerator[Frame, None]:
        """Frames with events beyond `after`, then live ones, until the end. A first frame may begin before it."""
        position = 0
        while True:
            while position < len(self.frames):
                frame = self.frames[position]
                position += 1
                if frame.last > after:
                    yield frame
            if self.ended:
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
