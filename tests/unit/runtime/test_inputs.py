"""Making a run's input whole: references, images, sealed reasoning, large settings, and what may not come in."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, NotFound, StateroomError
from stateroom.journal.entries import Entry, RunStarted
from stateroom.journal.memory import MemoryJournal
from stateroom.models.backend import Finished, ReasoningDelta, TextDelta
from stateroom.runtime.inputs import decode_data_url
from stateroom.settings import Limits
from tests.unit.runtime.stage import PIXEL, USAGE, CountedTool, MovedClock, Stage, calls, picture, says, text_of, user


def reference(item_id: str) -> dict[str, str]:
    return {"type": "item_reference", "id": item_id}


@asynccontextmanager
async def serving(
    body: bytes = b"\x89PNG", head: str = "content-type: image/png"
) -> AsyncIterator[tuple[str, list[str]]]:
    """A web server with one picture; what was asked of it."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/picture.png", asked
    finally:
        server.close()


async def test_references_are_replaced_by_what_they_name_in_their_order() -> None:
    stage = Stage(says("answer"))
    conversation = await stage.conversations.create(
        "p", metadata={}, items=[user("added"), {**user("own"), "id": "mine"}]
    )
    run = await stage.ask("question")
    added = await stage.conversations.items("p", conversation.id)
    ids = [run.state.output[0].id, added[0].id, "mine", run.state.input_items(0)[0].id]
    await stage.ask([*[reference(each) for each in ids], user("and?")])
    assert stage.backend.asked[1].texts() == ["answer", "added", "own", "question", "and?"]
    assert [held.id for held in stage.backend.asked[1].items][:4] == ids


async def test_a_reference_to_what_is_there_already_adds_nothing_and_neither_does_the_same_one_twice() -> None:
    stage = Stage()
    first = await stage.ask("1")
    other = await stage.ask("other")
    twice = [reference(first.state.output[0].id), *[reference(other.state.output[0].id)] * 3, user("2")]
    await stage.ask(twice, previous=first.id)
    assert stage.backend.asked[2].texts() == ["1", "ok", "ok", "2"]


@pytest.mark.parametrize("item_id", ["msg_nobody", "msg_01m81nb0fb5ts032anen7hy8hq8000", "", "\x00", "x" * 256])
async def test_a_reference_to_nothing_is_not_found(item_id: str) -> None:
    with pytest.raises(NotFound) as refused:
        await Stage().start([user("x"), reference(item_id)])
    assert (refused.value.code, refused.value.param) == ("item_not_found", "input[1].id")


async def test_many_references_to_one_run_read_it_once() -> None:
    class Counting(MemoryJournal):
        reads = 0

        async def read(self, *given: Any, **named: Any) -> list[Entry]:
            self.reads += 1
            return await super().read(*given, **named)

    journal = Counting(clock=MovedClock())
    stage = Stage(journal=journal)
    many = await stage.ask([user(f"{number}") for number in range(500)])
    journal.reads = 0
    await stage.ask([reference(held.id) for held in many.state.input_items(0)])
    assert journal.reads < 5
    assert len(stage.backend.asked[1].items) == 500


async def test_references_cannot_make_a_small_request_into_a_huge_one() -> None:
    stage = Stage(limits=Limits(body_bytes=10_000))
    runs = [await stage.ask("x" * 5_000) for _ in range(6)]
    with pytest.raises(InvalidRequest) as refused:
        await stage.start([reference(run.state.input_items(0)[0].id) for run in runs])
    assert refused.value.code == "input_too_large"
    await stage.start([reference(run.state.input_items(0)[0].id) for run in runs[:2]])


