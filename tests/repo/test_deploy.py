"""The files under deploy/ are sound, and agree with the program that they start."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()


def test_the_container_file_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [linter, "--failure-threshold", "style", DEPLOY / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_container_is_nobody_and_is_asked_how_it_is() -> None:
    assert re.search(r"^USER (?!0|root)\d+:\d+$", CONTAINERFILE, re.MULTILINE)
    assert 'CMD ["stateroom", "health"]' in CONTAINERFILE


def test_compose_runs_it_read_only_and_without_privileges() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["stateroom"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["volumes"] == ["data:/data"]


def test_the_unit_gives_runs_time_and_knows_the_exit_codes() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # its keys have capitals
    unit.read(DEPLOY / "stateroom.service")
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) > 10
    assert service["RestartPreventExitStatus"] == "2 3 4"
    assert service["ExecStart"].split()[1] == "serve"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here to ask")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program = tmp_path / "stateroom"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("stateroom.service", "stateroom.socket"):
        (tmp_path / name).write_text((DEPLOY / name).read_text().replace("/opt/stateroom/bin/stateroom", str(program)))
    found = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "stateroom.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not [line for line in found.stderr.splitlines() if "stateroom" in line], found.stderr
