"""What containers name of the content store is known in full at every look, and each note is read once."""

from __future__ import annotations

import asyncio

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.clock import SystemClock
from stateroom.runtime.containers.named import NamedContent
from stateroom.runtime.containers.state import (
    COLLECTION,
    CommitNote,
    Container,
    EgressNote,
    ExecNote,
    Head,
    read_note,
)
from stateroom.runtime.records import Held, Records
from stateroom.testing.journal_stage import P
from stateroom.workspaces.egress.decisions import Decision
from tests.unit.runtime.journals import CountedJournal

NAMES = ("cntr_a", "cntr_b")
steps = st.lists(
    st.tuples(
        st.sampled_from(["commit", "commit", "commit", "look", "look", "exec", "egress", "thin", "drop"]),
        st.integers(0, 1),
        st.integers(0, 40),
    ),
    max_size=60,
)


class Scene:
    """Containers, and what they name by a look at everything."""

    def __init__(self, remembered_bytes: int = 1_000_000) -> None:
        self.journal = CountedJournal()
        blobs = MemoryBlobs()
        records = Records(self.journal, self.journal, blobs, HeldBlobs(blobs), SystemClock())
        self.containers = records.collection(COLLECTION, Container)
        self.names = NamedContent(self.containers, remembered_bytes=remembered_bytes)

    async def there(self, name: str) -> Held[Container]:
        return await self.containers.get(P, name) or await self.containers.create(P, name, Container(name))

    async def commit(self, held: Held[Container], tree: str, interpreter: str = "") -> None:
        note = CommitNote(f"wsc_{tree}", tree, 0, "exec", interpreter)

        def change(now: Held[Container]) -> Container:
            return msgspec.structs.replace(now.state, head=Head(note.id, tree, interpreter))

        await self.containers.update(P, held.id, change, also=[self.containers.noted(held.id, note)])

    async def look(self, held: Held[Container]) -> set[str]:
        return set((await self.names.of(held)).digests(held))

    async def truth(self, held: Held[Container]) -> set[str]:
        notes = [read_note(raw) for raw in await self.containers.notes(P, held.id)]
        named = {digest for note in notes if isinstance(note, CommitNote) for digest in (note.tree, note.interpreter)}
        head = held.state.head
        return (named | (set() if head is None else {head.tree, head.interpreter})) - {""}


def digest(number: int) -> str:
    return f"{number:064x}"


@given(steps, st.sampled_from([0, 600, 1_500, 1_000_000]))
async def test_nothing_that_is_named_is_ever_missed(said: list[tuple[str, int, int]], remembered_bytes: int) -> None:
    scene = Scene(remembered_bytes)
    gone: set[str] = set()
    for what, which, number in [*said, *[("look", place, 0) for place in range(2)]]:
        held = await scene.there(NAMES[which])
        match what:
            case "commit":
                await scene.commit(held, digest(number), digest(number + 100) if number % 3 == 0 else "")
            case "exec":
                await scene.containers.note(P, held.id, ExecNote("x", "true", 0))
            case "egress":
                decision = Decision("egr_1", "a.example", 443, "allowed", "", 0, 0)
                await scene.containers.note(P, held.id, EgressNote((decision,)))
            case "thin":

                def is_old(raw: msgspec.Raw, bound: int = number) -> bool:
                    note = read_note(raw)
                    return isinstance(note, CommitNote) and int(note.tree, 16) < bound

                gone |= await scene.truth(held)
                await scene.containers.erase_old_notes(P, held.id, is_old)
                if number % 2:
                    scene.names.forget(held)
            case "drop":
                gone |= await scene.truth(held)
                await scene.containers.drop(P, held.id)
            case "look":
                found, truth = await scene.look(held), await scene.truth(held)
                assert truth <= found <= truth | gone
        if number % 7 == 0:
            scene.names.keep_only({(P, name) for name in NAMES[:1]})


async def test_a_note_is_read_once() -> None:
    scene = Scene()
    held = await scene.there("cntr_a")
    for number in range(200):
        await scene.commit(held, digest(number % 50))
    assert len(await scene.look(held)) == 50
    scene.journal.notes = 0
    for _ in range(5):
        assert len(await scene.look(held)) == 50
    assert scene.journal.notes == 0
    await scene.commit(held, digest(77))
    assert digest(77) in await scene.look(held)
    assert scene.journal.notes == 1
    assert (await scene.names.of(held)).commits == 201


async def test_what_finds_no_room_is_read_each_time_and_makes_room_for_nothing() -> None:
    scene = Scene(remembered_bytes=1_000)
    small, large = await scene.there("cntr_a"), await scene.there("cntr_b")
    await scene.commit(small, digest(1))
    for number in range(40):
        await scene.commit(large, digest(number))
    for _ in range(2):
        scene.journal.notes = 0
        assert len(await scene.look(large)) == 40
        assert len(await scene.look(small)) == 1
    assert scene.journal.notes == 40
    scene.names.keep_only(set())
    scene.journal.notes = 0
    await scene.look(small)
    assert scene.journal.notes == 1


async def test_looks_beside_commits_know_all_that_was_there_when_they_began() -> None:
    scene = Scene()
    held = await scene.there("cntr_a")

    async def commit() -> None:
        for number in range(300):
            await scene.commit(held, digest(number))
            await asyncio.sleep(0)

    async def look() -> None:
        while not committing.done():
            truth = await scene.truth(held)
            assert truth <= await scene.look(held)
            await asyncio.sleep(0)

    committing = asyncio.ensure_future(commit())
    await asyncio.gather(committing, look(), look())
    assert len(await scene.look(held)) == 300
