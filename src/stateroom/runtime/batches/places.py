"""Which batch may have its next request answered: few at a time, in fair shares, and behind whoever waits for answers.

A place that is free goes to the project that has the fewest, and within it to the batch that has the fewest. Runs that
are no batch's take places away, down to a single one: so batches use what others leave, and never come to rest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

LOOK_SECONDS: Final = 0.2
"""How long after others took the places away it is looked whether they still need them."""


class _Waiting:
    __slots__ = ("batch", "granted", "most", "project")

    def __init__(self, project: str, batch: str, most: int) -> None:
        self.project = project
        self.batch = batch
        self.most = most
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Places:
    """The places of this process."""

    def __init__(self, count: int, runs: Callable[[], int]) -> None:
        """`runs`: how many runs go on in this process, those of batches among them."""
        self._count = count
        self._runs = runs
        self._waiting: list[_Waiting] = []
        self._of_project: Counter[str] = Counter()
        self._of_batch: Counter[str] = Counter()
        self._taken = 0
        self._runs_taken = 0
        """Places whose requests are runs."""
        self._looking: asyncio.TimerHandle | None = None

    async def take(self, project: str, batch: str, *, most: int = 0, run: bool) -> None:
        """Wait for a place. `most`: as many as the project may have, 0 for all. `run`: the request is one."""
        waiting = _Waiting(project, batch, most)
        self._waiting.append(waiting)
        self._grant()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if not waiting.granted.cancelled():
                self._give(project, batch)  # it was granted, and is not needed any more
            raise
        self._runs_taken += run

    def give(self, project: str, batch: str, *, run: bool) -> None:
        """Give a place back."""
        self._runs_taken -= run
        self._give(project, batch)

    def _give(self, project: str, batch: str) -> None:
        self._taken -= 1
        for counter, name in ((self._of_project, project), (self._of_batch, batch)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]
        self._grant()

    def _grant(self) -> None:
        self._waiting = [each for each in self._waiting if not each.granted.done()]
        while self._waiting and self._taken < self._free():
            able = [each for each in self._waiting if not each.most or self._of_project[each.project] < each.most]
            if not able:
                return
            next_ = min(able, key=lambda each: (self._of_project[each.project], self._of_batch[each.batch]))
            self._waiting.remove(next_)
            self._taken += 1
            self._of_project[next_.project] += 1
            self._of_batch[next_.batch] += 1
            next_.granted.set_result(None)
        if self._waiting and self._taken < self._count and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        self._grant()

    def _free(self) -> int:
        """How many places there are at this moment."""
        return max(1, self._count - max(0, self._runs() - self._runs_taken))
