"""The examples run, each as the program that it is, against a server with the scripted model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stateroom.testing.process import ModelProcess, ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAYS = {
    "agents_sdk.py": ["And of Japan? You said: And of Japan?"],
    "fork.py": ["original (conv_", "And of Japan?", "fork (conv_", "And of Italy?"],
    "remember.py": ["You said: And of Japan?", "My dog is called Biscuit.", "assistant: That is a good name."],
    "resume_stream.py": ["You said:", "dropped behind event 6", "three sentences.", "is response.completed"],
    "tool_loop.py": ['weather({"city":"text"}) =', "The tool answered: 18 degrees and sunny in text"],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("examples")
    with (
        ModelProcess("--delay-ms", "20", log=folder / "model.log") as model,
        ServerProcess(folder / "data", backends=(model.url,)) as server,
    ):
        yield server.url


def test_every_example_is_tried() -> None:
    """`demo.py` has a test of its own: it needs the embedded model."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, "demo.py"}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_does_what_it_says(name: str, url: str) -> None:
    environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused"}
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    at = 0
    for text in SAYS[name]:
        at = ran.stdout.find(text, at)
        assert at >= 0, f"{text!r} is missing, or in another place:\n{ran.stdout}"
