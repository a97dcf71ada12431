"""A journal that fails where a plan says so, around one that does not: disks that fill up, servers that die.

A death before a commit loses the append; one after it keeps the append and loses the answer, which is the harder case.
A dead store refuses everything, as a process that is gone would; open another around the same inner store to go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum

import msgspec

from stateroom.errors import StorageError, StorageFull
from stateroom.journal.entries import Entry, Frame
from stateroom.journal.store import Append, Appended, Branch, ConversationRow, ItemRow, Lease, RunRow
from stateroom.testing.journal_stage import Store


class Fault(StrEnum):
    """What goes wrong with a write."""

    FULL = "full"
    """The disk is full: nothing of it is kept, and later writes may succeed."""
    DIE_BEFORE = "die before"
    """The process dies before the commit."""
    DIE_AFTER = "die after"
    """The process dies after the commit, before anyone is told."""


class Plan(msgspec.Struct, frozen=True):
    """Which writes fail, counted from 0 over everything that writes."""

    faults: Mapping[int, Fault] = {}

    @classmethod
    def seeded(cls, seed: int, *, writes: int, full: float = 0.0, death: bool = True) -> Plan:
        """Of the first `writes`, each fails for want of room with probability `full`; one of them is the last."""
        chance = random.Random(seed)
        faults = {number: Fault.FULL for number in range(writes) if chance.random() < full}
        if death:
            faults[chance.randrange(writes)] = chance.choice((Fault.DIE_BEFORE, Fault.DIE_AFTER))
        return cls(faults)


class StoreDied(StorageError):
    """The plan has come to the store's death: nothing passes any more."""

    code = "store_died"


class FaultyStore:
    """Implements `Journal` and `Index`."""

    def __init__(self, inner: Store, plan: Plan, *, on_death: Callable[[], None] | None = None) -> None:
        self._inner = inner
        self._plan = plan
        self._on_death = on_death
        self.writes = 0
        """How many writes were asked for."""
        self.dead = False

    def append(self, change: Append) -> asyncio.Future[Appended]:
        return asyncio.ensure_future(self._write(lambda: self._inner.append(change)))
