"""Files in inputs: what the model reads of them, what the client sees again, and what stays when the file goes."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, NotFound, RequestError
from stateroom.journal.entries import RunStarted
from stateroom.runtime.live import LiveRun
from stateroom.runtime.runs import RunRequest
from stateroom.settings import Limits
from tests.papers import pdf
from tests.unit.runtime.stage import Stage, says, user
from tests.unit.runtime.test_files import add
from tests.unit.runtime.test_inputs import serving

PNG = b"\x89PNG\r\n\x1a\nnot really"
TEXT = '<file name="a.txt">\nhello there\n</file>'


def asks(part: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [part, *more]}


def by_id(file_id: str, kind: str = "input_file") -> dict[str, Any]:
    return asks({"type": kind, "file_id": file_id})


def data_part(data: bytes, *, head: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "input_file", "file_data": head + base64.b64encode(data).decode(), **more}


def seen(stage: Stage, call: int = -1) -> Any:
    """The content of the first item of a call."""
    return stage.backend.asked[call].items[0].item["content"]


async def shown(stage: Stage, run: LiveRun) -> Any:
    return (await stage.runs.shown(run.state.input_items(0)[0])).item["content"][0]


async def refusal(stage: Stage, part: dict[str, Any], **options: Any) -> RequestError:
    with pytest.raises(RequestError) as refused:
        await stage.start([asks(part)], **options)
    assert not stage.held._held
    assert len(refused.value.message) < 300
    return refused.value


async def test_a_model_reads_the_text_and_the_client_sees_its_own_reference() -> None:
    stage = Stage()
    file = await add(stage, b"hello ", b"there")
    run = await stage.ask([by_id(file.id)])
    assert seen(stage) == [{"type": "input_text", "text": TEXT}]
    assert await shown(stage, run) == {"type": "input_file", "file_id": file.id}
    started = (await stage.records(run))[0]
    assert isinstance(started, RunStarted)
    assert "hello" not in str(started.input)


async def test_a_file_is_read_once_however_often_it_is_shown() -> None:
    stage = Stage()
    file = await add(stage, pdf("Hello world"), filename="p.pdf")
    first = await stage.ask([by_id(file.id)])
    await stage.ask("and?", previous=first.id)
    later = stage.after_crash(limits=Limits(file_inputs=0))
    await later.ask([by_id(file.id)])
    await later.ask([by_id(file.id)], store=False)
    texts = [seen(stage, 0), seen(stage, 1), seen(later, 0), seen(later, 1)]
    assert texts == [[{"type": "input_text", "text": '<file name="p.pdf">\n[page 1]\nHello world\n</file>'}]] * 4


async def test_a_deleted_file_stays_in_what_was_said_with_it_and_goes_with_that() -> None:
    stage = Stage()
    file, image = await add(stage, b"hello there"), await add(stage, PNG)
    first = await stage.ask([by_id(file.id), by_id(image.id, "input_image")])
    await stage.files.delete("p", file.id)
    await stage.files.delete("p", image.id)
    second = await stage.ask("and?", previous=first.id)
    assert seen(stage)[0]["text"] == TEXT
    assert stage.backend.asked[-1].items[1].item["content"][0]["image_url"].startswith("data:image/png;base64,")
    assert await shown(stage, first) == {"type": "input_file", "file_id": file.id}
    assert (await refusal(stage, {"type": "input_file", "file_id": file.id})).code == "file_not_found"
    await stage.runs.delete("p", second.id)
    await stage.runs.delete("p", first.id)
    assert await stage.blobs.digests() == []


async def test_a_file_outlives_the_runs_that_it_was_shown_to() -> None:
    stage = Stage()
    file = await add(stage, b"hello there")
    run = await stage.ask([by_id(file.id)])
    await stage.runs.delete("p", run.id)
    await stage.ask([by_id(file.id)])
    assert seen(stage)[0]["text"] == TEXT


async def test_an_image_by_id_becomes_an_image() -> None:
    stage = Stage()
    file = await add(stage, PNG, purpose="vision")
    run = await stage.ask([asks({"type": "input_image", "file_id": file.id, "detail": "low"})])
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    part = seen(stage)[0]
    assert (part["type"], part["image_url"], part["detail"]) == ("input_image", url, "low")
    assert await shown(stage, run) == {"type": "input_image", "file_id": file.id, "detail": "low"}
    await stage.ask([by_id(file.id, "input_image")], store=False)
    assert seen(stage)[0]["image_url"] == url


@pytest.mark.parametrize("head", ["", "data:application/pdf;base64,", "data:;base64,"])
async def test_a_file_in_the_request_is_read_and_comes_back_as_it_was(head: str) -> None:
    stage = Stage()
    part = data_part(pdf("Hello"), head=head, filename="p.pdf")
    run = await stage.ask([asks(part)])
    assert seen(stage) == [{"type": "input_text", "text": '<file name="p.pdf">\n[page 1]\nHello\n</file>'}]
    assert await shown(stage, run) == part
    await stage.runs.delete("p", run.id)
    assert await stage.blobs.digests() == []


async def test_the_head_of_a_data_url_says_the_encoding() -> None:
    stage = Stage()
    text = "日本語のテキスト"
    await stage.ask([asks(data_part(text.encode("shift_jis"), head="data:text/plain;charset=shift_jis;base64,"))])
    assert seen(stage)[0]["text"] == f'<file name="file">\n{text}\n</file>'


async def test_a_file_by_url_is_fetched_once_under_its_name() -> None:
    stage = Stage(allow_private=True)
    async with serving("Grüße".encode("latin-1"), "content-type: text/plain; charset=iso-8859-1") as (url, asked):
        run = await stage.ask([asks({"type": "input_file", "file_url": url})])
        await stage.ask("and?", previous=run.id)
        assert await shown(stage, run) == {"type": "input_file", "file_url": url}
    assert len(asked) == 1
    assert [seen(stage, n)[0]["text"] for n in (0, 1)] == ['<file name="picture.png">\nGrüße\n</file>'] * 2


async def test_urls_go_through_the_guard_and_its_errors_speak_of_files() -> None:
    for url, code in (
        ("http://127.0.0.1/x", "private_address_refused"),
        ("http://169.254.169.254/latest", "private_address_refused"),
        ("file:///etc/passwd", "invalid_file_url"),
        ("http://user:pass@example.com/", "invalid_file_url"),
        ("http://[::1", "invalid_file_url"),
    ):
        assert (await refusal(Stage(), {"type": "input_file", "file_url": url})).code == code
    stage = Stage(allow_private=True, limits=Limits(file_input_bytes=100))
    async with serving(b"x" * 1_000) as (url, _):
        refused = await refusal(stage, {"type": "input_file", "file_url": url})
        assert refused.code == "file_too_large"
        assert "`limits.file_input_bytes`" in refused.message
    async with serving(b"", "content-encoding: gzip") as (url, _):
        assert (await refusal(stage, {"type": "input_file", "file_url": url})).code == "failed_to_download_file"


async def test_without_storing_nothing_of_a_file_is_kept() -> None:
    stage = Stage()
    await stage.ask([asks(data_part(b"secret", filename="s"))], store=False)
    assert seen(stage)[0]["text"] == '<file name="s">\nsecret\n</file>'
    assert await stage.blobs.digests() == []
    assert stage.journal._lines == {}


async def test_files_of_others_look_missing() -> None:
    stage = Stage()
    file = await add(stage, b"secret", project="other")
    for kind in ("input_file", "input_image"):
        with pytest.raises(NotFound) as refused:
            await stage.start([user("x"), by_id(file.id, kind)])
        assert (refused.value.code, refused.value.param) == ("file_not_found", "input[1].content[0].file_id")


async def test_what_cannot_be_read_is_refused_where_it_stands() -> None:
    stage = Stage(limits=Limits(image_bytes=100, file_text_bytes=100, body_bytes=150))
    zipped, image = await add(stage, b"PK\x03\x04\x00\x00"), await add(stage, PNG)
    large, text = await add(stage, PNG + b"x" * 100), await add(stage, b"hello")
    for part, code in (
        ({"type": "input_file", "file_id": zipped.id}, "unsupported_file"),
        ({"type": "input_file", "file_id": image.id}, "unsupported_file"),
        ({"type": "input_image", "file_id": text.id}, "unsupported_image_media_type"),
        ({"type": "input_image", "file_id": large.id}, "image_file_too_large"),
        ({"type": "input_file", "file_data": "!!!"}, "invalid_file_data"),
        ({"type": "input_file", "file_data": "data:text/plain,hello"}, "invalid_file_data"),
        ({"type": "input_file", "file_data": f"data:{'x' * 300};base64,AAAA"}, "invalid_file_data"),
        (data_part(b"x" * 101), "file_text_too_large"),
        (data_part(b"x", filename="n" * 300), "string_above_max_length"),
        ({"type": "input_file", "file_id": ""}, "missing_required_parameter"),
        ({"type": "input_image", "file_id": ""}, "file_not_found"),
        ({"type": "input_file", "file_id": "file-\x00" + "x" * 5_000}, "file_not_found"),
        ({**data_part(b"x"), "file_id": text.id}, "mutually_exclusive_parameters"),
    ):
        refused = await refusal(stage, part)
        assert refused.code == code
        assert (refused.param or "").startswith("input[0].content[0]")


async def test_what_one_request_has_read_is_bounded_in_number_and_in_size() -> None:
    parts = [data_part(b"%d" % n + b"x" * 50) for n in range(4)]
    with pytest.raises(InvalidRequest) as refused:
        await Stage(limits=Limits(file_inputs=3)).start([asks(*parts)])
    assert refused.value.code == "too_many_files"
    with pytest.raises(InvalidRequest) as refused:
        await Stage(limits=Limits(body_bytes=200)).start([asks(*parts)])
    assert refused.value.code == "input_too_large"
    await Stage(limits=Limits(file_inputs=4)).ask([asks(*parts)])


async def test_a_refused_request_leaves_no_blob_of_a_file_in_its_place() -> None:
    stage = Stage()
    with pytest.raises(NotFound):
        await stage.start([asks(data_part(b"kept for a moment")), by_id("file-nobody")])
    await stage.erasure.sweep()
    assert await stage.blobs.digests() == []


async def test_nobody_can_name_the_text_of_another_s_file() -> None:
    stage = Stage()
    for name in ("text_blob", "data_blob"):
        refused = await refusal(stage, {"type": "input_file", "file_id": "file-x", name: "a" * 64})
        assert refused.code == "invalid_value"


async def test_a_tool_may_give_back_files_and_images() -> None:
    stage = Stage()
    file, image = await add(stage, b"hello there"), await add(stage, PNG)
    output = [{"type": "input_file", "file_id": file.id}, {"type": "input_image", "file_id": image.id}]
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    run = await stage.ask([call, {"type": "function_call_output", "call_id": "c", "output": output}])
    told = stage.backend.asked[0].items[1].item["output"]
    assert told[0] == {"type": "input_text", "text": TEXT}
    assert told[1]["image_url"].startswith("data:image/png")
    assert (await stage.runs.shown(run.state.input_items(0)[1])).item["output"] == output


async def test_a_screenshot_by_id_is_seen() -> None:
    stage = Stage()
    image = await add(stage, PNG)
    shot = {"type": "computer_screenshot", "file_id": image.id}
    await stage.ask([user("x"), {"type": "computer_call_output", "call_id": "c", "output": shot}])
    told = stage.backend.asked[0].items[1].item["output"]
    assert told["image_url"].startswith("data:image/png")


async def test_the_same_bytes_may_be_an_image_here_and_a_text_there() -> None:
    stage = Stage()
    text = b"http://10.0.0.1/internal"
    wrapped = f'<file name="file">\n{text.decode()}\n</file>'.encode()
    image = {"type": "input_image", "image_url": "data:image/png;base64," + base64.b64encode(wrapped).decode()}
    await stage.ask([asks(data_part(text), image)])
    assert seen(stage)[0] == {"type": "input_text", "text": wrapped.decode()}
    assert seen(stage)[1]["image_url"] == image["image_url"]


async def test_files_in_conversations_are_read_when_they_are_added() -> None:
    stage = Stage()
    file = await add(stage, b"hello there")
    conversation = await stage.conversations.create("p", metadata={}, items=[by_id(file.id)])
    items = await stage.conversations.items("p", conversation.id)
    held = await stage.conversations.shown(items[0])
    assert held.item["content"] == [{"type": "input_file", "file_id": file.id}]
    await stage.files.delete("p", file.id)
    await stage.ask("and?", conversation=conversation.id)
    assert seen(stage)[0]["text"] == TEXT
    assert await stage.conversations.delete("p", conversation.id) is None


async def test_a_compacted_context_keeps_the_texts_of_files() -> None:
    stage = Stage(says("first"), says("summary"), says("second"), says("third"))
    file = await add(stage, b"hello there")
    first = await stage.ask([by_id(file.id)])
    second = await stage.ask("and?", previous=first.id, compact_now=True)
    assert any(held.item.get("type") == "compaction" for held in second.state.output_items(0))
    await stage.files.delete("p", file.id)
    later = stage.after_crash()
    await later.ask("and now?", previous=second.id)
    assert TEXT in later.backend.asked[0].texts()


async def test_counting_reads_files_and_writes_nothing() -> None:
    stage = Stage()
    run = await stage.ask("x")
    wanted = RunRequest(settings=run.settings, input=[asks(data_part(b"hello"))], store=False)
    before = await stage.blobs.digests()
    assert await stage.runs.count_input("p", wanted, surface="responses") == (1, True)
    assert await stage.blobs.digests() == before
