"""The documentation is complete, its links lead somewhere, and its Python runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.generate import pages

from stateroom.testing.process import ModelProcess, ServerProcess

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("docs")
    with (
        ModelProcess("--port", "0", log=folder / "model.log") as model,
        ServerProcess(folder / "data", backends=(model.url,)) as server,
    ):
        yield server.url


@pytest.mark.parametrize("path", pages())
def test_the_reference_made_from_the_source_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == pages()[path], "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = [target.split("#")[0] for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, url: str, tmp_path: Path) -> None:
    blocks = PYTHON.findall(page.read_text())
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks).replace("http://127.0.0.1:8000/v1", url))
    environment = {**os.environ, "OPENAI_API_KEY": "unused"}
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, env=environment)
    assert ran.returncode == 0, ran.stderr
