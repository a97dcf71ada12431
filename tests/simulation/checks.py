"""What must hold once a server is up again: nothing acknowledged is lost, nothing has changed, nothing is stuck."""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.simulation.actors import text_of
from tests.simulation.batching import check_batches
from tests.simulation.chats import check_chats
from tests.simulation.client import Client, Event
from tests.simulation.compacting import check_compacted
from tests.simulation.hooks import Receiver, check_told
from tests.simulation.lanes import check_steered
from tests.simulation.ledger import Conversation, Ledger, Response
from tests.simulation.load import ENDED
from tests.simulation.once import check_once
from tests.simulation.uploading import check_uploads

SETTLE_SECONDS = 15.0
UNKNOWN = "The outcome of this call is unknown"
TOKEN = re.compile(r"zq[a-z0-9]+x[a-j]+zq")


async def check_all(client: Client, ledger: Ledger, effects: Path, receiver: Receiver, rng: random.Random) -> None:
    """Hold the server against the ledger. Raises AssertionError."""
    await check_batches(client, ledger, rng)
    shown = await settle(client)
    await check_once(client, ledger, shown, rng)
    await check_compacted(client, ledger, shown, rng)
    await check_steered(client, ledger, shown)
    await check_chats(client, ledger)
    await check_uploads(client, ledger, rng)
    for conversation in list(ledger.conversations.values()):
        await _settle_deletion(client, ledger, conversation, rng)
    for response in list(ledger.responses.values()):
        await check_response(client, ledger, response, rng)
    for conversation in list(ledger.conversations.values()):
        if not conversation.deleted:
            await check_conversation(client, ledger, conversation)
    await check_chains(client, ledger)
    await check_effects(client, ledger, effects)
    await check_told(client, ledger, receiver)
    _note_erased(ledger)


async def settle(client: Client) -> list[Any]:
    """Wait until every stored run has ended; all of them. Raises AssertionError when one is stuck."""
    deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while True:
        shown = await client.pages("/responses")
        going_on = [response["id"] for response in shown if response["status"] not in ENDED]
        ids = [response["id"] for response in shown]
        assert len(set(ids)) == len(ids), "a response is listed twice"
        if not going_on:
            return shown
        assert asyncio.get_running_loop().time() < deadline, f"stuck: {going_on}"
        await asyncio.sleep(0.02)


# Responses.


async def check_response(client: Client, ledger: Ledger, response: Response, rng: random.Random) -> None:
    """One response: its object, its stream, its deletion."""
    home = ledger.conversations.get(response.conversation)
    shown = await client.find(f"/responses/{response.id}")
    if shown is None:
        may_be_gone = response.delete_asked or (home is not None and home.delete_asked)
        assert may_be_gone, f"{response.id} ({response.kind}) is lost"
        _note_gone(ledger, response)
        return
    assert not response.deleted, f"{response.id} is back after its deletion"
    if response.delete_asked:
        if rng.random() < 0.7:
            await client.call("DELETE", f"/responses/{response.id}")
            _note_gone(ledger, response)
            return
        response.delete_asked, response.cancel_asked = False, True
    response.end(shown)
    _check_object(response, shown)
    if response.streamed:
        await check_stream(client, response, shown, rng)


def _note_gone(ledger: Ledger, response: Response) -> None:
    response.deleted = True
    if response.delete_asked:
        ledger.erased.add(response.token)
        home = ledger.conversations.get(response.conversation)
        for turn in home.turns if home is not None else ():
            if turn.token == response.token:
                turn.remove_asked = turn.removed = True


def _check_object(response: Response, shown: Any) -> None:
    status = shown["status"]
    if response.cancel_asked:
        assert status in ("completed", "cancelled"), f"{response.id} was cancelled and is {status}: {shown['error']}"
        assert status == "cancelled" or not response.cancelled, f"{response.id} is no longer cancelled"
    else:
        assert status == "completed", f"{response.id} ({response.kind}) is {status}: {shown['error']}"
    ids = [item["id"] for item in shown["output"]]
    assert len(set(ids)) == len(ids), f"{response.id} has an item twice"
    if status != "completed":
        return
    messages = [item for item in shown["output"] if item["type"] == "message"]
    assert all(item["status"] == "completed" for item in messages), f"{response.id} kept an item that was cut off"
    if response.text is not None:
        texts = [text_of(item) for item in messages]
        assert texts == [response.text], f"{response.id} says {texts}, not {response.text!r}"
    elif response.silent:
        assert shown["output"] == [], f"{response.id} asked no model and has an answer"
    else:
        assert response.token in str(shown["output"]), f"{response.id} lost its answer"


