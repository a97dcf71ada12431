"""What a hostile program in a workspace can reach, with every driver that works here, as root and as an ordinary user.

Each attempt (attempts.py) is refused, or contained: the server, its machine and another workspace go on unharmed.
All of them are made in one sandbox for each driver.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Final

import pytest

from tests.hostile import stage
from tests.sandboxes import reason_against

ORDINARY_USER: Final = 1_234
SYSTEM_PYTHON: Final = "/usr/bin/python3"
DRIVERS: Final = ("bubblewrap", "landlock", "podman", "docker")
SETTINGS: Final = (*DRIVERS, "bubblewrap as an ordinary user", "landlock as an ordinary user")
ATTEMPTS: Final = tuple(
    node.name
    for node in ast.parse(stage.ATTEMPTS.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.decorator_list
)
OUTCOMES: Final = (
    *("a fork bomb", "a memory bomb", "tables without pages", "many hogs", "a full disk", "a full temporary directory"),
    *("a closed directory", "files that are mapped", "files under way in a socket"),
    *("a full shared memory", "many small files", "a sparse giant", "endless output", "a huge environment"),
    *("the outside is as it was", "the other workspace is unharmed", "no connection came"),
    "the server follows no link",
)
KNOWN: Final = {"landlock": {"see_the_processes_of_the_machine", "find_out_about_files_of_the_machine"}}
"""What a driver does not keep in, and docs/reference/isolation.md says so."""


@functools.cache
def why_not(setting: str) -> str:
    """Why it cannot be tried on this machine; empty: it can."""
    name, _, user = setting.partition(" as ")

    if user:
        if os.getuid():
            return "only root can become another user"
        done = _as_ordinary_user("-c", "import msgspec, stateroom.workspaces.drivers.bubblewrap")
        return done.stderr[-300:] if done.returncode else ""
    return reason_against(lambda folder: stage.started(name, folder))


def _as_ordinary_user(*words: str) -> subprocess.CompletedProcess[str]:
    source = Path(stage.inside_directory()).parents[2]
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    with tempfile.TemporaryDirectory(prefix="stateroom-user-") as home:
        os.chown(home, ORDINARY_USER, ORDINARY_USER)
        return subprocess.run(
            [SYSTEM_PYTHON, *words],
            user=ORDINARY_USER,
            group=ORDINARY_USER,
            extra_groups=[],
            env={
                "PYTHONPATH": os.pathsep.join([str(source), *libraries]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": home,
                "PATH": "/usr/bin:/bin",
            },
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )


@functools.cache
def assaulted(setting: str, together: Path) -> dict[str, str]:
    """Once for each in a run of the tests, also where it fails; whoever else wants to know waits."""
    kept = together / f"assault on {setting}.json"
    with (together / "assaults").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(_assaulted(setting)))
    found: dict[str, str] = json.loads(kept.read_text())
    return found


def _assaulted(setting: str) -> dict[str, str]:
    name, _, user = setting.partition(" as ")
    if not user:
        try:
            return stage.assault(name)
        except Exception:  # reported by every test of this setting
            return {"failed": traceback.format_exc()}
    done = _as_ordinary_user(str(Path(stage.__file__)), name)
    if done.returncode:
        return {"failed": done.stderr}
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of this run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def outcome(setting: str, what: str, together: Path) -> str:
    if reason := why_not(setting):
        pytest.skip(f"{setting} cannot be tried on this machine: {reason}")
    found = assaulted(setting, together)
    assert "failed" not in found, found["failed"][-1_500:]
    return found[what]


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_attempt_to_get_out_is_refused(setting: str, attempt: str, together: Path) -> None:
    said = outcome(setting, attempt, together)
    if attempt in KNOWN.get(setting.partition(" ")[0], ()):
        assert said.startswith("GOT"), "it is kept in by now: say so in docs/reference/isolation.md"
    else:
        assert said.startswith("refused"), said


@pytest.mark.parametrize("what", OUTCOMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_floods_a_sandbox_is_contained_and_nothing_outside_is_harmed(
    setting: str, what: str, together: Path
) -> None:
    assert outcome(setting, what, together) == "ok"


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_attempt_was_made(setting: str, together: Path) -> None:
    outcome(setting, ATTEMPTS[0], together)
    assert set(assaulted(setting, together)) == {*ATTEMPTS, *OUTCOMES}
