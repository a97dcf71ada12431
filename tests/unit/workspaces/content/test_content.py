"""The content store: what was taken in comes back the same, the same is kept once, and damage is found."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stateroom.errors import NotFound, StateroomError, TooLarge
from stateroom.workspaces.content.errors import ContentDamaged, ContentMissing, ContentNewer
from stateroom.workspaces.content.scan import RACY_NANOSECONDS
from stateroom.workspaces.content.store import ContentDatabase, ContentStore, StatCache
from stateroom.workspaces.content.tree import DIRECTORY, FILE, Encoded, Entry, Summary, encode
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.files.walk import DEPTH_MAX
from tests.unit.workspaces.files import EXAMPLES, Changes, apply, changes, look, make_folder
from tests.unit.workspaces.test_folder import as_nobody, flipping, nest

MIB = 1024 * 1024


def settle() -> None:
    """Wait until no file is so young that its status does not tell."""
    time.sleep(RACY_NANOSECONDS * 1.5 / 1e9)  # this is about time: nothing else could be waited for


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(changes, min_size=1, max_size=4))
def test_any_files_come_back_as_they_were_whatever_was_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Changes]
) -> None:
    path = tmp_path_factory.mktemp("any")
    store = ContentDatabase(path / "content.db")
    folder, cache = make_folder(path / "files"), StatCache()
    other, other_cache = make_folder(path / "other"), StatCache()
    taken: list[tuple[str, dict[str, object]]] = []
    for step in steps:
        apply(folder.path, step)
        seen = look(folder.path)
        tree = store.snapshot(folder, cache)
        assert store.snapshot(folder).digest == tree.digest
        assert tree.skipped == ()
        taken.append((tree.digest, seen))
    for digest, seen in [*taken, *taken[::-1]]:
        store.materialise(digest, other, other_cache)
        assert look(other.path) == seen
        assert store.snapshot(other, other_cache).digest == digest
        fresh = make_folder(path / digest)
        store.materialise(digest, fresh)
        assert look(fresh.path) == seen
        fresh.clear()
        fresh.path.rmdir()
    assert store.verify() == []
    kept = taken[-1]
    store.collect([kept[0]], keep_younger_than=0)
    assert store.verify() == []
    store.materialise(kept[0], other)
    assert look(other.path) == kept[1]
    store.close()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes, changes)
def test_a_diff_names_exactly_what_differs(
    tmp_path_factory: pytest.TempPathFactory, before: Changes, after: Changes
) -> None:
    path = tmp_path_factory.mktemp("diff")
    store, folder = ContentDatabase(path / "content.db"), make_folder(path / "files")
    apply(folder.path, before)
    old, old_seen = store.snapshot(folder), look(folder.path, times=False)
    apply(folder.path, after)
    new, new_seen = store.snapshot(folder), look(folder.path, times=False)
    difference = store.diff(old.digest, new.digest)
    assert {one.path for one in difference.added} == new_seen.keys() - old_seen.keys()
    assert {one.path for one in difference.removed} == old_seen.keys() - new_seen.keys()
    both = old_seen.keys() & new_seen.keys()
    assert {one.path for one in difference.changed} == {path for path in both if old_seen[path] != new_seen[path]}
    assert {one.path for one in store.diff(None, new.digest)} == new_seen.keys()
    assert {one.path for one in store.entries(new.digest)} == new_seen.keys()
    store.close()


def test_the_same_files_are_the_same_tree_and_cost_nothing(store: ContentDatabase, folder: Folder) -> None:
    for number in range(50):
        folder.write(f"d{number % 7}/{number}.txt", b"text %d" % (number % 10) * 20)
    first = store.snapshot(folder)
    assert (first.files, first.bytes) == (50, 6 * 20 * 50)
    assert store.snapshot(folder).new_bytes == 0
    for path in ("a", "b"):
        other = make_folder(folder.path.parent / path)
        store.materialise(first.digest, other)
        assert store.snapshot(other).digest == first.digest
    assert store.size(store.find(first.digest, "d1/1.txt").digest) == 120


def test_only_what_changed_is_stored_and_read(store: ContentDatabase, folder: Folder) -> None:
    for number in range(400):
        folder.write(f"d{number // 20}/{number}.bin", os.urandom(2000))
    cache = StatCache()
    store.snapshot(folder, cache)
    settle()
    tree = store.snapshot(folder, cache)
    folder.write("d3/61.bin", os.urandom(2000))
    changed = store.snapshot(folder, cache)
    assert changed.digest != tree.digest
    # The file, its directory and the one above.
    assert changed.new_bytes < 2000 + 20 * 80 + 20 * 60
    # A file that cannot be read any more is not asked for when its status says that it is the same.
    settle()
    store.snapshot(folder, cache)
    before = os.times().user
    assert store.snapshot(folder, cache).digest == changed.digest
    assert os.times().user - before < 1


def test_one_more_file_among_thousands_rewrites_a_page(store: ContentDatabase, folder: Folder) -> None:
    for number in range(3000):
        (folder.path / f"{number:05}.txt").write_text(f"{number}")
    cache = StatCache()
    first = store.snapshot(folder, cache)
    (folder.path / "01500.and.txt").touch()
    second = store.snapshot(folder, cache)
    assert first.new_bytes > 120_000
    assert second.new_bytes < 15_000
    assert [one.path for one in store.diff(first.digest, second.digest)] == ["01500.and.txt"]
    assert len(store.entries(second.digest)) == 3001
    folder.clear()
    store.materialise(second.digest, folder)
    assert store.snapshot(folder).digest == second.digest


def test_a_small_write_into_a_large_file_costs_a_piece(store: ContentDatabase, folder: Folder) -> None:
    size = 20 * MIB + 12_345
    folder.write("big", (os.urandom(MIB) for _ in range(20)))
    os.truncate(folder.path / "big", size)
    cache = StatCache()
    store.snapshot(folder, cache)
    with (folder.path / "big").open("r+b") as file:
        for offset in (0, 5 * MIB, size - 3):
            file.seek(offset)
            file.write(b"new")
    changed = store.snapshot(folder, cache)
    # Three pieces, of which the last is short; their two pages and the list.
    assert 2 * 65_536 < changed.new_bytes < 2 * 65_536 + 13_000 + 2 * 256 * 32 + 1_000
    digest = store.find(changed.digest, "big").digest
    whole = (folder.path / "big").read_bytes()
    assert b"".join(store.read(digest)) == whole
    for first, last in ((0, 10), (65_535, 65_536), (5 * MIB - 1, 5 * MIB + 3), (size - 3, None), (size, None), (3, 2)):
        wanted = whole[first : size if last is None else last + 1]
        assert b"".join(store.read(digest, first=first, last=last)) == wanted
    folder.clear()
    store.materialise(changed.digest, folder)
    assert (folder.path / "big").read_bytes() == whole


def test_holes_cost_nothing_and_come_back_as_holes(store: ContentDatabase, folder: Folder) -> None:
    with (folder.path / "sparse").open("wb") as file:
        file.seek(300 * MIB)
        file.write(b"end")
        file.seek(900 * MIB)
        file.truncate()
    began = time.process_time()
    tree = store.snapshot(folder)
    assert time.process_time() - began < 2
    assert (tree.bytes, tree.new_bytes < 200_000) == (900 * MIB, True)
    folder.clear()
    store.materialise(tree.digest, folder)
    status = (folder.path / "sparse").stat()
    assert (status.st_size, status.st_blocks * 512 < 4 * MIB) == (900 * MIB, True)
    assert store.snapshot(folder).digest == tree.digest


def test_a_file_that_is_changed_within_the_clocks_tick_is_noticed(store: ContentDatabase, folder: Folder) -> None:
    cache = StatCache()
    for number in range(200):
        content = b"%03d" % number
        descriptor = os.open(folder.path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, content)
        os.utime(descriptor, ns=(1, 1))
        os.close(descriptor)
        tree = store.snapshot(folder, cache)
        assert b"".join(store.read(store.find(tree.digest, "file").digest)) == content


def test_a_file_that_was_changed_just_now_is_read_again_the_next_time(store: ContentDatabase, folder: Folder) -> None:
    cache = StatCache()
    folder.write("file", b"x")
    store.snapshot(folder, cache)
    assert cache.root is not None
    assert b"file" not in cache.root.keys
    settle()
    store.snapshot(folder, cache)
    assert b"file" in cache.root.keys
    folder.clear()
    other = StatCache()
    store.materialise(cache.tree.hex(), folder, other)
    assert other.root is not None
    assert b"file" not in other.root.keys


@pytest.mark.parametrize("seconds", [-(2**31), 2**33, 2**34 - 1, 2**40])
def test_a_time_that_no_tree_can_hold_spoils_none(store: ContentDatabase, folder: Folder, seconds: int) -> None:
    folder.write("file", b"x")
    os.utime(folder.path / "file", (seconds, seconds))
    tree = store.snapshot(folder, StatCache())
    assert [entry.path for entry in store.entries(tree.digest)] == ["file"]
    assert store.verify() == []
    folder.clear()
    store.materialise(tree.digest, folder, StatCache())
    assert store.snapshot(folder, StatCache()).digest == tree.digest
    assert store.collect([tree.digest], keep_younger_than=0).trees == 0


def test_what_cannot_be_taken_is_told_and_the_rest_is_taken(store: ContentDatabase, folder: Folder) -> None:
    folder.write("good", b"x" * 10)
    os.mkfifo(folder.path / "pipe")
    nest(folder.path, DEPTH_MAX + 10)
    with (folder.path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    tree = store.snapshot(folder, bytes_max=1000)
    assert [one.path for one in tree.skipped if one.path != "/".join("d" * (DEPTH_MAX + 1))] == ["huge", "pipe"]
    assert tree.skipped_count == 3
    assert store.find(tree.digest, "good").size == 10
    assert len(store.entries(tree.digest)) == DEPTH_MAX + 1
    few = store.snapshot(folder, files_max=3)
    assert "more files" in {one.path: one.reason for one in few.skipped}["pipe"]
    store.materialise(tree.digest, folder)
    assert sorted(path.name for path in folder.path.iterdir()) == ["d", "good"]


def test_as_an_ordinary_user_files_without_permissions_are_taken_and_brought_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    folder = make_folder(home / "files")
    with as_nobody(home, folder.path):
        store = ContentDatabase(home / "content.db")
        folder.write("a/b/secret", b"x")
        folder.write("a/plain", b"y")
        for path, mode in (("a/b/secret", 0), ("a/b", 0o111), ("a", 0)):
            folder.chmod(path, mode)
        tree = store.snapshot(folder)
        assert tree.skipped == ()
        assert [one.mode for one in store.entries(tree.digest)] == [0, 0o111, 0, 0o644]
        assert folder.stat("a").mode == 0
        folder.delete("a/b", recursive=True)
        store.materialise(tree.digest, folder)
        assert store.snapshot(folder).digest == tree.digest
        assert folder.read("a/b/secret", bytes_max=1) == b"x"
        store.materialise(store.snapshot(make_folder(home / "empty")).digest, folder)
        assert list(folder.path.iterdir()) == []
        store.close()


def test_a_snapshot_of_a_directory_that_turns_into_a_link_takes_nothing_from_outside(
    store: ContentDatabase, folder: Folder, tmp_path: Path
) -> None:
    folder.write("box/in/name", b"public")
    outside = make_folder(tmp_path / "outside")
    outside.write("in/name", b"secret")
    outside.write("in/other", b"secret")
    trees = set()
    with flipping(folder.path / "box", outside.path):
        for _ in range(300):
            trees.add(store.snapshot(folder).digest)
    contents = set()
    for digest in trees:
        for entry in store.entries(digest):
            assert not entry.path.endswith("other")
            if entry.kind == "file":
                contents.add(b"".join(store.read(entry.digest)))
    assert contents == {b"public"}
    assert len(trees) > 1


def test_restoring_while_a_directory_turns_into_a_link_writes_nothing_outside(
    store: ContentDatabase, folder: Folder, tmp_path: Path
) -> None:
    folder.write("box/in/name", b"public")
    folder.write("box/in/second", b"public")
    tree = store.snapshot(folder).digest
    outside = make_folder(tmp_path / "outside")
    outside.write("in/name", b"secret")
    outside.write("in/third", b"secret")
    before = look(outside.path)
    empty = store.snapshot(make_folder(tmp_path / "empty")).digest
    done = refused = 0
    ended = threading.Event()

    def flip() -> None:
        link = folder.path / "link"
        while not ended.is_set():
            try:
                link.symlink_to(outside.path)
                (folder.path / "box").rename(folder.path / "aside")
                link.rename(folder.path / "box")
                (folder.path / "box").rename(link)
                (folder.path / "aside").rename(folder.path / "box")
            except OSError:  # the restoring was in the way
                continue

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(150):
            for digest in (tree, empty):
                try:
                    store.materialise(digest, folder)
                    done += 1
                except StateroomError:
                    refused += 1
    finally:
        ended.set()
        thread.join()
    assert done
    assert look(outside.path) == before


def test_a_second_name_of_a_file_gets_nothing_when_the_first_is_restored(
    store: ContentDatabase, folder: Folder, tmp_path: Path
) -> None:
    folder.write("file", b"before")
    tree = store.snapshot(folder).digest
    for change in (b"after!", b"before"):
        folder.write("file", change, mode=0o600)
        aside = tmp_path / f"aside-{change.decode()}"
        aside.hardlink_to(folder.path / "file")
        was = aside.stat()
        store.materialise(tree, folder)
        assert aside.read_bytes() == change
        assert (aside.stat().st_mtime_ns, aside.stat().st_mode) == (was.st_mtime_ns, was.st_mode)
        assert folder.read("file", bytes_max=9) == b"before"


def hostile(store: ContentDatabase, *nodes: Encoded) -> str:
    """Put nodes into a store as an import from elsewhere might have done; the digest of the last."""
    with store._file.write() as cursor:
        for node in nodes:
            one = node.summary
            values = (one.digest, 0, one.height, one.files, one.bytes, len(node.body), 0, node.body)
            cursor.execute(
                "INSERT INTO trees (digest, born, height, files, bytes, size, packed, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
    return nodes[-1].summary.digest.hex()


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/etc", b"a\0", b".~stateroom-x"])
def test_a_tree_whose_names_lead_out_is_refused(tmp_path: Path, name: bytes) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    empty = encode([], {})[0]
    below = {name: empty.summary}
    digest = hostile(store, empty, *encode([Entry(name, DIRECTORY, 0o755, 0, 0, empty.summary.digest)], below))
    folder = make_folder(tmp_path / "files")
    with pytest.raises(ContentDamaged):
        store.materialise(digest, folder)
    assert [path.name for path in tmp_path.iterdir() if path.name != "files" and "content" not in path.name] == []
    assert list(folder.path.iterdir()) == []
    store.close()


def test_a_tree_that_names_itself_over_and_over_is_stopped(tmp_path: Path) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    nodes = encode([], {})
    for _ in range(60):
        below = nodes[-1].summary
        names = (b"left", b"right")
        entries = [Entry(name, DIRECTORY, 0o755, 0, 0, below.digest) for name in names]
        nodes += encode(entries, dict.fromkeys(names, below))
    digest = hostile(store, *nodes)
    folder = make_folder(tmp_path / "files")
    with pytest.raises(TooLarge):
        store.materialise(digest, folder, files_max=500)
    with pytest.raises(TooLarge):
        store.entries(digest, limit=500)
    assert store.diff(None, digest, limit=500).truncated
    assert store.collect([digest], keep_younger_than=0).trees == 0
    store.close()


def test_a_tree_with_a_missing_or_wrong_content_is_refused_and_reported(tmp_path: Path) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    blob = store.put_blob(b"twelve bytes")
    for entry, error in (
        (Entry(b"a", FILE, 0o644, 0, 12, b"\1" * 32), ContentMissing),
        (Entry(b"a", FILE, 0o644, 0, 13, bytes.fromhex(blob)), ContentDamaged),
    ):
        digest = hostile(store, *encode([entry], {}))
        with pytest.raises(error):
            store.materialise(digest, make_folder(tmp_path / digest))
    assert len(store.verify()) == 2
    store.close()


def test_a_small_content_cannot_pass_for_a_large_one(store: ContentDatabase) -> None:
    large = store.put_blob(os.urandom(3 * MIB))
    pages = apsw.Connection(str(store._file.path)).execute("SELECT size, pages FROM lists").fetchall()[0]
    small = store.put_blob(pages[0].to_bytes(8, "big") + pages[1])
    assert small != large
    assert store.get_blob(small) == pages[0].to_bytes(8, "big") + pages[1]


@pytest.mark.parametrize("size", [0, 1, 63, 64, MIB - 1, MIB, MIB + 1, MIB + 65_536, 17 * MIB + 1])
def test_bytes_come_back_as_they_were(store: ContentDatabase, size: int) -> None:
    data = os.urandom(size // 2) + bytes(size - size // 2)
    digest = store.put_blob(data)
    assert store.put_blob(data) == digest
    assert store.get_blob(digest) == data
    assert store.size(digest) == size


def test_what_is_not_there_is_told(store: ContentDatabase, folder: Folder) -> None:
    tree = store.snapshot(folder).digest
    for digest in ("", "0" * 64, "x" * 64, "../etc", tree[:-1]):
        with pytest.raises(ContentMissing):
            store.entries(digest)
        with pytest.raises(ContentMissing):
            store.get_blob(digest)
    with pytest.raises(NotFound):
        store.find(tree, "nothing")


def damage(path: Path, table: str, change: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(f"UPDATE {table} SET {change}")
    connection.close()


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("chunks", "data = zeroblob(length(data))"),
        ("chunks", "size = size + 1"),
        ("chunks", "packed = 1 - packed"),
        ("lists", "size = size + 1"),
        ("lists", "pages = substr(pages, 1, 32)"),
        ("trees", "body = zeroblob(length(body))"),
        ("trees", "files = files + 1"),
        ("trees", "height = 7"),
    ],
)
def test_the_check_finds_what_was_changed(tmp_path: Path, table: str, change: str) -> None:
    store, folder = ContentDatabase(tmp_path / "content.db"), make_folder(tmp_path / "files")
    folder.write("a/b", os.urandom(100))
    folder.write("big", os.urandom(20 * MIB))
    store.snapshot(folder)
    assert store.verify() == []
    store.close()
    damage(tmp_path / "content.db", table, change)
    store = ContentDatabase(tmp_path / "content.db")
    assert store.verify()
    store.close()


@pytest.mark.parametrize("table", ["chunks", "lists"])
def test_the_check_finds_what_is_missing(tmp_path: Path, table: str) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    folder = make_folder(tmp_path / "files")
    folder.write("big", os.urandom(2 * MIB))
    digest = store.snapshot(folder).digest
    store.close()
    connection = apsw.Connection(str(tmp_path / "content.db"))
    connection.execute(f"DELETE FROM {table} WHERE id = (SELECT max(id) FROM {table})")
    connection.close()
    store = ContentDatabase(tmp_path / "content.db")
    assert store.verify()
    with pytest.raises((ContentMissing, ContentDamaged)):
        store.materialise(digest, make_folder(tmp_path / "other"))
    store.close()


def test_a_lying_frame_does_not_fill_the_memory(tmp_path: Path) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    digest = store.put_blob(b"a" * 1000)
    store.close()
    # A zstd frame that claims to unpack to a terabyte.
    frame = bytes.fromhex("28b52ffd") + b"\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    connection = apsw.Connection(str(tmp_path / "content.db"))
    connection.execute("UPDATE chunks SET data = ?, size = 1 << 40", (frame,))
    connection.close()
    store = ContentDatabase(tmp_path / "content.db")
    with pytest.raises(ContentDamaged):
        store.get_blob(digest)
    store.close()


def test_a_file_of_another_program_or_a_later_version_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    connection = apsw.Connection(str(other))
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(ContentDamaged):
        ContentDatabase(other)
    text = tmp_path / "text.db"
    text.write_bytes(b"hello" * 1000)
    with pytest.raises(ContentDamaged):
        ContentDatabase(text)
    later = tmp_path / "later.db"
    ContentDatabase(later).close()
    connection = apsw.Connection(str(later))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ContentNewer):
        ContentDatabase(later)
    changed = tmp_path / "changed.db"
    ContentDatabase(changed).close()
    connection = apsw.Connection(str(changed))
    connection.execute("ALTER TABLE trees ADD COLUMN more INTEGER")
    connection.close()
    with pytest.raises(ContentDamaged):
        ContentDatabase(changed)


def test_the_file_is_for_its_owner_alone(store: ContentDatabase, tmp_path: Path) -> None:
    store.put_blob(b"x")
    store.backup(tmp_path / "copy.db")
    for path in tmp_path.glob("*.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_backup_holds_what_was_there_while_others_write(
    store: ContentDatabase, folder: Folder, tmp_path: Path
) -> None:
    folder.write("a/b", os.urandom(5 * MIB))
    digest = store.snapshot(folder).digest
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            store.put_blob(os.urandom(1000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        store.backup(tmp_path / "copy.db")
    finally:
        ended.set()
        thread.join()
    copy = ContentDatabase(tmp_path / "copy.db")
    assert copy.verify() == []
    copy.materialise(digest, make_folder(tmp_path / "other"))
    assert look(tmp_path / "other") == look(folder.path)
    copy.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    store.close()
    store.close()
    with pytest.raises(StateroomError) as refusal:
        store.put_blob(b"x")
    assert refusal.value.code == "content_closed"


def test_what_was_committed_survives_the_death_of_the_process(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "files")
    folder.write("a", os.urandom(3 * MIB))
    program = (
        "import os, sys; from pathlib import Path; from stateroom.workspaces.content.store import ContentDatabase; "
        "from stateroom.workspaces.files.folder import Folder; store = ContentDatabase(Path(sys.argv[1])); "
        "print(store.snapshot(Folder(Path(sys.argv[2]))).digest, flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "content.db"), str(folder.path)], capture_output=True, text=True
    )
    store = ContentDatabase(tmp_path / "content.db")
    assert store.verify() == []
    assert store.snapshot(folder).digest == run.stdout.strip()
    store.close()


def put_deep(path: Path) -> str:
    """A file of which the path is longer than any that may be asked for."""
    name = "d" * 200
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.write(file, b"below\n")
    os.close(file)
    os.close(descriptor)
    return f"{name}/" * 25 + "file"


def test_the_lines_that_differ_are_told_for_texts(store: ContentDatabase, folder: Folder) -> None:
    folder.write("a.txt", b"one\ntwo\nthree")
    folder.write("b.bin", b"\0\1")
    folder.write("c.txt", b"x" * 300_000)
    before = store.snapshot(folder).digest
    folder.write("a.txt", b"one\n2\nthree\n")
    deep = put_deep(folder.path)
    after = store.snapshot(folder).digest

    def lines(base: str | None, path: str) -> str | None:
        return store.text_diff(next(change for change in store.diff(base, after) if change.path == path))

    assert lines(before, "a.txt") == (
        "--- a/a.txt\n+++ b/a.txt\n@@ -1,3 +1,3 @@\n one\n-two\n-three\n\\ No newline at end of file\n+2\n+three\n"
    )
    assert lines(None, "b.bin") is None
    assert lines(None, "c.txt") is None
    assert lines(None, deep) == f"--- a/{deep}\n+++ b/{deep}\n@@ -0,0 +1 @@\n+below\n"
    assert lines(None, "a.txt") == "--- a/a.txt\n+++ b/a.txt\n@@ -0,0 +1,3 @@\n+one\n+2\n+three\n"


async def test_the_event_loop_has_all_of_it(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "content.db")
    folder = make_folder(tmp_path / "cntr_1")
    folder.write("a", os.urandom(2 * MIB))
    trees = await asyncio.gather(*(store.snapshot_of("cntr_1", folder) for _ in range(1)))
    digest = trees[0].digest
    entry = await store.find(digest, "a")
    pieces = [piece async for piece in store.read(entry.digest, first=10, last=MIB + 9)]
    assert b"".join(pieces) == (folder.path / "a").read_bytes()[10 : MIB + 10]
    blob = await store.keep_blob(b"state")
    assert await store.get_blob(blob) == b"state"
    assert [one.path for one in await store.diff("", digest)] == ["a"]
    before = time.time()
    assert await store.collect([digest, blob], before + 10) == 0
    assert await store.collect([], before + 10) > 2 * MIB
    store.forget("cntr_1")
    assert (await store.snapshot_of("cntr_1", folder)).digest == digest
    assert await store.verify() == []
    await store.close()


def test_summaries_do_not_depend_on_how_often_a_directory_is_named() -> None:
    below = Summary(b"\0" * 32, 3, 2**62, 2**62)
    entries = [Entry(name, DIRECTORY, 0o755, 0, 0, below.digest) for name in (b"a", b"b", b"c")]
    made = encode(entries, dict.fromkeys((b"a", b"b", b"c"), below))[-1].summary
    assert (made.height, made.files, made.bytes) == (4, 2**63 - 1, 2**63 - 1)
