"""What clients do to a server until it dies: a mix of everything that has state.

Each actor writes down in the ledger what it asks before it asks, and what it was told after it was told. It ends when
the server goes away.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from typing import Any

from tests.simulation.client import Refused
from tests.simulation.ledger import Chain, Conversation, Turn
from tests.simulation.load import ENDED, MODEL, Actor, Round

PROBES = [{"type": f"stateroom:probe_{effect}"} for effect in ("effect", "idempotent", "read")]
LOCKED = "conversation_locked"


async def plain(round_: Round) -> None:
    """A response without history."""
    token = round_.token()
    text = round_.words(token)
    await round_.create({"input": round_.ask(text)}, "plain", token, text=text)


async def unstored(round_: Round) -> None:
    """What is not to be stored must not be found on the disk, whatever happens."""
    token = round_.token()
    round_.ledger.secret.add(token)
    body = {"model": MODEL, "input": round_.ask(round_.words(token)), "store": False}
    if round_.rng.random() < 0.5:
        await round_.client.call("POST", "/responses", body)
        return
    async for _ in round_.client.stream("POST", "/responses", {**body, "stream": True}):
        pass


async def chain(round_: Round) -> None:
    """A few turns by `previous_response_id`."""
    links = Chain()
    round_.ledger.chains.append(links)
    for _ in range(round_.rng.randint(2, 4)):
        token = round_.token()
        text = round_.words(token, 1, 10)
        body = {"input": round_.ask(text)}
        if links.links:
            body["previous_response_id"] = links.links[-1]
        response = await round_.create(body, "chain", token, text=text)
        if response.final["status"] != "completed":
            return
        links.links.append(response.id)
        links.texts += [body["input"], text]
    if round_.rng.random() < 0.3:
        await _fork_chain(round_, links)


async def _fork_chain(round_: Round, links: Chain) -> None:
    """A conversation that begins with a chain."""
    asked = await round_.client.call("POST", f"/responses/{links.links[-1]}/fork", {})
    held = round_.ledger.conversations[asked["id"]] = Conversation(asked["id"], base=list(links.texts))
    await _write(round_, held)


async def conversation(round_: Round) -> None:
    """Several writers on one conversation, some of whom find it locked."""
    asked = await round_.client.call("POST", "/conversations", {"metadata": {"round": round_.salt}})
    held = round_.ledger.conversations[asked["id"]] = Conversation(asked["id"])
    writers = [_write(round_, held) for _ in range(round_.rng.randint(1, 3))]
    done = await asyncio.gather(*writers, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    ending = round_.rng.random()
    if ending < 0.25:
        await _fork(round_, held)
    elif ending < 0.45:
        await _delete_conversation(round_, held)
    elif ending < 0.6:
        await _delete_turn(round_, held)
    elif ending < 0.75:
        await _delete_item(round_, held)


async def _write(round_: Round, held: Conversation) -> None:
    for _ in range(round_.rng.randint(1, 3)):
        token = round_.token()
        if round_.rng.random() < 0.4:
            await _add_items(round_, held, token)
            continue
        text = round_.words(token, 1, 10)
        said = round_.ask(text)
        turn = Turn(token, [said, text], round_.ledger.now())
        held.turns.append(turn)
        try:
            body = {"input": said, "conversation": held.id}
            response = await round_.create(body, "turn", token, text=text, conversation=held.id)
        except Refused as refused:
            _locked(turn, refused)
            continue
        if response.final["status"] == "completed":
            turn.acked = round_.ledger.now()


async def _add_items(round_: Round, held: Conversation, token: str) -> None:
    texts = [f"{token} item {n}" for n in range(round_.rng.randint(1, 3))]
    turn = Turn(token, texts, round_.ledger.now())
    held.turns.append(turn)
    items = [{"type": "message", "role": "user", "content": text} for text in texts]
    try:
        await round_.client.call("POST", f"/conversations/{held.id}/items", {"items": items})
    except Refused as refused:
        _locked(turn, refused)
    else:
        turn.acked = round_.ledger.now()


def _locked(turn: Turn, refused: Refused) -> None:
    if refused.code != LOCKED:
        raise refused
    turn.refused = True


async def _fork(round_: Round, held: Conversation) -> None:
    items = await round_.client.pages(f"/conversations/{held.id}/items")
    held.unknown_forks = True
    body = {"after_item_id": round_.rng.choice(items)["id"]} if items and round_.rng.random() < 0.6 else {}
    asked = await round_.client.call("POST", f"/conversations/{held.id}/fork", body)
    shared = items
    if body:
        place = next(n for n, item in enumerate(items) if item["id"] == body["after_item_id"])
        shared = items[: place + 1]
    base = [text_of(item) for item in shared]
    forked = round_.ledger.conversations[asked["id"]] = Conversation(asked["id"], base=base)
    held.forks.append(forked.id)
    held.unknown_forks = False
    await _write(round_, forked)
    if round_.rng.random() < 0.4:
        await _delete_conversation(round_, round_.rng.choice((held, forked)))


async def _delete_conversation(round_: Round, held: Conversation) -> None:
    held.delete_asked = True
    try:
        await round_.client.call("DELETE", f"/conversations/{held.id}")
    except Refused as refused:
        if refused.code != LOCKED:
            raise
        held.delete_asked = False
        return
    held.deleted = True


async def _delete_turn(round_: Round, held: Conversation) -> None:
    """Delete a response that is a part of a conversation: its items go with it."""
    tokens = {turn.token: turn for turn in held.turns if turn.acked and len(turn.texts) == 2}
    for response in list(round_.ledger.responses.values()):
        if response.token in tokens and response.conversation and not response.delete_asked:
            turn = tokens[response.token]
            turn.remove_asked = response.delete_asked = True
            await round_.client.call("DELETE", f"/responses/{response.id}")
            turn.removed = response.deleted = True
            round_.ledger.erased.add(response.token)
            return


async def _delete_item(round_: Round, held: Conversation) -> None:
    """Add one item and delete it again."""
    token = round_.token()
    turn = Turn(token, [f"{token} to be deleted"], round_.ledger.now())
    held.turns.append(turn)
    items = [{"type": "message", "role": "user", "content": turn.texts[0]}]
    added = await round_.client.call("POST", f"/conversations/{held.id}/items", {"items": items})
    turn.acked = round_.ledger.now()
    turn.remove_asked = True
    await round_.client.call("DELETE", f"/conversations/{held.id}/items/{added['data'][0]['id']}")
    turn.removed = True
    round_.ledger.erased.add(token)


async def deletion(round_: Round) -> None:
    """Make a response, some with an image and long instructions, and delete it."""
    token = round_.token()
    text = round_.words(token)
    said = round_.ask(text)
    body: dict[str, Any] = {"input": said}
    if round_.rng.random() < 0.5:
        parts = [{"type": "input_image", "image_url": picture(token)}, {"type": "input_text", "text": said}]
        body = {"input": [{"role": "user", "content": parts}], "instructions": f"{token} be brief. " * 40}
    response = await round_.create(body, "deletion", token, text=text)
    if round_.rng.random() < 0.3:
        return
    response.delete_asked = True
    await round_.client.call("DELETE", f"/responses/{response.id}")
    response.deleted = True
    round_.ledger.erased.add(token)


async def deletion_while_running(round_: Round) -> None:
    """Delete a background response that is still being generated."""
    token = round_.token()
    body = {"model": MODEL, "input": round_.ask(round_.words(token, 40, 80), 10), "background": True}
    shown = await round_.client.call("POST", "/responses", body)
    response = round_.ledger.new_response(shown["id"], "deletion", token, streamed=True)
    await asyncio.sleep(round_.rng.random() * 0.1)
    response.delete_asked = True
    await round_.client.call("DELETE", f"/responses/{response.id}")
    response.deleted = True
    round_.ledger.erased.add(token)


async def cancellation(round_: Round) -> None:
    """Cancel a slow background response."""
    token = round_.token()
    body = {"model": MODEL, "input": round_.ask(round_.words(token, 60, 90), 20), "background": True}
    shown = await round_.client.call("POST", "/responses", body)
    response = round_.ledger.new_response(shown["id"], "cancellation", token, streamed=True)
    await asyncio.sleep(round_.rng.random() * 0.1)
    response.cancel_asked = True
    shown = await round_.client.call("POST", f"/responses/{response.id}/cancel")
    assert shown["status"] in ENDED, f"{response.id} was cancelled and is {shown['status']}"
    response.end(shown)
    response.cancelled = shown["status"] == "cancelled"


async def hosted_tools(round_: Round) -> None:
    """A run of several model calls and calls of hosted tools."""
    token = round_.token()
    effects = [round_.rng.choice(("effect", "effect", "idempotent", "read")) for _ in range(round_.rng.randint(1, 3))]
    calls = [
        f'call: probe_{effect} {{"token":"{token}","delay_ms":{round_.rng.choice((0, 5, 20))}}}' for effect in effects
    ]
    await round_.create({"input": "\n".join(calls), "tools": PROBES}, "tools", token, effects=True)


async def client_tools(round_: Round) -> None:
    """The model calls the client; the client answers in a new run, unless the server dies in between."""
    token = round_.token()
    function = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
    said = f'call: look_up {{"word":"{token}"}}'
    response = await round_.create({"input": said, "tools": [function]}, "call", token)
    calls = [item for item in response.final["output"] if item["type"] == "function_call"]
    assert len(calls) == 1, f"{response.id} has {len(calls)} calls"
    if round_.kill is not None:
        round_.kill()
    answer = round_.token()
    output = {"type": "function_call_output", "call_id": calls[0]["call_id"], "output": answer}
    body = {"input": [output], "previous_response_id": response.id, "tools": [function]}
    await round_.create(body, "call output", answer, text=f"The tool answered: {answer}")


def text_of(item: Any) -> str:
    """The text of a message item."""
    return "".join(part.get("text", "") for part in item.get("content") or ())


def picture(token: str) -> str:
    """A small PNG, unlike any other, as a data URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x7f")
    parts = (("IHDR", header), ("tEXt", b"Comment\x00" + token.encode()), ("IDAT", pixels), ("IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind.encode(), data) for kind, data in parts)
    return "data:image/png;base64," + base64.b64encode(png).decode()


ACTORS: dict[Actor, int] = {
    plain: 6,
    unstored: 2,
    chain: 3,
    conversation: 4,
    deletion: 3,
    deletion_while_running: 1,
    cancellation: 1,
    hosted_tools: 4,
    client_tools: 2,
}
"""Everything that is done, and how often in comparison."""
