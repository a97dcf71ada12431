"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FORBIDDEN = {
    "a note to finish later": re.compile(r"\b(TODO|FIXME|XXX)\b"),
    "a path of somebody's machine": re.compile(r"/(work|root|home)/\w+|/tmp/v\b"),
    "another clock than clock.py": re.compile(r"\btime\.time\(|datetime\.now\("),
    "another source of randomness than ids.py": re.compile(r"\bimport (random|secrets|uuid)\b"),
}
MAY = {
    "another clock than clock.py": {"clock.py", "ids.py"},
    "another source of randomness than ids.py": {"ids.py"},
}
LINES_MAX = 500
MAY_GROW = {"src/stateroom/workspaces/inside/agent.py"}
"""It runs inside sandboxes of every kind, alone: one file is all that has to get there."""


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_source_is_free_of(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        if path.name not in MAY.get(what, set()) and "testing" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert found == []


def test_no_file_has_outgrown_a_single_story() -> None:
    grown = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in grown.items() if lines > LINES_MAX and name not in MAY_GROW} == {}


def test_the_project_speaks_of_itself_only() -> None:
    foreign = re.compile(
        r"issue #?\d|issues show|pypi\.org|files\.pythonhosted|registry\.npmjs|\.\./shared", re.IGNORECASE
    )
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in {".png", ".lock"}:
            continue
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in foreign.finditer(text)]
    assert found == []
