"""What every blob store must do. Each case raises AssertionError when a promise is broken.

A test runs them all over its store, each on a fresh one:

    @pytest.mark.parametrize("case", blob_conformance.CASES)
    async def test_it_conforms(case, tmp_path):
        await case(open_directory(tmp_path))
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from stateroom.blobs.store import Blobs

Case: TypeAlias = Callable[[Blobs], Awaitable[None]]

SIZES: Final = (0, 1, 4_096, 32_768, 32_769, 3_000_000)


async def bytes_come_back_under_their_hash(blobs: Blobs) -> None:
    for size in SIZES:
        data = bytes([size % 251]) * size
        digest = await blobs.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert await blobs.get(digest) == data
        assert await blobs.exists(digest)


async def the_same_bytes_are_one_blob(blobs: Blobs) -> None:
    assert len({await blobs.put(b"same") for _ in range(3)}) == 1
    digest = await blobs.put(b"same")
    await blobs.delete(digest)
    assert await blobs.get(digest) is None


async def what_was_never_put_is_not_there(blobs: Blobs) -> None:
    digest = hashlib.sha256(b"never").hexdigest()
    assert await blobs.get(digest) is None
    assert not await blobs.exists(digest)
    await blobs.delete(digest)


async def a_deleted_blob_is_gone_and_may_come_back(blobs: Blobs) -> None:
    for data in (b"small", b"large" * 100_000):
        digest = await blobs.put(data)
        await blobs.delete(digest)
        assert await blobs.get(digest) is None
        assert not await blobs.exists(digest)
        assert await blobs.put(data) == digest
        assert await blobs.get(digest) == data


async def what_is_not_a_hash_is_not_there(blobs: Blobs) -> None:
    digest = await blobs.put(b"here")
    for name in ("", "..", "../" * 30, "/etc/passwd", digest.upper(), digest[:-1], digest + "0", "\x00" * 64, "é" * 64):
        assert await blobs.get(name) is None, name
        assert not await blobs.exists(name), name
        await blobs.delete(name)
    assert await blobs.get(digest) == b"here"


async def many_may_put_at_once(blobs: Blobs) -> None:
    contents = [bytes([number % 7]) * (number % 7 * 20_000 + 1) for number in range(70)]
    digests = await asyncio.gather(*[blobs.put(data) for data in contents])
    for data, digest in zip(contents, digests, strict=True):
        assert await blobs.get(digest) == data


async def a_put_that_ended_after_a_delete_stands(blobs: Blobs) -> None:
    for data in (b"x" * 100, b"x" * 200_000):
        digest = await blobs.put(data)
        deleting = asyncio.ensure_future(blobs.delete(digest))
        putting = asyncio.ensure_future(blobs.put(data))
        await deleting
        await putting
        assert await blobs.get(digest) == data


CASES: Final[tuple[Case, ...]] = (
    bytes_come_back_under_their_hash,
    the_same_bytes_are_one_blob,
    what_was_never_put_is_not_there,
    a_deleted_blob_is_gone_and_may_come_back,
    what_is_not_a_hash_is_not_there,
    many_may_put_at_once,
    a_put_that_ended_after_a_delete_stands,
)
