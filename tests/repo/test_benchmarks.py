"""The benchmarks run and tell every figure. How good the figures are is not a test's business: machines differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.table import Row, render, verdict

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read the Linux kernel's accounts")


def test_the_quick_benchmarks_print_a_table_with_every_figure(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", str(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    said = msgspec.json.decode(told.read_bytes())
    figures, isolated = said["rows"], "workspaces" not in said["facts"]
    assert len(figures) == 31 + 15 * isolated
    assert sum(figure["budget"] is not None for figure in figures) == 17 + 3 * isolated
    assert all(figure["value"] >= 0 for figure in figures)
    for figure in figures:
        assert figure["figure"] in run.stdout
        assert figure["group"] in run.stdout


def test_a_row_says_whether_its_budget_is_met() -> None:
    met = Row(group="g", figure="a", unit="ms", value=1.0, budget=1.0)
    missed = Row(group="g", figure="b", unit="ms", value=2.5, budget=1.0)
    free = Row(group="g", figure="c", unit="ms", value=9.0)
    table = render([met, missed, free], {"machine": "this"})
    assert [line[0] for line in table.splitlines() if line[3:4] in "abc" and line[4:5] == " "] == ["✓", "✗", " "]
    assert verdict([met, missed, free]) == "1 of 2 budgets are missed: g, b: 2.5 x."
    assert verdict([met, free]) == "The only budget is met."
