"""The clients of one life of a server: how they make responses, and how their readers come back after a crash.

What they do is in actors.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from tests.simulation.client import Client, Event, Gone, Refused
from tests.simulation.ledger import Ledger, Response

MODEL = "scripted"
ENDED = ("completed", "incomplete", "failed", "cancelled")

Actor: TypeAlias = Callable[["Round"], Awaitable[None]]


class Round:
    """One life of the server, as its clients see it."""

    def __init__(self, client: Client, ledger: Ledger, rng: random.Random, salt: str) -> None:
        self.client = client
        self.ledger = ledger
        self.rng = rng
        self.salt = salt
        self.readers: list[asyncio.Task[None]] = []
        """Readers of streams, which outlive the server."""
        self.killed = asyncio.Event()
        self.up = asyncio.Event()
        """Set when the next server is up."""
        self.up_at = 0.0
        """By the monotonic clock."""
        self.kill: Callable[[], None] | None = None
        """Kills the server from inside an actor, at a moment that only the client knows."""
        self.strike: Callable[[random.Random], str] | None = None
        """Kills a process of a sandbox; its kind, or '' when there was none."""

    def token(self) -> str:
        return self.ledger.new_token(self.salt)

    def words(self, token: str, low: int = 4, high: int = 30) -> str:
        return f"{token} " + " ".join(f"w{n}" for n in range(self.rng.randint(low, high)))

    def ask(self, text: str, pace: int | None = None) -> str:
        """A message that makes the model say this text, at a pace of so many milliseconds a word."""
        return f"slow: {self.rng.choice((0, 1, 2, 5, 10)) if pace is None else pace}\nsay: {text}"

    async def run(self, count: int, actors: Mapping[Actor, int]) -> None:
        """Keep so many clients busy until the server is gone; `actors` says what they do, and how often."""
        await asyncio.gather(*(self._act(random.Random(self.rng.random()), actors) for _ in range(count)))

    async def _act(self, rng: random.Random, actors: Mapping[Actor, int]) -> None:
        while not self.killed.is_set():
            actor = rng.choices(list(actors), list(actors.values()))[0]
            try:
                await actor(self)
            except Gone:
                return

    # The ways in which a response can be made.

    async def create(self, body: dict[str, Any], kind: str, token: str, **known: Any) -> Response:
        """A response, made in one of four ways and read to its end. Raises Refused, Gone."""
        manner = self.rng.choice(("sync", "stream", "background", "background stream"))
        body = {"model": MODEL, **body}
        if manner == "sync":
            shown = await self.client.call("POST", "/responses", body)
            response = self.ledger.new_response(shown["id"], kind, token, **known)
            response.end(shown)
            return response
        if manner == "background":
            return await self.background(body, kind, token, **known)
        return await self.stream({**body, "background": manner != "stream"}, kind, token, **known)

    async def background(self, body: dict[str, Any], kind: str, token: str, **known: Any) -> Response:
        """A background response, polled to its end."""
        shown = await self.client.call("POST", "/responses", {"model": MODEL, **body, "background": True})
        response = self.ledger.new_response(shown["id"], kind, token, streamed=True, **known)
        while shown["status"] not in ENDED:
            await asyncio.sleep(0.01)
            shown = await self.client.call("GET", f"/responses/{response.id}")
        response.end(shown)
        return response

    async def stream(self, body: dict[str, Any], kind: str, token: str, **known: Any) -> Response:
        """A streamed response. When the server dies its reader goes on with the next one."""
        response: Response | None = None
        try:
            async for event in self.client.stream("POST", "/responses", {"model": MODEL, **body, "stream": True}):
                if response is None:
                    id = event.data["response"]["id"]
                    response = self.ledger.new_response(id, kind, token, streamed=True, **known)
                    if self.rng.random() < 0.3:
                        self.follow(response, second=True)
                response.see(event)
        except Gone:
            if response is not None:
                self.follow(response)
            raise
        assert response is not None, "a stream without an event"
        if response.final is None:
            self.follow(response)
            raise Gone("the stream ended before its response did")
        return response

    def later(self, doing: Callable[[], Awaitable[None]]) -> None:
        """Have this done when the next server is up."""

        async def wait_and_do() -> None:
            await self.up.wait()
            await doing()

        self.readers.append(asyncio.get_running_loop().create_task(wait_and_do()))

    def follow(self, response: Response, *, second: bool = False) -> None:
        """Read a stream from where its reader stopped; a second reader begins anywhere and checks what it gets."""
        read = self._read_beside(response) if second else self._read_on(response)
        self.readers.append(asyncio.get_running_loop().create_task(read))

    async def _read_on(self, response: Response) -> None:
        await self.up.wait()
        cut_at = len(response.events)
        timed = False
        while response.final is None and not response.delete_asked:
            query = f"?stream=true&starting_after={len(response.events) - 1}"
            try:
                async for event in self.client.stream("GET", f"/responses/{response.id}{query}"):
                    if not timed and event.number >= cut_at:
                        timed = True
                        self.ledger.resumes.append(time.monotonic() - self.up_at)
                    response.see(event)
            except Gone:
                await asyncio.sleep(0.01)
            except Refused:
                if not response.delete_asked:
                    raise

    async def _read_beside(self, response: Response) -> None:
        """What two readers get must be the same; the first one may be ahead or behind."""
        start = self.rng.randint(-1, 8)
        got: list[Event] = []
        try:
            path = f"/responses/{response.id}?stream=true&starting_after={start}"
            async for event in self.client.stream("GET", path):
                got.append(event)
        except (Gone, Refused):
            pass  # what it was given until then still has to hold
        for place, event in enumerate(got, start + 1):
            assert event.number == place, f"a reader of {response.id} from {start} got {event.number}, not {place}"
            if event.number <= len(response.events):
                response.see(event)