async def check_stream(client: Client, response: Response, shown: Any, rng: random.Random) -> None:
    """The whole stream again, and its end again from anywhere: byte for byte what was seen."""
    whole = await client.replay(response.id)
    for event in whole:
        response.see(event)
    assert len(whole) == len(response.events), f"the stream of {response.id} is shorter than what was seen of it"
    _check_shape(response.id, whole)
    assert whole[-1].data["response"] == shown, f"the last event of {response.id} is not its object"
    after = rng.randint(0, len(whole) - 1)
    rest = await client.replay(response.id, after)
    assert [event.raw for event in rest] == response.events[after + 1 :], f"{response.id} differs from {after} on"


def _check_shape(id: str, events: list[Event]) -> None:
    """Numbers without gaps, one terminal event, every item and part closed, deltas that add up."""
    assert [event.number for event in events] == list(range(len(events))), f"{id}: the numbers have gaps"
    kinds = [event.kind for event in events]
    assert kinds[0] == b"response.created", f"{id} begins with {kinds[0]!r}"
    assert [n for n, event in enumerate(events) if event.is_terminal] == [len(events) - 1], f"{id} ends as {kinds}"
    opened: dict[int, str] = {}
    texts: dict[tuple[int, int], str] = defaultdict(str)
    closed: list[Any] = []
    for event in events:
        data = event.data
        match event.kind:
            case b"response.output_item.added":
                assert data["output_index"] not in opened, f"{id}: item {data['output_index']} begins twice"
                assert len(opened) == data["output_index"], f"{id}: item {data['output_index']} is out of order"
                opened[data["output_index"]] = data["item"]["id"]
            case b"response.output_text.delta":
                texts[data["output_index"], data["content_index"]] += data["delta"]
            case b"response.output_text.done":
                assert texts[data["output_index"], data["content_index"]] == data["text"], f"{id}: deltas do not add up"
            case b"response.output_item.done":
                assert opened[data["output_index"]] == data["item"]["id"], f"{id}: another item ends than began"
                closed.append(data["item"])
            case _:
                pass
    assert sorted(item["id"] for item in closed) == sorted(opened.values()), f"{id}: an item has no end, or two"
    final = events[-1].data["response"]
    if final["status"] == "completed":
        by_id = {item["id"]: item for item in closed}
        for item in final["output"]:
            assert by_id.get(item["id"]) == item, f"{id}: {item['id']} was streamed as {by_id.get(item['id'])}"
        left_out = set(by_id) - {item["id"] for item in final["output"]}
        assert all(by_id[one]["status"] == "incomplete" for one in left_out), f"{id}: finished items are missing"


# Conversations.


async def _settle_deletion(client: Client, ledger: Ledger, held: Conversation, rng: random.Random) -> None:
    """A deletion that nobody acknowledged is done, or is asked for again as its client would."""
    if await client.find(f"/conversations/{held.id}") is None:
        assert held.delete_asked, f"{held.id} is lost"
        held.deleted = True
        return
    assert not held.deleted, f"{held.id} is back after its deletion"
    if held.delete_asked:
        await client.call("DELETE", f"/conversations/{held.id}")
        held.deleted = True


async def check_conversation(client: Client, ledger: Ledger, held: Conversation) -> None:
    """Everything acknowledged is there, once, whole and in order; nothing else is but what may have come about."""
    items = await client.pages(f"/conversations/{held.id}/items")
    ids = [item["id"] for item in items]
    assert len(set(ids)) == len(ids), f"{held.id} has an item twice"
    # Of what somebody asked to be removed, parts may be gone; what must be gone is checked with the turns.
    doubtful = {response.token for response in ledger.responses.values() if response.delete_asked}
    doubtful |= {turn.token for other in ledger.conversations.values() for turn in other.turns if turn.remove_asked}
    now = [item for item in items if _token(text_of(item)) not in doubtful]
    before = [item for item in held.seen if _token(text_of(item)) not in doubtful]
    assert now[: len(before)] == before, f"{held.id} does not begin with what it had before"
    base = [text for text in held.base if _token(text) not in doubtful]
    shared = [text_of(item) for item in now[: len(base)]]
    assert shared == base, f"{held.id} does not begin with what it was forked from: {shared}, {base}"
    from_base = {_token(text) for text in held.base}
    _check_turns(held, [text for text in map(text_of, items) if _token(text) not in from_base])
    held.seen = items


