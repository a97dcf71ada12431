"""Batches while servers die: each line is in the files once, and no model is asked again for what was durable."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import msgspec

from stateroom.journal.codes import KIND_CODES
from stateroom.journal.entries import Kind
from tests.simulation.client import Client, Refused, Sent
from tests.simulation.ledger import Ledger
from tests.simulation.load import MODEL, Round

ENDED = ("completed", "failed", "expired", "cancelled")
END_SECONDS = 30.0
TOKEN = re.compile(rb"zq[a-z0-9]+x[a-j]+zq")


@dataclass
class Line:
    """A request of a batch."""

    token: str
    text: str
    fails: bool = False


@dataclass
class Batched:
    """A batch whose id a client knows."""

    id: str
    endpoint: str
    lines: dict[str, Line]
    """By their own ids."""
    completed: int = 0
    """Lines that it was said to have done."""
    cancel_asked: bool = False
    final: Any = None


@dataclass
class Durable:
    """What the model was asked for, and how much of that a crash could not take back."""

    log: Path
    """Of the model."""
    offset: int = 0
    """Of its end when the last server died."""
    lines: set[str] = field(default_factory=set)
    """Tokens of all lines of all batches."""
    answered: set[str] = field(default_factory=set)
    """Tokens of those whose answers were durable then."""


async def batches(round_: Round) -> None:
    """A file of requests, and a batch of it, looked at until it has ended; some are cancelled."""
    endpoint = round_.rng.choice(("/v1/responses", "/v1/chat/completions"))
    lines = {f"line-{n}": _line(round_, n) for n in range(round_.rng.randint(2, 9))}
    data = b"\n".join(_encoded(name, line, endpoint) for name, line in lines.items())
    form: dict[str, str | Sent] = {"purpose": "batch", "file": Sent("requests.jsonl", data)}
    file = await round_.client.call("POST", "/files", form=form)
    for held in round_.ledger.of(Durable):
        held.lines |= {line.token for line in lines.values()}
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
    shown = await round_.client.call("POST", "/batches", body)
    batch = Batched(shown["id"], endpoint, lines)
    round_.ledger.of(Batched).append(batch)
    cancel_after = round_.rng.choice((None, None, None, None, 0, 1, 2))
    while shown["status"] not in ENDED:
        if cancel_after is not None and batch.completed >= cancel_after:
            cancel_after = None
            await _cancel(round_.client, batch)
        await asyncio.sleep(0.01)
        shown = await round_.client.call("GET", f"/batches/{batch.id}")
        see(batch, shown)


def _line(round_: Round, number: int) -> Line:
    token = round_.token()
    return Line(token, round_.words(token, 1, 8), fails=round_.rng.random() < 0.1)


def _encoded(name: str, line: Line, endpoint: str) -> bytes:
    said = f"fail: 400 {line.token}" if line.fails else f"slow: 3\nsay: {line.text}"
    body: dict[str, Any] = {"model": MODEL}
    if endpoint == "/v1/responses":
        body["input"] = said
    else:
        body["messages"] = [{"role": "user", "content": said}]
    return msgspec.json.encode({"custom_id": name, "method": "POST", "url": endpoint, "body": body})


async def _cancel(client: Client, batch: Batched) -> None:
    batch.cancel_asked = True
    try:
        see(batch, await client.call("POST", f"/batches/{batch.id}/cancel"))
    except Refused as refused:
        if refused.code != "batch_not_cancellable":
            raise


def see(batch: Batched, shown: Any) -> None:
    """Take in a look at a batch. Raises AssertionError when it has gone back on something."""
    counts = shown["request_counts"]
    done = counts["completed"] + counts["failed"]
    assert done >= batch.completed, f"{batch.id} had {batch.completed} lines done and has {done}"
    batch.completed = done
    if shown["status"] in ENDED:
        assert batch.final is None or batch.final == shown, f"{batch.id} changed:\n{batch.final}\n{shown}"
        batch.final = shown


async def check_batches(client: Client, ledger: Ledger, rng: random.Random) -> None:
    """All batches end, with every line in one file once. Raises AssertionError."""
    for batch in ledger.of(Batched):
        known = batch.final is not None
        await _until_ended(client, batch)
        if not known or rng.random() < 0.1:
            await _check_files(client, batch)


async def _until_ended(client: Client, batch: Batched) -> None:
    deadline = asyncio.get_running_loop().time() + END_SECONDS
    while True:
        shown = await client.find(f"/batches/{batch.id}")
        assert shown is not None, f"{batch.id} is lost"
        see(batch, shown)
        if batch.final is not None:
            return
        assert asyncio.get_running_loop().time() < deadline, f"{batch.id} is stuck: {shown}"
        await asyncio.sleep(0.05)


async def _check_files(client: Client, batch: Batched) -> None:
    final = batch.final
    counts = final["request_counts"]
    allowed = ("completed", "cancelled") if batch.cancel_asked else ("completed",)
    assert final["status"] in allowed, f"{batch.id} is {final['status']}: {final['errors']}"
    good = await _lines(client, final["output_file_id"])
    bad = await _lines(client, final["error_file_id"])
    assert (len(good), len(bad)) == (counts["completed"], counts["failed"]), f"{batch.id} has files unlike {counts}"
    names = [line["custom_id"] for line in (*good, *bad)]
    assert len(set(names)) == len(names), f"{batch.id} has a line twice: {names}"
    assert set(names) <= set(batch.lines), f"{batch.id} has lines that nobody sent: {names}"
    if final["status"] == "completed":
        assert set(names) == set(batch.lines), f"{batch.id} has no answer to {set(batch.lines) - set(names)}"
    for line in good:
        asked = batch.lines[line["custom_id"]]
        assert not asked.fails, f"{batch.id} answered {asked.token}, which must fail"
        assert _text(batch.endpoint, line["response"]["body"]) == asked.text, f"{batch.id} answered {line}"
    for line in bad:
        assert batch.lines[line["custom_id"]].fails, f"{batch.id} failed at {line}"


async def _lines(client: Client, file_id: str | None) -> list[Any]:
    if not file_id:
        return []
    found = await client.raw("GET", f"/files/{file_id}/content")
    return [msgspec.json.decode(line) for line in found.splitlines()]


def _text(endpoint: str, body: Any) -> str:
    if endpoint == "/v1/responses":
        return "".join(part["text"] for item in body["output"] for part in item.get("content") or ())
    return str(body["choices"][0]["message"]["content"])


# What the model was asked.


def note_durable(held: Durable, copy: Path) -> None:
    """The server has died: whatever its journal has of an answer is not to be asked for again."""
    held.offset = held.log.stat().st_size
    kinds = (KIND_CODES[Kind.RECORD_NOTED], KIND_CODES[Kind.ITEM_FINISHED])
    wanted = {token.encode() for token in held.lines}
    with closing(apsw.Connection(str(copy / "journal.db"))) as connection:
        for (body,) in connection.execute("SELECT body FROM entries WHERE kind IN (?, ?)", kinds):
            held.answered |= {token.decode() for token in wanted & set(TOKEN.findall(body))}


def check_asked(held: Durable) -> None:
    """Nothing of what was durable was asked for again. Raises AssertionError."""
    with held.log.open("rb") as log:
        log.seek(held.offset)
        again = {token.decode() for token in TOKEN.findall(log.read())} & held.answered
    assert not again, f"the model was asked again for lines whose answers were durable: {sorted(again)}"
