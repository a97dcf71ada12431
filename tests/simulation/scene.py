"""A server with a scripted model behind it, within reach of a test: the stage of the fault tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stateroom.testing.process import ServerProcess, quiet_port
from stateroom.testing.script import Script
from stateroom.testing.scripted import ScriptedServer
from tests.simulation.client import Client, Event, Gone

MODEL = "scripted"
ENDED = ("completed", "incomplete", "failed", "cancelled")


class Scene:
    """One server process, the model it asks (in the test's own loop), and a client."""

    def __init__(self, folder: Path, model: ScriptedServer, settings: str, backend: str, module: str) -> None:
        self.model = model
        self.script: Script = model.script
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "stateroom.toml"
        config.write_text(f'{settings}\n[[backends]]\nurl = "{model.url}"\n{backend}\n')
        self.server = ServerProcess(
            folder / "data", port=quiet_port(), options=("--config", str(config)), module=module, log=folder / "log"
        )
        self.client = Client(f"http://127.0.0.1:{self.server.port}/v1")

    async def start(self, **environment: str) -> None:
        await asyncio.to_thread(self.server.start, environment=environment)

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def stop(self, seconds: float = 20.0) -> int:
        return await asyncio.to_thread(self.server.terminate, seconds)

    async def create(self, input: str, **options: Any) -> Any:
        return await self.client.call("POST", "/responses", {"model": MODEL, "input": input, **options})

    async def retrieve(self, response_id: str) -> Any:
        return await self.client.call("GET", f"/responses/{response_id}")

    async def ended(self, response_id: str, seconds: float = 20.0) -> Any:
        """The response, once it has ended."""

        async def look() -> Any:
            shown = await self.retrieve(response_id)
            return shown if shown["status"] in ENDED else None

        return await eventually(look, seconds)

    def stream(self, input: str, **options: Any) -> Stream:
        """A streamed response that is read in a task of its own."""
        return Stream(self.client, "POST", "/responses", {"model": MODEL, "input": input, "stream": True, **options})

    def follow(self, response_id: str, after: int = -1) -> Stream:
        query = f"?stream=true&starting_after={after}" if after >= 0 else "?stream=true"
        return Stream(self.client, "GET", f"/responses/{response_id}{query}", None)


@asynccontextmanager
async def scene(
    folder: Path, *, settings: str = "", backend: str = "", module: str = "stateroom.cli.main", delay: float = 0.0
) -> AsyncIterator[Scene]:
    """A scene whose server runs. `settings` and `backend` are lines of its configuration file."""
    async with ScriptedServer(delay=delay) as model:
        staged = Scene(folder, model, settings, backend, module)
        await staged.start()
        try:
            yield staged
        finally:
            await staged.client.close()
            if staged.server.status is None:
                await staged.kill()


class Stream:
    """A stream, read as it comes."""

    def __init__(self, client: Client, method: str, path: str, body: Any) -> None:
        self.events: list[Event] = []
        self.gone = False
        """It broke off, or closed without a terminal event."""
        self._changed = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._read(client, method, path, body))

    async def _read(self, client: Client, method: str, path: str, body: Any) -> None:
        try:
            async for event in client.stream(method, path, body):
                self.events.append(event)
                self._changed.set()
        except Gone:
            self.gone = True
        finally:
            self._changed.set()

    @property
    def id(self) -> str:
        return str(self.events[0].data["response"]["id"])

    @property
    def text(self) -> str:
        """The text of the message that its last item is."""
        final = self.events[-1].data["response"]
        return "".join(part["text"] for part in final["output"][-1]["content"])

    async def until(self, count: int, seconds: float = 20.0) -> None:
        """Wait for so many events. Raises TimeoutError, and AssertionError when it ends before."""
        async with asyncio.timeout(seconds):
            while len(self.events) < count:
                assert not self._task.done(), f"the stream ended after {len(self.events)} events"
                self._changed.clear()
                await self._changed.wait()

    async def whole(self, seconds: float = 30.0) -> list[Event]:
        """All events, when it has ended. Raises what reading it raised."""
        await asyncio.wait_for(asyncio.shield(self._task), seconds)
        return self.events

    async def drop(self) -> None:
        """Close the connection in the middle."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def check_numbers(self, first: int = 0) -> None:
        """No gap, and one terminal event, the last."""
        assert [event.number for event in self.events] == list(range(first, first + len(self.events)))
        assert [event.number for event in self.events if event.is_terminal] == [self.events[-1].number]


async def eventually(look: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """What `look` gives, as soon as that is something. Raises AssertionError when it takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"nothing after {seconds:g} seconds: {found!r}"
        await asyncio.sleep(0.02)
