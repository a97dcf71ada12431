"""The examples run, each as the program that it is, against a server with the scripted model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stateroom.testing.process import ModelProcess, ServerProcess
from tests.acceptance import good_model
from tests.acceptance.modelhost import ModelHost

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAYS = {
    "agents_sdk.py": ["And of Japan? You said: And of Japan?"],
    "fork.py": ["original (conv_", "And of Japan?", "fork (conv_", "And of Italy?"],
    "remember.py": ["You said: And of Japan?", "My dog is called Biscuit.", "assistant: That is a good name."],
    "resume_stream.py": ["You said:", "dropped behind event 6", "three sentences.", "is response.completed"],
    "tool_loop.py": ['weather({"city":"text"}) =', "The tool answered: 18 degrees and sunny in text"],
}
WORK = {
    "analyse_data.py": [
        "> totals = Counter()",
        "{'north': 215, 'south': 450, 'west': 115}",
        "/mnt/data/chart.svg (assistant): ",
        "/mnt/data/sales.csv (user): ",
        '{"north": 215, "south": 450, "west": 115}',
        "> round(100 * max(totals.values())",
        "58",
    ],
    "two_fixes.py": [
        "Several spaces become several dashes.",
        "tests pass, 6 lines",
        "+import re",
        "tests pass, 2 lines",
        '+    return "-".join(title.lower().split())',
        "kept resp_",
        "The tests pass.",
    ],
    "safe_deployment.py": [
        'May it do shell {"commands":["sh deploy.sh backup migrate switch"]}?',
        "end backup\nbegin migrate\n--- kill -9",
        "The outcome of this call is unknown",
        "$ cat production.log\nbegin backup\nend backup\nbegin migrate\n",
        'May it do shell {"commands":["sh deploy.sh migrate switch"]}?',
        "end switch\nRelease 42 is live.",
        "ask by rule 1",
        "allow by mcpr_",
        "unknown",
        "allow by default",
        "completed",
        "ask by rule 1",
        "allow by mcpr_",
        "completed",
    ],
}
"""Examples that work in containers, and need a model that calls tools."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("examples")
    with (
        ModelProcess("--delay-ms", "20", log=folder / "model.log") as model,
        ServerProcess(folder / "data", backends=(model.url,)) as server,
    ):
        yield server.url


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of an example beside a good model."""
    folder = tmp_path_factory.mktemp("work")
    with ModelHost() as host, ServerProcess(folder / "data", backends=(host.url,)) as server:
        host.script.respond = good_model.respond
        yield {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "unused", "STATEROOM_BACKENDS": host.url}


def test_every_example_is_tried() -> None:
    """`demo.py` has a test of its own: it needs the embedded model."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, *WORK, "demo.py"}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_does_what_it_says(name: str, url: str) -> None:
    check(name, {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused"}, SAYS[name])


@pytest.mark.parametrize("name", WORK)
def test_an_example_that_works_in_a_container_does_what_it_says(name: str, able: dict[str, str]) -> None:
    check(name, able, WORK[name])


def test_a_deployment_that_is_refused_is_not_made(able: dict[str, str]) -> None:
    said = run("safe_deployment.py", able, answers="n\n")
    assert "begin backup" not in said
    assert "Then it is left as it is." in said
    assert "deny by mcpr_" in said


def check(name: str, environment: dict[str, str], expected: list[str]) -> None:
    said = run(name, environment, answers="y\ny\n")
    at = 0
    for text in expected:
        at = said.find(text, at)
        assert at >= 0, f"{text!r} is missing, or in another place:\n{said}"


def run(name: str, environment: dict[str, str], answers: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        input=answers,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
