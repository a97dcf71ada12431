"""The comparison with peers finds what it needs or says what is missing, and asks every server the same questions.

The peers themselves are not installed here: that is a gigabyte. Ours goes through all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.measure import family, family_cpu_seconds
from benchmarks.peers import contenders, pythons
from benchmarks.peers.contenders import LITELLM, OGX, RECIPES
from benchmarks.peers.environments import NotInstalled, prepare
from benchmarks.peers.pythons import Python
from benchmarks.peers.table import Figure, render

ROOT = Path(__file__).resolve().parents[2]
OWN = Python(Path(sys.executable), ".".join(map(str, sys.version_info[:3])))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read the Linux kernel's accounts")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_peer_that_does_not_install_is_told_in_the_table_and_ours_is_measured_all_the_same(tmp_path: Path) -> None:
    """No package can be had: pip is told to use no index."""
    told = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--quick", "--only", "start", "--only", "kill"]
        + ["--cache", str(tmp_path / "cache"), "--json", str(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull},
    )
    assert run.returncode == 0, run.stderr
    report = msgspec.json.decode(told.read_bytes())
    assert {name: bool(figures) for name, figures in report["found"].items()} == {
        "Stateroom": True,
        "OGX": False,
        "LiteLLM": False,
    }
    for name in ("OGX", "LiteLLM"):
        reason = report["facts"][name]
        assert reason.startswith("not measured: ")
        assert "does not install" in reason or "none was found on this machine" in reason
        assert reason in run.stdout
        assert f"{name} is skipped" in run.stderr
    after_the_kill = {each["figure"]: each["beside"] for each in report["found"]["Stateroom"] if not each["unit"]}
    assert after_the_kill["a finished turn before it"] == "kept"
    assert after_the_kill["the next turn after that one"] == "goes on with its history"
    assert after_the_kill["the stream, from the next event"].startswith("yes, at the next event")
    assert after_the_kill["its response"] == after_the_kill["a background run"] == "completed, 160 characters"


def test_the_first_new_enough_python_that_can_make_environments_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before it are too old, or are there by name only."""
    path, pyenv = tmp_path / "bin", tmp_path / "pyenv"
    script(path / "python3.13", "exit 127")
    script(path / "python3.12", "echo 3.10.2")
    fit = script(pyenv / "versions/3.12.9/bin/python3.12", "echo 3.12.9")
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("PYENV_ROOT", str(pyenv))
    assert pythons.find((3, 12)) == Python(fit, "3.12.9")
    assert pythons.find((9, 0)) is None


def test_uv_is_asked_for_the_pythons_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = script(tmp_path / "kept/python", "echo 3.14.1")
    script(tmp_path / "bin/uv", f"""echo '[{{"path": "{fit}"}}, {{"path": null}}]'""")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    assert pythons.find((3, 14)) == Python(fit, "3.14.1")


def test_an_environment_is_made_once_and_a_failed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip, which every new environment has, stands for the package: it is installed from nowhere."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said: list[str] = []
    first = prepare("pip", "pip", OWN, tmp_path, said.append)
    assert Path(first.program("python")).exists()
    assert first.version.split(".")[0].isdigit()
    assert len(said) == 1
    assert prepare("pip", "pip", OWN, tmp_path, said.append) == first
    assert len(said) == 1
    with pytest.raises(NotInstalled, match="No matching distribution"):
        prepare("ogx", "ogx>=1.5", OWN, tmp_path, said.append)
    assert [each.name for each in tmp_path.iterdir()] == ["pip"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_peers_configuration_names_the_model_server_and_nothing_outside_its_directory(
    recipe: contenders.Recipe, tmp_path: Path
) -> None:
    models = "http://127.0.0.1:1234/v1"
    text = msgspec.json.encode(recipe.configuration(tmp_path, models)).decode()
    assert models in text
    assert "http" not in text.replace(models, "")
    paths = [each for each in text.split('"') if each.startswith("/")]
    assert all(each.startswith(str(tmp_path)) for each in paths)
    assert bool(paths) == (recipe is OGX)
    assert recipe.surface == ("history" if recipe is LITELLM else "response")


def test_the_cpu_of_a_process_counts_its_children_also_those_that_have_ended() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(6_000_000))']); print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert family(process.pid) == [process.pid]
        assert os.getpid() not in family(process.pid)
        assert process.pid in family(os.getpid())
        assert family_cpu_seconds(process.pid) > 0.06
        process.communicate(b"\n")


def test_the_table_tells_a_peers_figure_also_as_a_multiple_of_ours() -> None:
    def turn(values: list[float]) -> Figure:
        return Figure(group="g", figure="a turn", unit="ms", values=values)

    found = {"Stateroom": [turn([0.4, 0.5, 0.6])], "Peer": [turn([20.0])], "Absent": []}
    table = render(found, {"when": "now"}, ["a note"])
    assert "0.50 ms, 0.40–0.60  20 ms, 40 x  –" in table
    assert table.endswith("a note")
