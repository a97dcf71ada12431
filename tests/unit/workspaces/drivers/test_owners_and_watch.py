"""Handing files over and counting them: over trees that somebody hostile has made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stateroom.errors import SandboxFailed
from stateroom.workspaces.drivers.owners import claim_owner, hand_over
from stateroom.workspaces.drivers.watch import disk_use

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


@as_root
def test_files_are_handed_over_and_no_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("root's")
    files = tmp_path / "files"
    (files / "a" / "b").mkdir(parents=True)
    (files / "a" / "b" / "file").write_text("x")
    (files / "link").symlink_to(outside / "file")
    (files / "folder").symlink_to(outside)
    os.mkfifo(files / "fifo")
    assert hand_over(str(files), 1_879_100_007) == 7
    assert hand_over(str(files), 1_879_100_007) == 0
    assert {path.lstat().st_uid for path in files.rglob("*")} == {1_879_100_007}
    assert (outside / "file").stat().st_uid == 0
    assert outside.stat().st_uid == 0
    os.chown(outside, 5, 5)
    with pytest.raises(SandboxFailed):
        hand_over(str(files / "folder"), 1_879_100_007)
    assert outside.stat().st_uid == 5


@as_root
def test_a_workspace_keeps_its_number_while_it_is_free_and_no_two_share_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = claim_owner("one", str(tmp_path / "one"))
    hand_over(str(tmp_path / "one"), first.number)
    second = claim_owner("one", str(tmp_path / "one"))
    assert second.number != first.number
    first.release()
    third = claim_owner("another name", str(tmp_path / "one"))
    assert third.number == first.number, "it owns the files"
    for owner in (second, third):
        owner.release()


@as_root
def test_a_tree_nested_too_deep_is_refused(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(520):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with pytest.raises(SandboxFailed, match="deep"):
        hand_over(str(tmp_path), 1_879_100_007)
    assert disk_use(str(tmp_path), [])[0] > 1 << 60


def test_disk_use_counts_a_file_once_and_follows_no_link(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "big").write_bytes(b"x" * 1_048_576)
    once = disk_use(str(files), [])
    os.link(files / "big", files / "again")
    (tmp_path / "outside").write_bytes(b"x" * 5_000_000)
    (files / "link").symlink_to(tmp_path / "outside")
    twice = disk_use(str(files), [])
    assert once[1] == 1
    assert twice[1] == 3
    assert 1_048_576 <= once[0] <= twice[0] < 1_200_000
    with (files / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert disk_use(str(files), [])[0] < 1_200_000


def test_a_file_without_a_name_counts_while_it_is_open(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("wb") as file:
        file.write(b"x" * 2_000_000)
        file.flush()
        (tmp_path / "gone").unlink()
        assert disk_use(str(tmp_path), [])[0] < 1_000_000
        assert disk_use(str(tmp_path), [os.getpid()])[0] >= 2_000_000
