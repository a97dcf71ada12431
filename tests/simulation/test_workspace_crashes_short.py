"""Hosted tools in containers while servers and sandboxes die, in short. `make crash` goes on for hundreds of rounds."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from tests.simulation.crash import crash
from tests.simulation.deaths import Plan

SEED = "short"
ROUNDS = (
    Plan("mid_command", 6, actors=4, at_work=True),
    Plan("after_snapshot", 4, actors=4, at_work=True, again=("before_kept:1",)),
    Plan("after_outcome", 5, actors=4, at_work=True, strikes=("mid_command:3@agent", "after_command:4@bwrap")),
    Plan("after_note_container", 5, actors=4, at_work=True, strikes=("mid_command:2@interpreter",)),
    Plan("mid_materialise", 2, actors=5, at_work=True),
    Plan("after_freeze", 3, actors=4, at_work=True, sabotaged=True),
)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_no_effect_is_lost_or_repeated_however_servers_and_sandboxes_die(tmp_path: Path) -> None:
    out = io.StringIO()
    try:
        figures = await crash(enumerate(ROUNDS), SEED, tmp_path, out)
    except AssertionError as broken:
        raise AssertionError(f"{broken}\nseed {SEED}, everything is in {tmp_path}\n{out.getvalue()}") from broken
    died_where_they_should = sum(figures.kills.values()) - figures.kills["time"] - figures.kills["recovery time"]
    assert died_where_they_should >= len(ROUNDS) - 1, f"kill points were missed: {figures.kills}\n{out.getvalue()}"
    assert sum(figures.struck.values()) >= 2, f"no sandbox was hit: {figures.struck}"
    assert figures.outcomes["log completed"] > 20, f"too little was done: {figures.outcomes}"
