"""Conversations that are compacted while servers die: nothing is lost by it, and they go on from the summary."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from stateroom.testing.script import numbered
from tests.simulation.actors import text_of
from tests.simulation.client import Client
from tests.simulation.ledger import Ledger
from tests.simulation.load import MODEL, Round

THRESHOLD = 1_000
CHUNKS = 1_500
"""Of an answer that is longer than the threshold."""
CONTINUED_MAX = 2
"""Conversations that a check goes on with."""


@dataclass
class Compacted:
    """A conversation with something in it that has to be remembered, and much that need not."""

    id: str
    token: str
    said: list[list[str]] = field(default_factory=list)
    """What the messages of each turn say that was acknowledged."""
    seen: list[Any] = field(default_factory=list)
    """Its items when they were last looked at."""


async def compacting(round_: Round) -> None:
    """A long answer, then turns that compact by threshold or by trigger, then a question about the beginning."""
    asked = await round_.client.call("POST", "/conversations", {})
    held = Compacted(asked["id"], round_.token())
    round_.ledger.of(Compacted).append(held)
    first = f"my dog is {held.token}\nslow: 0\nchunks: {CHUNKS}"
    await round_.client.call("POST", "/responses", {"model": MODEL, "input": first, "conversation": held.id})
    held.said.append([first, numbered(CHUNKS)])
    for _ in range(round_.rng.randint(1, 2)):
        await _compact(round_, held, trigger=round_.rng.random() < 0.5)
    await _recall(round_.client, held)
    if round_.rng.random() < 0.4:
        await _compact_apart(round_, held)


async def _compact(round_: Round, held: Compacted, *, trigger: bool) -> None:
    token = round_.token()
    said, answer = f"slow: 2\nsay: {token} two", f"{token} two"
    body: dict[str, Any] = {"input": [{"role": "user", "content": said}], "conversation": held.id}
    if trigger:
        body["input"].append({"type": "compaction_trigger"})
    else:
        body["context_management"] = [{"type": "compaction", "compact_threshold": THRESHOLD}]
    made = await round_.create(body, "compaction", "compaction" if trigger else token, text=None)
    kinds = [item["type"] for item in made.final["output"]]
    assert kinds in ([["compaction"]] if trigger else [["compaction", "message"], ["message"]]), f"{made.id} is {kinds}"
    held.said.append([said] if trigger else [said, answer])


async def _recall(client: Client, held: Compacted) -> None:
    """Ask for what was said first. It is known only when the user's messages outlive the compaction."""
    body = {"model": MODEL, "input": "what is my dog?", "conversation": held.id}
    shown = await client.call("POST", "/responses", body)
    assert shown["status"] == "completed", f"{held.id} does not go on: {shown['error']}"
    assert text_of(shown["output"][-1]) == f"Your dog is {held.token}.", f"{held.id} forgot: {shown['output']}"


async def _compact_apart(round_: Round, held: Compacted) -> None:
    """Compact statelessly, and go on from what comes out of it."""
    items = await round_.client.pages(f"/conversations/{held.id}/items")
    given = [{"role": item["role"], "content": text_of(item)} for item in items if item["type"] == "message"]
    compacted = await round_.client.call("POST", "/responses/compact", {"model": MODEL, "input": given})
    output = compacted["output"]
    assert [item["type"] for item in output].count("compaction") == 1, f"{compacted['id']} has {len(output)} items"
    body = {"model": MODEL, "input": [*output, {"role": "user", "content": "what is my dog?"}], "store": False}
    shown = await round_.client.call("POST", "/responses", body)
    assert text_of(shown["output"][-1]) == f"Your dog is {held.token}.", f"{compacted['id']} forgot: {shown['output']}"


async def check_compacted(client: Client, ledger: Ledger, responses: list[Any], rng: random.Random) -> None:
    """No turn compacted twice, no item is gone, and the conversations go on. Raises AssertionError."""
    every = ledger.of(Compacted)
    for held in every:
        own = [shown for shown in responses if (shown["conversation"] or {}).get("id") == held.id]
        for shown in own:
            kinds = [item["type"] for item in shown["output"]]
            assert kinds.count("compaction") <= 1, f"{shown['id']} compacted {kinds.count('compaction')} times"
            assert shown["status"] == "completed", f"{shown['id']} is {shown['status']}: {shown['error']}"
        items = await client.pages(f"/conversations/{held.id}/items")
        _check_items(held, items, own)
        for item in rng.sample(items, min(2, len(items))):
            again = await client.call("GET", f"/conversations/{held.id}/items/{item['id']}")
            assert again == item, f"{item['id']} reads differently when it is asked for by its id"
        held.seen = items
    started = [held for held in every if held.said]
    for held in rng.sample(started, min(CONTINUED_MAX, len(started))):
        await _recall(client, held)


def _check_items(held: Compacted, items: list[Any], responses: list[Any]) -> None:
    assert items[: len(held.seen)] == held.seen, f"{held.id} does not begin with what it had before"
    compactions = [item["id"] for item in items if item["type"] == "compaction"]
    told = [item["id"] for shown in responses for item in shown["output"] if item["type"] == "compaction"]
    assert sorted(compactions) == sorted(told), f"{held.id} has the compactions {compactions}, not {told}"
    texts = [text_of(item) for item in items if item["type"] == "message"]
    place = 0
    for turn in held.said:
        assert turn[0] in texts[place:], f"{held.id} lost what was acknowledged: {turn[0][:80]!r}"
        place = texts.index(turn[0], place)
        assert texts[place : place + len(turn)] == turn, f"{held.id} has another answer to {turn[0][:80]!r}"
        place += len(turn)
