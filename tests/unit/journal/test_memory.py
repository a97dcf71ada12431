"""What the journal in memory does beyond the seam: it forgets."""

from __future__ import annotations

import asyncio
import time

import pytest

from stateroom.errors import HeadMoved
from stateroom.journal.entries import ConversationCreated, Frame
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.store import THIS, Append
from stateroom.testing.index_conformance import BLOB
from stateroom.testing.journal_stage import P, begin, draft, note, started, turn


async def test_a_forgotten_branch_leaves_nothing(tmp_path: object) -> None:
    journal = MemoryJournal()
    picture = {"id": "m", "content": [{"blob": BLOB}]}
    entries = [draft(ConversationCreated("conv")), started("resp_1", picture)]
    await begin(journal, "b", entries, frames_run=THIS, frames=[Frame(0, 1, b"x")])
    await begin(journal, "c", turn("resp_2"))
    journal.forget("b")
    journal.forget("nowhere")
    assert await journal.branch(P, "b") is None
    assert await journal.read(P, "b") == []
    assert await journal.frames(P, "b", 1) == []
    assert await journal.run(P, "resp_1") is None
    assert await journal.open_runs() == []
    assert await journal.item(P, "m") is None
    assert await journal.conversation(P, "conv") is None
    assert not await journal.blob_in_use(BLOB)
    assert [row.id for row in await journal.runs(P)] == ["resp_2"]
    with pytest.raises(HeadMoved):
        await journal.append(Append(P, "b", 1, [note("x")]))
    assert (await begin(journal, "b", [note("anew")])).head == 0


async def test_an_append_is_settled_at_once() -> None:
    journal = MemoryJournal()
    future = begin(journal, "b", turn("resp_1"))
    answered = asyncio.ensure_future(future)
    await asyncio.sleep(0)
    assert answered.done()


async def test_many_forgotten_branches_cost_no_more_than_the_first() -> None:
    journal = MemoryJournal()
    for number in range(300):
        await begin(journal, f"kept{number}", turn(f"kept_{number}"))
    began = time.process_time()
    for number in range(2_000):
        await begin(journal, f"b{number}", turn(f"resp_{number}"))
        journal.forget(f"b{number}")
    assert time.process_time() - began < 1.0
    assert len(await journal.runs(P, limit=10_000)) == 300
