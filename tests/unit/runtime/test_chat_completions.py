"""Runs that stand alone: what is kept of a chat completion, for how long, and what a crash makes of one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateroom.errors import BackendFailed, InvalidRequest, NotFound
from stateroom.journal.entries import RecordPut, decode
from stateroom.models.backend import Finished, TextDelta
from stateroom.runtime.chat_completions import CHAT, ChatCompletions
from stateroom.runtime.live import LiveRun
from stateroom.runtime.records import Records
from tests.unit.runtime.stage import PROJECT, PlayedBackend, Stage, answer_of, picture, says, until


def completions_of(stage: Stage) -> ChatCompletions:
    records = Records(stage.journal, stage.journal, stage.blobs, stage.held, stage.clock)
    return ChatCompletions(stage.journal, stage.branches, stage.runs, stage.inputs, records)


async def shown(run: LiveRun) -> str:
    assert run.stream is not None
    return b"".join([frame.body async for frame in run.stream.follow(-1)]).decode()


async def test_the_frames_of_a_stream_go_when_it_has_ended() -> None:
    stage = Stage(says("one", " two"))
    run = await stage.start(surface=CHAT, stream=True)
    assert '"content":" two"' in await shown(run)
    await asyncio.shield(run.done)
    assert await stage.frames(run) == []
    assert (await completions_of(stage).get(PROJECT, run.id)).status == "completed"


async def test_the_frames_of_a_response_stay() -> None:
    stage = Stage(says("one"))
    assert await stage.frames(await stage.ask(stream=True)) != []


async def test_nothing_of_a_completion_stays_in_memory() -> None:
    stage = Stage()
    run = await stage.ask(surface=CHAT)
    assert (PROJECT, run.branch.branch) not in stage.branches._active


async def test_of_one_that_failed_nothing_is_kept() -> None:
    stage = Stage([[TextDelta("half")], BackendFailed("broke")])
    run = await stage.ask([picture()], surface=CHAT)
    assert run.failure is not None
    with pytest.raises(NotFound):
        await completions_of(stage).get(PROJECT, run.id)
    await until(lambda: not stage.blobs._kept)
    assert await stage.journal.run(PROJECT, run.id) is None
    assert {entry.kind for entry in await stage.journal.read(PROJECT, run.branch.branch)} == {"erased"}


async def test_a_failed_response_stays_to_be_looked_at() -> None:
    stage = Stage([BackendFailed("broke")])
    run = await stage.ask()
    await asyncio.sleep(0.01)
    assert (await stage.runs.view(PROJECT, run.id)).status == "failed"


@pytest.mark.parametrize("can_prefill", [True, False])
async def test_a_stream_that_a_crash_cut_off_is_finished(can_prefill: bool) -> None:
    gate = asyncio.Event()
    stage = Stage([[TextDelta("one")], [TextDelta(" two")], gate])
    run = await stage.start(surface=CHAT, stream=True)
    assert run.stream is not None
    stream = run.stream
    await until(lambda: b" two" in b"".join(frame.body for frame in stream.frames))
    await stage.give_up(run)
    rest = says(" three") if can_prefill else says("another answer")
    later = stage.after_crash(backend=PlayedBackend(rest, can_prefill=can_prefill))
    await later.recover()
    view = await completions_of(later).get(PROJECT, run.id)
    told = [output.item["content"] for output in view.output]
    assert told == (["one two three"] if can_prefill else ["another answer"])
    assert later.backend.asked[0].prefill == ("one two" if can_prefill else "")
    assert await later.journal.frames(PROJECT, run.branch.branch, 0) == []


async def test_one_that_waited_for_its_answer_is_finished_after_a_crash() -> None:
    stage = Stage([asyncio.Event()])
    run = await stage.start(surface=CHAT)
    await until(lambda: bool(stage.backend.asked))
    with pytest.raises(InvalidRequest) as waiting:
        await completions_of(stage).get(PROJECT, run.id)
    assert (waiting.value.code, waiting.value.status) == ("completion_in_progress", 409)
    await stage.give_up(run)
    later = stage.after_crash(says("there"))
    await later.recover()
    view = await completions_of(later).get(PROJECT, run.id)
    assert [output.item["content"] for output in view.output] == ["there"]


async def test_metadata_is_appended_and_goes_with_the_run() -> None:
    stage = Stage()
    completions = completions_of(stage)
    run = await stage.ask(surface=CHAT, echo={"metadata": {"a": "1"}})
    for value in ("2", "3"):
        view = await completions.update(PROJECT, run.id, {"a": value})
        assert view.settings.echo["metadata"] == {"a": value}
    entries = await stage.journal.read(PROJECT, run.branch.branch)
    records = [decode(entry.kind, entry.body) for entry in entries]
    assert records[0].settings.echo["metadata"] == {"a": "1"}  # type: ignore[union-attr]  # the run's first entry
    assert [record.id for record in records if isinstance(record, RecordPut)] == [run.id, run.id]
    assert [held.id for held in await page(completions, metadata={"a": "3"})] == [run.id]
    assert await page(completions, metadata={"a": "1"}) == []
    row = await stage.journal.run(PROJECT, run.id)
    await stage.erasure.erase_run(PROJECT, row)  # as retention does
    assert await stage.journal.record(PROJECT, "chat_metadata", run.id) is None
    assert {entry.kind for entry in await stage.journal.read(PROJECT, run.branch.branch)} == {"erased"}


async def test_it_survives_a_rebuild_with_its_metadata() -> None:
    stage = Stage()
    run = await stage.ask(surface=CHAT)
    await completions_of(stage).update(PROJECT, run.id, {"a": "2"})
    await stage.journal.rebuild()
    view = await completions_of(stage).get(PROJECT, run.id)
    assert view.settings.echo["metadata"] == {"a": "2"}


async def page(completions: ChatCompletions, **wanted: Any) -> list[Any]:
    return await completions.page(PROJECT, **{"after": "", "limit": 100, "descending": False, **wanted})


async def test_only_what_has_an_answer_and_is_a_completion_is_listed() -> None:
    stage = Stage(says("a"), says("b"), [BackendFailed("broke")], [asyncio.Event()])
    completions = completions_of(stage)
    run = await stage.ask(surface=CHAT)
    await stage.ask()
    await stage.ask(surface=CHAT)
    open_run = await stage.start(surface=CHAT)
    assert [view.id for view in await page(completions)] == [run.id]
    assert await completions.page("other", after="", limit=5, descending=True) == []
    await completions.delete(PROJECT, open_run.id)


async def test_a_page_is_filled_however_many_runs_lie_between() -> None:
    stage = Stage()
    completions = completions_of(stage)
    wanted = []
    for number in range(230):
        run = await stage.ask(surface=CHAT, echo={"metadata": {"even": str(number % 100 == 0)}})
        if number % 100 == 0:
            wanted.append(run.id)
    assert [view.id for view in await page(completions, metadata={"even": "True"}, limit=2)] == wanted
    assert [view.id for view in await page(completions, after=wanted[0], limit=1)][0] != wanted[0]


async def test_another_project_s_looks_like_none() -> None:
    stage = Stage()
    completions = completions_of(stage)
    run = await stage.ask(surface=CHAT)
    for call in (
        completions.get("other", run.id),
        completions.messages("other", run.id),
        completions.update("other", run.id, {}),
        completions.delete("other", run.id),
    ):
        with pytest.raises(NotFound):
            await call
    assert answer_of(run) == "ok"


async def test_stop_sequences_cut_what_a_run_keeps() -> None:
    stage = Stage([[TextDelta("one ST")], [TextDelta("OP two"), Finished("stop")]])
    run = await stage.ask(surface=CHAT, stop=["STOP"])
    assert answer_of(run) == "one "
    assert run.state.usage is not None
