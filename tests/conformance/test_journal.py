"""Every journal passes the conformance suite. A new one adds its name and how it is opened to STORES."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stateroom.clock import Clock
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.sqlite import open_sqlite
from stateroom.testing.faulty_store import FaultyStore, Plan
from stateroom.testing.journal_conformance import CASES
from stateroom.testing.journal_stage import Case, Store, opened

STORES: dict[str, Callable[[Path, Clock], Store]] = {
    "sqlite": lambda folder, clock: open_sqlite(folder / "journal.db", clock=clock),
    "sqlite full": lambda folder, clock: open_sqlite(folder / "journal.db", durability="full", clock=clock),
    "memory": lambda folder, clock: MemoryJournal(clock=clock),
    "faulty without faults": lambda folder, clock: FaultyStore(MemoryJournal(clock=clock), Plan()),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", STORES)
async def test_a_journal_keeps_the_promises_of_the_seam(name: str, case: Case, tmp_path: Path) -> None:
    async with opened(lambda clock: STORES[name](tmp_path, clock)) as stage:
        await case(stage)
