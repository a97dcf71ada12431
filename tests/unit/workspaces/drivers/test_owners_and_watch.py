"""Handing files over and counting them: over trees that somebody hostile has made."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from pathlib import Path
from typing import Final

import pytest

from stateroom.errors import SandboxFailed
from stateroom.workspaces.drivers.disk import disk_use
from stateroom.workspaces.drivers.kernel_memory import kernel_memory
from stateroom.workspaces.drivers.owners import claim_owner, hand_over
from stateroom.workspaces.drivers.watch import Watch, _has_moved, _Looks
from stateroom.workspaces.workspace import SandboxSpec

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


def test_a_file_without_a_name_counts_while_it_is_mapped(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w+b") as file:
        file.write(b"x" * 2_000_000)
        file.flush()
        kept = mmap.mmap(file.fileno(), 4_096)
    (tmp_path / "gone").unlink()
    with kept:
        found = disk_use(str(tmp_path), [os.getpid()])
        assert found.unseen or found.bytes >= 2_000_000


def test_a_file_that_is_under_way_in_a_socket_is_told_of(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not disk_use(str(tmp_path), [os.getpid()]).unseen
        with (tmp_path / "gone").open("w+b") as file:
            socket.send_fds(ours, [b"x"], [file.fileno()])
        (tmp_path / "gone").unlink()
        assert disk_use(str(tmp_path), [os.getpid()]).unseen


def test_what_many_sockets_may_hold_counts_as_memory() -> None:
    me = [os.getpid()]
    before = kernel_memory(me)
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            for one in socket.socketpair():
                stack.enter_context(one)
        held = kernel_memory(me)
        outer, _ = pair = [stack.enter_context(one) for one in socket.socketpair()]
        inner = socket.socketpair()
        for one in inner:
            socket.send_fds(outer, [b"x"], [one.fileno()])
            one.close()
        assert kernel_memory([]) == 0
        assert kernel_memory(me) > held + 3 * 200_000, "two more, and two that are under way"
        assert len(pair) == 2
    assert before < 100_000_000 < held


@as_root
def test_what_its_owner_closed_is_looked_into_and_left_as_it_was(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    (closed / "below" / "big").write_bytes(b"x" * 2_000_000)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    for path, mode in ((closed / "below", 0o600), (closed, 0o300)):
        os.chown(path, 1_234, 1_234)
        path.chmod(mode)
    top = os.open(tmp_path, os.O_RDONLY)
    os.seteuid(1_234)
    try:
        found = disk_use(f"/proc/self/fd/{top}/.", [])
    finally:
        os.seteuid(0)
        os.close(top)
    assert (found.bytes >= 2_000_000, found.entries) == (True, 3)
    assert [path.stat().st_mode & 0o777 for path in (closed, closed / "below")] == [0o300, 0o600]


class Still:
    """Something to be watched in which nothing runs."""

    def __init__(self, files: Path) -> None:
        self.spec: Final = SandboxSpec(
            id="still", files=str(files), memory_bytes=1 << 30, processes=1, disk_bytes=1 << 40
        )
        self.ended = ""

    def members(self) -> list[int]:
        return []

    def activity(self) -> int:
        return 0

    def end_all(self, reason: str) -> None:
        self.ended = reason


def test_what_others_write_to_the_disk_is_worth_one_look_and_what_was_written_here_several(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    still, looks = Still(files), _Looks()
    watch = Watch(memory=False)

    def look() -> None:
        looks.moved_at = looks.scan_at = 0.0  # long ago
        watch._look(still, looks, 1)

    assert _has_moved(still, looks), "it is new"
    look()
    assert not _has_moved(still, looks)
    (tmp_path / "other").write_bytes(bytes(32 * 1024 * 1024))
    assert _has_moved(still, looks)
    look()
    assert not _has_moved(still, looks)
    (files / "own").write_bytes(bytes(32 * 1024 * 1024))
    assert _has_moved(still, looks)
    look()
    assert _has_moved(still, looks)
    look()
    assert not _has_moved(still, looks)
    assert not still.ended
