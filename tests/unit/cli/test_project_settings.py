"""What holds for all projects and what differs for one are put together key by key, retention included."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateroom.cli.configuration import BadSetting, load_settings, variables
from stateroom.settings import ProjectSettings, RetentionSettings

FILE = """
[project]
runs = 4
[project.retention]
responses_days = 30
frames_hours = 24
[projects.shop]
requests_per_minute = 7
[projects.shop.retention]
responses_days = 0.5
[projects.till.retention]
frames_hours = 0
"""


def test_a_project_has_what_all_have_but_for_what_it_says(tmp_path: Path) -> None:
    config = tmp_path / "stateroom.toml"
    config.write_text(FILE)
    settings = load_settings(config, {}, {})
    assert settings.project == ProjectSettings(runs=4, retention=RetentionSettings(30.0, 24.0))
    assert settings.projects == {
        "shop": ProjectSettings(requests_per_minute=7, runs=4, retention=RetentionSettings(0.5, 24.0)),
        "till": ProjectSettings(runs=4, retention=RetentionSettings(30.0, 0.0)),
    }


def test_retention_is_set_by_the_environment_too() -> None:
    name = "STATEROOM_PROJECT__RETENTION__RESPONSES_DAYS"
    assert variables()[name] == ("project", "retention", "responses_days")
    settings = load_settings(None, {name: "2.5"}, {})
    assert settings.project.retention == RetentionSettings(2.5)
    own = {"STATEROOM_PROJECTS": '{"shop": {"retention": {"files_days": 3}}}', name: "2.5"}
    assert load_settings(None, own, {}).projects["shop"].retention == RetentionSettings(2.5, 0.0, 3.0)


@pytest.mark.parametrize("line", ["responses_days = -1", 'frames_hours = "long"', "days = 3", "files_days = inf"])
def test_a_wrong_retention_is_refused(tmp_path: Path, line: str) -> None:
    config = tmp_path / "stateroom.toml"
    config.write_text(f"[project.retention]\n{line}\n")
    with pytest.raises(BadSetting):
        load_settings(config, {}, {})
    config.write_text(f"[projects.shop.retention]\n{line}\n")
    with pytest.raises(BadSetting):
        load_settings(config, {}, {})
