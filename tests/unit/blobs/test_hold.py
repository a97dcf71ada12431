"""Between a blob and the entry that refers to it, nobody may take the blob for unneeded."""

from __future__ import annotations

from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.blobs.store import digest_of


async def test_what_is_put_is_held_until_the_hold_ends() -> None:
    held = HeldBlobs(MemoryBlobs())
    with held.hold() as one, held.hold() as other:
        digest = await one.put(b"x")
        assert await other.put(b"x") == digest
        assert held.is_held(digest)
    assert not held.is_held(digest)


async def test_a_blob_of_pieces_is_held_from_its_finish_on() -> None:
    blobs = MemoryBlobs()
    held = HeldBlobs(blobs)
    with held.hold() as hold:
        writer = hold.writer()
        await writer.write(b"some ")
        await writer.write(b"pieces")
        assert (writer.size, writer.digest) == (11, digest_of(b"some pieces"))
        digest = await writer.finish()
        assert held.is_held(digest)
        await writer.abort()
    assert not held.is_held(digest)
    assert await blobs.get(digest) == b"some pieces"


async def test_a_blob_that_is_there_can_be_held_once_more() -> None:
    blobs = MemoryBlobs()
    held = HeldBlobs(blobs)
    digest = await blobs.put(b"x")
    with held.hold() as hold:
        assert await hold.keep(digest)
        assert held.is_held(digest)
        assert not await hold.keep(digest_of(b"missing"))
    assert not held.is_held(digest)
