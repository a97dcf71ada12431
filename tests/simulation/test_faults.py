"""What clients, model servers, disks and operators do to a server, and what it must make of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from stateroom.testing.process import ProcessFailed, ServerProcess
from tests.simulation.client import Refused
from tests.simulation.scene import Scene, scene

LONG = " ".join(f"w{n}" for n in range(60))


async def test_64_streams_at_once_all_come_whole(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.005) as stage:
        streams = [stage.stream(f"say: number {n} {LONG}", background=bool(n % 2)) for n in range(64)]
        for number, stream in enumerate(streams):
            await stream.whole(60)
            stream.check_numbers()
            assert stream.text == f"number {number} {LONG}"
        for stream in streams[::8]:
            replay = await stage.client.replay(stream.id)
            assert [event.raw for event in replay] == [event.raw for event in stream.events]


async def test_a_reader_that_stops_reading_holds_up_neither_the_run_nor_other_readers(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        slow = await asyncio.to_thread(_open_slowly, stage, '{"model":"m","input":"chunks: 20000","stream":true}')
        with slow:
            first = b""
            while b"response.created" not in first:
                first += await asyncio.to_thread(slow.recv, 1)
            [shown] = (await stage.client.call("GET", "/responses"))["data"]
            fast = stage.follow(shown["id"])
            await fast.whole(60)
            fast.check_numbers()
            assert (await stage.retrieve(shown["id"]))["status"] == "completed"
            for _ in range(500):
                first += await asyncio.to_thread(slow.recv, 1)
            rest = await asyncio.to_thread(_read_all, slow)
    body = _unchunked((first + rest).split(b"\r\n\r\n", 1)[1])
    assert body == b"".join(event.raw for event in fast.events) + b"data: [DONE]\n\n"


async def test_a_stored_run_goes_on_when_its_client_drops(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.01) as stage:
        stream = stage.stream(f"say: {LONG}")
        await stream.until(10)
        await stream.drop()
        shown = await stage.ended(stream.id)
        assert shown["output"][0]["content"][0]["text"] == LONG
        assert stage.script.dropped == 0
        replay = await stage.client.replay(stream.id)
        assert [event.raw for event in replay[: len(stream.events)]] == [event.raw for event in stream.events]
        assert replay[-1].is_terminal


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_run_that_is_not_stored_ends_upstream_when_its_client_drops(tmp_path: Path, streamed: bool) -> None:
    async with scene(tmp_path, delay=0.05) as stage:
        if streamed:
            stream = stage.stream(f"say: {LONG}", store=False)
            await stream.until(6)
            await stream.drop()
        else:
            asking = asyncio.create_task(stage.create(f"say: {LONG}", store=False))
            await stage.script.until(lambda script: _asked(script) == 1)
            asking.cancel()
        await stage.script.until(lambda script: script.dropped == 1)
        assert (await stage.client.call("GET", "/responses"))["data"] == []


async def test_cancelling_a_run_cancels_its_call_upstream(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.05) as stage:
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(8)
        shown = await stage.client.call("POST", f"/responses/{stream.id}/cancel")
        await stage.script.until(lambda script: script.dropped == 1)
        await stream.whole()
        stream.check_numbers()
        assert shown["status"] == "cancelled"
        assert stream.events[-1].data["response"] == shown == await stage.retrieve(stream.id)


async def test_sigterm_parks_a_long_run_in_time_and_the_next_server_ends_it(tmp_path: Path) -> None:
    async with scene(tmp_path, settings="shutdown_seconds = 0.5", delay=0.05) as stage:
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(10)
        began = time.monotonic()
        assert await stage.stop() == 0
        assert time.monotonic() - began < 5
        await stream.whole()
        assert stream.gone, "a stream that is cut off must not look complete"
        assert not stream.events[-1].is_terminal
        assert "runs.parked count=1" in stage.server.output
        await stage.start()
        rest = stage.follow(stream.id, after=len(stream.events) - 1)
        await rest.whole()
        rest.check_numbers(len(stream.events))
        assert rest.text == LONG


async def test_sigterm_lets_a_short_run_finish(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.01) as stage:
        stream = stage.stream("say: one two three four five", background=True)
        await stream.until(2)
        assert await stage.stop() == 0
        await stream.whole()
        stream.check_numbers()
        assert stream.text == "one two three four five"


async def test_runs_that_wait_for_a_place_are_carried_out_after_a_crash(tmp_path: Path) -> None:
    async with scene(tmp_path, settings="[limits]\nruns = 1", delay=0.02) as stage:
        shown = [await stage.create(f"say: number {n} {LONG[:40]}", background=True) for n in range(5)]
        assert [each["status"] for each in shown] == ["queued"] * 5
        await stage.kill()
        await stage.start()
        for number, each in enumerate(shown):
            final = await stage.ended(each["id"])
            assert final["output"][0]["content"][0]["text"] == f"number {number} {LONG[:40]}"
            stream = stage.follow(each["id"])
            await stream.whole()
            stream.check_numbers()


async def test_a_crashed_run_waits_for_a_model_server_that_comes_back_later(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.02) as stage:
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(10)
        await stage.kill()
        host, port = "127.0.0.1", int(stage.model.url.split(":")[2].split("/")[0])
        await stage.model.stop()
        await stage.start()
        assert (await stage.retrieve(stream.id))["status"] == "in_progress"
        await stage.model.start(host, port)
        shown = await stage.ended(stream.id)
        assert shown["status"] == "completed"
        assert shown["output"][-1]["content"][0]["text"] == LONG


async def test_a_run_that_cannot_be_taken_up_yet_can_be_cancelled(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.02) as stage:
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(10)
        await stage.kill()
        await stage.model.stop()
        await stage.start()
        shown = await stage.client.call("POST", f"/responses/{stream.id}/cancel")
        assert shown["status"] == "cancelled"
        rest = stage.follow(stream.id)
        await rest.whole()
        rest.check_numbers()


async def test_a_silent_model_server_keeps_nobody_from_what_is_stored(tmp_path: Path) -> None:
    async with scene(tmp_path, delay=0.02) as stage:
        stored = await stage.create("say: before")
        stream = stage.stream(f"say: {LONG}", background=True)
        await stream.until(10)
        await stage.kill()
        host, port = "127.0.0.1", int(stage.model.url.split(":")[2].split("/")[0])
        await stage.model.stop()
        with socket.create_server((host, port)):
            began = time.monotonic()
            await stage.start()
            assert time.monotonic() - began < 6
            assert await stage.retrieve(stored["id"]) == stored
            assert (await stage.retrieve(stream.id))["status"] == "in_progress"
        await stage.model.start(host, port)
        assert (await stage.ended(stream.id, 30))["status"] == "completed"


def test_a_server_that_was_killed_while_it_made_its_directory_starts_all_the_same(tmp_path: Path) -> None:
    for moment in range(5):
        server = ServerProcess(tmp_path / str(moment), backends=("http://127.0.0.1:9/v1",)).spawn()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.25 + 0.08 * moment)
        server.kill()
        with server.start():
            assert server.status is None


def test_a_second_server_on_the_directory_is_refused(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=("http://127.0.0.1:9/v1",)) as first:
        second = ServerProcess(tmp_path / "data", backends=("http://127.0.0.1:9/v1",), log=tmp_path / "second.log")
        with pytest.raises(ProcessFailed, match="exited with status 3"):
            second.start()
        assert f"is in use by another server (process {first.pid})" in " ".join(second.output.split())
        assert first.status is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("newer", "newer version of Stateroom"),
        ("header", "beginning is damaged"),
        ("foreign", "another program"),
        ("short", "cut off"),
        ("pages", "file is damaged"),
    ],
)
async def test_a_journal_that_cannot_be_trusted_is_refused(tmp_path: Path, damage: str, said: str) -> None:
    async with scene(tmp_path) as stage:
        for _ in range(3):
            await stage.create(f"say: {LONG}")
        assert await stage.stop() == 0
        await asyncio.to_thread(_damage, tmp_path / "data" / "journal.db", damage)
        with pytest.raises(ProcessFailed, match="exited with status 1"):
            await stage.start()
        text = " ".join(stage.server.output.split())
        assert said in text
        assert "Traceback" not in text
        assert "Unclosed" not in text


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ("fail: 500 boom", 502, "backend_failed"),
        ("fail: 429 slow down", 429, "backend_busy"),
        ("fail: 503 loading", 503, "backend_unavailable"),
        ("fail: 400 nonsense", 400, "backend_rejected"),
        ("hang: 0", 504, "backend_timeout"),
        (f"hang: 5\nsay: {LONG}", 504, "backend_timeout"),
        (f"fail_after: 5\nsay: {LONG}", 502, "backend_failed"),
        (f"error_after: 5\nsay: {LONG}", 502, "backend_failed"),
    ],
)
async def test_what_goes_wrong_upstream_has_an_error_of_its_own(
    upset: Scene, asked: str, status: int, code: str
) -> None:
    """The same in an answer and in a stream, and the server is well afterwards."""
    if "error_after" not in asked and "hang: 5" not in asked:
        with pytest.raises(Refused) as refused:
            await upset.create(asked)
        assert (refused.value.status, refused.value.code) == (status, code)
    stream = upset.stream(asked)
    await stream.whole()
    stream.check_numbers()
    assert stream.events[-1].kind == b"response.failed"
    assert stream.events[-2].data["code"] == code
    assert (await upset.create("say: still here"))["output"][0]["content"][0]["text"] == "still here"


async def test_a_model_server_that_is_down_is_said_to_be_down(tmp_path: Path) -> None:
    async with scene(tmp_path, backend="retries = 0") as stage:
        host, port = "127.0.0.1", int(stage.model.url.split(":")[2].split("/")[0])
        await stage.model.stop()
        with pytest.raises(Refused) as refused:
            await stage.create("say: anybody there?")
        assert (refused.value.status, refused.value.code) == (503, "backend_unavailable")
        await stage.model.start(host, port)
        assert (await stage.create("say: yes"))["status"] == "completed"


@pytest.fixture
async def upset(tmp_path: Path) -> Any:
    """A server that is impatient with its model server."""
    impatience = "first_byte_timeout_seconds = 0.4\nidle_timeout_seconds = 0.4\nretries = 0"
    async with scene(tmp_path, backend=impatience) as stage:
        yield stage


def _asked(script: Any) -> int:
    return sum(received.path.endswith("/chat/completions") for received in script.requests)


def _open_slowly(stage: Scene, body: str) -> socket.socket:
    """Ask for a stream over a connection that takes in almost nothing by itself."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", stage.server.port))
    head = f"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n{body}".encode())
    return connection


def _read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _unchunked(body: bytes) -> bytes:
    pieces = []
    while body:
        size, body = body.split(b"\r\n", 1)
        length = int(size, 16)
        pieces.append(body[:length])
        body = body[length + 2 :]
    return b"".join(pieces)


def _damage(journal: Path, how: str) -> None:
    held = bytearray(journal.read_bytes())
    match how:
        case "newer":
            held[60:64] = (1000).to_bytes(4, "big")
        case "header":
            held[:16] = bytes(16)
        case "foreign":
            held[68:72] = (0x01020304).to_bytes(4, "big")
        case "short":
            del held[len(held) // 2 :]
        case "pages":
            held[3 * 4096 :] = b"\xa5" * (len(held) - 3 * 4096)
    journal.write_bytes(held)
