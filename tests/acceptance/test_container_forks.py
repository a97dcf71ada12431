"""Continuations of one response at the same time: each has the files as they were then, and goes on with its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

SHELL: Any = {"type": "shell", "environment": {"type": "container_auto"}}


@pytest.fixture
def client(model_host: ModelHost, tmp_path: Path) -> Iterator[OpenAI]:
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,)).start() as server,
        OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        yield client


def work(client: OpenAI, command: str, previous: str | None = None) -> tuple[str, str, str]:
    """The response's id, its container, and what the command said."""
    asked = f'call: shell {{"commands":["{command}"]}}'
    more: Any = {} if previous is None else {"previous_response_id": previous}
    made: Any = client.responses.create(model="scripted", input=asked, tools=[SHELL], **more)
    call, result = made.output[:2]
    return made.id, call.environment.container_id, result.output[0].stdout


def test_forks_that_go_on_at_the_same_time_do_not_see_each_other(client: OpenAI) -> None:
    first, container, _ = work(client, "echo first >> log")
    with ThreadPoolExecutor(3) as threads:
        command = "echo $$ >> log; sleep 0.5; cat log"
        done = list(threads.map(lambda _: work(client, command, first), range(3)))
    assert len({each[1] for each in done}) == 3
    assert container in {each[1] for each in done}
    assert [each[2].splitlines()[0] for each in done] == ["first"] * 3
    assert [len(each[2].splitlines()) for each in done] == [2] * 3
    again = work(client, "cat log", done[0][0])
    assert again[1:] == done[0][1:]