def _check_turns(held: Conversation, texts: list[str]) -> None:
    places: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        places[_token(text)].append(place)
    turns = {turn.token: turn for turn in held.turns}
    for token, where in places.items():
        assert token in turns, f"{held.id} has items that nobody sent: {texts[where[0]]!r}"
        assert not turns[token].refused, f"{held.id} has items of a request that was refused"
        assert not turns[token].removed, f"{held.id} has items of a response that was deleted"
        assert where == list(range(where[0], where[0] + len(where))), f"{held.id}: items of {token} are torn apart"
        assert [texts[place] for place in where] == turns[token].texts, f"{held.id}: {token} has other items"
    for turn in held.turns:
        if turn.acked and not turn.remove_asked:
            assert turn.token in places, f"{held.id} lost what was acknowledged: {turn.texts}"
    present = [turn for turn in held.turns if turn.token in places]
    for one in present:
        for other in present:
            if one.acked and one.acked < other.sent:
                assert places[one.token] < places[other.token], f"{held.id}: {other.token} overtook {one.token}"


async def check_chains(client: Client, ledger: Ledger) -> None:
    """The last response of a chain has seen all of it, in order."""
    for chain in ledger.chains:
        if not chain.links or any(ledger.responses[link].delete_asked for link in chain.links):
            continue
        last = chain.links[-1]
        items = await client.pages(f"/responses/{last}/input_items")
        texts = [text_of(item) for item in items]
        assert texts == chain.texts[:-1], f"the chain up to {last} reads {texts}, not {chain.texts[:-1]}"


# Tools.


async def check_effects(client: Client, ledger: Ledger, file: Path) -> None:
    """No effect twice, and nothing done that its response does not tell."""
    done: dict[str, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    for line in await asyncio.to_thread(_lines, file):
        what, run, call, attempt = line.split()
        done[run][call].append((what, int(attempt)))
    known = {response.id for response in ledger.responses.values() if response.effects}
    for run in known | set(done):
        shown = await client.call("GET", f"/responses/{run}")
        calls = {item["call_id"]: item for item in shown["output"] if item["type"] == "stateroom:tool_call"}
        assert set(done[run]) <= set(calls), f"{run} does not tell of a call that was made"
        for call, item in calls.items():
            _check_call(run, item, done[run][call])
        outputs = "; ".join(item["output"] for item in calls.values())
        assert text_of(shown["output"][-1]) == f"The tool answered: {outputs}", f"{run}: the model was told otherwise"


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _check_call(run: str, item: Any, lines: list[tuple[str, int]]) -> None:
    begun = [attempt for what, attempt in lines if what == "begin"]
    ended = [attempt for what, attempt in lines if what == "end"]
    name, status = item["name"], item["status"]
    if name == "probe_effect":
        assert begun in ([], [1]), f"{run}: {item['call_id']} was made again: {lines}"
        if status == "completed":
            assert ended == [1], f"{run}: {item['call_id']} is completed and was not"
        else:
            assert status == "incomplete", f"{run}: {item['call_id']} is {status}"
            assert item["output"].startswith(UNKNOWN), f"{run}: {item['call_id']} says {item['output']!r}"
    else:
        assert status == "completed", f"{run}: {item['call_id']}, which may be repeated, is {status}"
        assert begun, f"{run}: {item['call_id']} is completed and was not"
        assert begun[-1] == ended[-1], f"{run}: {item['call_id']} is completed and was not: {lines}"
        assert begun == sorted(set(begun)), f"{run}: an attempt of {item['call_id']} has the number of another"


# What was erased.


def _note_erased(ledger: Ledger) -> None:
    """The tokens of deleted conversations, but for what a living fork still shows."""
    alive: set[str] = set()
    for held in ledger.conversations.values():
        if not held.deleted:
            alive |= {_token(text_of(item)) for item in held.seen}
    for held in ledger.conversations.values():
        if held.deleted and not _may_be_needed(ledger, held):
            ledger.erased |= {turn.token for turn in held.turns if not turn.refused} - alive


def _may_be_needed(ledger: Ledger, held: Conversation) -> bool:
    """Whether a fork that nobody knows of may share its items."""
    return held.unknown_forks or any(_may_be_needed(ledger, ledger.conversations[fork]) for fork in held.forks)


def _token(text: str) -> str:
    found = TOKEN.search(text)
    return found.group() if found else text
