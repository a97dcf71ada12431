"""Files: kept once and erased when nothing needs them any more, whatever happens in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from stateroom import ids
from stateroom.errors import InvalidRequest, NotFound, StorageFull, TooLarge
from stateroom.runtime.files.files import BATCH_SECONDS, File, Files
from stateroom.runtime.idempotency import Idempotency
from tests.unit.runtime.stage import MovedClock, Stage


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for each in given:
        yield each


async def add(stage: Stage, *content: bytes, project: str = "p", **options: Any) -> File:
    told = {"filename": "a.txt", "purpose": "user_data", **options}
    return await stage.files.add(project, chunks=pieces(*content), **told)


async def content(stage: Stage, file_id: str, **span: int) -> bytes:
    return b"".join([piece async for piece in stage.files.chunks("p", file_id, **span)])


async def blobs(stage: Stage) -> int:
    return len(await stage.blobs.digests())


async def test_a_file_comes_and_goes_in_pieces() -> None:
    stage = Stage()
    file = await add(stage, b"one ", b"two ", b"three")
    assert file.id.startswith("file-")
    assert (file.bytes, file.filename, file.purpose, file.expires_at) == (13, "a.txt", "user_data", 0)
    assert await stage.files.get("p", file.id) == file
    assert await content(stage, file.id) == b"one two three"
    assert await content(stage, file.id, first=4, last=6) == b"two"


async def test_an_empty_file_is_one() -> None:
    stage = Stage()
    file = await add(stage)
    assert (file.bytes, await content(stage, file.id)) == (0, b"")


async def test_the_same_bytes_are_kept_once_and_go_with_the_last_file_that_has_them() -> None:
    stage = Stage()
    first, second = await add(stage, b"same"), await add(stage, b"sa", b"me", filename="b")
    assert first.digest == second.digest
    assert await blobs(stage) == 1
    await stage.files.delete("p", first.id)
    assert await content(stage, second.id) == b"same"
    await stage.files.delete("p", second.id)
    assert await blobs(stage) == 0


async def test_files_of_others_look_missing() -> None:
    stage = Stage()
    file = await add(stage, b"secret", project="other")
    for act in (
        lambda: stage.files.get("p", file.id),
        lambda: stage.files.delete("p", file.id),
        lambda: content(stage, file.id),
    ):
        with pytest.raises(NotFound) as refused:
            await act()
        assert refused.value.code == "file_not_found"
    assert await stage.files.page("p") == []
    assert (await stage.files.get("other", file.id)).bytes == 6


async def test_a_file_that_is_too_large_leaves_nothing_behind() -> None:
    stage = Stage()
    small = Files(stage.all_records, stage.blobs, stage.held, bytes_max=8)
    with pytest.raises(TooLarge) as refused:
        await small.add("p", filename="a", purpose="batch", chunks=pieces(b"1234", b"56789"))
    assert refused.value.code == "file_too_large"
    assert await blobs(stage) == 0
    assert not stage.held._held
    assert stage.journal._lines == {}


async def test_bytes_that_stop_coming_leave_nothing_behind() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError

    stage = Stage()
    with pytest.raises(ConnectionResetError):
        await stage.files.add("p", filename="a", purpose="batch", chunks=broken())
    assert await blobs(stage) == 0
    assert not stage.held._held


async def test_a_file_whose_record_cannot_be_written_leaves_no_bytes_behind() -> None:
    stage = Stage()
    kept = await add(stage, b"kept")

    async def full(*_: Any) -> None:
        raise StorageFull("full")

    stage.journal.append = full
    for content_ in (b"new", b"kept"):
        with pytest.raises(StorageFull):
            await add(stage, content_)
    assert await blobs(stage) == 1
    assert await content(stage, kept.id) == b"kept"


async def test_files_expire_when_they_were_told_to_and_those_for_batches_after_a_month() -> None:
    clock = MovedClock()
    stage = Stage(clock=clock)
    hour, batch, ever = (
        await add(stage, b"1", expires_after=3_600),
        await add(stage, b"2", purpose="batch"),
        await add(stage, b"3"),
    )
    assert hour.expires_at == hour.created_at + 3_600_000
    assert batch.expires_at == batch.created_at + BATCH_SECONDS * 1_000
    clock.seconds += 3_600
    with pytest.raises(NotFound):
        await stage.files.get("p", hour.id)
    with pytest.raises(NotFound):
        await stage.files.delete("p", hour.id)
    assert [file.id for file in await stage.files.page("p")] == [ever.id, batch.id]
    await stage.all_records.drop_expired()
    assert await blobs(stage) == 2
    clock.seconds += BATCH_SECONDS
    await stage.all_records.drop_expired()
    assert [file.id for file in await stage.files.page("p")] == [ever.id]


async def test_files_are_listed_by_age_and_purpose_in_pages() -> None:
    stage = Stage()
    made = [await add(stage, b"%d" % n, purpose="batch" if n % 3 else "vision") for n in range(9)]
    names = [file.id for file in made]
    seen, after = [], ""
    while True:
        page = await stage.files.page("p", after=after, limit=4, descending=False)
        seen += [file.id for file in page[:4]]
        if len(page) <= 4:
            break
        after = page[3].id
    assert seen == names
    assert [file.id for file in await stage.files.page("p", purpose="vision")] == names[6::-3]
    assert [file.id for file in await stage.files.page("p", purpose="vision", limit=1)] == [names[6], names[3]]
    assert await stage.files.page("p", purpose="evals") == []
    with pytest.raises(InvalidRequest):
        await stage.files.page("p", after="file-nobody")


async def test_more_files_than_are_looked_through_at_a_time_are_found() -> None:
    stage = Stage()
    for n in range(1_100):
        await add(stage, b"", purpose="evals" if n in (3, 700) else "batch")
    assert len(await stage.files.page("p")) == 1_100
    assert len(await stage.files.page("p", purpose="evals")) == 2
    assert len(await stage.files.page("p", limit=1_000)) == 1_001


async def test_lines_come_whole_however_the_bytes_are_cut() -> None:
    stage = Stage()
    text = b"".join(b'{"n": %d}\r\n' % n for n in range(50_000)) + b"\nlast"
    file = await add(stage, text)
    lines = [line async for line in stage.files.lines("p", file.id, line_bytes=100)]
    assert lines == text.replace(b"\r\n", b"\n").split(b"\n")
    with pytest.raises(InvalidRequest) as refused:
        [line async for line in stage.files.lines("p", file.id, line_bytes=5)]
    assert refused.value.code == "line_too_long"
    endless = await add(stage, b"x" * 1_000_000)
    with pytest.raises(InvalidRequest):
        [line async for line in stage.files.lines("p", endless.id, line_bytes=1_000)]


async def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end() -> None:
    stage = Stage()
    file = await add(stage, b"a" * 300_000, b"b" * 300_000)
    reading = stage.files.chunks("p", file.id)
    first = await anext(reading)
    await stage.files.delete("p", file.id)
    assert first + b"".join([piece async for piece in reading]) == b"a" * 300_000 + b"b" * 300_000


async def test_a_file_and_the_key_it_was_asked_for_with_are_one_commit() -> None:
    stage = Stage()
    idempotency = Idempotency(stage.all_records)
    file_id = f"file-{ids.new_key()}"
    async with idempotency.claim("p", "key", "asked") as claimed:
        await add(stage, b"x", file_id=file_id, also=claimed.also(file_id))
    async with idempotency.claim("p", "key", "asked") as claimed:
        assert claimed.made == file_id
