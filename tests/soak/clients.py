"""The mixed load of a soak: clients that do everything there is, with what they made deleted in the end.

They check little, since the crash suite checks all: an answer says what it was asked to say. What goes wrong while a
fault goes on is the fault's; anything else is a finding.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import msgspec

from tests.simulation.client import Client, Gone, Refused, Sent
from tests.simulation.lanes import opened

MODEL: Final = "scripted"
PROBES: Final = [{"type": "stateroom:probe_effect"}, {"type": "stateroom:probe_read"}]
LONG: Final = " ".join(["and-so-on-" * 6] * 100)
ENDED: Final = ("completed", "incomplete", "failed", "cancelled")
END_SECONDS: Final = 60.0


class Wrong(Exception):
    """An answer that is not what was asked for."""


class Load:
    """All clients, and what is known of them."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self.client = client
        self.rng = rng
        self.faulty_until = 0.0
        """By the monotonic clock: until then, what goes wrong is the fault's."""
        self.running = asyncio.Event()
        """Cleared in pauses."""
        self.stopped = False
        self.done: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.findings: list[str] = []
        self.latencies: list[float] = []
        """Of short answers, since they were last taken."""
        self.busy = 0
        self.idle = asyncio.Event()
        """Nothing goes on."""
        self._tokens = 0

    def word(self) -> str:
        self._tokens += 1
        return f"word{self._tokens}"

    async def run(self, clients: int) -> None:
        """Until `stopped`."""
        self.running.set()
        await asyncio.gather(*[self._act(random.Random(self.rng.random())) for _ in range(clients)])

    async def _act(self, rng: random.Random) -> None:
        while not self.stopped:
            await self.running.wait()
            deed = rng.choices(list(DEEDS), list(DEEDS.values()))[0]
            self.busy += 1
            self.idle.clear()
            began = time.monotonic()
            try:
                async with asyncio.timeout(END_SECONDS):
                    await deed(self)
                self.done[deed.__name__] += 1
            except (Gone, Refused, Wrong, TimeoutError, aiohttp.ClientError) as error:
                if began < self.faulty_until or time.monotonic() < self.faulty_until:
                    self.excused[deed.__name__] += 1
                else:
                    self.findings.append(f"{deed.__name__}: {type(error).__name__} {error}"[:400])
                await asyncio.sleep(0.3)
            finally:
                self.busy -= 1
                if not self.busy:
                    self.idle.set()
            await asyncio.sleep(rng.random() * 0.6)

    async def pause(self, seconds: float) -> None:
        """Begin nothing more, and wait until nothing goes on. Raises TimeoutError."""
        self.running.clear()
        async with asyncio.timeout(seconds):
            await self.idle.wait()

    async def ask(self, said: Any, **options: Any) -> Any:
        """A whole answer. Raises Wrong when it failed."""
        began = time.monotonic()
        shown = await self.client.call("POST", "/responses", {"model": MODEL, "input": said, **options})
        self.latencies.append(time.monotonic() - began)
        return check(shown)

    async def delete(self, path: str) -> None:
        """Delete what may be gone already."""
        try:
            await self.client.call("DELETE", path)
        except Refused as refused:
            if refused.status != 404:
                raise


def check(shown: Any, text: str = "") -> Any:
    if shown["status"] != "completed":
        raise Wrong(f"{shown['id']} is {shown['status']}: {shown['error']}")
    if text and text not in str(shown["output"]):
        raise Wrong(f"{shown['id']} does not say {text!r}")
    return shown


async def chain(load: Load) -> None:
    """A few turns, one after the other."""
    links: list[str] = []
    for _ in range(load.rng.randint(1, 4)):
        word = load.word()
        options = {"previous_response_id": links[-1]} if links else {}
        shown = check(await load.ask(f"say: {word} is said", **options), word)
        links.append(shown["id"])
    for link in links:
        await load.delete(f"/responses/{link}")


async def stream(load: Load) -> None:
    """A stream; every third client drops it in the middle, which ends nothing."""
    word = load.word()
    body = {"model": MODEL, "input": f"slow: 10\nsay: {word} " + "on " * 20, "stream": True}
    stop_after = load.rng.randint(2, 12) if load.rng.random() < 0.35 else 10_000
    id = ""
    events = load.client.stream("POST", "/responses", body)
    async for event in events:
        id = id or event.data["response"]["id"]
        if event.number >= stop_after:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator
            break
    await ended(load, id)
    await load.delete(f"/responses/{id}")


async def ended(load: Load, id: str) -> Any:
    while True:
        shown = await load.client.call("GET", f"/responses/{id}")
        if shown["status"] in ENDED:
            return check(shown)
        await asyncio.sleep(0.1)


async def background(load: Load) -> None:
    """A background response; some are cancelled, some deleted while they go on."""
    body = {"model": MODEL, "input": "slow: 20\nsay: " + "on " * 20, "background": True}
    shown = await load.client.call("POST", "/responses", body)
    ending = load.rng.random()
    if ending < 0.2:
        await load.client.call("POST", f"/responses/{shown['id']}/cancel")
    elif ending < 0.8:
        await ended(load, shown["id"])
    await load.delete(f"/responses/{shown['id']}")


async def conversation(load: Load) -> None:
    """Turns of a conversation that is compacted."""
    held = (await load.client.call("POST", "/conversations", {}))["id"]
    word = load.word()
    await load.ask(f"my dog is {word}\nsay: {LONG}", conversation=held)
    managed = [{"type": "compaction", "compact_threshold": 1_000}]
    await load.ask("say: two", conversation=held, context_management=managed)
    check(await load.ask("what is my dog?", conversation=held), word)
    await load.delete(f"/conversations/{held}")


