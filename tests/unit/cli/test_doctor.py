"""What `stateroom doctor` says of the parts that it starts."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

from stateroom.cli.configuration import load
from stateroom.cli.examine import Finding, examinations
from tests.acceptance.modelhost import ModelHost

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests before these left unclosed is complained of when it is collected: not during these."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda _: None)
        gc.collect()


def examine(part: str, data: Path, **overrides: object) -> Finding:
    environ = {name: value for name, value in os.environ.items() if name == "STATEROOM_EMBEDDED__CACHE_DIR"}
    loaded = load(None, environ, {"data": str(data), "port": 0, **overrides})
    return dict(examinations(loaded, lambda _: None))[part]()


@pytest.mark.embedded
def test_the_embedded_model_is_started_and_says_something(tmp_path: Path) -> None:
    assert examine("weights", tmp_path).state == "ok"
    finding = examine("embedded model", tmp_path)
    assert finding.state == "ok", finding
    assert "smollm2-135m-instruct started in" in finding.detail


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:9/"])
def test_a_backend_whose_url_has_no_version_is_told_so(url: str, tmp_path: Path) -> None:
    finding = examine("backend 1", tmp_path, backends=[url])
    assert finding.state == "failed"
    assert finding.remedy == "Is its base URL perhaps http://127.0.0.1:9/v1?"


def test_a_default_model_that_no_backend_serves_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "stateroom.toml"
    with ModelHost() as host:
        for name, state in (("scripted", "ok"), ("missing", "failed")):
            file.write_text(f'default_model = "{name}"\n[[backends]]\nurl = "{host.url}"\n')
            monkeypatch.chdir(tmp_path)
            finding = examine("default model", tmp_path / "data")
            assert finding.state == state, finding
    assert finding.detail == "no backend serves missing"
    assert "scripted" in finding.remedy


def test_every_setting_that_was_given_is_listed_with_its_place(tmp_path: Path) -> None:
    finding = examine("settings", tmp_path, backends=["http://127.0.0.1:9/v1"])
    assert finding.detail.splitlines() == ["backends from --backend", "data from --data", "port from --port"]
