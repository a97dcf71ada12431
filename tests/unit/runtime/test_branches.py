"""Active branches: who may write next, what is kept in memory, what erasure leaves of it."""

from __future__ import annotations

import asyncio

import pytest

from stateroom.errors import InvalidRequest, StorageError
from stateroom.journal.entries import Entry, ItemsAdded
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.store import Branch
from stateroom.runtime.branches import ActiveBranch, Branches
from stateroom.runtime.writer import Flusher
from tests.unit.runtime.stage import MovedClock, user

P = "p"


class Slow(MemoryJournal):
    """A journal whose reads can be held up after they were done."""

    def __init__(self) -> None:
        super().__init__(clock=MovedClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = 0

    async def read(
        self, project: str, branch: str, *, after: int = -1, upto: int | None = None, run: int | None = None
    ) -> list[Entry]:
        self.reads += 1
        found = await super().read(project, branch, after=after, upto=upto, run=run)
        await self.gate.wait()
        return found


def branches_on(journal: MemoryJournal, memory_bytes: int = 1 << 28, holder: str = "h") -> Branches:
    return Branches(
        journal, Flusher(0.0), MovedClock(), memory_bytes=memory_bytes, holder=holder, on_fenced=lambda: None
    )


async def written(branches: Branches, count: int = 1, size: int = 10) -> str:
    """A branch with so many items, free again."""
    active = branches.new(P)
    await add(branches, active, count, size)
    branches.done(active)
    return active.branch


async def add(branches: Branches, active: ActiveBranch, count: int = 1, size: int = 10) -> None:
    writer = branches.writer(active)
    for number in range(count):
        writer.add(ItemsAdded(f"k{active.state.head}", [user(f"{number} {'x' * size}")]))
    await writer.commit(release=True)


async def forked(branches: Branches, source: ActiveBranch, seq: int) -> ActiveBranch:
    """A fork of it with an item of its own, free again."""
    fork = branches.fork(source, seq)
    writer = branches.writer(fork)
    writer.add(ItemsAdded(f"of {fork.branch}", [user("own")]))
    await writer.commit(release=True)
    branches.done(fork)
    return fork


async def take(active: ActiveBranch, queue_max: int = 8, wait_seconds: float = 5.0) -> None:
    await active.take(queue_max=queue_max, wait_seconds=wait_seconds)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_writers_take_turns_in_the_order_in_which_they_came() -> None:
    active = ActiveBranch(P, "b", branches_on(MemoryJournal()).new(P).state)
    order: list[int] = []

    async def work(number: int) -> None:
        await take(active)
        order.append(number)
        await asyncio.sleep(0)
        assert active.busy
        active.free()

    await take(active)
    workers = [asyncio.ensure_future(work(number)) for number in range(6)]
    await settle()
    active.free()
    await asyncio.gather(*workers)
    assert order == list(range(6))
    assert not active.busy


async def test_too_many_and_too_long_are_conversation_locked() -> None:
    active = branches_on(MemoryJournal()).new(P)
    with pytest.raises(InvalidRequest) as refused:
        await take(active, queue_max=0)
    assert refused.value.code == "conversation_locked"
    assert refused.value.status == 400
    with pytest.raises(InvalidRequest) as refused:
        await take(active, wait_seconds=0.001)
    assert refused.value.code == "conversation_locked"
    with pytest.raises(InvalidRequest):
        await take(active, wait_seconds=0.0)


async def test_whoever_gave_up_waiting_takes_nobody_elses_place_in_the_queue() -> None:
    active = branches_on(MemoryJournal()).new(P)
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            await take(active, queue_max=2, wait_seconds=0.001)
    waiting = asyncio.ensure_future(take(active, queue_max=2))
    await settle()
    assert not waiting.done()
    active.free()
    await waiting


async def test_a_turn_that_is_handed_to_somebody_who_is_being_cancelled_goes_to_the_next() -> None:
    active = branches_on(MemoryJournal()).new(P)
    first, second = asyncio.ensure_future(take(active)), asyncio.ensure_future(take(active))
    await settle()
    active.free()  # the first has the turn now, and does not know it yet
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    assert active.busy
    active.free()
    assert not active.busy


async def test_cancelling_all_who_wait_leaves_the_branch_free() -> None:
    active = branches_on(MemoryJournal()).new(P)
    waiting = [asyncio.ensure_future(take(active)) for _ in range(5)]
    await settle()
    for each in waiting[::2]:
        each.cancel()
    active.free()
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not active.busy
    assert active.try_take()


async def test_the_memory_bound_drops_the_longest_unused_and_never_one_in_use() -> None:
    branches = branches_on(MemoryJournal(), memory_bytes=60_000)
    busy = branches.new(P)
    await add(branches, busy, size=5_000)
    names = [await written(branches, size=2_000) for _ in range(8)]
    assert await branches.open(P, busy.branch) is busy
    held = [await branches.open(P, name) for name in names[-2:]]
    assert [each.state.items for each in held] != [[], []]
    assert branches._size <= 60_000
    assert branches._size == sum(active.counted for active in branches._active.values())


async def test_a_branch_that_was_dropped_is_folded_to_the_same_again() -> None:
    journal = MemoryJournal()
    branches = branches_on(journal, memory_bytes=1)
    name = await written(branches, count=3)
    before = await branches_on(journal).open(P, name)
    after = await branches.open(P, name)
    assert after.state.items == before.state.items
    assert len(after.state.items) == 3


async def test_whoever_opened_a_branch_that_is_dropped_before_it_is_taken_can_tell() -> None:
    branches = branches_on(MemoryJournal(), memory_bytes=20_000)
    opened = await branches.open(P, await written(branches))
    await written(branches, size=5_000)
    assert opened.stale
    assert await branches.open(P, opened.branch) is not opened


async def test_a_new_branch_that_is_never_written_is_not_kept() -> None:
    journal = MemoryJournal()
    branches = branches_on(journal)
    source = await branches.open(P, await written(branches, size=10_000))
    before = branches._size
    for _ in range(100):
        branches.done(branches.fork(source, 0))
        branches.done(branches.new(P))
    assert branches._size == before
    assert len(branches._active) == 1


async def test_many_who_open_a_branch_at_once_load_it_once_and_get_the_same() -> None:
    journal = Slow()
    name = await written(branches_on(journal))
    branches = branches_on(journal)
    journal.reads = 0
    journal.gate.clear()
    opening = [asyncio.ensure_future(branches.open(P, name)) for _ in range(5)]
    await settle()
    opening[0].cancel()
    await settle()
    journal.gate.set()
    opened = await asyncio.gather(*opening[1:])
    assert len({id(each) for each in opened}) == 1
    assert journal.reads == 1


async def test_a_failed_commit_drops_the_branch_from_memory() -> None:
    journal = MemoryJournal()
    branches, others = branches_on(journal), branches_on(journal, holder="other")
    name = await written(branches)
    mine = await branches.open(P, name)
    theirs = await others.open(P, name)
    assert mine.try_take()
    assert theirs.try_take()
    await add(others, theirs)
    with pytest.raises(StorageError):
        await add(branches, mine)
    branches.done(mine)
    anew = await branches.open(P, name)
    assert anew is not mine
    assert len(anew.state.items) == 2


async def test_a_foreign_branch_reads_as_empty() -> None:
    branches = branches_on(MemoryJournal())
    name = await written(branches)
    assert (await branches.open("somebody else", name)).state.items == []


async def test_what_is_erased_while_a_branch_is_loaded_does_not_come_back() -> None:
    journal = Slow()
    name = await written(branches_on(journal), count=3)
    held = (await branches_on(journal).open(P, name)).state.items[1]
    branches = branches_on(journal)
    journal.gate.clear()
    opening = asyncio.ensure_future(branches.open(P, name))
    await settle()
    await journal.redact(P, name, {1: None}, at=0)
    branches.erase(P, name, frozenset({(held.id, held.seq)}))
    journal.gate.set()
    opened = await opening
    assert [each.seq for each in opened.state.items] == [0, 2]


async def test_a_branch_that_is_forgotten_while_it_is_loaded_is_loaded_again() -> None:
    journal = Slow()
    name = await written(branches_on(journal), count=2)
    branches = branches_on(journal)
    journal.gate.clear()
    opening = asyncio.ensure_future(branches.open(P, name))
    await settle()
    await journal.redact(P, name, {0: None, 1: None}, at=0)
    branches.forget(P, name)
    journal.gate.set()
    assert (await opening).state.items == []
    assert not branches._erased_meanwhile


async def test_erasure_leaves_the_caches_of_other_branches_alone() -> None:
    branches = branches_on(MemoryJournal())
    one = await branches.open(P, await written(branches, count=3))
    other = await branches.open(P, await written(branches, count=3))
    for active in (one, other):
        active.context.extend(active.state.items, {})
        active.context.cache["encoded"] = True
    gone = one.state.items[1]
    branches.erase(P, one.branch, frozenset({(gone.id, gone.seq)}))
    # The ids of both branches are alike here; only the items of one are erased.
    assert gone not in one.state.items
    assert len(other.state.items) == 3
    branches.erase(P, other.branch, frozenset({("msg_nobody", 0)}))
    assert other.context.cache == {"encoded": True}
    assert not other.stale


async def test_erasure_reaches_forks_of_forks_and_not_what_lies_beside_them() -> None:
    journal = MemoryJournal()
    branches = branches_on(journal)
    root = await branches.open(P, await written(branches, count=4))
    child = await forked(branches, root, 2)
    grandchild = await forked(branches, child, 3)
    beside = await forked(branches, root, 0)
    anew = branches_on(journal)  # knows of the line between only by the journal
    loaded = await anew.open(P, grandchild.branch)
    gone = root.state.items[1]
    for seen, holders in ((branches, [root, child, grandchild]), (anew, [loaded])):
        seen.erase(P, root.branch, frozenset({(gone.id, gone.seq)}))
        assert not any(gone in holder.state.items for holder in holders)
    assert not beside.stale
    grandchild = await branches.open(P, grandchild.branch)  # what was touched is folded anew
    own = grandchild.state.items[-1]
    branches.erase(P, grandchild.branch, frozenset({(own.id, own.seq)}))
    assert own not in grandchild.state.items


async def test_erasure_looks_at_no_branch_but_those_that_share_its_place() -> None:
    branches = branches_on(MemoryJournal())
    root = await branches.open(P, await written(branches))
    names = [root.branch, (await forked(branches, root, 0)).branch]
    for _ in range(50):
        await written(branches)
    assert sorted(branches._lineage.below(P, root.branch)) == sorted(names)
    branches.forget(P, names[1])
    assert list(branches._lineage.below(P, root.branch)) == names[:1]


async def test_a_line_is_forgotten_with_the_last_branch_that_descends_from_it() -> None:
    journal = MemoryJournal()
    name = await written(branches_on(journal))
    branches = branches_on(journal, memory_bytes=0)
    fork = await forked(branches, await branches.open(P, name), 0)
    deeper = await forked(branches, fork, 1)
    branches.forget(P, name)
    del fork
    assert branches._lineage.find(P, name) is not None
    branches.forget(P, deeper.branch)
    del deeper
    assert len(branches._lineage._lines) == 0


async def test_erasure_of_one_project_touches_no_other() -> None:
    journal = MemoryJournal()
    branches = branches_on(journal)
    name = await written(branches)
    active = await branches.open(P, name)
    held = active.state.items[0]
    branches.erase("somebody else", name, frozenset({(held.id, held.seq)}))
    branches.forget("somebody else", name)
    assert active.state.items == [held]
    assert not active.stale


async def test_a_fork_shares_what_came_before_and_nothing_else() -> None:
    journal = MemoryJournal()
    branches = branches_on(journal)
    source = await branches.open(P, await written(branches, count=4))
    fork = branches.fork(source, 1)
    await add(branches, fork)
    branches.done(fork)
    assert [held.seq for held in fork.state.items] == [0, 1, 2]
    loaded = await branches_on(journal).open(P, fork.branch)
    assert loaded.state.items == fork.state.items
    assert loaded.state.head == fork.state.head == 2
    assert isinstance(await journal.branch(P, fork.branch), Branch)
