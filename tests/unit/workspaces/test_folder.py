"""The server's access to files that somebody hostile owns, may change at any moment, and has named as they like."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest, NotFound, StateroomError, TooLarge
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.files.walk import DEPTH_MAX, OURS, parts, text

NOBODY = 65534
ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root may do this")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Something of the machine that nobody in a workspace may reach."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (outside / "folder").mkdir()
    return outside


@pytest.fixture
def folder(tmp_path: Path, outside: Path) -> Folder:
    path = tmp_path / "files"
    path.mkdir()
    return Folder(path)


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


def untouched(outside: Path) -> bool:
    found = sorted(str(path.relative_to(outside)) for path in outside.rglob("*"))
    return found == ["folder", "secret"] and (outside / "secret").read_text() == "secret"


@contextmanager
def as_nobody(*paths: Path) -> Iterator[None]:
    """Run a block as an ordinary user, who owns these paths."""
    if not ROOT:
        yield
        return
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
        for above in path.parents:
            if above.stat().st_uid == 0 and above != Path("/"):
                above.chmod(above.stat().st_mode | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def reasons(*calls: Callable[[], object]) -> set[str]:
    """The codes of the errors that these calls raise."""
    codes = set()
    for call in calls:
        with pytest.raises(StateroomError) as refusal:
            call()
        codes.add(refusal.value.code)
    return codes


def everything(folder: Folder, path: str) -> tuple[Callable[[], object], ...]:
    """All that can be asked of a path which must be there."""
    return (
        lambda: folder.read(path, bytes_max=10),
        lambda: folder.open(path),
        lambda: folder.chmod(path, 0o777),
    )


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../outside/secret",
        "a/../../outside/secret",
        "a/..",
        "/etc/passwd",
        "//etc/passwd",
        "a\0b",
        "x" * 256,
        "x/" * 129 + "x",
        "a/" + "x" * 5000,
        "",
        ".",
        "./",
        "\ud800",
        OURS.decode() + "x",
    ],
)
def test_a_path_that_leads_out_or_nowhere_is_refused(folder: Folder, outside: Path, path: str) -> None:
    calls = (
        *everything(folder, path),
        lambda: folder.write(path, b"x"),
        lambda: folder.delete(path, recursive=True),
        lambda: folder.mkdir(path),
    )
    assert reasons(*calls) == {"invalid_path"}
    assert untouched(outside)


@given(st.text(max_size=40))
def test_whatever_path_is_asked_for_is_inside_or_refused(path: str) -> None:
    try:
        found = parts(path, empty=True)
    except InvalidRequest as refusal:
        assert refusal.code == "invalid_path"  # noqa: PT017  # a refusal is one of two good outcomes
        refusal.message.encode()
        return
    assert not {b"", b".", b".."} & set(found)
    assert all(b"/" not in name and b"\0" not in name for name in found)
    assert parts(text(found), empty=True) == found


@given(st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name)))
def test_names_that_are_not_text_come_back_as_they_were(name: bytes) -> None:
    if name not in (b".", b"..") and not name.startswith(OURS):
        assert parts(text(name)) == (name,)


def test_what_is_written_is_read_in_ranges(folder: Folder) -> None:
    info = folder.write("a/b/c.bin", (bytes([number]) * 100_000 for number in range(10)))
    assert (info.size, info.mode, info.kind, info.path) == (1_000_000, 0o644, "file", "a/b/c.bin")
    with folder.open("a/b/c.bin") as file:
        assert b"".join(file.chunks()) == b"".join(bytes([number]) * 100_000 for number in range(10))
        assert b"".join(file.chunks(first=99_999, last=100_000)) == b"\x00\x01"
        assert b"".join(file.chunks(first=999_999, last=5_000_000)) == b"\x09"
        assert list(file.chunks(first=1_000_000)) == []
    assert folder.stat("a/b").kind == "directory"
    assert folder.stat("").kind == "directory"
    assert names(folder.path / "a" / "b") == ["c.bin"]


def test_a_file_keeps_its_permissions_when_it_is_replaced_and_never_gets_more(folder: Folder) -> None:
    folder.write("run", b"1", mode=0o6755)
    assert stat.S_IMODE((folder.path / "run").stat().st_mode) == 0o755
    folder.write("run", b"2")
    assert stat.S_IMODE((folder.path / "run").stat().st_mode) == 0o755
    folder.chmod("run", 0o7700)
    assert stat.S_IMODE((folder.path / "run").stat().st_mode) == 0o700


def test_a_write_that_is_broken_off_leaves_nothing(folder: Folder) -> None:
    folder.write("kept", b"old")
    with pytest.raises(TooLarge):
        folder.write("kept", b"too long", bytes_max=3)
    writer = folder.writer("other")
    writer.write(b"half")
    writer.abort()
    writer.abort()
    assert folder.read("kept", bytes_max=3) == b"old"
    assert names(folder.path) == ["kept"]
    with pytest.raises(TooLarge):
        folder.read("kept", bytes_max=2)


def test_a_file_can_be_written_only_where_none_is(folder: Folder) -> None:
    folder.write("a", b"1")
    with folder.writer("a", replace=False) as writer:
        assert reasons(writer.finish) == {"invalid_path"}
    with folder.writer("b", replace=False) as writer:
        writer.finish()
    assert names(folder.path) == ["a", "b"]
    assert folder.read("a", bytes_max=9) == b"1"


def test_no_link_is_followed_in_any_component(folder: Folder, outside: Path) -> None:
    (folder.path / "file").symlink_to("../outside/secret")
    (folder.path / "dir").symlink_to("../outside")
    (folder.path / "whole").symlink_to(outside)
    (folder.path / "dangling").symlink_to("gone")
    (folder.path / "loop").symlink_to("loop")
    for path in ("file", "dir/secret", "whole/secret", "dangling", "loop", "loop/x"):
        assert reasons(*everything(folder, path)) == {"invalid_path"}
    for path in ("dir/new", "whole/folder/new", "dir/folder/new"):
        assert reasons(lambda path=path: folder.write(path, b"x")) == {"invalid_path"}
    assert reasons(
        lambda: folder.mkdir("dir/folder/x"),
        lambda: folder.list("dir"),
        lambda: folder.delete("dir/secret"),
        lambda: folder.delete("whole/folder", recursive=True),
    ) == {"invalid_path"}
    assert untouched(outside)
    info = folder.stat("dir")
    assert (info.kind, info.target) == ("symlink", "../outside")


def test_a_link_in_the_way_is_replaced_or_deleted_itself(folder: Folder, outside: Path) -> None:
    (folder.path / "file").symlink_to("../outside/secret")
    folder.write("file", b"mine")
    assert folder.read("file", bytes_max=9) == b"mine"
    (folder.path / "dir").symlink_to("../outside")
    (folder.path / "dir2").symlink_to("../outside")
    folder.delete("dir")
    folder.delete("dir2", recursive=True)
    assert names(folder.path) == ["file"]
    assert untouched(outside)


def test_pipes_sockets_and_devices_are_never_opened(folder: Folder) -> None:
    os.mkfifo(folder.path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder.path / "socket"))
    odd = ["pipe", "socket"]
    if ROOT:
        with suppress(PermissionError):  # a container's root may not
            os.mknod(folder.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            odd.append("null")
    for name in odd:
        # Opening a pipe to be read would wait here for a writer, for ever.
        assert reasons(*everything(folder, name)) == {"invalid_path"}
        assert folder.stat(name).kind == "other"
    listener.close()
    folder.write("pipe", b"now a file")
    assert folder.read("pipe", bytes_max=20) == b"now a file"


@only_root
def test_a_second_name_of_somebody_elses_file_is_not_read(folder: Folder, outside: Path) -> None:
    os.link(outside / "secret", folder.path / "mine")
    foreign = Folder(folder.path, owner=(NOBODY, NOBODY))
    assert reasons(*everything(foreign, "mine")) == {"invalid_path"}
    foreign.write("mine", b"x")
    assert untouched(outside)


@only_root
def test_what_the_server_writes_as_root_belongs_to_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    folder = Folder(tmp_path / "w", owner=(4242, 4343))
    folder.write("a/b/c", b"x")
    folder.mkdir("d/e")
    for path in (tmp_path / "w").rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (4242, 4343)


def test_a_folder_without_permissions_is_reached_and_left_as_it_was(folder: Folder) -> None:
    with as_nobody(folder.path):
        folder.write("a/b/c", b"x")
        folder.write("a/b/d", b"y")
        for path, mode in (("a/b/c", 0), ("a/b", 0), ("a", 0)):
            folder.chmod(path, mode)
        assert folder.read("a/b/c", bytes_max=9) == b"x"
        assert [info.path for info in folder.list(recursive=True).entries] == ["a", "a/b", "a/b/c", "a/b/d"]
        folder.write("a/b/c", b"new")
        folder.write("a/b/e/f", b"z")
        folder.delete("a/b/d")
        assert folder.read("a/b/c", bytes_max=9) == b"new"
        assert {folder.stat(path).mode for path in ("a", "a/b", "a/b/c")} == {0}
        assert folder.stat("a/b/e/f").mode == 0o644
        folder.delete("a", recursive=True)
    assert names(folder.path) == []


def test_a_link_without_permissions_around_it_is_not_followed_either(folder: Folder, outside: Path) -> None:
    with as_nobody(folder.path):
        folder.mkdir("a")
        (folder.path / "a" / "out").symlink_to(outside)
        folder.chmod("a", 0)
        assert reasons(lambda: folder.read("a/out/secret", bytes_max=9)) == {"invalid_path"}
        folder.delete("a", recursive=True)
    assert untouched(outside)


def nest(path: Path, levels: int) -> None:
    """Directories in each other, deeper than any path may be long; a file in the last."""
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def test_a_folder_of_four_thousand_levels_is_listed_to_a_depth_and_deleted_whole(folder: Folder) -> None:
    nest(folder.path, 4000)
    page = folder.list(recursive=True)
    assert len(page.entries) == DEPTH_MAX
    assert reasons(lambda: folder.read("d/" * 200 + "file", bytes_max=1)) == {"invalid_path"}
    folder.delete("d", recursive=True)
    assert names(folder.path) == []


def test_a_listing_is_paged_in_the_order_of_names(folder: Folder) -> None:
    for path in ("b/x", "b/y", "a", "c", "b.txt", "é", "Z"):
        folder.write(path, b"")
    os.close(os.open(os.fsencode(folder.path) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    folder.writer("b/unfinished")
    every = [info.path for info in folder.list(recursive=True).entries]
    assert every == ["Z", "a", "b", "b/x", "b/y", "b.txt", "c", "é", "\udcff\udcfe"]
    assert [info.path for info in folder.list("b").entries] == ["b/x", "b/y"]
    for limit in (1, 2, 3):
        paged: list[str] = []
        while True:
            page = folder.list(recursive=True, after=paged[-1] if paged else "", limit=limit)
            paged += [info.path for info in page.entries]
            if not page.more:
                break
        assert paged == every
    assert [info.path for info in folder.list("b", after="b/x").entries] == ["b/y"]
    folder.delete("\udcff\udcfe")
    assert "\udcff\udcfe" not in [info.path for info in folder.list().entries]


def test_what_is_missing_is_told_apart_from_what_is_refused(folder: Folder) -> None:
    folder.write("a/b", b"")
    with pytest.raises(NotFound):
        folder.read("x/y", bytes_max=1)
    assert reasons(
        lambda: folder.read("a", bytes_max=1),
        lambda: folder.read("a/b/c", bytes_max=1),
        lambda: folder.write("a", b""),
        lambda: folder.write("a/b/c", b""),
        lambda: folder.delete("a"),
    ) == {"invalid_path"}
    folder.clear()
    assert names(folder.path) == []


@contextmanager
def flipping(path: Path, target: Path) -> Iterator[None]:
    """While the block runs, `path` is a directory and a link to `target` in turns, as often as can be."""
    ended = threading.Event()
    link, directory = path.with_name("link"), path.with_name("directory")
    link.symlink_to(target)

    def put(source: Path) -> None:
        while True:
            try:
                source.rename(path)
            except OSError:  # whoever writes has made a new directory in the meantime
                shutil.rmtree(path, ignore_errors=True)
            else:
                return

    def flip() -> None:
        while not ended.is_set():
            path.rename(directory)
            put(link)
            path.rename(link)
            put(directory)
            for _ in range(20):
                path.exists()  # it is a directory for about as long as it is none

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_directory_that_turns_into_a_link_is_never_followed(folder: Folder, outside: Path) -> None:
    folder.write("box/in/secret", b"public")
    (outside / "in").mkdir()
    (outside / "in" / "secret").write_text("secret")
    seen: dict[str, int] = {}

    def attempt(call: Callable[[], object]) -> None:
        try:
            result = str(call())
        except StateroomError as refusal:
            result = refusal.code
        seen[result] = seen.get(result, 0) + 1

    with flipping(folder.path / "box", outside):
        for number in range(700):
            attempt(lambda: folder.read("box/in/secret", bytes_max=9))
            attempt(lambda number=number: folder.write(f"box/in/{number % 7}", b"x").size)
            attempt(lambda: folder.stat("box/in/secret").size)
            attempt(lambda: len(folder.list("box/in").entries) < 9)
            attempt(lambda number=number: folder.delete(f"box/in/{number % 5}", recursive=True))
    assert seen.keys() <= {"b'public'", "6", "1", "True", "None", "invalid_path", "file_not_found"}
    assert min(seen["b'public'"], seen["invalid_path"], seen["1"]) > 10
    assert names(outside) == ["folder", "in", "secret"]
    assert names(outside / "in") == ["secret"]


def test_a_file_that_turns_into_a_pipe_or_a_link_is_never_opened(folder: Folder, outside: Path) -> None:
    folder.write("file", b"public")
    (folder.path / "link").symlink_to(outside / "secret")
    os.mkfifo(folder.path / "pipe")
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            for name in ("link", "pipe"):
                (folder.path / "file").rename(folder.path / "aside")
                (folder.path / name).rename(folder.path / "file")
                (folder.path / "file").rename(folder.path / name)
                (folder.path / "aside").rename(folder.path / "file")

    thread = threading.Thread(target=turn)
    thread.start()
    read = set()
    try:
        for _ in range(3000):
            with suppress(InvalidRequest, NotFound):
                read.add(folder.read("file", bytes_max=9))
    finally:
        ended.set()
        thread.join()
    assert read <= {b"public"}  # how often it can be read at all is the machine's affair
    assert folder.read("file", bytes_max=9) == b"public"


def test_a_directory_that_is_filled_while_it_is_deleted_is_deleted_or_refused(folder: Folder) -> None:
    folder.mkdir("busy")
    descriptor = os.open(folder.path / "busy", os.O_RDONLY)
    ended = threading.Event()

    def fill() -> None:
        number = 0
        while not ended.is_set() and number < 20_000:  # on one core neither of the two may ever come to an end
            number += 1
            try:
                os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
            except OSError as error:
                assert error.errno == errno.ENOENT  # noqa: PT017  # it is gone, as it should be
                return

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        with suppress(StateroomError):
            folder.delete("busy", recursive=True)
    finally:
        ended.set()
        thread.join()
        os.close(descriptor)
    folder.clear()
    assert names(folder.path) == []


def test_nothing_stays_open(folder: Folder) -> None:
    folder.write("a/b/c", b"x")
    (folder.path / "l").symlink_to("a")
    before = len(names(Path("/proc/self/fd")))
    for _ in range(5):
        for path in ("a/b/c", "a", "l/b", "gone", "a/b/c/d"):
            for call in (*everything(folder, path), lambda path=path: folder.write(path, b"y")):
                with suppress(StateroomError):
                    if (file := call()) is not None and hasattr(file, "close"):
                        file.close()
        folder.list(recursive=True, limit=1)
    assert len(names(Path("/proc/self/fd"))) == before
