"""A disk that fills up: clear errors, streams that pause, nothing corrupted; and all goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.simulation.client import Refused
from tests.simulation.files import check_files, copy_data
from tests.simulation.scene import Scene, eventually, scene

LONG = " ".join(f"w{n}" for n in range(120))


class Disk(Protocol):
    """A disk that can be filled and freed."""

    folder: Path

    def fill(self, stage: Scene) -> None: ...
    def free(self, stage: Scene) -> None: ...


class SmallDisk:
    """A file system of its own, with 3 MiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, stage: Scene) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError:
                return

    def free(self, stage: Scene) -> None:
        (self.folder / "ballast").unlink()


class Quota:
    """A bound on the size of each file, set from outside on the running server: for whoever may not mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, stage: Scene) -> None:
        self._bound(stage, (stage.server.data / "journal.db-wal").stat().st_size)

    def free(self, stage: Scene) -> None:
        self._bound(stage, resource.RLIM_INFINITY)

    def _bound(self, stage: Scene, size: int) -> None:
        _, hard = resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, (size, hard))


@pytest.fixture(params=[SmallDisk, Quota])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    make: Callable[[Path], Disk] = request.param
    if make is Quota:
        yield make(tmp_path)
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode or not os.path.ismount(folder):
        pytest.skip("only root may mount a small disk; the quota is tried in its place")
    yield make(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_refuses_what_is_new_pauses_what_runs_and_loses_nothing(disk: Disk, tmp_path: Path) -> None:
    async with scene(disk.folder, delay=0.02) as stage:
        before = await stage.create("say: before")
        conversation = await stage.client.call("POST", "/conversations", {"items": [_message("first")]})
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(10)

        await asyncio.to_thread(disk.fill, stage)
        await eventually(lambda: _is_refused(stage, "POST", "/responses", {"model": "m", "input": "say: during"}))
        items = f"/conversations/{conversation['id']}/items"
        assert await _is_refused(stage, "POST", items, {"items": [_message("second")]})
        assert await _is_refused(stage, "POST", "/conversations", {"items": [_message("another")]})
        assert await stage.retrieve(before["id"]) == before
        assert (await asyncio.wait_for(stage.retrieve(stream.id), 5))["status"] == "in_progress"
        assert [text["content"][0]["text"] for text in await stage.client.pages(items)] == ["first"]
        assert stage.server.status is None
        paused_at = len(stream.events)
        assert not stream.events[-1].is_terminal

        await asyncio.to_thread(disk.free, stage)
        await stream.whole()
        assert len(stream.events) > paused_at
        stream.check_numbers()
        assert stream.text == LONG
        assert [event.raw for event in await stage.client.replay(stream.id)] == [event.raw for event in stream.events]
        await stage.client.call("POST", items, {"items": [_message("third")]})
        assert [text["content"][0]["text"] for text in await stage.client.pages(items)] == ["first", "third"]
        listed = {each["id"]: each["status"] for each in await stage.client.pages("/responses")}
        assert {before["id"], stream.id} <= set(listed)
        assert set(listed.values()) == {"completed"}
        await stage.kill()
        await check_files(await asyncio.to_thread(copy_data, stage.server.data, tmp_path / "copy"))


async def test_a_server_that_is_killed_on_a_full_disk_goes_on_when_there_is_room(disk: Disk) -> None:
    async with scene(disk.folder, delay=0.02) as stage:
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(10)
        await asyncio.to_thread(disk.fill, stage)
        await eventually(lambda: _is_refused(stage, "POST", "/responses", {"model": "m", "input": "say: during"}))
        await stage.kill()
        if isinstance(disk, SmallDisk):
            await asyncio.to_thread(disk.free, stage)
        await stage.start()
        rest = stage.follow(stream.id)
        await rest.whole()
        rest.check_numbers()
        assert [event.raw for event in rest.events[: len(stream.events)]] == [event.raw for event in stream.events]
        assert rest.text == LONG


async def _is_refused(stage: Scene, method: str, path: str, body: object) -> bool:
    """Whether this is refused because the disk is full; any other refusal is an error."""
    try:
        await stage.client.call(method, path, body)
    except Refused as refused:
        if (refused.status, refused.code) == (503, "storage_full"):
            return True
        raise
    return False


def _message(text: str) -> dict[str, str]:
    return {"type": "message", "role": "user", "content": text}
