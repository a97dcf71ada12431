"""A server that was stopped in its tracks wakes up after another has taken over: it may write nothing more."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from stateroom.journal.lock import NAME
from stateroom.serving import FENCED_EXIT
from stateroom.testing.process import ProcessFailed, ServerProcess, quiet_port
from tests.simulation.client import Client, Gone, Refused
from tests.simulation.scene import Scene, eventually, scene

LONG = " ".join(f"w{n}" for n in range(80))
REFUSALS = ("writer_fenced", "server_stopping", "gone")
"""What a client of the old server may hear, according to how far it has got in going away."""


async def test_a_stopped_writer_that_wakes_up_writes_nothing_more_and_exits(tmp_path: Path) -> None:
    async with scene(tmp_path, module="stateroom.testing.probe_server", delay=0.05) as old:
        stored = await old.create("say: before")
        stream = old.stream(f"say: {LONG}", background=True)
        kept = await old.client.call("POST", "/conversations", {"items": [_message("first")]})
        silent = asyncio.create_task(old.create(f"say: {LONG}", conversation=kept["id"]))
        await stream.until(12)
        old.server.pause()
        new = await _take_over(old)
        async with Client(new.url) as client:
            await _ended(client, stream.id)
            items = await eventually(lambda: _items(client, kept["id"], 3))
            whole = await client.replay(stream.id)
            before = _dump(tmp_path / "data")

            old.server.resume()
            asked = asyncio.create_task(_ask(old))
            status = await asyncio.to_thread(old.server.wait, 8)

            assert status == FENCED_EXIT
            assert "server.fenced" in old.server.output
            assert "Traceback" not in old.server.output
            assert await asked in REFUSALS
            assert await _outcome(silent) in REFUSALS
            await stream.whole()
            assert [event.raw for event in stream.events] == [event.raw for event in whole[: len(stream.events)]]
            assert _dump(tmp_path / "data") == before
            assert await _items(client, kept["id"], 3) == items
            assert await client.call("GET", f"/responses/{stored['id']}") == stored
            more = await client.call(
                "POST", "/responses", {"model": "m", "input": "say: on", "conversation": kept["id"]}
            )
            assert more["status"] == "completed"
        assert await asyncio.to_thread(new.terminate) == 0


async def test_an_idle_server_notices_that_another_has_taken_over(tmp_path: Path) -> None:
    async with scene(tmp_path) as old:
        await old.create("say: before")
        old.server.pause()
        new = await _take_over(old)
        old.server.resume()
        assert await asyncio.to_thread(old.server.wait, 20) == FENCED_EXIT
        async with Client(new.url) as client:
            assert len((await client.call("GET", "/responses"))["data"]) == 1
        assert await asyncio.to_thread(new.terminate) == 0


async def test_a_stopped_server_makes_no_effect_after_it_was_taken_over(tmp_path: Path) -> None:
    """It sleeps before the intent of a tool call; the new server makes that call, the old one no more."""
    effects = tmp_path / "effects.txt"
    async with scene(tmp_path, module="stateroom.testing.probe_server", delay=0.05) as old:
        await old.kill()
        await old.start(STATEROOM_TEST_EFFECTS=str(effects))
        asked = f'preface: {LONG}\ncall: probe_effect {{"token":"once"}}'
        stream = old.stream(asked, background=True, tools=[{"type": "stateroom:probe_effect"}])
        await stream.until(12)
        old.server.pause()
        new = await _take_over(old, STATEROOM_TEST_EFFECTS=str(effects))
        async with Client(new.url) as client:
            shown = await _ended(client, stream.id)
            old.server.resume()
            assert await asyncio.to_thread(old.server.wait, 8) == FENCED_EXIT
            [call] = [item for item in shown["output"] if item["type"] == "stateroom:tool_call"]
            assert call["status"] == "completed"
            assert effects.read_text().splitlines() == [
                f"begin {stream.id} {call['call_id']} 1",
                f"end {stream.id} {call['call_id']} 1",
            ]
        assert await asyncio.to_thread(new.terminate) == 0


async def _take_over(old: Scene, **environment: str) -> ServerProcess:
    """A second server on the directory, after an operator has removed the lock of the first."""
    data = old.server.data
    config = data.with_name("stateroom.toml")
    new = ServerProcess(
        data,
        port=quiet_port(),
        options=("--config", str(config)),
        module="stateroom.testing.probe_server",
        log=data.with_name("new.log"),
        environment=environment,
    )
    (data / NAME).unlink()
    for _ in range(5):
        try:
            return await asyncio.to_thread(new.start)
        except ProcessFailed:
            # The old one was stopped inside a transaction, which nobody can take from it: let it end that one.
            assert "journal_busy" in new.output
            old.server.resume()
            await asyncio.sleep(0.02)
            old.server.pause()
            (data / NAME).unlink(missing_ok=True)
    raise AssertionError("the old server was always stopped inside a transaction")


async def _ended(client: Client, response_id: str) -> Any:
    async def look() -> Any:
        shown = await client.call("GET", f"/responses/{response_id}")
        return shown if shown["status"] == "completed" else None

    return await eventually(look)


async def _items(client: Client, conversation: str, count: int) -> list[Any]:
    items = await client.pages(f"/conversations/{conversation}/items")
    return items if len(items) == count else []


async def _ask(stage: Scene) -> str:
    return await _outcome(asyncio.create_task(stage.create("say: anything new?")))


async def _outcome(asked: asyncio.Task[Any]) -> str:
    """The code of the refusal, or that the server went away."""
    try:
        return str((await asked)["id"])
    except Refused as refused:
        return refused.code
    except Gone:
        return "gone"


def _dump(data: Path) -> dict[str, list[Any]]:
    """Everything in the journal."""
    with closing(apsw.Connection(str(data / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def _message(text: str) -> dict[str, str]:
    return {"type": "message", "role": "user", "content": text}