async def test_images_are_kept_once_and_come_back_as_they_were() -> None:
    stage = Stage()
    run = await stage.ask([picture(), picture()])
    assert len(stage.blobs._kept) == 1
    started = (await stage.records(run))[0]
    assert isinstance(started, RunStarted)
    assert b"base64" not in str(started.input).encode()
    shown = [await stage.runs.shown(held) for held in run.state.input_items(0)]
    assert [held.item["content"][0]["image_url"] for held in shown] == [PIXEL, PIXEL]
    assert stage.backend.asked[0].items[0].item["content"][0]["image_url"] == PIXEL


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,!!!", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:;base64,AAAA", "unsupported_image_media_type"),
        ("data:text/html;base64,AAAA", "unsupported_image_media_type"),
        ("data:image/png;base64," + "A" * 400, "image_file_too_large"),
        ("ftp://example.com/x", "invalid_image_url"),
        ("http://127.0.0.1/x", "private_address_refused"),
        ("http://[::1", "invalid_image_url"),
        ("", "invalid_image_url"),
    ],
)
async def test_images_that_are_none_are_refused_before_anything_is_written(url: str, code: str) -> None:
    stage = Stage(limits=Limits(image_bytes=200))
    with pytest.raises(InvalidRequest) as refused:
        await stage.start([user("x"), picture(url)])
    assert (refused.value.code, refused.value.param) == (code, "input[1].content[0].image_url")
    assert len(refused.value.message) < 500
    assert stage.journal._lines == {}
    assert not stage.held._held


async def test_a_media_type_as_long_as_a_body_does_not_come_back_whole() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await Stage().start([picture(f"data:{'x' * 100_000};base64,AAAA")])
    assert len(refused.value.message) < 500


async def test_an_image_is_downloaded_once_and_shown_by_its_url() -> None:
    stage = Stage(allow_private=True)
    async with serving() as (url, asked):
        run = await stage.ask([picture(url)])
        await stage.ask("and?", previous=run.id)
    assert len(asked) == 1
    assert "stateroom" not in asked[0].lower()
    assert stage.backend.asked[1].items[0].item["content"][0]["image_url"].startswith("data:image/png;base64,")
    shown = await stage.runs.shown(run.state.input_items(0)[0])
    assert shown.item["content"][0] == {"type": "input_image", "image_url": url}


async def test_the_images_that_one_request_names_by_url_are_bounded_in_number_and_size() -> None:
    stage = Stage(allow_private=True, limits=Limits(image_downloads=3, body_bytes=10_000))
    async with serving() as (url, asked):
        with pytest.raises(InvalidRequest) as refused:
            await stage.start([picture(url)] * 4)
        assert refused.value.code == "too_many_images"
        assert len(asked) == 3
    async with serving(b"x" * 6_000) as (url, asked):
        with pytest.raises(InvalidRequest) as refused:
            await stage.start([picture(url)] * 3)
        assert refused.value.code == "image_file_too_large"
        assert len(asked) == 2
    assert not stage.held._held


async def test_an_image_larger_than_allowed_is_not_read_to_its_end() -> None:
    stage = Stage(allow_private=True, limits=Limits(image_bytes=1_000))
    async with serving(b"x" * 1_000_000) as (url, _):
        with pytest.raises(InvalidRequest, match=r"`limits\.image_bytes`") as refused:
            await stage.start([picture(url)])
    assert refused.value.code == "image_file_too_large"
    data = "data:image/png;base64," + base64.b64encode(b"x" * 1_001).decode()
    with pytest.raises(InvalidRequest, match=r"`limits\.image_bytes`"):
        await stage.start([picture(data)])


