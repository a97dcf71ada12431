"""Receivers of webhooks that never answer, and what that means for everybody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.test_keys import make
from tests.acceptance.test_webhooks import Receiver
from tests.acceptance.wire import send

ENDPOINTS, RESPONSES = 12, 12


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def headers(server: ServerProcess, project: str) -> dict[str, str]:
    return {"authorization": f"Bearer {make(server.data, '--project', project)['key']}"}


def wanting(server: ServerProcess, url: str, who: dict[str, str]) -> None:
    body = {"name": "x", "url": url, "event_types": ["response.completed"]}
    assert send(server.url, "POST", "/webhook_endpoints", body, headers=who).status == 200


def ended(server: ServerProcess, who: dict[str, str]) -> None:
    body = {"model": "scripted", "input": "say: x", "background": True}
    assert send(server.url, "POST", "/responses", body, headers=who).status == 200


def test_one_projects_silent_receivers_keep_nobody_elses_waiting(
    model_host: ModelHost, tmp_path: Path, receiver: Receiver
) -> None:
    environment = {"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    with (
        closing(socket.create_server(("127.0.0.1", 0), backlog=256)) as silent,
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=environment) as server,
    ):
        hostile, other = headers(server, "hostile"), headers(server, "other")
        for number in range(ENDPOINTS):
            wanting(server, f"http://127.0.0.1:{silent.getsockname()[1]}/{number}", hostile)
        wanting(server, receiver.url, other)
        for _ in range(RESPONSES):
            ended(server, hostile)
        listed = "/webhook_deliveries?limit=100"
        until(lambda: len(send(server.url, "GET", listed, headers=hostile).json["data"]) == 100, "many wait")
        ended(server, other)
        # Each silent receiver is given ten seconds: there is no waiting for any of them.
        until(lambda: receiver.heard, "it is told", seconds=6.0)
