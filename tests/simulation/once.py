"""Clients that send a request again under the same idempotency key, through every crash, until they are answered.

However often it was sent, one thing was made, and every answer names it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.client import Client, Gone, Refused, Sent
from tests.simulation.ledger import Ledger
from tests.simulation.load import MODEL, Round

RETRY_SECONDS = 30.0


@dataclass
class Once:
    """Something that was asked for under a key."""

    kind: str
    token: str
    text: str
    made: set[str] = field(default_factory=set)
    """Ids that the answers named."""


async def once(round_: Round) -> None:
    """Ask for something, sometimes twice at once, and again when the server is back."""
    token = round_.token()
    deed = Once(round_.rng.choice(list(KINDS)), token, round_.words(token, 1, 10))
    round_.ledger.of(Once).append(deed)
    ask = KINDS[deed.kind]
    try:
        attempts = [_attempt(round_.client, deed, ask) for _ in range(round_.rng.choice((1, 1, 2, 3)))]
        done = await asyncio.gather(*attempts, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        if round_.rng.random() < 0.3:
            await _attempt(round_.client, deed, ask)
    finally:
        round_.later(lambda: _until_answered(round_.client, deed, ask))


async def _attempt(client: Client, deed: Once, ask: Asking) -> None:
    deed.made.add(await ask(client, deed))


async def _until_answered(client: Client, deed: Once, ask: Asking) -> None:
    async with asyncio.timeout(RETRY_SECONDS):
        while True:
            try:
                return await _attempt(client, deed, ask)
            except Gone:
                await asyncio.sleep(0.02)


async def check_once(client: Client, ledger: Ledger, responses: list[Any], rng: random.Random) -> None:
    """Each key made one thing. Raises AssertionError."""
    made = {
        "response": _tokens(responses),
        "background": _tokens(responses),
        "conversation": _tokens(await client.pages("/conversations")),
        "chat": _tokens(await client.pages("/chat/completions")),
        "file": Counter(file["filename"].removesuffix(".txt") for file in await client.pages("/files")),
        "endpoint": Counter(endpoint["name"] for endpoint in await client.pages("/webhook_endpoints")),
    }
    for deed in ledger.of(Once):
        assert len(deed.made) == 1, f"the key of {deed.token} made {len(deed.made)} {deed.kind}s: {deed.made}"
        if deed.kind in made:
            count = made[deed.kind][deed.token]
            assert count == 1, f"there are {count} {deed.kind}s of {deed.token}, which was asked for once"
        if deed.kind in ("response", "background"):
            [shown] = [each for each in responses if each["metadata"].get("once") == deed.token]
            assert shown["id"] in deed.made, f"{shown['id']} is not what the key of {deed.token} made"
            assert shown["status"] == "completed", f"{shown['id']} is {shown['status']}"
    # What is looked at once has been looked at: the keys are good for a day, the rounds take seconds.
    for deed in [each for each in ledger.of(Once) if each.kind == "endpoint"]:
        await client.call("DELETE", f"/webhook_endpoints/{next(iter(deed.made))}")
        ledger.of(Once).remove(deed)


def _tokens(shown: list[Any]) -> Counter[str]:
    return Counter(each["metadata"]["once"] for each in shown if "once" in (each.get("metadata") or {}))


Asking = Callable[[Client, Once], Awaitable[str]]


async def _response(client: Client, deed: Once) -> str:
    body = {"model": MODEL, "input": f"say: {deed.text}", "metadata": {"once": deed.token}}
    return str((await client.call("POST", "/responses", body, key=deed.token))["id"])


async def _background(client: Client, deed: Once) -> str:
    body = {
        "model": MODEL,
        "input": f"slow: 5\nsay: {deed.text}",
        "metadata": {"once": deed.token},
        "background": True,
    }
    return str((await client.call("POST", "/responses", body, key=deed.token))["id"])


async def _conversation(client: Client, deed: Once) -> str:
    body = {"metadata": {"once": deed.token}}
    return str((await client.call("POST", "/conversations", body, key=deed.token))["id"])


async def _chat(client: Client, deed: Once) -> str:
    messages = [{"role": "user", "content": f"say: {deed.text}"}]
    body = {"model": MODEL, "messages": messages, "store": True, "metadata": {"once": deed.token}}
    return str((await client.call("POST", "/chat/completions", body, key=deed.token))["id"])


async def _file(client: Client, deed: Once) -> str:
    sent = Sent(f"{deed.token}.txt", deed.text.encode())
    form: dict[str, str | Sent] = {"purpose": "user_data", "file": sent}
    return str((await client.call("POST", "/files", form=form, key=deed.token))["id"])


async def _upload(client: Client, deed: Once) -> str:
    body = {"filename": deed.token, "purpose": "user_data", "bytes": 10, "mime_type": "text/plain"}
    return str((await client.call("POST", "/uploads", body, key=deed.token))["id"])


async def _endpoint(client: Client, deed: Once) -> str:
    body = {"name": deed.token, "url": "http://127.0.0.1:9/never", "event_types": ["batch.expired"]}
    try:
        return str((await client.call("POST", "/webhook_endpoints", body, key=deed.token))["id"])
    except Refused as refused:
        # The secret is shown once: who asks again is told the endpoint's id, and to rotate the secret.
        if refused.code != "secret_already_shown":
            raise
        return refused.body.decode().split("'")[1]


KINDS: dict[str, Asking] = {
    "response": _response,
    "background": _background,
    "conversation": _conversation,
    "chat": _chat,
    "file": _file,
    "upload": _upload,
    "endpoint": _endpoint,
}
