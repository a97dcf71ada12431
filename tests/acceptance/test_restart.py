"""A server behind a socket that outlives it: nobody is turned away while it is restarted."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, until

SECONDS = 20


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """As a service manager holds it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(128)
        yield held


def start(held: socket.socket, data: Path, backend: str) -> subprocess.Popen[bytes]:
    """Start a server as systemd does: the socket as descriptor 3, and its own process id in the environment."""
    code = (
        "import os, sys\n"
        f"os.dup2({held.fileno()}, 3)\n"
        "os.set_inheritable(3, True)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    program = str(Path(sys.executable).with_name("stateroom"))
    environment = {**os.environ, "STATEROOM_DATA": str(data), "STATEROOM_BACKENDS": backend}
    return subprocess.Popen(
        [sys.executable, "-c", code, program, "serve"],
        pass_fds=[held.fileno()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_second_signal_ends_the_waiting_for_runs(tmp_path: Path) -> None:
    config = tmp_path / "stateroom.toml"
    config.write_text("shutdown_seconds = 600\n")
    with ModelHost() as host:
        server = ServerProcess(tmp_path / "data", backends=(host.url,), options=("--config", str(config)))
        with server, OpenAI(base_url=server.url, api_key="-", max_retries=0, timeout=SECONDS) as client:
            slow = client.responses.create(model="m", input="chunks: 20\nhang: 2", background=True)
            until(lambda: client.responses.retrieve(slow.id).status == "in_progress", "the run")
            os.kill(server.pid, signal.SIGINT)
            until(lambda: "Ctrl-C once more" in server.output, "the first signal")
            assert server.status is None
            os.kill(server.pid, signal.SIGINT)
            assert server.wait(SECONDS) == 0
            assert "server.hurried runs=1" in server.output
            assert "runs.parked count=1" in server.output
            server.start()
            assert client.responses.retrieve(slow.id).status == "in_progress"


def test_whoever_waits_for_an_answer_when_the_server_stops_is_told_where_it_will_be(tmp_path: Path) -> None:
    config = tmp_path / "stateroom.toml"
    config.write_text("shutdown_seconds = 0\n")
    told: dict[bool, APIStatusError] = {}

    def ask(client: OpenAI, store: bool) -> None:
        with pytest.raises(APIStatusError) as caught:
            client.responses.create(model="m", input="chunks: 20\nslow: 100", store=store)
        told[store] = caught.value

    with ModelHost() as host:
        server = ServerProcess(tmp_path / "data", backends=(host.url,), options=("--config", str(config)))
        with server, OpenAI(base_url=server.url, api_key="-", max_retries=0, timeout=SECONDS) as client:
            waiting = [threading.Thread(target=ask, args=(client, store)) for store in (True, False)]
            for each in waiting:
                each.start()
            until(lambda: host.script.received >= 2 + host.script.answered, "both to be asked")
            os.kill(server.pid, signal.SIGTERM)
            assert server.wait(SECONDS) == 0
            for each in waiting:
                each.join(SECONDS)
            assert {error.code for error in told.values()} == {"server_stopping"}
            assert "not stored" in told[False].message
            server.start()
            kept = re.findall(r"resp_\w+", told[True].message)[0]
            until(lambda: client.responses.retrieve(kept).status == "completed", "the response")


def test_nobody_is_turned_away_during_a_restart(listening: socket.socket, tmp_path: Path) -> None:
    answered: list[str] = []
    failures: list[Exception] = []
    over = threading.Event()
    with ModelHost() as host:
        client = OpenAI(
            base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1", api_key="-", max_retries=2, timeout=SECONDS
        )

        def ask() -> None:
            while not over.is_set():
                try:
                    answered.append(client.responses.create(model="scripted", input="Hello").status or "")
                except Exception as error:  # collected, for the test to show
                    failures.append(error)

        server = start(listening, tmp_path / "data", host.url)
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(3):
                before = len(answered)
                deadline = time.monotonic() + SECONDS
                while len(answered) < before + 5 and time.monotonic() < deadline:
                    over.wait(0.02)
                server.send_signal(signal.SIGTERM)
                assert server.wait(SECONDS) == 0
                server = start(listening, tmp_path / "data", host.url)
            before = len(answered)
            while len(answered) == before and asking.is_alive() and not failures:
                over.wait(0.02)
        finally:
            over.set()
            asking.join(SECONDS)
            server.kill()
            server.wait()
    assert failures == []
    assert set(answered) == {"completed"}
    assert len(answered) > 15
