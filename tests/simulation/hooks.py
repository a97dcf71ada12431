"""A receiver of webhooks that outlives the server, and what must hold of what it heard.

Whoever asked to be told is told of every background response that has ended, by events whose ids stay the same however
often they come, and of nothing that a crash could take back.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from tests.simulation.client import Client
from tests.simulation.ledger import Ledger, Response

EVENTS = [
    *(f"response.{status}" for status in ("completed", "failed", "incomplete", "cancelled")),
    *(f"batch.{status}" for status in ("completed", "failed", "expired", "cancelled")),
]
PATIENCE_SECONDS = 16.0
"""The first pause after a failed delivery is about five seconds, and a second one may hit a server that is down."""


@dataclass(frozen=True)
class Heard:
    """One delivery."""

    event: str
    type: str
    subject: str


class Receiver:
    """Takes down what it is told; now and then it answers that it could not."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._runner: web.AppRunner | None = None
        self.secret = ""
        self.url = ""
        self.endpoint = ""
        self.heard: list[Heard] = []
        self.wrong: list[str] = []
        self.checked = 0
        self.changed = asyncio.Event()

    async def start(self) -> None:
        """Listen on a port of its own."""
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/hook"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def subscribe(self, client: Client) -> None:
        """Ask to be told of everything."""
        body = {"name": "everything", "url": self.url, "event_types": EVENTS}
        made = await client.call("POST", "/webhook_endpoints", body)
        self.endpoint, self.secret = made["id"], made["signing_secret"]

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        event = msgspec.json.decode(body)
        if not self._is_signed(request, body):
            self.wrong.append(f"the signature of {event['id']} is wrong")
        if self._rng.random() < 0.003:
            return web.Response(status=503)
        if request.headers["webhook-id"] != event["id"]:
            self.wrong.append(f"webhook-id {request.headers['webhook-id']} came with the event {event['id']}")
        self.heard.append(Heard(event["id"], event["type"], event["data"]["id"]))
        self.changed.set()
        return web.Response()

    def _is_signed(self, request: web.Request, body: bytes) -> bool:
        said = b"%s.%s.%s" % (
            request.headers["webhook-id"].encode(),
            request.headers["webhook-timestamp"].encode(),
            body,
        )
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        wanted = "v1," + base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
        return wanted in request.headers["webhook-signature"].split()


async def check_told(client: Client, ledger: Ledger, receiver: Receiver) -> None:
    """Everything that has ended was told of, under one id, and all that was told is so. Raises AssertionError."""
    assert not receiver.wrong, receiver.wrong[0]
    wanted = {
        (f"response.{response.final['status']}", response.id)
        for response in ledger.responses.values()
        if _is_to_be_told(ledger, response)
    }
    await _until_told(client, receiver, wanted)
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    for heard in receiver.heard:
        ids[heard.type, heard.subject].add(heard.event)
    for (kind, subject), events in ids.items():
        assert len(events) == 1, f"{kind} of {subject} was told of under several ids: {events}"
    every = [event for events in ids.values() for event in events]
    assert len(set(every)) == len(every), "an id stands for two events"
    fresh, receiver.checked = receiver.heard[receiver.checked :], len(receiver.heard)
    for heard in set(fresh):
        await _check_true(client, ledger, heard)


def _is_to_be_told(ledger: Ledger, response: Response) -> bool:
    if response.final is None or not response.final["background"] or response.delete_asked or response.deleted:
        return False
    home = ledger.conversations.get(response.conversation)
    return home is None or not home.delete_asked


async def _until_told(client: Client, receiver: Receiver, wanted: set[tuple[str, str]]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while missing := wanted - {(heard.type, heard.subject) for heard in receiver.heard}:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            known = await client.pages("/webhook_deliveries")
            subjects = {subject for _, subject in missing}
            raise AssertionError(
                f"nobody was told of {missing}: {[each for each in known if each['event']['data']['id'] in subjects]}"
            )
        receiver.changed.clear()
        try:
            await asyncio.wait_for(receiver.changed.wait(), left)
        except TimeoutError:
            continue


async def _check_true(client: Client, ledger: Ledger, heard: Heard) -> None:
    kind, _, status = heard.type.partition(".")
    shown: Any = await client.find(f"/{'batches' if kind == 'batch' else 'responses'}/{heard.subject}")
    if shown is None:
        # Of a deleted conversation, some responses are known to nobody but the server.
        known = ledger.responses.get(heard.subject)
        erased = any(conversation.delete_asked for conversation in ledger.conversations.values())
        assert erased or (known is not None and known.delete_asked), f"{heard} was told of and is lost"
    else:
        assert shown["status"] == status, f"{heard} was told of and it is {shown['status']}"
