"""WebSocket clients that mean harm: floods of the smallest frames, withdrawn keys, limits that are got around."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost
from tests.acceptance.socket_wire import Socket, opened
from tests.acceptance.test_keys import make, run
from tests.acceptance.wire import send

HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
TEXT, CONTINUATION, PING, PONG = 1, 0, 9, 10


@pytest.fixture
def server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process:
        yield process


def frame(opcode: int, data: bytes = b"", *, last: bool = True) -> bytes:
    return bytes([last << 7 | opcode, 0x80 | len(data)]) + bytes(4) + data


def upgraded(server: ServerProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(HANDSHAKE + b"\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
    return connection


def resident(server: ServerProcess) -> int:
    """Megabytes."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", frame(PING, b"x" * 125)),
        (b"", frame(PONG)),
        (frame(TEXT, last=False), frame(CONTINUATION, last=False)),
        (frame(TEXT, last=False), frame(CONTINUATION, b"x", last=False)),
    ],
    ids=["pings that nobody reads the answers of", "pongs", "empty pieces", "tiny pieces"],
)
def test_who_sends_nothing_but_small_frames_is_hung_up_on_and_holds_up_nobody(
    server: ServerProcess, first: bytes, more: bytes
) -> None:
    before = resident(server)
    connection = upgraded(server)
    connection.sendall(first)
    hung_up = threading.Event()

    def flood() -> None:
        try:
            while True:
                connection.sendall(more * 10_000)
        except OSError:
            hung_up.set()

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    slowest, deadline = 0.0, time.monotonic() + 20
    while not hung_up.is_set():
        assert time.monotonic() < deadline, "it is still listened to"
        asked = time.monotonic()
        assert send(server.url, "GET", "/models").status == 200
        slowest = max(slowest, time.monotonic() - asked)
    flooding.join(10)
    connection.close()
    assert slowest < 3.0
    assert resident(server) - before < 50


def test_thousands_of_messages_at_once_wait_for_others(server: ServerProcess) -> None:
    connection = upgraded(server)
    flood = threading.Thread(target=lambda: connection.sendall(frame(TEXT, b"{}") * 50_000), daemon=True)
    flood.start()
    for _ in range(20):
        asked = time.monotonic()
        assert send(server.url, "GET", "/models").status == 200
        assert time.monotonic() - asked < 3.0
    connection.close()
    flood.join(10)


def test_a_large_message_in_many_pieces_is_a_message(server: ServerProcess) -> None:
    body = b'{"type":"response.create","model":"scripted","input":"say: hello\\n%b"}' % (b"x" * 500_000)
    connection = upgraded(server)
    pieces = [body[at : at + 125] for at in range(0, len(body), 125)]
    connection.sendall(frame(TEXT, last=False) + b"".join(frame(CONTINUATION, b, last=False) for b in pieces[:900]))
    rest = b"".join(pieces[900:])
    size = len(rest).to_bytes(8, "big")
    connection.sendall(bytes([0x80 | CONTINUATION, 0xFF]) + size + bytes(4) + rest)
    assert b"response.created" in connection.recv(4096)
    connection.close()


def test_a_handshake_with_a_header_that_is_no_text_is_answered(server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(HANDSHAKE + b"Sec-WebSocket-Protocol: \xff\r\n\r\n")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_handshake" in answer
    assert "Traceback" not in server.output


def steered(socket: Socket, response_id: str) -> tuple[str, dict[str, Any]]:
    """Say something to the response; the one that goes on then, and the last event."""
    socket.steer(response_id, "gate: never 1\nsay: one two three")
    events = socket.until("response.output_text.delta", "response.steer.failed", "error")
    created = [event["response"]["id"] for event in events if event["type"] == "response.created"]
    return created[-1] if created else response_id, events[-1]


def test_steering_goes_on_for_as_long_as_the_key_does(server: ServerProcess) -> None:
    made = make(server.data)
    with opened(server.url, additional_headers={"authorization": f"Bearer {made['key']}"}) as socket:
        socket.create("gate: never 1\nsay: one two three", store=False)
        current = socket.until("response.output_text.delta")[0]["response"]["id"]
        current, event = steered(socket, current)
        assert event["type"] == "response.output_text.delta"
        assert run("revoke", made["id"], data=server.data).returncode == 0
        _, event = steered(socket, current)
        assert (event["type"], event["error"]["code"]) == ("response.steer.failed", "invalid_api_key")


@pytest.mark.parametrize("limit", [("--requests-per-minute", "2"), ("--tokens-per-minute", "20")])
def test_steering_is_no_way_around_the_limits_of_a_key(server: ServerProcess, limit: tuple[str, str]) -> None:
    made = make(server.data, *limit)
    with opened(server.url, additional_headers={"authorization": f"Bearer {made['key']}"}) as socket:
        socket.create("gate: never 1\nsay: one two three", store=False)
        current = socket.until("response.output_text.delta")[0]["response"]["id"]
        failed = ""
        for _ in range(4):
            current, event = steered(socket, current)
            if event["type"] == "response.steer.failed":
                failed = event["error"]["code"]
                break
        assert failed == "rate_limit_exceeded"


def test_what_is_said_to_responses_that_wait_for_their_client_is_bounded_for_all_of_them(
    model_host: ModelHost, tmp_path: Path
) -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    environment = {"STATEROOM_LIMITS__BODY_BYTES": "100000"}
    said = []
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=environment) as server,
        opened(server.url) as socket,
    ):
        for number in range(3):
            gate = f"hostile-said-{number}"
            socket.create(f"gate: {gate} 1\ncall: look {{}}", tools=[tool])
            identifier = socket.until("response.output_item.added")[0]["response"]["id"]
            socket.steer(identifier, "x" * 40_000)
            said.append(socket.until("response.steer.accepted", "response.steer.failed")[-1])
            model_host.open_gate(gate)
            socket.until("response.completed")
            if said[-1]["type"] == "response.steer.accepted":
                socket.until("response.steer.pending")
    assert [event["type"].rpartition(".")[2] for event in said] == ["accepted", "accepted", "failed"]
    assert said[-1]["error"]["code"] == "too_many_pending_steers"
