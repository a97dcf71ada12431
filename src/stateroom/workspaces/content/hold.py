"""What must not be swept although nothing refers to it yet: contents that are being written or read.

A sweep deletes what its marking did not reach. In the meantime somebody may find such a thing in the store and build on
it. So whoever does holds it first, and looks for it then: both a hold and each step of a sweep take the same lock, so
that a thing was either held in time, and is spared with all that it consists of, or is gone when it is looked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from stateroom.clock import Clock

_RECENT_MOST: Final = 4096
_RECENT_SECONDS: Final = 3600.0


class Reaching(Protocol):
    """A sweep that goes on."""

    def reach(self, digest: bytes) -> None:
        """Spare this and all that it consists of."""
        ...


class Holds:
    """All holds of one store."""

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.RLock()
        self._clock = clock
        self._active: set[Hold] = set()
        self._recent: dict[bytes, float] = {}
        """What holds let go of, and when: what refers to it may not be written yet."""
        self._sweep: Reaching | None = None

    @contextmanager
    def hold(self, outer: Hold | None = None) -> Iterator[Hold]:
        """A hold for a block; `outer`: one that goes on after it and is to be used instead."""
        if outer is not None:
            yield outer
            return
        hold = Hold(self)
        with self.lock:
            self._active.add(hold)
        try:
            yield hold
        finally:
            with self.lock:
                self._active.discard(hold)

    def keep(self, hold: Hold, digest: bytes) -> None:
        with self.lock:
            hold.held.add(digest)
            if self._sweep is not None:
                self._sweep.reach(digest)

    def remember(self, digest: bytes) -> None:
        """Keep a thing for a while without a hold."""
        with self.lock:
            now = self._clock.now()
            self._recent.pop(digest, None)
            self._recent[digest] = now
            if len(self._recent) > _RECENT_MOST:
                self._recent = {one: at for one, at in self._recent.items() if at > now - _RECENT_SECONDS}

    def begin(self, sweep: Reaching, *, younger_than: float) -> None:
        """From now on the sweep hears of everything that is held; of what is held already, now."""
        with self.lock:
            since = self._clock.now() - younger_than if younger_than > 0 else math.inf
            self._sweep = sweep
            for digest, at in self._recent.items():
                if at >= since:
                    sweep.reach(digest)
            for hold in self._active:
                for digest in hold.held:
                    sweep.reach(digest)

    def end(self) -> None:
        with self.lock:
            self._sweep = None


class Hold:
    """What one block must find when it looks for it again. Made by `Holds.hold`."""

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self.held: set[bytes] = set()

    def keep(self, digest: bytes) -> None:
        """From now on this is not swept, nor what it consists of, if it is there at all."""
        if digest not in self.held:
            self._holds.keep(self, digest)