async def test_a_compressed_image_is_refused_rather_than_unpacked() -> None:
    stage = Stage(allow_private=True)
    async with serving(b"\x1f\x8b", "content-type: image/png\r\ncontent-encoding: gzip") as (url, asked):
        with pytest.raises(InvalidRequest) as refused:
            await stage.start([picture(url)])
    assert refused.value.code == "failed_to_download_image"
    assert "accept-encoding: identity" in asked[0].lower()


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "content": [{"blob": "a" * 64}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "input_image", "text": "x", "blob": {"a": 1}}]},
        {"type": "reasoning", "encrypted_content": "x", "summary": [], "output": [{"blob": []}]},
        {"type": "shell_call_output", "call_id": "c", "output": [{"blob": "b" * 64, "type": "input_image"}]},
    ],
)
async def test_nobody_can_name_a_blob(item: dict[str, Any]) -> None:
    stage = Stage()
    for call in (
        lambda: stage.start([item]),
        lambda: stage.start([item], store=False),
        lambda: stage.conversations.create("p", metadata={}, items=[item]),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await call()
        assert refused.value.code == "invalid_value"


async def test_sealed_reasoning_opens_for_its_own_project_and_for_nobody_else() -> None:
    stage = Stage([[ReasoningDelta("deep thought")], [TextDelta("42"), Finished("stop", USAGE)]])
    run = await stage.ask(include=["reasoning.encrypted_content"], store=False)
    sealed = run.state.output[0].item["encrypted_content"]
    assert "deep" not in sealed
    carried = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    await stage.ask([carried, user("and?")], store=False)
    await stage.ask([carried, user("and?")], store=False, project="other")
    await stage.ask([{**carried, "encrypted_content": sealed[:-4] + "AAAA"}, user("and?")], store=False)
    shown = [text_of(each.items[0].item) for each in stage.backend.asked[1:]]
    assert shown == ["deep thought", "", ""]


async def test_large_settings_are_kept_once_and_come_back_whole() -> None:
    stage = Stage()
    tools = [{"type": "function", "name": "f", "description": "d" * 1_000, "parameters": {"type": "object"}}]
    runs = [await stage.ask(instructions="i" * 1_000, tools=tools) for _ in range(3)]
    assert len(stage.blobs._kept) == 2
    for run in runs:
        assert (await stage.runs.view("p", run.id)).settings.tools == tools
        assert (await stage.runs.view("p", run.id)).settings.instructions == "i" * 1_000
    started = (await stage.records(runs[0]))[0]
    assert isinstance(started, RunStarted)
    assert (started.settings.tools, started.settings.instructions) == ([], None)


async def test_a_context_may_hold_so_many_items_and_no_more() -> None:
    stage = Stage(limits=Limits(context_items=5))
    run = await stage.ask([user("a"), user("b")])
    await stage.start([user("c"), user("d")], previous=run.id)
    with pytest.raises(InvalidRequest) as refused:
        await stage.start([user("c")] * 3, previous=run.id)
    assert refused.value.code == "too_many_items"


async def test_a_refused_request_of_any_kind_leaves_no_trace() -> None:
    stage = Stage(tools=[CountedTool()])
    hostile: list[tuple[list[Any], dict[str, Any]]] = [
        ([user("x")], {"tools": [{"type": "nonsense"}]}),
        ([user("x")], {"tools": [{"type": "function", "name": "f"}] * 2}),
        ([user("x")], {"tool_choice": {"type": "function", "name": "g"}}),
        ([user("x")], {"previous": "resp_nobody"}),
        ([user("x")], {"conversation": "conv_nobody"}),
        ([picture("http://10.0.0.1/")], {}),
    ]
    for said, asked in hostile:
        with pytest.raises(StateroomError) as refused:
            await stage.start(said, **asked)
        assert 400 <= refused.value.status < 500
    assert stage.journal._lines == {}
    assert stage.branches._active == {}
    assert stage.branches._size == 0
    assert stage.dispatcher._coming == 0


def test_data_urls_are_read_with_their_parameters() -> None:
    body = base64.b64encode(b"abc").decode()
    assert decode_data_url(f"data:IMAGE/PNG;charset=utf-8;base64,{body}", "p") == (b"abc", "image/png")


async def test_hosted_calls_are_told_to_the_model_as_a_call_and_its_result_in_later_turns() -> None:
    stage = Stage(calls("counted"), says("first"), says("second"), tools=[CountedTool()])
    run = await stage.ask("1", tools=[{"type": "stateroom:counted"}])
    await stage.ask("2", previous=run.id)
    kinds = [held.item.get("type", "message") for held in stage.backend.asked[2].items]
    assert kinds == ["message", "function_call", "function_call_output", "message", "message"]
