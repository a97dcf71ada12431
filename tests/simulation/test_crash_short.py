"""The crash suite in short: one round for each interesting way to die. `make crash` goes on for hundreds."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.simulation.crash import crash
from tests.simulation.deaths import Plan

SEED = "short"
RUNS = (
    Plan("after_start", 5, actors=6),
    Plan("before_commit", 60, actors=6, again=("after_take_up:1",)),
    Plan("mid_effect", 1, actors=6),
    Plan("before_outcome", 1, actors=6, again=("before_take_up:1",)),
    Plan("after_redact", 1, actors=6),
    Plan("before_end", 6, actors=6),
    Plan("after_deletion", 1, actors=6),
    Plan("sent", 40, actors=6),
)
THINGS = (
    Plan("before_note_batch", 2, actors=6, again=("after_note_batch:1",)),
    Plan("after_drop_upload_part", 1, actors=6),
    Plan("after_put_upload_part", 3, actors=6),
    Plan("before_compaction", 1, actors=6),
    Plan("after_steer", 1, actors=6),
    Plan("before_put_idempotency", 3, actors=6),
    Plan("after_put_webhook_delivery", 3, actors=6),
    Plan("client", actors=6),
)


@pytest.mark.parametrize("plans", [RUNS, THINGS], ids=["runs", "things"])
async def test_nothing_acknowledged_is_lost_however_the_server_dies(tmp_path: Path, plans: tuple[Plan, ...]) -> None:
    out = io.StringIO()
    try:
        figures = await crash(enumerate(plans), SEED, tmp_path, out)
    except AssertionError as broken:
        raise AssertionError(f"{broken}\nseed {SEED}, everything is in {tmp_path}\n{out.getvalue()}") from broken
    died_where_they_should = sum(figures.kills.values()) - figures.kills["time"] - figures.kills["recovery time"]
    assert died_where_they_should >= len(plans) - 1, f"kill points were missed: {figures.kills}\n{out.getvalue()}"
    assert figures.resumes, "no stream was cut off"
