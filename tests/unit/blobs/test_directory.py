"""What blobs as files do beyond the seam: they survive crashes, notice damage, and stay out of other people's sight."""

from __future__ import annotations

import asyncio
import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stateroom.blobs.directory import open_directory
from stateroom.blobs.store import BlobDamaged
from stateroom.errors import StorageError

PROGRAM = """
import asyncio, resource, sys
from stateroom.blobs.directory import open_directory
from stateroom.errors import StorageFull

async def main():
    blobs = open_directory(sys.argv[1])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    for size in (20_000, 200_000):
        try:
            await blobs.put(b"x" * size)
        except StorageFull:
            continue
        raise AssertionError("there was room")
    for size in (20_000, 400_000):
        writer = blobs.writer()
        try:
            await writer.write(b"x" * size)
            await writer.finish()
        except StorageFull:
            continue
        raise AssertionError("there was room for pieces")
    small = await blobs.put(b"small")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    large = await blobs.put(b"x" * 200_000)
    assert await blobs.get(large) == b"x" * 200_000
    assert await blobs.get(small) == b"small"

asyncio.run(main())
"""

KILLED = """
import asyncio, os, sys
from stateroom.blobs.directory import open_directory

async def main():
    blobs = open_directory(sys.argv[1], durability=sys.argv[2])
    number = 0
    while True:
        number += 1
        digest = await blobs.put(b"%d " % number * (number * 977 % 60_000 + 1))
        os.write(1, digest.encode() + b"\\n")

asyncio.run(main())
"""


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def identity(path: Path) -> tuple[int, int]:
    """Another one for every file that is written, under whatever name."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def put_until_killed(folder: Path, durability: str) -> list[str]:
    """What a child said that it had put before it was killed."""
    program = [sys.executable, "-c", KILLED, str(folder), durability]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        put = [child.stdout.readline().strip() for _ in range(60)]
        child.kill()
        return put + [line.strip() for line in child.stdout if line.endswith("\n")]


def damage(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_a_blob_is_a_private_file_under_its_hash(tmp_path: Path) -> None:
    blobs = open_directory(tmp_path / "blobs")
    digest = await blobs.put(b"hello")
    assert files(tmp_path) == [tmp_path / "blobs" / digest[:2] / digest[2:]]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o600]
    folders = [path for path in (tmp_path / "blobs").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


async def test_blobs_are_there_after_reopening(tmp_path: Path) -> None:
    digest = await open_directory(tmp_path).put(b"kept")
    again = open_directory(tmp_path)
    assert await again.exists(digest)
    assert await again.get(digest) == b"kept"


async def test_what_an_interrupted_write_left_is_removed(tmp_path: Path) -> None:
    digest = await open_directory(tmp_path).put(b"kept")
    (tmp_path / "incoming" / "half").write_bytes(b"ha")
    again = open_directory(tmp_path)
    assert files(tmp_path) == [tmp_path / digest[:2] / digest[2:]]
    assert await again.get(digest) == b"kept"


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_changed_file_is_noticed_and_a_fresh_put_mends_it(tmp_path: Path, size: int) -> None:
    data = b"x" * size
    digest = await open_directory(tmp_path).put(data)
    for changed in (b"y" * size, data[:-1], data + b"x", b""):
        damage(tmp_path / digest[:2] / digest[2:], changed)
        blobs = open_directory(tmp_path)
        with pytest.raises(BlobDamaged) as refusal:
            await blobs.get(digest)
        assert digest in refusal.value.message
        assert await blobs.put(data) == digest
        assert await blobs.get(digest) == data


async def test_putting_the_same_bytes_again_writes_nothing(tmp_path: Path) -> None:
    blobs = open_directory(tmp_path)
    digest = await blobs.put(b"same" * 50_000)
    path = tmp_path / digest[:2] / digest[2:]
    before = identity(path)
    assert await blobs.put(b"same" * 50_000) == digest
    assert identity(path) == before


async def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        open_directory(tmp_path / "file")
    blobs = open_directory(tmp_path / "blobs")
    digest = hashlib.sha256(b"x").hexdigest()
    damage(tmp_path / "blobs" / digest[:2], b"in the way")
    with pytest.raises(StorageError):
        await blobs.put(b"x")
    assert files(tmp_path / "blobs" / "incoming") == []


def test_a_full_disk_is_a_clear_error_and_room_makes_it_pass(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert files(tmp_path / "incoming") == []


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_what_was_put_is_there_after_kill_9(tmp_path: Path, durability: str) -> None:
    put = put_until_killed(tmp_path, durability)
    blobs = open_directory(tmp_path)
    for digest in put:
        assert await blobs.get(digest) is not None
    assert all(
        hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name for path in files(tmp_path)
    )


async def test_a_put_that_nobody_waits_for_leaves_no_lock_behind(tmp_path: Path) -> None:
    blobs = open_directory(tmp_path)
    data = b"z" * 3_000_000
    task = asyncio.ensure_future(blobs.put(data))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    digest = await asyncio.wait_for(blobs.put(data), 30)
    assert await blobs.get(digest) == data


async def test_a_cancelled_write_can_be_aborted_and_leaves_nothing(tmp_path: Path) -> None:
    blobs = open_directory(tmp_path)
    writer = blobs.writer()
    await writer.write(b"a" * 300_000)
    task = asyncio.ensure_future(writer.write(b"b" * 3_000_000))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await writer.abort()
    assert files(tmp_path) == []


async def test_half_a_blob_of_a_killed_process_is_removed_at_the_next_start(tmp_path: Path) -> None:
    writer = open_directory(tmp_path).writer()
    await writer.write(b"a" * 300_000)
    assert len(files(tmp_path / "incoming")) == 1
    blobs = open_directory(tmp_path)
    assert files(tmp_path) == []
    assert await blobs.digests() == []


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_a_blob_of_pieces_is_a_private_file_under_its_hash(tmp_path: Path, durability: str) -> None:
    blobs = open_directory(tmp_path, durability="full" if durability == "full" else "normal")
    writer = blobs.writer()
    await writer.write(b"a" * 300_000)
    digest = await writer.finish()
    assert files(tmp_path) == [tmp_path / digest[:2] / digest[2:]]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o600]
