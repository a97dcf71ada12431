"""What is erased is gone: from entries, frames, index, blobs and from memory, and nothing else goes with it."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, NotFound, StorageError
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.sqlite import open_sqlite
from stateroom.models.backend import TextDelta
from stateroom.testing.faulty_store import Fault, FaultyStore, Plan
from tests.unit.runtime.stage import CountedTool, MovedClock, Stage, calls, picture, says, text_of, until, user

COUNTED = [{"type": "stateroom:counted"}]


async def everything(stage: Stage, *branches: str) -> bytes:
    """All bodies of these branches, and the frames of their runs."""
    found = []
    for branch in branches:
        for entry in await stage.journal.read("p", branch):
            found.append(entry.body)
            found += [frame.body for frame in await stage.journal.frames("p", branch, entry.seq)]
    return b"".join(found)


async def branch_of(stage: Stage, conversation: Any) -> str:
    return (await stage.journal.conversation("p", conversation.id)).branch


async def texts(stage: Stage, conversation: Any) -> list[str]:
    return [text_of(held.item) for held in await stage.conversations.items("p", conversation.id)]


def in_memory(stage: Stage) -> str:
    """Everything that active branches hold."""
    return str(
        [
            (held.item, active.context.cache)
            for active in stage.branches._active.values()
            for held in [*active.state.items, *active.context.items]
        ]
    )


async def test_a_deleted_response_is_gone_from_the_journal_the_stream_the_blobs_and_memory() -> None:
    stage = Stage(says("answer-secret"))
    asked = [picture(), user("question-secret")]
    run = await stage.ask(
        asked, stream=True, instructions="instruction-secret " * 50, tools=[_tool("tool-secret" * 60)]
    )
    assert len(stage.blobs._kept) == 3
    await stage.runs.delete("p", run.id)
    assert b"secret" not in await everything(stage, run.branch.branch)
    assert "secret" not in in_memory(stage)
    assert stage.blobs._kept == {}
    for call in (stage.runs.view, stage.runs.delete, stage.runs.input_items):
        with pytest.raises(NotFound):
            await call("p", run.id)
    with pytest.raises(InvalidRequest):
        await stage.start("x", previous=run.id)


def _tool(description: str) -> dict[str, Any]:
    return {"type": "function", "name": "f", "description": description, "parameters": {"type": "object"}}


async def test_a_response_is_erased_wherever_it_is_seen_and_its_neighbours_stay() -> None:
    stage = Stage(says("a1"), says("a2-secret"), says("a3"))
    conversation = await stage.conversations.create("p", metadata={}, items=[user("begin")])
    await stage.ask("1", conversation=conversation.id)
    second = await stage.ask("2-secret", conversation=conversation.id)
    fork = await stage.conversations.fork("p", conversation.id)
    third = await stage.ask("3", conversation=conversation.id)
    await stage.runs.delete("p", second.id)
    assert await texts(stage, conversation) == ["begin", "1", "a1", "3", "a3"]
    assert await texts(stage, fork) == ["begin", "1", "a1"]
    await stage.ask("4", conversation=conversation.id)
    await stage.ask("5", conversation=fork.id)
    assert stage.backend.asked[3].texts() == ["begin", "1", "a1", "3", "a3", "4"]
    assert stage.backend.asked[4].texts() == ["begin", "1", "a1", "5"]
    await stage.ask("6", previous=third.id)
    assert "secret" not in str([each.texts() for each in stage.backend.asked[3:]])
    assert "secret" not in in_memory(stage)
    later = Stage(journal=stage.journal, blobs=stage.blobs, clock=stage.clock)
    assert await texts(later, fork) == ["begin", "1", "a1", "5", "ok"]


async def test_erasing_while_a_run_is_live_does_not_disturb_it_and_what_follows_does_not_see_it() -> None:
    gate = asyncio.Event()
    stage = Stage(says("a1-secret"), [[TextDelta("half")], gate, *says(" whole")], says("a3"))
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    first = await stage.ask("1-secret", conversation=conversation.id)
    live = await stage.start("2", conversation=conversation.id, background=True)
    await until(lambda: live.assembler is not None and live.assembler.size > 0)
    await asyncio.wait_for(stage.runs.delete("p", first.id), 5)
    gate.set()
    await asyncio.wait_for(asyncio.shield(live.done), 5)
    assert live.failure is None
    assert await texts(stage, conversation) == ["2", "half whole"]
    await stage.ask("3", conversation=conversation.id)
    assert stage.backend.asked[2].texts() == ["2", "half whole", "3"]
    assert "secret" not in in_memory(stage)


async def test_a_live_run_that_calls_again_after_an_erasure_does_not_show_the_model_what_is_gone() -> None:
    tool = CountedTool()
    tool.gate = asyncio.Event()
    stage = Stage(calls("counted"), says("fine"), says("done"), tools=[tool])
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    tool.gate.set()
    first = await stage.ask("1-secret", conversation=conversation.id, tools=COUNTED)
    tool.gate.clear()
    stage.backend.answers.extend([calls("counted"), says("end")])
    stage.backend.answers.popleft()
    live = await stage.start("2", conversation=conversation.id, tools=COUNTED)
    await until(lambda: len(tool.made) == 2)
    await stage.runs.delete("p", first.id)
    tool.gate.set()
    await asyncio.wait_for(asyncio.shield(live.done), 5)
    last = stage.backend.asked[-1].texts()
    assert "counted 1" not in last
    assert "1-secret" not in last
    assert last == ["2", "{}", "counted 2"]


async def test_the_outcome_of_a_hosted_call_goes_with_its_item() -> None:
    tool = CountedTool()
    stage = Stage(calls("counted"), says("fine"), tools=[tool])
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    await stage.ask("1", conversation=conversation.id, tools=COUNTED)
    held = await stage.conversations.items("p", conversation.id)
    await stage.conversations.delete_item("p", conversation.id, held[1].id)
    assert b"counted 1" not in await everything(stage, await branch_of(stage, conversation))
    assert [text_of(each.item) for each in await stage.conversations.items("p", conversation.id)] == ["1", "fine"]


async def test_a_deleted_item_is_gone_and_its_neighbours_keep_their_ids() -> None:
    stage = Stage(says("answer"))
    conversation = await stage.conversations.create("p", metadata={}, items=[user("a"), user("b-secret"), user("c")])
    await stage.ask([user("d"), user("e")], conversation=conversation.id)
    before = await stage.conversations.items("p", conversation.id)
    for gone in (1, 3, 5):
        await stage.conversations.delete_item("p", conversation.id, before[gone].id)
        with pytest.raises(NotFound):
            await stage.conversations.item("p", conversation.id, before[gone].id)
        with pytest.raises(NotFound):
            await stage.conversations.delete_item("p", conversation.id, before[gone].id)
    kept = [(held.id, text_of(held.item)) for held in before[::2]]
    later = Stage(journal=stage.journal, blobs=stage.blobs, clock=stage.clock)
    for each in (stage, later):
        held = await each.conversations.items("p", conversation.id)
        assert [(one.id, text_of(one.item)) for one in held] == kept
    assert b"secret" not in await everything(stage, await branch_of(stage, conversation))
    with pytest.raises(NotFound):
        await stage.start([{"type": "item_reference", "id": before[1].id}])


async def test_an_item_whose_id_was_also_used_in_a_failed_run_is_deleted_where_it_is_seen() -> None:
    from stateroom.errors import BackendFailed

    stage = Stage([BackendFailed("broke")], says("fine"))
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    same = {**user("twice-secret"), "id": "msg_mine"}
    await stage.ask([same], conversation=conversation.id)
    await stage.ask([same], conversation=conversation.id)
    assert await texts(stage, conversation) == ["twice-secret", "fine"]
    await stage.conversations.delete_item("p", conversation.id, "msg_mine")
    later = Stage(journal=stage.journal, clock=stage.clock)
    assert await texts(later, conversation) == ["fine"]


async def test_a_deleted_conversation_leaves_what_its_forks_need_and_the_last_fork_takes_the_rest() -> None:
    stage = Stage(says("a1"), says("a2-secret"))
    conversation = await stage.conversations.create("p", metadata={}, items=[user("shared")])
    await stage.ask("1", conversation=conversation.id)
    fork = await stage.conversations.fork("p", conversation.id)
    await stage.ask("2-secret", conversation=conversation.id)
    own, forked = await branch_of(stage, conversation), await branch_of(stage, fork)
    await stage.conversations.delete("p", conversation.id)
    with pytest.raises(NotFound):
        await stage.conversations.get("p", conversation.id)
    held = await everything(stage, own)
    assert b"secret" not in held
    assert b"shared" in held
    assert await texts(stage, fork) == ["shared", "1", "a1"]
    await stage.conversations.delete("p", fork.id)
    assert b"shared" not in await everything(stage, own, forked)


async def test_a_conversation_that_a_response_was_continued_from_is_kept_for_it_until_that_goes() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[user("shared")])
    inside = await stage.ask("1", conversation=conversation.id)
    outside = await stage.ask("2", previous=inside.id)
    own = await branch_of(stage, conversation)
    await stage.conversations.delete("p", conversation.id)
    assert b"shared" in await everything(stage, own)
    await stage.ask("3", previous=outside.id)
    assert stage.backend.asked[-1].texts() == ["shared", "1", "ok", "2", "ok", "3"]
    for run in (*await stage.runs.page("p", after=outside.id, limit=10, descending=False), outside):
        assert b"shared" in await everything(stage, own)
        await stage.runs.delete("p", run.id)
    assert b"shared" not in await everything(stage, own)


async def test_a_conversation_deep_in_forks_can_be_deleted() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[user("root-secret")])
    root = await branch_of(stage, conversation)
    chain = [conversation]
    for _ in range(150):
        chain.append(await stage.conversations.fork("p", chain[-1].id))
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        for each in reversed(chain[:-1]):
            await stage.conversations.delete("p", each.id)
        assert await texts(stage, chain[-1]) == ["root-secret"]
        await stage.conversations.delete("p", chain[-1].id)
    finally:
        sys.setrecursionlimit(usual)
    assert b"secret" not in await everything(stage, root)


async def test_a_fork_that_is_made_during_the_deletion_of_its_conversation_does_not_keep_its_content() -> None:
    class Held(MemoryJournal):
        """Answers the creation of a fork when it is told to."""

        gate: asyncio.Event | None = None

        def append(self, change):  # type: ignore[no-untyped-def]  # as the protocol has it
            return asyncio.ensure_future(self._later(change))

        async def _later(self, change):  # type: ignore[no-untyped-def]  # as above
            if change.create is not None and change.create.parent and self.gate is not None:
                await self.gate.wait()
            return await super().append(change)

    journal = Held(clock=MovedClock())
    stage = Stage(journal=journal)
    conversation = await stage.conversations.create("p", metadata={}, items=[user("secret")])
    journal.gate = asyncio.Event()
    forking = asyncio.ensure_future(stage.conversations.fork("p", conversation.id))
    await until(lambda: any(active.writer for active in stage.branches._active.values() if active.state.head > 0))
    await stage.conversations.delete("p", conversation.id)
    journal.gate.set()
    fork = await forking
    later = Stage(journal=journal, clock=stage.clock)
    assert await texts(stage, fork) == await texts(later, fork) == []
    assert "secret" not in in_memory(stage)


async def test_a_deletion_that_a_crash_cut_off_can_be_asked_for_again() -> None:
    inner = MemoryJournal()
    stage = Stage(journal=inner)
    conversation = await stage.conversations.create("p", metadata={}, items=[user("secret")])
    fork = await stage.conversations.fork("p", conversation.id)
    await stage.conversations.add_items("p", conversation.id, [user("own-secret")])
    branches = [await branch_of(stage, each) for each in (conversation, fork)]
    done = False
    for write in range(10):
        store = FaultyStore(inner, Plan({write: Fault.DIE_BEFORE}))
        dying = Stage(journal=store, blobs=stage.blobs, clock=stage.clock)
        for each in (conversation, fork):
            try:
                await dying.conversations.delete("p", each.id)
            except NotFound:
                continue
            except StorageError:
                break
        else:
            done = True
            break
    assert done
    assert b"secret" not in await everything(stage, *branches)


async def test_a_blob_goes_with_the_last_entry_that_refers_to_it() -> None:
    stage = Stage()
    runs = [await stage.ask([picture()], instructions="the same for all " * 50) for _ in range(3)]
    assert len(stage.blobs._kept) == 2
    for run in runs[:2]:
        await stage.runs.delete("p", run.id)
        assert len(stage.blobs._kept) == 2
    await stage.runs.delete("p", runs[2].id)
    assert stage.blobs._kept == {}


async def test_a_blob_that_is_on_its_way_into_an_entry_is_not_deleted() -> None:
    stage = Stage()
    run = await stage.ask([picture()])
    with stage.inputs.hold() as hold:
        digest = await hold.put(next(iter(stage.blobs._kept.values())))
        await stage.runs.delete("p", run.id)
        assert await stage.blobs.exists(digest)
    await stage.erasure.sweep()
    assert not await stage.blobs.exists(digest)


async def test_a_deleted_project_neighbour_is_not_touched() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[{**user("mine"), "id": "msg_same"}])
    others = await stage.conversations.create("q", metadata={}, items=[{**user("theirs"), "id": "msg_same"}])
    await stage.conversations.delete_item("p", conversation.id, "msg_same")
    assert [text_of(held.item) for held in await stage.conversations.items("q", others.id)] == ["theirs"]


async def test_the_same_holds_on_disk(tmp_path: Path) -> None:
    journal = open_sqlite(tmp_path / "journal.db")
    try:
        stage = Stage(says("a1"), says("a2-secret"), journal=journal)
        conversation = await stage.conversations.create("p", metadata={}, items=[user("shared-secret")])
        run = await stage.ask("1-secret", conversation=conversation.id, stream=True)
        fork = await stage.conversations.fork("p", conversation.id)
        await stage.runs.delete("p", run.id)
        assert await texts(stage, fork) == ["shared-secret"]
        for each in (conversation, fork):
            await stage.conversations.delete("p", each.id)
        assert "secret" not in in_memory(stage)
    finally:
        await journal.close()
    for file in sorted(tmp_path.iterdir()):  # noqa: ASYNC240 - nothing else runs any more
        assert b"secret" not in file.read_bytes()
