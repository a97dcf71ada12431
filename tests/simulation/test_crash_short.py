"""The crash suite in short: one round for each interesting way to die. `make crash` goes on for hundreds."""

from __future__ import annotations

import io
from pathlib import Path

from tests.simulation.crash import Plan, crash

SEED = "short"
PLANS = (
    Plan("after_start", 5, actors=6),
    Plan("mid_stream", 40, actors=6),
    Plan("before_commit", 60, actors=6, again=("after_take_up:1",)),
    Plan("mid_effect", 1, actors=6),
    Plan("after_intent", 2, actors=6),
    Plan("before_outcome", 1, actors=6, again=("before_take_up:1", "0.40")),
    Plan("client", actors=6),
    Plan("after_redact", 1, actors=6),
    Plan("before_end", 6, actors=6),
    Plan("after_end", 6, actors=6),
    Plan("after_deletion", 1, actors=6),
    Plan("sent", 60, actors=6),
)


async def test_nothing_acknowledged_is_lost_however_the_server_dies(tmp_path: Path) -> None:
    out = io.StringIO()
    try:
        figures = await crash(enumerate(PLANS), SEED, tmp_path, out)
    except AssertionError as broken:
        raise AssertionError(f"{broken}\nseed {SEED}, everything is in {tmp_path}\n{out.getvalue()}") from broken
    died_where_they_should = sum(figures.kills.values()) - figures.kills["time"] - figures.kills["recovery time"]
    assert died_where_they_should >= len(PLANS) - 2, f"kill points were missed: {figures.kills}\n{out.getvalue()}"
    assert figures.resumes, "no stream was cut off"
