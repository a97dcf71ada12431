"""Many WebSockets: what an idle one weighs, and what streams over some of them cost beside the idle ones."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks import model
from benchmarks.dialogues import LoadFailed
from benchmarks.measure import MIB, cpu_seconds, resident_bytes
from benchmarks.model import MODELS
from benchmarks.processes import Server
from benchmarks.table import Row, number

if TYPE_CHECKING:
    from benchmarks.scenarios import Bench

KIB: Final = 1024
IDLE_BUDGET_KIB: Final = 32.0
RESIDENT_BUDGET_MIB: Final = 192.0
SAMPLE_SECONDS: Final = 0.1
SPARE_DESCRIPTORS: Final = 512

_COMPLETED: Final = b'{"type":"response.completed"'
_ENDS: Final = (_COMPLETED, b'{"type":"response.failed"', b'{"type":"response.incomplete"', b'{"type":"error"')
_DELTA: Final = b'{"type":"response.output_text.delta"'


def sockets(bench: Bench) -> Iterator[Row]:
    """So many idle connections, and so many on which a response is streamed."""
    idle_count, stream_count = bench.scale.idle_sockets, bench.scale.socket_streams
    _make_room(idle_count + stream_count)
    chunks = MODELS[bench.scale.paced].chunks
    with bench.server() as server:
        asyncio.run(_stream(server, model.BURST, 4))  # whatever is loaded or allocated once
        before = resident_bytes(server.pid)
        idle = [_open_idle(server.port) for _ in range(idle_count)]
        time.sleep(0.5)  # the server reads the last of them
        after = resident_bytes(server.pid)
        cpu, began = cpu_seconds(server.pid), time.perf_counter()
        peak, deltas = asyncio.run(_watched(server, bench.scale.paced, stream_count))
        seconds, spent = time.perf_counter() - began, cpu_seconds(server.pid) - cpu
        for each in idle:
            each.close()
    group = f"WebSockets: {number(idle_count)} idle, {stream_count} streaming (paced {model.PACE_MS} ms)"
    yield Row(
        group=group,
        figure="each idle connection",
        unit="KiB",
        value=(after - before) / idle_count / KIB,
        budget=IDLE_BUDGET_KIB,
        beside=f"{number(before / MIB)} → {number(after / MIB)} MiB",
    )
    yield Row(group=group, figure="resident at most", unit="MiB", value=peak / MIB, budget=RESIDENT_BUDGET_MIB)
    yield Row(
        group=group,
        figure="CPU of a streamed event",
        unit="µs",
        value=spent / stream_count / chunks * 1e6,
        beside=f"{number(deltas)} deltas in {number(seconds)} s; {number(spent / seconds * 100)} % of a core",
    )


def _make_room(connections: int) -> None:
    """As many descriptors as that takes here; the server sees to its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LoadFailed(f"{wanted} open files are needed, and {hard} are allowed (ulimit -n)")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _handshake() -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    head = "GET /v1/responses HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    return (
        f"{head}sec-websocket-key: {key}\r\nsec-websocket-version: 13\r\nauthorization: Bearer unused\r\n\r\n".encode()
    )


def _open_idle(port: int) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port))
    opened.sendall(_handshake())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += opened.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise LoadFailed(f"no WebSocket: {answer[:200]!r}")
    return opened


async def _watched(server: Server, name: str, count: int) -> tuple[int, int]:
    """The most memory that the server had during so many streams, and how many deltas came."""
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, resident_bytes(server.pid))
            await asyncio.sleep(SAMPLE_SECONDS)

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        deltas = await _stream(server, name, count)
    finally:
        watching.cancel()
    return max(peak, resident_bytes(server.pid)), deltas


async def _stream(server: Server, name: str, count: int) -> int:
    """So many streams at the same time, each on a connection of its own; the deltas that came."""
    stagger = model.PACE_MS / 1000 / count
    return sum(await asyncio.gather(*(_one(server.port, name, number_ * stagger) for number_ in range(count))))


async def _one(port: int, name: str, wait: float) -> int:
    await asyncio.sleep(wait)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_handshake())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise LoadFailed(f"no WebSocket: {head[:200]!r}")
        writer.write(_text(msgspec.json.encode({"type": "response.create", "model": name, "input": "Tell me."})))
        deltas = 0
        while True:
            event = await _event(reader)
            deltas += event.startswith(_DELTA)
            if event.startswith(_ENDS):
                if not event.startswith(_COMPLETED):
                    raise LoadFailed(f"no complete answer: {event[:500]!r}")
                return deltas
    finally:
        writer.close()


def _text(body: bytes) -> bytes:
    """A client's text frame, masked with zeros."""
    size = len(body)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + bytes(4) + body


async def _event(reader: asyncio.StreamReader) -> bytes:
    while True:
        kind, size = await reader.readexactly(2)
        if size >= 126:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        body = await reader.readexactly(size)
        if kind == 0x81:
            return body
