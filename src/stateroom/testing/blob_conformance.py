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

from stateroom.blobs.store import CHUNK_BYTES, Blobs
from stateroom.errors import StorageError

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


async def pieces_make_one_blob(blobs: Blobs) -> None:
    for sizes in ((), (0, 7), (1, 0, 4_095), (40_000, 40_000), (300_000,), (700_000, 1, 262_144, 99_999)):
        data = b"".join(bytes([size % 251]) * size for size in sizes)
        writer = blobs.writer()
        written = 0
        for size in sizes:
            await writer.write(bytes([size % 251]) * size)
            written += size
            assert writer.size == written
            assert writer.digest == hashlib.sha256(data[:written]).hexdigest()
        assert not await blobs.exists(hashlib.sha256(data).hexdigest())
        digest = await writer.finish()
        assert digest == hashlib.sha256(data).hexdigest()
        assert await blobs.get(digest) == data
        assert await blobs.size(digest) == len(data)
        assert await blobs.exists(digest)
        assert digest in await blobs.digests()


async def an_aborted_blob_leaves_nothing(blobs: Blobs) -> None:
    for size in (0, 10, 900_000):
        writer = blobs.writer()
        await writer.write(b"x" * size)
        await writer.abort()
        await writer.abort()
        await _refused(writer.write(b"more"))
        await _refused(writer.finish())
    assert await blobs.digests() == []


async def aborting_what_is_finished_does_nothing(blobs: Blobs) -> None:
    for size in (10, 900_000):
        writer = blobs.writer()
        await writer.write(b"x" * size)
        digest = await writer.finish()
        await writer.abort()
        await _refused(writer.write(b"more"))
        assert await blobs.get(digest) == b"x" * size


async def writers_do_not_meet(blobs: Blobs) -> None:
    async def write(number: int) -> str:
        writer = blobs.writer()
        for _ in range(4):
            await writer.write(bytes([number % 5]) * 100_000)
        return await writer.finish()

    digests = await asyncio.gather(*[write(number) for number in range(15)])
    assert len(set(digests)) == 5
    for number, digest in enumerate(digests):
        assert await blobs.get(digest) == bytes([number % 5]) * 400_000


async def a_blob_is_read_in_pieces(blobs: Blobs) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(250_000))
    digest = await blobs.put(data)
    pieces = [piece async for piece in blobs.chunks(digest)]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= CHUNK_BYTES
    end = len(data) - 1
    for first, last in ((0, 0), (3, 9), (CHUNK_BYTES - 1, CHUNK_BYTES), (5, end), (end, end), (7, end + 50), (9, None)):
        found = b"".join([piece async for piece in blobs.chunks(digest, first=first, last=last)])
        assert found == data[first : None if last is None else last + 1], (first, last)
    assert [piece async for piece in blobs.chunks(digest, first=len(data))] == []
    assert [piece async for piece in blobs.chunks(digest, first=9, last=8)] == []
    assert [piece async for piece in blobs.chunks(await blobs.put(b""))] == []


async def what_is_not_there_has_no_size_and_no_pieces(blobs: Blobs) -> None:
    digest = await blobs.put(b"here")
    await blobs.delete(digest)
    for name in (digest, "", "..", "../" * 30, digest.upper()):
        assert await blobs.size(name) is None
        await _refused(anext(blobs.chunks(name)))


async def a_blob_that_is_deleted_while_it_is_read_is_read_to_its_end(blobs: Blobs) -> None:
    data = b"z" * 900_000
    digest = await blobs.put(data)
    pieces = blobs.chunks(digest)
    found = [await anext(pieces)]
    await blobs.delete(digest)
    found += [piece async for piece in pieces]
    assert b"".join(found) == data


async def _refused(waiting: Awaitable[object]) -> None:
    outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert isinstance(outcome, StorageError), f"{outcome!r} instead of a StorageError"


CASES: Final[tuple[Case, ...]] = (
    bytes_come_back_under_their_hash,
    the_same_bytes_are_one_blob,
    what_was_never_put_is_not_there,
    a_deleted_blob_is_gone_and_may_come_back,
    what_is_not_a_hash_is_not_there,
    many_may_put_at_once,
    a_put_that_ended_after_a_delete_stands,
    pieces_make_one_blob,
    an_aborted_blob_leaves_nothing,
    aborting_what_is_finished_does_nothing,
    writers_do_not_meet,
    a_blob_is_read_in_pieces,
    what_is_not_there_has_no_size_and_no_pieces,
    a_blob_that_is_deleted_while_it_is_read_is_read_to_its_end,
)
