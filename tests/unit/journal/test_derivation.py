"""The index is only an index: derived anew after any history, on disk and in memory, it answers the same."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stateroom.journal.entries import (
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    Entry,
    Fact,
    ItemAbandoned,
    ItemFinished,
    ItemsAdded,
    RecordDropped,
    RecordNoted,
    RecordPut,
    RunEnded,
    RunSettings,
    RunStarted,
    decode,
    encode,
    kind_of,
)
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.store import Append, Branch, Draft
from stateroom.journal.verify import verify_data
from stateroom.testing.index_conformance import index_answers
from stateroom.testing.journal_stage import Store

PROJECTS = ("p", "q")
NAMES = ("n0", "n1", "n2", "ab" * 32)
"""Few on purpose, so that ids meet again and the latest has to win."""

names = st.sampled_from(NAMES)
items = st.builds(
    lambda name, blob: {**({"id": name} if name else {}), "content": [{"blob": blob}] if blob else "said"},
    st.none() | names,
    st.none() | names,
)
item_lists = st.lists(items, max_size=3)
metadata = st.dictionaries(names, names, max_size=2)
collections = st.sampled_from(["c0", "c1"])
states = names.map(lambda name: msgspec.Raw(msgspec.json.encode({"said": name})))
blob_lists = st.lists(names, max_size=2)
puts = st.builds(RecordPut, collections, names, states, st.booleans(), st.sampled_from([0, 5, 9]), blob_lists)
records: st.SearchStrategy[Fact] = st.one_of(
    st.builds(RunStarted, names, st.builds(RunSettings, tools_blob=st.just("") | names), item_lists),
    st.builds(ItemFinished, st.integers(0, 9), items),
    st.builds(RunEnded, st.sampled_from(["completed", "failed", "odd"])),
    st.builds(RunEnded, st.sampled_from(["completed", "cancelled"])),
    st.builds(ItemsAdded, names, item_lists),
    st.builds(ConversationCreated, names, metadata, st.just("") | names),
    st.builds(ConversationUpdated, metadata),
    st.builds(ConversationDeleted, names),
    st.builds(ItemAbandoned, st.integers(0, 9)),
    puts,
    puts,
    st.builds(RecordNoted, collections, names, states, blob_lists),
    st.builds(RecordDropped, collections, names),
)


class Write(msgspec.Struct, frozen=True):
    """Append to one of the branches there are, or to a new one, or to a fork; the numbers pick each entry's run."""

    target: int
    fork_at: int
    fresh: bool
    project: int
    entries: Sequence[tuple[Fact, int]]


class Redact(msgspec.Struct, frozen=True):
    """Erase or rewrite one entry."""

    target: int
    seq: int
    erase: bool


steps = st.lists(
    st.one_of(
        st.builds(
            Write,
            st.integers(0, 9),
            st.integers(-5, 5),
            st.sampled_from([True, False, False]),
            st.integers(0, 1),
            st.lists(st.tuples(records, st.integers(-1, 3)), min_size=1, max_size=5),
        ),
        st.builds(Redact, st.integers(0, 3), st.integers(0, 7), st.booleans()),
    ),
    max_size=25,
)


class History:
    """Carries the same steps out on any store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.branches: list[tuple[str, str]] = []
        self.heads: dict[str, int] = {}
        self.starts: dict[str, list[int]] = {}

    async def take(self, step: Write | Redact) -> None:
        if isinstance(step, Write):
            await self.write(step)
        elif self.branches:
            await self.redact(step)

    async def write(self, step: Write) -> None:
        create = None
        if step.fresh or not self.branches:
            create = self.new_branch(step)
            project, name = create.project, create.id
            self.heads[name] = create.parent_seq
            self.branches.append((project, name))
        else:
            project, name = self.branches[step.target % len(self.branches)]
        first = self.heads[name] + 1
        drafts = []
        for record, run in step.entries:
            seq = first + len(drafts)
            starts = self.starts.setdefault(name, [])
            if isinstance(record, RunStarted):
                starts.append(seq)
                run = len(starts) - 1
            place = starts[run % len(starts)] if starts and run >= 0 else -1
            drafts.append(Draft(kind_of(record), encode(record), 1_000, place))
        await self.store.append(Append(project, name, first - 1, drafts, create=create))
        self.heads[name] += len(drafts)

    def new_branch(self, step: Write) -> Branch:
        name = f"b{len(self.branches)}"
        if step.fork_at < 0 or not self.branches:
            return Branch(name, PROJECTS[step.project])
        project, parent = self.branches[step.target % len(self.branches)]
        return Branch(name, project, parent, min(step.fork_at, self.heads[parent]))

    async def redact(self, step: Redact) -> None:
        project, name = self.branches[step.target % len(self.branches)]
        found = await self.store.read(project, name, after=step.seq - 1, upto=step.seq)
        if not found:
            return
        body = None if step.erase else rewritten(found[0])
        await self.store.redact(project, name, {step.seq: body}, at=2_000)

    async def answers(self) -> dict[str, Any]:
        branches = [name for _, name in self.branches]
        found = await index_answers(self.store, PROJECTS, branches, NAMES)
        found["entries"] = [await self.store.read(project, name) for project, name in self.branches]
        return found


def rewritten(entry: Entry) -> bytes | None:
    """Another body for an entry; None for kinds that are only ever erased. Records stay the same ones."""
    said = decode(entry.kind, entry.body)
    if isinstance(said, RecordPut):
        return encode(RecordPut(said.collection, said.id, msgspec.Raw(b"{}"), True, 7, ["n1"]))
    if isinstance(said, RecordNoted):
        return encode(RecordNoted(said.collection, said.id, msgspec.Raw(b"{}"), ["n2"]))
    bodies: dict[str, Fact] = {
        "run.started": RunStarted("n2", RunSettings(), [{"id": "n0", "content": "a rewritten input " * 9}]),
        "item.finished": ItemFinished(0, {"type": "erased"}),
        "run.ended": RunEnded("failed"),
        "items.added": ItemsAdded("n1", [{"type": "erased"}]),
        "conversation.updated": ConversationUpdated({"rewritten": "yes"}),
    }
    return encode(bodies[entry.kind]) if entry.kind in bodies else None


async def play(history: Sequence[Write | Redact], folder: Path) -> None:
    disk, memory = History(open_sqlite(folder / "journal.db")), History(MemoryJournal())
    try:
        for step in history:
            await disk.take(step)
            await memory.take(step)
        told = await disk.answers()
        assert await memory.answers() == told
        report = verify_data(folder, lambda *_: None)
        assert [finding for finding in report.findings if finding.part not in ("blob", "key")] == []
        await disk.store.rebuild()
        await memory.store.rebuild()
        assert await disk.answers() == told
        assert await memory.answers() == told
    finally:
        await disk.store.close()


EXAMPLES = int(os.environ.get("EXAMPLES", "60"))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=steps)
def test_an_index_derived_anew_answers_as_before_after_any_history(history: Sequence[Write | Redact]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(history, Path(folder)))
