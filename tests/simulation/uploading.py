"""Files, whole and in parts, while servers die: acknowledged bytes are there, exactly, and nothing else is left."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from tests.simulation.client import Client, Refused, Sent
from tests.simulation.ledger import Ledger
from tests.simulation.load import Round

SWEEP_SECONDS = 5.0


@dataclass
class Stored:
    """A file whose id a client knows."""

    id: str
    token: str
    data: bytes
    seen_by: str = ""
    """Id of the response whose model was given it; `?`: of one that nobody knows of."""
    delete_asked: bool = False
    deleted: bool = False


@dataclass
class Parted:
    """An upload whose id a client knows."""

    id: str
    token: str
    parts: list[bytes]
    order: list[str] = field(default_factory=list)
    """Part ids that were acknowledged, '' for those that were not."""
    file: str = ""
    """Acknowledged as what it became."""
    cancel_asked: bool = False
    cancelled: bool = False

    @property
    def data(self) -> bytes:
        return b"".join(self.parts)

    def completion(self) -> Any:
        return {"part_ids": self.order, "md5": hashlib.md5(self.data, usedforsecurity=False).hexdigest()}


def content(rng: random.Random, token: str, most: int = 40_000) -> bytes:
    """Bytes that hold the token at their beginning and at their end."""
    return token.encode() + b" " + rng.randbytes(rng.randint(0, most)) + b" " + token.encode()


async def files(round_: Round) -> None:
    """A file, read again, and deleted now and then."""
    token = round_.token()
    data = content(round_.rng, token, 200_000 if round_.rng.random() < 0.2 else 5_000)
    form: dict[str, str | Sent] = {"purpose": "user_data", "file": Sent(f"{token}.bin", data)}
    shown = await round_.client.call("POST", "/files", form=form)
    held = Stored(shown["id"], token, data)
    round_.ledger.of(Stored).append(held)
    assert await round_.client.raw("GET", f"/files/{held.id}/content") == data, f"{held.id} has other bytes"
    if round_.rng.random() < 0.5:
        await _delete(round_.client, round_.ledger, held)


async def file_inputs(round_: Round) -> None:
    """A response whose model is given a file: what it says is gone when both of them are."""
    token, said = round_.token(), round_.token()
    data = f"{token} is what the file says. ".encode() * round_.rng.randint(1, 50)
    form: dict[str, str | Sent] = {"purpose": "user_data", "file": Sent("notes.txt", data)}
    shown = await round_.client.call("POST", "/files", form=form)
    held = Stored(shown["id"], token, data, seen_by="?")
    round_.ledger.of(Stored).append(held)
    text = round_.words(said)
    parts = [{"type": "input_file", "file_id": held.id}, {"type": "input_text", "text": round_.ask(text)}]
    response = await round_.create({"input": [{"role": "user", "content": parts}]}, "file", said, text=text)
    held.seen_by = response.id
    if round_.rng.random() < 0.5:
        await _delete(round_.client, round_.ledger, held)


async def _delete(client: Client, ledger: Ledger, held: Stored) -> None:
    """Delete a file, and the response that has seen it."""
    held.delete_asked = True
    await client.call("DELETE", f"/files/{held.id}")
    held.deleted = True
    response = ledger.responses.get(held.seen_by)
    if response is not None and not response.deleted:
        response.delete_asked = True
        await client.call("DELETE", f"/responses/{response.id}")
        response.deleted = True
        ledger.erased.add(response.token)
    note_erased(ledger, held)


def note_erased(ledger: Ledger, held: Stored) -> None:
    """A file is gone: so are its words, unless a response has them."""
    response = ledger.responses.get(held.seen_by)
    if not held.seen_by or (response is not None and response.deleted):
        ledger.erased.add(held.token)


async def uploads(round_: Round) -> None:
    """A file in parts, some of them at the same time; completed or cancelled."""
    token = round_.token()
    parts = [content(round_.rng, token) for _ in range(round_.rng.randint(1, 4))]
    size = sum(map(len, parts))
    # The upload is known for a day, by its name, whatever becomes of its file: the name is not what is to be erased.
    body = {"filename": "parts.bin", "purpose": "user_data", "bytes": size, "mime_type": "application/octet-stream"}
    shown = await round_.client.call("POST", "/uploads", body)
    held = Parted(shown["id"], token, parts, [""] * len(parts))
    round_.ledger.of(Parted).append(held)
    done = await asyncio.gather(
        *[_add(round_.client, held, number) for number in range(len(parts))], return_exceptions=True
    )
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    if round_.rng.random() < 0.25:
        await _cancel(round_.client, round_.ledger, held)
        return
    stored = await _complete(round_.client, round_.ledger, held)
    if round_.rng.random() < 0.4:
        await _delete(round_.client, round_.ledger, stored)


async def _add(client: Client, held: Parted, number: int) -> None:
    form: dict[str, str | Sent] = {"data": Sent("part", held.parts[number])}
    shown = await client.call("POST", f"/uploads/{held.id}/parts", form=form)
    assert shown["id"] not in held.order, f"the id {shown['id']} was given out twice"
    held.order[number] = shown["id"]


async def _complete(client: Client, ledger: Ledger, held: Parted) -> Stored:
    shown = await client.call("POST", f"/uploads/{held.id}/complete", held.completion())
    held.file = shown["file"]["id"]
    stored = Stored(held.file, held.token, held.data)
    ledger.of(Stored).append(stored)
    return stored


async def _cancel(client: Client, ledger: Ledger, held: Parted) -> None:
    held.cancel_asked = True
    await client.call("POST", f"/uploads/{held.id}/cancel")
    held.cancelled = True
    ledger.erased.add(held.token)


async def check_uploads(client: Client, ledger: Ledger, rng: random.Random) -> None:
    """Acknowledged parts survived: an upload that was cut off is gone on with and has its bytes in the end."""
    for held in ledger.of(Parted):
        if held.cancelled or held.file:
            continue
        if held.cancel_asked:
            await _cancel(client, ledger, held)
            continue
        for number, part in enumerate(held.order):
            if not part:
                try:
                    await _add(client, held, number)
                except Refused as refused:
                    # Its completion was asked for, with all parts, or not at all.
                    raise AssertionError(f"{held.id} takes no more parts: {refused}") from refused
        await _complete(client, ledger, held)
    listed = {shown["id"]: shown for shown in await client.pages("/files")}
    for stored in ledger.of(Stored):
        if stored.deleted:
            assert stored.id not in listed, f"{stored.id} is back after its deletion"
        elif stored.delete_asked:
            if stored.id in listed:
                await _delete(client, ledger, stored)
            stored.deleted = True
            note_erased(ledger, stored)
        else:
            assert stored.id in listed, f"{stored.id} is lost"
            assert listed[stored.id]["bytes"] == len(stored.data), f"{stored.id} has another size"
            found = await client.raw("GET", f"/files/{stored.id}/content")
            assert found == stored.data, f"{stored.id} has other bytes"
            if rng.random() < 0.3:
                await _delete(client, ledger, stored)


async def check_no_orphans(data: Path) -> None:
    """Once nothing goes on and no upload waits, no part is left, and no blob that nothing refers to.

    Raises AssertionError.
    """
    parts = await asyncio.to_thread(_parts, data)
    assert not parts, f"{parts} parts outlived their uploads"
    deadline = asyncio.get_running_loop().time() + SWEEP_SECONDS
    while True:
        there, used = await asyncio.to_thread(_blobs, data)
        assert not used - there, f"blobs are missing: {used - there}"
        if there == used:
            return
        assert asyncio.get_running_loop().time() < deadline, f"nothing refers to the blobs {there - used}"
        await asyncio.sleep(0.1)


def _parts(data: Path) -> int:
    with closing(apsw.Connection(str(data / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        found: Any = connection.execute("SELECT count(*) FROM records WHERE collection = 'upload_part'").fetchall()
        return int(found[0][0])


def _blobs(data: Path) -> tuple[set[str], set[str]]:
    folder = data / "blobs"
    there = {path.parent.name + path.name for path in folder.glob("??/*")}
    there |= {f"incoming/{path.name}" for path in folder.glob("incoming/*")}
    with closing(apsw.Connection(str(data / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        used = {digest.hex() for (digest,) in connection.execute("SELECT DISTINCT digest FROM blob_uses")}
    return there, used
