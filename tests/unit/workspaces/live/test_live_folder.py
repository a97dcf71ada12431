"""When the directory of a workspace is gone on with, and when it is made anew from its commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.live import folder as live_folder
from stateroom.workspaces.live.folder import LiveFolder


@pytest.fixture
def live(tmp_path: Path) -> LiveFolder:
    return LiveFolder(tmp_path, "cntr_a", "project")


def prepared(live: LiveFolder, commit: str) -> bool:
    """Whether the files of the commit had to be put there."""

    def put(folder: Folder) -> None:
        folder.write("a", commit.encode())

    return live.prepare(commit, put, Folder(live.files))


def test_what_went_on_from_a_commit_is_used_as_it_is(live: LiveFolder) -> None:
    assert prepared(live, "wsc_1")
    (live.files / "a").write_text("went on")
    assert not prepared(live, "wsc_1")
    assert (live.files / "a").read_text() == "went on"


@pytest.mark.parametrize("known", ["wsc_1", "wsc_2"])
def test_a_commit_that_the_journal_may_not_know_makes_nothing_anew(live: LiveFolder, known: str) -> None:
    prepared(live, "wsc_1")
    live.say("wsc_1", following="wsc_2")
    (live.files / "a").write_text("went on")
    assert not prepared(live, known)
    assert (live.files / "a").read_text() == "went on"


def test_another_commit_is_put_into_an_empty_directory(live: LiveFolder) -> None:
    prepared(live, "wsc_1")
    (live.files / "b").write_text("not in the other")
    (live.files / "closed").mkdir(mode=0)
    assert prepared(live, "wsc_3")
    assert {each.name: each.read_text() for each in live.files.iterdir()} == {"a": "wsc_3"}


def test_after_the_machine_lost_its_power_nothing_is_trusted(live: LiveFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(live, "wsc_1")
    (live.files / "a").write_text("")
    monkeypatch.setattr(live_folder, "boot_id", lambda: "another boot")
    assert prepared(live, "wsc_1")
    assert (live.files / "a").read_text() == "wsc_1"


def test_a_directory_that_was_being_filled_is_filled_anew(live: LiveFolder) -> None:
    def broken(folder: Folder) -> None:
        folder.write("a", b"half")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        live.prepare("wsc_1", broken, Folder(live.files))
    assert prepared(live, "wsc_1")
    assert (live.files / "a").read_text() == "wsc_1"


@pytest.mark.parametrize("said", [b"", b"{", b'{"project": 1}', b"\xff"])
def test_a_state_that_cannot_be_read_is_none(live: LiveFolder, said: bytes) -> None:
    prepared(live, "wsc_1")
    (live.path / "state.json").write_bytes(said)
    assert prepared(live, "wsc_1")


def test_the_directory_of_another_project_is_nothing_of_this_one(live: LiveFolder, tmp_path: Path) -> None:
    prepared(live, "wsc_1")
    assert LiveFolder(tmp_path, "cntr_a", "other").standing() is None


def test_a_link_in_the_place_of_the_files_leads_nowhere(live: LiveFolder, tmp_path: Path) -> None:
    prepared(live, "wsc_1")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (live.files / "link").symlink_to(outside)
    live.remove()
    assert (outside / "kept").read_text() == "kept"
    assert not live.path.exists()
