"""What the conformance cases of journals play on: a fresh store, a clock that is set, and short ways to say entries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from stateroom.clock import Clock
from stateroom.errors import StorageError
from stateroom.journal.entries import (
    Entry,
    Fact,
    Item,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunSettings,
    RunStarted,
    decode,
    encode,
    kind_of,
)
from stateroom.journal.store import THIS, Append, Appended, Branch, Draft, Index, Journal

P: Final = "project"
OTHER: Final = "other project"


class Store(Journal, Index, Protocol):
    """A journal and its index, which are one object."""


class SetClock:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Stage(msgspec.Struct):
    """What a case plays on."""

    store: Store
    clock: SetClock


Case: TypeAlias = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def opened(open_store: Callable[[Clock], Store]) -> AsyncIterator[Stage]:
    """A stage with a fresh store, closed afterwards."""
    clock = SetClock()
    stage = Stage(open_store(clock), clock)
    try:
        yield stage
    finally:
        await stage.store.close()


def draft(record: Fact, *, run: int = -1, at: int = 1_000) -> Draft:
    """An entry on its way in."""
    return Draft(kind_of(record), encode(record), at, run)


def started(name: str, *items: Item, at: int = 1_000) -> Draft:
    """The first entry of a run."""
    record = RunStarted(name, RunSettings(model="m"), list(items) or [{"role": "user", "content": f"ask {name}"}])
    return draft(record, run=THIS, at=at)


def turn(name: str, text: str = "answer", *, at: int = 1_000) -> list[Draft]:
    """A whole run: started, one item, ended."""
    item = ItemFinished(0, {"role": "assistant", "content": text})
    return [started(name, at=at), draft(item, run=THIS, at=at), draft(RunEnded("completed"), run=THIS, at=at)]


def note(text: str, *, key: str = "", at: int = 1_000) -> Draft:
    """An entry outside any run."""
    return draft(ItemsAdded(key or f"key {text}", [{"role": "user", "content": text}]), at=at)


async def begin(
    store: Journal, branch: str, entries: Sequence[Draft] = (), *, project: str = P, **more: Any
) -> Appended:
    """Create a branch with these entries."""
    return await store.append(
        Append(project, branch, -1, entries, create=Branch(branch, project), **more),
    )


async def refused(error: type[StorageError], waiting: Awaitable[Any]) -> None:
    """Assert that `waiting` raises exactly this."""
    outcome: Any = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert type(outcome) is error, f"{outcome!r} instead of {error.__name__}"


async def texts(store: Journal, branch: str, *, project: str = P, **where: Any) -> list[str]:
    """The notes of a branch, in order."""
    return [said(entry) for entry in await store.read(project, branch, **where)]


def said(entry: Entry) -> str:
    """The text of an entry that `note` made."""
    record = decode(entry.kind, entry.body)
    assert isinstance(record, ItemsAdded), f"a note came back as {entry.kind}"
    return str(record.items[0]["content"])
