"""`make demo`, as a newcomer sees it: the real program, the embedded model, kill -9 and all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 170


def test_the_demo_keeps_every_promise_in_under_three_minutes() -> None:
    began = time.monotonic()
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}
    demo = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = demo.stdout
    assert demo.returncode == 0, said + demo.stderr
    assert "Traceback" not in demo.stderr
    for proof in (
        "✓ 6 items kept",
        "no gap, none twice",
        "read again: the same events",
        "its parent is as it was",
    ):
        assert proof in said
    assert "slipped" not in said, "the model did not recall the fact: choose prompts that it can answer"
    assert said.index("kill -9") < said.index("resumed")
    assert time.monotonic() - began < SECONDS
