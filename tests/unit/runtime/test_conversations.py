"""Conversations: what they list, where they may be forked, and what a fork has."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, NotFound
from stateroom.models.backend import TextDelta
from stateroom.settings import Limits
from tests.unit.runtime.stage import Stage, says, text_of, until, user


async def texts(stage: Stage, conversation: Any) -> list[str]:
    return [text_of(held.item) for held in await stage.conversations.items("p", conversation.id)]


async def ids(stage: Stage, conversation: Any) -> list[str]:
    return [held.id for held in await stage.conversations.items("p", conversation.id)]


async def test_items_of_a_run_are_listed_when_it_has_ended_and_in_order() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("half")], gate, *says(" whole")])
    conversation = await stage.conversations.create("p", metadata={}, items=[user("begin")])
    run = await stage.start("1", conversation=conversation.id)
    await until(lambda: run.assembler is not None and run.assembler.size > 0)
    assert await texts(stage, conversation) == ["begin"]
    gate.set()
    await asyncio.wait_for(asyncio.shield(run.done), 5)
    assert await texts(stage, conversation) == ["begin", "1", "half whole"]


async def test_a_fork_at_every_item_has_everything_up_to_it_now_and_after_a_restart() -> None:
    stage = Stage(says("a1"), says("a2"))
    conversation = await stage.conversations.create("p", metadata={"a": "b"}, items=[user("x"), user("y"), user("z")])
    await stage.ask([user("1"), user("2")], conversation=conversation.id)
    await stage.conversations.add_items("p", conversation.id, [user("m"), user("n")])
    await stage.ask("3", conversation=conversation.id)
    whole, names = await texts(stage, conversation), await ids(stage, conversation)
    forks = [await stage.conversations.fork("p", conversation.id, after_item_id=name) for name in names]
    later = Stage(journal=stage.journal, clock=stage.clock)
    for each in (stage, later):
        for count, fork in enumerate(forks, 1):
            assert await texts(each, fork) == whole[:count]
            assert await ids(each, fork) == names[:count]
            assert (await each.conversations.get("p", fork.id)).metadata == {"a": "b"}
    run = await later.ask("on", conversation=forks[3].id)
    assert later.backend.asked[0].texts() == ["x", "y", "z", "1", "on"]
    assert run.failure is None


async def test_a_fork_of_a_chain_can_be_forked_at_its_very_first_items() -> None:
    stage = Stage()
    run = await stage.ask([user("1"), user("2"), user("3")])
    conversation = await stage.conversations.fork_chain("p", run.id, {})
    names = await ids(stage, conversation)
    fork = await stage.conversations.fork("p", conversation.id, after_item_id=names[0])
    again = await stage.conversations.fork("p", fork.id)
    later = Stage(journal=stage.journal, clock=stage.clock)
    for each in (stage, later):
        assert await texts(each, fork) == await texts(each, again) == ["1"]
        assert (
            await each.branches.open("p", (await each.journal.conversation("p", fork.id)).branch)
        ).state.open is None
    third = await later.conversations.fork("p", fork.id)
    assert await texts(later, third) == ["1"]
    await later.ask("on", conversation=fork.id)
    assert await texts(later, fork) == ["1", "on", "ok"]


async def test_a_conversation_can_be_forked_while_a_run_goes_on_and_the_fork_has_none_of_it() -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("half")], gate])
    conversation = await stage.conversations.create("p", metadata={}, items=[user("begin")])
    run = await stage.start("1", conversation=conversation.id, background=True)
    await until(lambda: run.assembler is not None)
    fork = await asyncio.wait_for(stage.conversations.fork("p", conversation.id), 5)
    assert await texts(stage, fork) == ["begin"]
    with pytest.raises(InvalidRequest) as refused:
        await stage.conversations.fork("p", conversation.id, response_id=run.id)
    assert refused.value.code == "response_not_in_conversation"
    with pytest.raises(InvalidRequest):
        await stage.conversations.fork_chain("p", run.id, {})
    await stage.runs.cancel("p", run.id)


async def test_a_fork_and_its_origin_go_their_own_ways() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={"n": "1"}, items=[user("begin")])
    fork = await stage.conversations.fork("p", conversation.id)
    await stage.conversations.update("p", fork.id, {"n": "2"})
    await stage.conversations.add_items("p", fork.id, [user("mine")])
    await stage.ask("theirs", conversation=conversation.id)
    assert await texts(stage, conversation) == ["begin", "theirs", "ok"]
    assert await texts(stage, fork) == ["begin", "mine"]
    assert (await stage.conversations.get("p", conversation.id)).metadata == {"n": "1"}
    assert (await stage.conversations.get("p", fork.id)).forked_from == conversation.id


async def test_a_fork_from_nowhere_is_refused_and_makes_nothing() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[user("x")])
    other = await stage.ask("elsewhere")
    before = (len(stage.journal._lines), stage.branches._size)
    with pytest.raises(NotFound):
        await stage.conversations.fork("p", conversation.id, after_item_id="msg_nobody")
    for response_id in (other.id, "resp_nobody"):
        with pytest.raises(InvalidRequest):
            await stage.conversations.fork("p", conversation.id, response_id=response_id)
    with pytest.raises(NotFound):
        await stage.conversations.fork_chain("p", "resp_nobody", {})
    assert (len(stage.journal._lines), stage.branches._size) == before


async def test_added_items_are_answered_with_their_ids_even_while_others_are_erased() -> None:
    stage = Stage()
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    run = await stage.ask("gone", conversation=conversation.id)
    added, _ = await asyncio.gather(
        stage.conversations.add_items("p", conversation.id, [user("a"), user("b")]), stage.runs.delete("p", run.id)
    )
    assert [text_of(held.item) for held in added] == ["a", "b"]
    assert [held.id for held in added] == await ids(stage, conversation)


async def test_a_conversation_that_is_busy_is_locked_for_every_kind_of_writer() -> None:
    gate = asyncio.Event()
    stage = Stage([gate], limits=Limits(conversation_queue=0))
    conversation = await stage.conversations.create("p", metadata={}, items=[user("x")])
    run = await stage.start("1", conversation=conversation.id, background=True)
    name = (await ids(stage, conversation))[0]
    for call in (
        lambda: stage.start("2", conversation=conversation.id),
        lambda: stage.conversations.add_items("p", conversation.id, [user("y")]),
        lambda: stage.conversations.update("p", conversation.id, {}),
        lambda: stage.conversations.delete_item("p", conversation.id, name),
        lambda: stage.conversations.delete("p", conversation.id),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await call()
        assert refused.value.code == "conversation_locked"
    await stage.runs.cancel("p", run.id)
    await stage.conversations.delete("p", conversation.id)


async def test_those_who_wait_for_a_conversation_that_is_deleted_are_told_that_it_is_gone() -> None:
    gate = asyncio.Event()
    stage = Stage([gate])
    conversation = await stage.conversations.create("p", metadata={}, items=[])
    run = await stage.start("1", conversation=conversation.id, background=True)
    await until(lambda: run.assembler is not None)
    deleting = asyncio.ensure_future(stage.conversations.delete("p", conversation.id))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(stage.start("2", conversation=conversation.id)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    stage.dispatcher.abandon(run)
    await asyncio.wait_for(deleting, 5)
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert all(isinstance(outcome, NotFound) for outcome in outcomes)
    assert stage.dispatcher.count == 0
    assert not any(active.busy for active in stage.branches._active.values())


async def test_paging_goes_through_all_conversations_once() -> None:
    stage = Stage()
    made = [(await stage.conversations.create("p", metadata={}, items=[])).id for _ in range(7)]
    seen: list[str] = []
    while True:
        page = await stage.conversations.page("p", after=seen[-1] if seen else "", limit=3, descending=False)
        seen += [each.id for each in page[:3]]
        if len(page) <= 3:
            break
    assert seen == made
