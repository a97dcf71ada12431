"""Clients on WebSockets: lanes, warm-ups, stored and unstored responses, steering, sockets that are dropped.

The events of a socket are those of the stream over HTTP: a response that a socket began is held against its replay like
any other, and goes on without its socket when it is stored.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from tests.simulation.actors import text_of
from tests.simulation.client import Client, Event, Gone, parse_event
from tests.simulation.ledger import Chain, Ledger, Response
from tests.simulation.load import MODEL, Round

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


@dataclass
class Steered:
    """A response to which something was said while it went on."""

    id: str
    token: str
    """Stands in what was said to it."""
    text: str
    """What its successor must say."""
    accepted: bool = False


class Socket:
    """One connection, read by lanes."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._queues: defaultdict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def send(self, message: Any) -> None:
        """Raises Gone."""
        try:
            await self._socket.send_str(msgspec.json.encode(message).decode())
        except (OSError, aiohttp.ClientError) as error:
            raise Gone(f"socket: {error!r}") from error

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = msgspec.json.decode(message.data)
                self._queues[event.get("stream_id", "")].put_nowait((event, message.data))
        for queue in self._queues.values():
            queue.put_nowait(None)
        self._queues.default_factory = _closed_queue

    async def next(self, lane: str) -> tuple[Any, str]:
        """The next event of a lane, decoded and as it came. Raises Gone."""
        found = await self._queues[lane].get()
        if found is None:
            self._queues[lane].put_nowait(None)
            raise Gone("the socket was closed")
        event, text = found
        return event, text

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


def _closed_queue() -> asyncio.Queue[Any]:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    queue.put_nowait(None)
    return queue


def as_streamed(event: Any, text: str, lane: str) -> Event:
    """The event as a stream over HTTP has it. Raises ValueError when it is no event of a response."""
    if lane:
        tail = f',"stream_id":"{lane}"}}'
        if not text.endswith(tail):
            raise ValueError(f"an event of lane {lane!r} ends otherwise: {text[-200:]}")
        text = text.removesuffix(tail) + "}"
    return parse_event(f"event: {event['type']}\ndata: {text}\n\n".encode())


@asynccontextmanager
async def opened(client: Client) -> AsyncIterator[Socket]:
    """A socket of one's own. Raises Gone."""
    async with client.socket() as connection:
        socket = Socket(connection)
        try:
            yield socket
        finally:
            await socket.close()


async def lanes(round_: Round) -> None:
    """Several lanes of one socket at the same time; some clients drop it in the middle."""
    async with opened(round_.client) as socket:
        names = ["", *(f"lane-{n}" for n in range(round_.rng.randint(0, 3)))]
        work = asyncio.gather(*[_lane(round_, socket, name) for name in names])
        if round_.rng.random() < 0.4:
            # Dropped by its client: what it was told of stored responses holds, and they go on without it.
            await asyncio.wait((work,), timeout=round_.rng.random() * 0.15)
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return
        await work


async def _lane(round_: Round, socket: Socket, lane: str) -> None:
    links = Chain()
    previous: dict[str, str] = {}
    for number in range(round_.rng.randint(1, 3)):
        token = round_.token()
        stored = bool(previous.get("stored")) if number else round_.rng.random() < 0.6
        text = round_.words(token, 2, 15)
        warm = number == 0 and round_.rng.random() < 0.2
        said = {"role": "user", "content": round_.ask(text)}
        body: dict[str, Any] = {"model": MODEL, "input": [said], "store": stored}
        body |= {"previous_response_id": previous["id"]} if previous else {}
        body |= {"generate": False} if warm else {}
        if not stored:
            round_.ledger.secret.add(token)
        final = await respond(round_, socket, lane, body, token, text="" if warm else text, stored=stored)
        assert final["status"] == "completed", f"{final['id']} is {final['status']}: {final['error']}"
        if stored:
            links.links += [] if warm else [final["id"]]
            links.texts += [said["content"], *([] if warm else [text])]
        elif not warm:
            texts = [text_of(item) for item in final["output"]]
            assert texts == [text], f"{final['id']} says {texts}, not {text!r}"
        previous = {"id": final["id"], "stored": "yes" if stored else ""}
        if len(links.links) == 1 and not warm:
            round_.ledger.chains.append(links)


async def respond(
    round_: Round, socket: Socket, lane: str, body: dict[str, Any], token: str, *, text: str, stored: bool
) -> Any:
    """The final object of a response on a lane. Raises Gone; a reader then goes on over HTTP."""
    named = {"stream_id": lane} if lane else {}
    await socket.send({"type": "response.create", **body, **named})
    response: Response | None = None
    try:
        while True:
            event, raw = await socket.next(lane)
            assert event["type"] != "error", f"the lane {lane!r} was told {raw}"
            streamed = as_streamed(event, raw, lane)
            if not stored:
                if event["type"] in ENDS:
                    return event["response"]
                continue
            if response is None:
                kind = "socket" if text else "warm-up"
                response = round_.ledger.new_response(
                    event["response"]["id"], kind, token, text=text or None, streamed=True, silent=not text
                )
            response.see(streamed)
            if response.final is not None:
                return response.final
    except (Gone, asyncio.CancelledError):
        if response is not None and response.final is None:
            round_.follow(response)
        raise


async def steering(round_: Round) -> None:
    """Say something to a response that goes on: once that is accepted, another response takes it in."""
    async with opened(round_.client) as socket:
        token, other = round_.token(), round_.token()
        long = round_.words(token, 40, 60)
        await socket.send({"type": "response.create", "model": MODEL, "input": f"slow: 5\nsay: {long}"})
        first, _ = await socket.next("")
        held = Steered(first["response"]["id"], other, f"{other} as you wish")
        round_.ledger.of(Steered).append(held)
        for _ in range(round_.rng.randint(1, 12)):
            await socket.next("")
        said = f"say: {held.text}"
        await socket.send({"type": "response.steer", "previous_response_id": held.id, "input": said})
        ends = 0
        while ends < 2:
            event, raw = await socket.next("")
            assert event["type"] != "error", f"the steering socket was told {raw}"
            if event["type"] == "response.steer.failed":
                assert event["error"]["code"] == "response_already_completed", f"{held.id} was not steered: {raw}"
                round_.ledger.of(Steered).remove(held)
                return
            held.accepted |= event["type"] == "response.steer.accepted"
            ends += event["type"] in ENDS


async def check_steered(client: Client, ledger: Ledger, responses: list[Any]) -> None:
    """What was accepted is taken in by one response; what was not, by one at most. Raises AssertionError."""
    by_previous: defaultdict[str, list[Any]] = defaultdict(list)
    for shown in responses:
        by_previous[shown["previous_response_id"]].append(shown)
    for held in ledger.of(Steered):
        after = by_previous[held.id]
        assert len(after) <= 1, f"{held.id} is continued by {[shown['id'] for shown in after]}"
        assert after or not held.accepted, f"what was said to {held.id} and was accepted is lost: {held.token}"
        for shown in after:
            texts = [text_of(item) for item in shown["output"]]
            assert shown["status"] == "completed", f"{shown['id']} is {shown['status']}: {shown['error']}"
            assert texts == [held.text], f"{shown['id']} says {texts}, not {held.text!r}"
        whole = await client.replay(held.id)
        assert [event.number for event in whole] == list(range(len(whole))), f"{held.id}: the numbers have gaps"
        assert [event.is_terminal for event in whole].count(True) == 1, f"{held.id} has no end, or two"