async def tools(load: Load) -> None:
    """Calls of hosted tools."""
    word = load.word()
    said = f'call: probe_effect {{"token":"{word}"}}\ncall: probe_read {{"token":"{word}","delay_ms":20}}'
    shown = check(await load.ask(said, tools=PROBES), word)
    await load.delete(f"/responses/{shown['id']}")


async def unstored(load: Load) -> None:
    """Nothing is kept; some clients are gone before the answer is there."""
    body = {"model": MODEL, "input": "slow: 10\nsay: " + "on " * 20, "store": False, "stream": True}
    count = 0
    events = load.client.stream("POST", "/responses", body)
    async for _ in events:
        count += 1
        if count == 5 and load.rng.random() < 0.5:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator
            return


async def chat(load: Load) -> None:
    """Chat completions, stored and not, streamed and not."""
    word = load.word()
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": f"say: {word} again"}]}
    if load.rng.random() < 0.5:
        async for _ in load.client.chunks("/chat/completions", {**body, "stream": True}):
            pass
        return
    shown = await load.client.call("POST", "/chat/completions", {**body, "store": True}, key=word)
    again = await load.client.call("POST", "/chat/completions", {**body, "store": True}, key=word)
    if again["id"] != shown["id"]:
        raise Wrong(f"the key {word} made {shown['id']} and {again['id']}")
    await load.delete(f"/chat/completions/{shown['id']}")


async def files(load: Load) -> None:
    """A file in one piece, or in parts."""
    data = load.rng.randbytes(load.rng.randint(1_000, 100_000))
    if load.rng.random() < 0.5:
        form: dict[str, str | Sent] = {"purpose": "user_data", "file": Sent("a.bin", data)}
        file = (await load.client.call("POST", "/files", form=form))["id"]
    else:
        body = {"filename": "b.bin", "purpose": "user_data", "bytes": len(data), "mime_type": "application/x"}
        upload = (await load.client.call("POST", "/uploads", body))["id"]
        half = len(data) // 2
        parts = []
        for piece in (data[:half], data[half:]):
            part: dict[str, str | Sent] = {"data": Sent("part", piece)}
            parts.append((await load.client.call("POST", f"/uploads/{upload}/parts", form=part))["id"])
        if load.rng.random() < 0.3:
            await load.client.call("POST", f"/uploads/{upload}/cancel")
            return
        done = await load.client.call("POST", f"/uploads/{upload}/complete", {"part_ids": parts})
        file = done["file"]["id"]
    if await load.client.raw("GET", f"/files/{file}/content") != data:
        raise Wrong(f"{file} has other bytes")
    await load.delete(f"/files/{file}")


async def batch(load: Load) -> None:
    """A batch of a few lines, and its files."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/responses",
            "body": {"model": MODEL, "input": f"say: line {number}", "store": False},
        }
        for number in range(load.rng.randint(2, 8))
    ]
    data = b"\n".join(map(msgspec.json.encode, lines))
    form: dict[str, str | Sent] = {"purpose": "batch", "file": Sent("batch.jsonl", data)}
    file = (await load.client.call("POST", "/files", form=form))["id"]
    body = {"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"}
    shown = await load.client.call("POST", "/batches", body)
    while shown["status"] not in ("completed", "failed", "expired", "cancelled"):
        await asyncio.sleep(0.2)
        shown = await load.client.call("GET", f"/batches/{shown['id']}")
    if shown["status"] != "completed" or shown["request_counts"]["completed"] != len(lines):
        raise Wrong(f"{shown['id']} is {shown['status']}: {shown['request_counts']}")
    await load.delete(f"/files/{shown['output_file_id']}")
    await load.delete(f"/files/{file}")


async def socket(load: Load) -> None:
    """Lanes of a WebSocket; some are dropped in the middle."""
    made: list[str] = []
    async with opened(load.client) as connection:
        for number in range(load.rng.randint(1, 3)):
            lane = f"lane-{number}"
            stored = load.rng.random() < 0.5
            said = "slow: 10\nsay: on and on and on"
            message = {"type": "response.create", "model": MODEL, "input": said, "store": stored, "stream_id": lane}
            await connection.send(message)
            dropped = load.rng.random() < 0.25
            while True:
                event, _ = await connection.next(lane)
                if event["type"] == "error":
                    raise Wrong(f"the lane was told {event}")
                if event["type"] == "response.created" and stored:
                    made.append(event["response"]["id"])
                if dropped or event["type"] in ("response.completed", "response.failed", "response.incomplete"):
                    break
            if dropped:
                break
    for id in made:
        await ended(load, id)
        await load.delete(f"/responses/{id}")


DEEDS: Final[dict[Callable[[Load], Awaitable[None]], int]] = {
    chain: 6,
    stream: 5,
    background: 3,
    conversation: 2,
    tools: 3,
    unstored: 3,
    chat: 4,
    files: 3,
    batch: 1,
    socket: 3,
}
"""Everything that is done, and how often in comparison."""


async def delete_all(client: Client) -> int:
    """Delete whatever is still listed, which clients lost sight of in a crash; how much it was."""
    count = 0
    lists = ("/responses", "/conversations", "/chat/completions", "/files", "/webhook_endpoints")
    for path in lists:
        for each in await client.pages(path):
            await client.call("DELETE", f"{path}/{each['id']}")
            count += 1
    return count
