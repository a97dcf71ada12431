"""A backup taken beside a real server that writes and erases is whole: it is restored, served, and says the same."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from stateroom.testing.process import ServerProcess, quiet_port
from tests.simulation.client import Client
from tests.simulation.files import check_erased, check_files, copy_data
from tests.simulation.scene import MODEL, Scene, scene

PNG = b"\x89PNG\r\n\x1a\n"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


async def run(*arguments: str | Path) -> Outcome:
    """A command of the command line in a process of its own."""
    command = [sys.executable, "-m", "stateroom.cli.main", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Outcome(process.returncode or 0, out.decode(), err.decode())


def shown(word: str, number: int = 0) -> list[Any]:
    """An input with a picture of its own, which is kept as a blob."""
    url = "data:image/png;base64," + base64.b64encode(PNG + f"{word} {number}".encode() * 9).decode()
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": f"say: {word} {number}"}]
    return [{"role": "user", "content": parts}]


class Load:
    """Responses that are created, with pictures, and deleted again, until it is stopped."""

    def __init__(self, stage: Scene) -> None:
        self._stage = stage
        self._stopped = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._go_on())
        self.kept: dict[str, Any] = {}
        """Responses that were acknowledged and are not to be deleted, as they were answered."""

    async def _go_on(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            made = await asyncio.gather(*[self._create(f"load{each}", number) for each in range(3)])
            for response in made[1:]:
                await self._stage.client.call("DELETE", f"/responses/{response['id']}")
            self.kept[made[0]["id"]] = made[0]

    async def _create(self, word: str, number: int) -> Any:
        body = {"model": MODEL, "input": shown(word, number)}
        return await self._stage.client.call("POST", "/responses", body)

    async def stop(self) -> None:
        self._stopped.set()
        await self._task


async def test_a_backup_beside_a_server_that_writes_can_be_restored_and_served(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        load = Load(stage)
        stream = await stage.stream("say: a stream that is kept", background=True).whole()
        streamed = stream[0].data["response"]["id"]
        acknowledged: dict[str, Any] = {}
        backups = [tmp_path / f"backup {number}" for number in range(3)]
        for target in backups:
            acknowledged = dict(load.kept)
            outcome = await run("backup", target, "--data", stage.server.data)
            assert outcome.code == 0, outcome
            assert "is a backup of" in outcome.out
            checked = await run("verify", "--data", target, "--json")
            assert json.loads(checked.out)["findings"] == []
        await load.stop()
        assert acknowledged, "nothing was written meanwhile"
        assert (await run("verify", "--data", stage.server.data)).code == 0
        restored = tmp_path / "restored"
        assert (await run("restore", backups[-1], "--data", restored)).code == 0
        await check_files(copy_data(restored, tmp_path / "looked at"))
        config = str(tmp_path / "stateroom.toml")
        server = ServerProcess(restored, port=quiet_port(), options=("--config", config), log=tmp_path / "log 2")
        client = Client(f"http://127.0.0.1:{server.port}/v1")
        with server:
            for identifier, response in acknowledged.items():
                assert await client.call("GET", f"/responses/{identifier}") == response
                items = (await client.call("GET", f"/responses/{identifier}/input_items"))["data"]
                assert items == (await stage.client.call("GET", f"/responses/{identifier}/input_items"))["data"]
            again = [event async for event in client.stream("GET", f"/responses/{streamed}?stream=true", None)]
            assert [event.raw for event in again] == [event.raw for event in stream]
            body = {"model": MODEL, "input": "say: it goes on", "previous_response_id": next(iter(acknowledged))}
            assert (await client.call("POST", "/responses", body))["status"] == "completed"
        await client.close()


async def test_what_was_erased_is_in_no_later_backup(tmp_path: Path) -> None:
    secret = "zq7xaaazq"
    async with scene(tmp_path) as stage:
        body = {"model": MODEL, "input": shown(secret)}
        made = await stage.client.call("POST", "/responses", body)
        stream = await stage.stream(f"say: {secret}", background=True).whole()
        conversation = {"items": [{"role": "user", "content": secret}], "metadata": {"about": secret}}
        talk = await stage.client.call("POST", "/conversations", conversation)
        assert (await run("backup", tmp_path / "before", "--data", stage.server.data)).code == 0
        before = await asyncio.to_thread(held, tmp_path / "before")
        assert secret.encode() in before
        for path in (
            f"/responses/{made['id']}",
            f"/responses/{stream[0].data['response']['id']}",
            f"/conversations/{talk['id']}",
        ):
            await stage.client.call("DELETE", path)
        assert (await run("backup", tmp_path / "after", "--data", stage.server.data)).code == 0
        await check_erased(tmp_path / "after", {secret})
        picture = hashlib.sha256(PNG + f"{secret} 0".encode() * 9).digest()
        assert picture not in await asyncio.to_thread(held, tmp_path / "after")


def held(folder: Path) -> bytes:
    """Every byte of every file."""
    return b"".join([path.read_bytes() for path in folder.rglob("*") if path.is_file()])


async def test_a_rebuilt_index_gives_the_same_answers(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        made = [await stage.create(f"say: {word}") for word in ("one", "two", "three")]
        await stage.client.call("DELETE", f"/responses/{made[1]['id']}")
        await stage.client.call("POST", "/conversations", {"items": [{"role": "user", "content": "x"}]})

        async def answers() -> list[Any]:
            return [await stage.client.call("GET", path) for path in ("/responses", "/conversations")]

        before = await answers()
        refused = await run("rebuild", "--data", stage.server.data)
        assert refused.code == 3
        assert "in use by another server" in refused.err
        await stage.stop()
        rebuilt = await run("rebuild", "--data", stage.server.data)
        assert rebuilt.code == 0
        assert "made anew" in rebuilt.out
        await stage.start()
        assert await answers() == before
        assert (await run("verify", "--data", stage.server.data)).code == 0
