"""Chat completions that are stored, while servers die: what was answered stays, with the metadata it was given last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.client import Client, Refused
from tests.simulation.ledger import Ledger
from tests.simulation.load import MODEL, Round

END_SECONDS = 20.0


@dataclass
class Chatted:
    """A stored completion whose id a client knows."""

    id: str
    token: str
    asked: str
    text: str
    tags: list[str] = field(default_factory=list)
    """What its metadata was to be, the newest last; only that one may be unacknowledged."""
    acked: int = 0
    """How many of these were acknowledged."""
    delete_asked: bool = False
    deleted: bool = False


async def chats(round_: Round) -> None:
    """A completion, streamed or not; some get other metadata, some are deleted."""
    token = round_.token()
    text = round_.words(token, 2, 15)
    asked = round_.ask(text)
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": asked}]}
    if round_.rng.random() < 0.2:
        round_.ledger.secret.add(token)
        await round_.client.call("POST", "/chat/completions", body)
        return
    body |= {"store": True, "metadata": {"tag": "0"}}
    if round_.rng.random() < 0.5:
        held = await _streamed(round_, body, Chatted("", token, asked, text, ["0"], 1))
    else:
        shown = await round_.client.call("POST", "/chat/completions", body)
        held = Chatted(shown["id"], token, asked, text, ["0"], 1)
        round_.ledger.of(Chatted).append(held)
    if round_.rng.random() < 0.4:
        held.tags.append(str(len(held.tags)))
        await round_.client.call("POST", f"/chat/completions/{held.id}", {"metadata": {"tag": held.tags[-1]}})
        held.acked = len(held.tags)
    if round_.rng.random() < 0.4:
        await _delete(round_.client, round_.ledger, held)


async def _streamed(round_: Round, body: dict[str, Any], held: Chatted) -> Chatted:
    said = ""
    async for chunk in round_.client.chunks("/chat/completions", {**body, "stream": True}):
        if not held.id:
            held.id = chunk["id"]
            round_.ledger.of(Chatted).append(held)
        for choice in chunk["choices"]:
            said += choice["delta"].get("content") or ""
    assert said == held.text, f"{held.id} was streamed as {said!r}, not {held.text!r}"
    return held


async def _delete(client: Client, ledger: Ledger, held: Chatted) -> None:
    held.delete_asked = True
    await client.call("DELETE", f"/chat/completions/{held.id}")
    held.deleted = True
    ledger.erased.add(held.token)


async def check_chats(client: Client, ledger: Ledger) -> None:
    """Every stored completion is there as it was answered. Raises AssertionError."""
    for held in ledger.of(Chatted):
        shown = await _ended(client, held)
        if shown is None:
            assert held.delete_asked, f"{held.id} is lost"
            held.deleted = True
            ledger.erased.add(held.token)
            continue
        assert not held.deleted, f"{held.id} is back after its deletion"
        if held.delete_asked:
            await _delete(client, ledger, held)
            continue
        said = shown["choices"][0]["message"]["content"]
        assert said == held.text, f"{held.id} says {said!r}, not {held.text!r}"
        tag = shown["metadata"]["tag"]
        assert tag in held.tags[held.acked - 1 :], f"{held.id} has the metadata {tag}, of {held.tags} {held.acked}"
        held.tags, held.acked = [tag], 1
        messages = (await client.call("GET", f"/chat/completions/{held.id}/messages"))["data"]
        assert [message["content"] for message in messages] == [held.asked], f"{held.id} was asked {messages}"


async def _ended(client: Client, held: Chatted) -> Any:
    deadline = asyncio.get_running_loop().time() + END_SECONDS
    while True:
        try:
            return await client.find(f"/chat/completions/{held.id}")
        except Refused as refused:
            if refused.code != "completion_in_progress":
                raise
            assert asyncio.get_running_loop().time() < deadline, f"{held.id} is stuck"
            await asyncio.sleep(0.02)
