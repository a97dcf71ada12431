"""`Jobs`: what the commands of one workspace left running, and what of it has ended without whoever left it knowing.

Commands are named in the words in which they were asked for, never in those of the sandbox: which of them still run is
all that it is believed. A job that ends while its sandbox goes on has ended by itself, or was killed by a command: that
is nothing to be told. One that ends with its sandbox, or for a limit, is kept until it was told, as are those that a
fork begins without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Final

from stateroom.errors import StateroomError
from stateroom.workspaces.live.folder import LiveFolder

log = logging.getLogger("stateroom.workspaces")

JOBS_MAX: Final = 16
"""Of one workspace. The oldest are forgotten first, and something stands there for them."""
_RUNNING_MAX: Final = 64
"""That are looked at."""
WORDS_MAX: Final = 200
"""Characters of a command."""
MORE: Final = "…"


class Jobs:
    """Those of one workspace."""

    def __init__(self) -> None:
        self._running: dict[int, str] = {}
        self._hit: set[int] = set()
        """Those that ran when processes were ended for a limit: what was killed may take a while to go."""
        self._ended: tuple[str, ...] = ()
        self._told: tuple[str, ...] = ()
        """Which was told; a commit has yet to say so."""

    @property
    def running(self) -> tuple[str, ...]:
        """As far as they were looked at last."""
        return bounded(tuple(self._running.values()))

    @property
    def ended(self) -> tuple[str, ...]:
        """What is to be told."""
        return self._ended

    @property
    def left(self) -> tuple[str, ...]:
        """What is to outlive this process: all of which nobody may know yet that it has ended, once it has."""
        return bounded((*self._told, *self._ended, *self._running.values()))

    def shown(self, *, is_well: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those that run and those that have ended; `is_well`: whether their sandbox is there."""
        return (self.running, self.ended) if is_well else ((), bounded((*self.ended, *self.running)))

    async def keep(self, disk: LiveFolder) -> None:
        """Have `left` on the disk. Nobody else writes there meanwhile."""
        try:
            await asyncio.to_thread(disk.leave, self.left)
        except StateroomError as error:  # what a call has done counts for more than what becomes of its background
            log.warning("workspace.jobs_not_kept path=%s reason=%s", disk.path, error.message)

    def load(self, left: Sequence[str]) -> None:
        """Begin with what was left: nothing of it is running."""
        self._running, self._ended, self._told = {}, bounded(left), ()
        self._hit.clear()

    def began(self, number: int, command: str, *, is_gone: bool = False) -> None:
        """A command has ended and left processes running, by the number that its sandbox gave it.

        `is_gone`: which has ended meanwhile itself.
        """
        if is_gone:
            self._ended = bounded((*self._ended, in_words(command)))
            return
        self._running[number] = in_words(command)
        while len(self._running) > _RUNNING_MAX:
            del self._running[next(iter(self._running))]

    def look(self, alive: Collection[int], *, breach: bool) -> None:
        """Those with other numbers have ended: by themselves, or for a limit."""
        if breach:
            self._hit.update(self._running)
        for number in [each for each in self._running if each not in alive]:
            command = self._running.pop(number)
            if number in self._hit:
                self._ended = bounded((*self._ended, command))

    def stopped(self) -> None:
        """Their sandbox has ended, and they with it."""
        self.look((), breach=True)
        self._hit.clear()

    def take(self) -> tuple[str, ...]:
        """What has ended, for whoever tells it."""
        ended, self._ended = self._ended, ()
        self._told = bounded((*self._told, *ended))
        return ended

    def settle(self) -> None:
        """A commit says that it was told."""
        self._told = ()


def in_words(command: str) -> str:
    """A command in one line."""
    words = " ".join(command.split())
    return words if len(words) <= WORDS_MAX else f"{words[:WORDS_MAX]}{MORE}"


def bounded(commands: Sequence[str]) -> tuple[str, ...]:
    """Each once, the newest of them."""
    different = [each for each in dict.fromkeys(commands) if each != MORE]
    is_more = len(different) > JOBS_MAX or MORE in commands
    return (MORE, *different[-JOBS_MAX:]) if is_more else tuple(different)


def told_of(ended: Sequence[str]) -> str:
    """What whoever works in a workspace is told of them; '' of none."""
    if not ended:
        return ""
    names = "; ".join(each if each == MORE else f"`{each}`" for each in ended)
    why = "the environment was stopped, restarted or forked, or reached a limit"
    return f"[what earlier commands left running has ended, since {why}: {names}]"
