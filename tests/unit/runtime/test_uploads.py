"""Uploads: parts in any order, made whole at once, and nothing left of those that came to nothing."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, NotFound, RequestError
from stateroom.runtime.files.uploads import KEPT_SECONDS, LIFE_SECONDS, Part, Upload, Uploads
from tests.unit.runtime.stage import MovedClock, Stage


class Scene:
    """A stage with uploads."""

    def __init__(self, stage: Stage | None = None) -> None:
        self.clock = MovedClock()
        self.stage = stage or Stage(clock=self.clock)
        self.uploads = Uploads(self.stage.all_records, self.stage.files, self.stage.blobs)

    async def begin(self, size: int, **options: Any) -> Upload:
        told = {"filename": "a.bin", "purpose": "user_data", "mime_type": "x/y", "expires_after": None, **options}
        return await self.uploads.create("p", size=size, **told)

    async def add(self, upload: Upload, data: bytes, *, project: str = "p") -> Part:
        async with self.stage.files.incoming() as incoming:
            await incoming.write(data)
            return await self.uploads.add_part(project, upload.id, incoming)

    async def complete(self, upload: Upload, *parts: Part, md5: str = "") -> Upload:
        return await self.uploads.complete("p", upload.id, [part.id for part in parts], md5)

    async def content(self, upload: Upload) -> bytes:
        assert upload.file is not None
        return b"".join([piece async for piece in self.stage.files.chunks("p", upload.file.id)])

    async def blobs(self) -> int:
        return len(await self.stage.blobs.digests())


async def refusal(call: Any) -> str:
    with pytest.raises(RequestError) as refused:
        await call
    return refused.value.code


async def test_parts_become_a_file_in_the_order_that_is_asked_for() -> None:
    scene = Scene()
    upload = await scene.begin(9, expires_after=3_600)
    assert upload.state.status == "pending"
    late, early = await scene.add(upload, b"6789"), await scene.add(upload, b"12345")
    done = await scene.complete(upload, early, late, md5=hashlib.md5(b"123456789").hexdigest().upper())
    assert done.state.status == "completed"
    assert await scene.content(done) == b"123456789"
    assert done.file is not None
    assert (done.file.filename, done.file.purpose, done.file.bytes) == ("a.bin", "user_data", 9)
    assert done.file.expires_at == done.file.created_at + 3_600_000
    assert await scene.blobs() == 1, "the parts are gone"


async def test_parts_that_are_not_named_are_left_out_and_gone() -> None:
    scene = Scene()
    upload = await scene.begin(3)
    await scene.add(upload, b"wrong")
    done = await scene.complete(upload, await scene.add(upload, b"abc"))
    assert await scene.content(done) == b"abc"
    assert await scene.blobs() == 1


async def test_what_does_not_fit_together_is_refused_and_may_be_mended() -> None:
    scene = Scene()
    upload = await scene.begin(6)
    one, two = await scene.add(upload, b"abc"), await scene.add(upload, b"def")
    stranger = await scene.add(await scene.begin(3), b"xyz")
    assert await refusal(scene.complete(upload, one)) == "upload_size_mismatch"
    assert await refusal(scene.complete(upload, one, one)) == "invalid_value"
    assert await refusal(scene.complete(upload, one, stranger)) == "upload_part_not_found"
    assert await refusal(scene.complete(upload, two, one, md5=hashlib.md5(b"abcdef").hexdigest())) == "md5_mismatch"
    assert await scene.blobs() == 3
    assert await scene.stage.files.page("p") == []
    assert await scene.content(await scene.complete(upload, one, two)) == b"abcdef"


async def test_a_completion_that_is_asked_for_again_is_answered_alike() -> None:
    scene = Scene()
    upload = await scene.begin(3)
    part = await scene.add(upload, b"abc")
    both = await asyncio.gather(scene.complete(upload, part), scene.complete(upload, part))
    assert both[0] == both[1]
    assert len(await scene.stage.files.page("p")) == 1
    assert await refusal(scene.uploads.complete("p", upload.id, ["part_other"], "")) == "upload_not_pending"
    assert await refusal(scene.add(upload, b"more")) == "upload_not_pending"
    assert await refusal(scene.uploads.cancel("p", upload.id)) == "upload_not_pending"
    assert both[0].file is not None
    await scene.stage.files.delete("p", both[0].file.id)
    assert (await scene.complete(upload, part)).file is None


async def test_a_cancelled_upload_keeps_nothing_and_takes_nothing() -> None:
    scene = Scene()
    upload = await scene.begin(6)
    part = await scene.add(upload, b"abc")
    assert (await scene.uploads.cancel("p", upload.id)).state.status == "cancelled"
    assert (await scene.uploads.cancel("p", upload.id)).state.status == "cancelled"
    assert await scene.blobs() == 0
    assert await refusal(scene.add(upload, b"def")) == "upload_not_pending"
    assert await scene.blobs() == 0
    assert await refusal(scene.complete(upload, part)) == "upload_not_pending"


async def test_an_upload_is_for_an_hour_and_known_for_a_day() -> None:
    scene = Scene()
    upload = await scene.begin(3)
    part = await scene.add(upload, b"abc")
    scene.clock.seconds += LIFE_SECONDS
    assert (await scene.uploads.get("p", upload.id)).state.status == "expired"
    for call in (
        scene.add(upload, b"def"),
        scene.complete(upload, part),
        scene.uploads.check_pending("p", upload.id),
        scene.uploads.cancel("p", upload.id),
    ):
        assert await refusal(call) == "upload_expired"
    await scene.stage.all_records.drop_expired()
    assert await scene.blobs() == 0
    assert await refusal(scene.complete(upload, part)) == "upload_expired"
    scene.clock.seconds += KEPT_SECONDS
    await scene.stage.all_records.drop_expired()
    assert await refusal(scene.complete(upload, part)) == "upload_not_found"


async def test_uploads_of_others_look_missing() -> None:
    scene = Scene()
    upload = await scene.begin(3)
    part = await scene.add(upload, b"abc")
    for call in (
        scene.uploads.get("other", upload.id),
        scene.uploads.complete("other", upload.id, [part.id], ""),
        scene.uploads.cancel("other", upload.id),
        scene.add(upload, b"x", project="other"),
    ):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.code == "upload_not_found"
    assert await scene.blobs() == 1


async def test_a_crash_between_parts_loses_none_of_them() -> None:
    scene = Scene()
    upload = await scene.begin(6)
    one = await scene.add(upload, b"abc")
    after = Scene(scene.stage.after_crash())
    two = await after.add(upload, b"def")
    assert await after.content(await after.complete(upload, one, two)) == b"abcdef"


async def test_parts_that_are_gone_say_so() -> None:
    scene = Scene()
    upload = await scene.begin(3)
    part = await scene.add(upload, b"abc")
    for digest in await scene.stage.blobs.digests():
        await scene.stage.blobs.delete(digest)
    with pytest.raises(InvalidRequest) as refused:
        await scene.complete(upload, part)
    assert refused.value.code == "upload_expired"
