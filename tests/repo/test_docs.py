"""The documentation is complete, its links lead somewhere, and its Python runs."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
from docs.generate import pages

from stateroom import settings
from stateroom.cli.configuration import load_settings
from stateroom.cli.main import program
from stateroom.testing.process import ModelProcess, ServerProcess

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FRAGMENT = re.compile(r"^```py\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""Python that needs more than a server: it is read, and run where the same stands in a test or an example."""
TOML = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*stateroom (.+)$", re.MULTILINE)
WITH_PYTHON = [page for page in PAGES if PYTHON.search(page.read_text())]
FIRST = [ROOT / "README.md", ROOT / "docs/tutorial.md"]
SOURCE = ROOT / "src/stateroom"
CODE = re.compile(r"[a-z]+(_[a-z0-9]+)+")


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
    run_python(page, url, tmp_path)


def run_python(page: Path, url: str, folder: Path) -> str:
    """What the blocks of a page print, one behind the other."""
    blocks = PYTHON.findall(page.read_text())
    script = folder / "page.py"
    script.write_text("\n".join(blocks).replace("http://127.0.0.1:8000/v1", url))
    environment = {**os.environ, "OPENAI_API_KEY": "unused"}
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_that_is_not_run_can_be_read(page: Path) -> None:
    for block in FRAGMENT.findall(page.read_text()):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_of_a_page_are_settings(page: Path, tmp_path: Path) -> None:
    for block in TOML.findall(page.read_text()):
        if "model_provider" not in block:  # another program's
            file = tmp_path / "stateroom.toml"
            file.write_text(block)
            load_settings(file, dict.fromkeys(re.findall(r'^key_env = "(\w+)"', block, re.MULTILINE), "a key"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_are_commands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "support-case.tar").touch()
    for block in CONSOLE.findall(page.read_text()):
        for line in COMMAND.findall(block):
            parse(typer.main.get_command(program()), shlex.split(line, comments=True))


def parse(command: Any, words: Sequence[str]) -> None:
    """Raises the error that somebody would see who types these words."""
    context = command.make_context("stateroom", list(words))
    if hasattr(command, "resolve_command"):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(inner, rest)


@pytest.mark.embedded
def test_the_first_pages_work_with_the_model_that_a_newcomer_has(tmp_path: Path) -> None:
    """It is a small one: what it is asked there is chosen so that it answers briefly, and right."""
    with ServerProcess(tmp_path / "data") as server:
        for page in FIRST:
            assert "The capital of Japan is Tokyo." in run_python(page, server.url, tmp_path)


def test_every_setting_is_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/settings.md").read_text()
    sections = {
        "ProjectSettings": "project",
        "RetentionSettings": "project.retention",
        "EmbeddingsSettings": "embeddings",
        "WorkspaceSettings": "workspaces",
        "McpSettings": "mcp",
        "PolicyRule": "[policy]",
        "TelemetrySettings": "telemetry",
    }
    for name, section in sections.items():
        table = reference.partition(f"## `[{section}]`")[2].partition("\n## ")[0]
        fields = set(getattr(settings, name).__struct_fields__) - ({"retention"} if section == "project" else set())
        assert sorted(fields - set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))) == [], section


def test_every_error_code_is_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/extensions.md").read_text()
    listed = set(re.findall(r"`([a-z_0-9]+)`", reference[reference.index("## Error codes") :]))
    trees = [
        ast.parse(path.read_text())
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in ("cli", "testing")
    ]
    used = {code for tree in trees for code in error_codes(tree)}
    assert {"conversation_locked", "weights_mismatch", "storage_full", "array_above_max_length"} <= used
    assert sorted(used - listed) == []


def error_codes(tree: ast.Module) -> Iterator[str]:
    """What a module gives as `code`: to a call, as an attribute of a class, or through a name of its own."""
    given: list[ast.expr] = []
    named: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "code":
            given.append(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    named.setdefault(target.id, []).append(node.value)
    given += named.get("code", [])
    given += [value for each in given if isinstance(each, ast.Name) for value in named.get(each.id, [])]
    for each in given:
        for node in ast.walk(each):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                yield node.value
