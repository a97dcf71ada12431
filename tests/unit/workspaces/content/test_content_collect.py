"""Sweeping: what nothing refers to goes and is nowhere any more; what is alive, held or young never loses a piece."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from stateroom.errors import StateroomError
from stateroom.workspaces.content.collect import Collection
from stateroom.workspaces.content.store import ContentDatabase, StatCache
from stateroom.workspaces.files.folder import Folder
from tests.unit.workspaces.files import EXAMPLES, Changes, apply, changes, look, make_folder

MIB = 1024 * 1024


def test_what_is_deleted_is_in_no_byte_of_the_files(store: ContentDatabase, folder: Folder, tmp_path: Path) -> None:
    secrets = [os.urandom(24).hex().encode() for _ in range(400)]
    for number, secret in enumerate(secrets):
        folder.write(f"{number % 9}/name-{secret.decode()}", secret + os.urandom(number * 40))
    folder.write("big", b"".join(secrets) * 100 + os.urandom(2 * MIB))
    gone = store.snapshot(folder).digest
    blob = store.put_blob(b"blob" + secrets[0] + os.urandom(MIB))
    folder.clear()
    folder.write("kept", b"kept")
    kept = store.snapshot(folder).digest
    size = (tmp_path / "content.db").stat().st_size + (tmp_path / "content.db-wal").stat().st_size
    collected = store.collect([kept], keep_younger_than=0)
    assert collected.scrubbed
    assert collected.bytes > 3 * MIB
    assert not store.exists(gone)
    assert store.size(blob) is None
    found = b"".join(path.read_bytes() for path in tmp_path.glob("content.db*"))
    assert len(found) < size / 10
    for secret in secrets:
        assert secret not in found
    assert [one.path for one in store.entries(kept)] == ["kept"]


def test_what_is_young_stays_with_all_that_it_shares_with_the_old(
    store: ContentDatabase, folder: Folder, tmp_path: Path
) -> None:
    folder.write("a/old", os.urandom(MIB))
    folder.write("big", os.urandom(3 * MIB))
    store.snapshot(folder)
    folder.write("b/new", b"new")
    tree = store.snapshot(folder).digest
    assert store.collect([], keep_younger_than=3600).trees == 0
    # Another process knows nothing of what was put just now but what its row says.
    other = ContentDatabase(tmp_path / "content.db")
    assert other.collect([], keep_younger_than=3600).contents == 0
    other.close()
    store.materialise(tree, make_folder(tmp_path / "there"))


def test_what_is_held_stays_until_the_hold_ends(store: ContentDatabase, folder: Folder) -> None:
    folder.write("a", os.urandom(2 * MIB))
    with store.hold() as hold:
        tree = store.snapshot(folder, hold=hold).digest
        blob = store.put_blob(b"state" * 100, hold=hold)
        store.collect([], keep_younger_than=0)
        assert store.exists(tree)
        assert store.get_blob(blob) == b"state" * 100
        assert store.verify() == []
    assert store.collect([], keep_younger_than=0).trees == 1
    with store.hold() as hold:
        assert not store.keep(tree, hold)


def test_a_cache_whose_tree_was_swept_is_not_believed(store: ContentDatabase, folder: Folder, tmp_path: Path) -> None:
    folder.write("a/b", os.urandom(2 * MIB))
    cache = StatCache()
    tree = store.snapshot(folder, cache)
    os.utime(folder.path / "a" / "b", ns=(1, 1))
    threading.Event().wait(0.03)  # until the status of the file can be trusted
    tree = store.snapshot(folder, cache)
    store.collect([], keep_younger_than=0)
    assert not store.exists(tree.digest)
    assert store.snapshot(folder, cache).digest == tree.digest
    assert store.verify() == []
    store.materialise(tree.digest, make_folder(tmp_path / "other"))


class Steps(Collection):
    """A sweep that lets others do something at each of its rests."""

    def _rest(self) -> None:
        self.between(self)

    between = staticmethod(lambda collection: None)


@pytest.mark.parametrize("stop_at", range(0, 14))
def test_whatever_is_put_at_any_rest_of_a_sweep_is_whole_afterwards(
    store: ContentDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Dead files are brought back while they are being swept: in one piece, or in new company."""
    monkeypatch.setattr("stateroom.workspaces.content.collect._ROWS_AT_ONCE", 3)
    monkeypatch.setattr("stateroom.workspaces.content.collect._MARKED_AT_ONCE", 2)
    folder, part = make_folder(tmp_path / "files"), make_folder(tmp_path / "part")
    for number in range(6):
        for where in (folder, part):
            where.write(f"d{number}/{number}/x", b"content %d" % number)
            where.write(f"d{number}/big", b"%d" % number * (MIB + 7))
    part.write("more", b"more")
    cache = StatCache()
    store.snapshot(folder, cache)
    empty = store.snapshot(make_folder(tmp_path / "empty")).digest
    rests = itertools.count()
    put: list[str] = []

    def between(collection: Collection) -> None:
        if next(rests) == stop_at:
            put.append(store.snapshot(folder, cache).digest)
            put.append(store.snapshot(part).digest)
            put.append(store.put_blob(b"5" * (MIB + 7)))

    Steps.between = staticmethod(between)
    sweep = Steps(store._file, store._holds, threading.Event(), rest_seconds=0)
    sweep.run([bytes.fromhex(empty)], now_ms=1 << 60, younger_than=0)
    assert store.verify() == []
    if next(rests) <= stop_at:
        return
    assert put
    for digest in put[:2]:
        store.materialise(digest, make_folder(tmp_path / digest))
    assert store.get_blob(put[2]) == b"5" * (MIB + 7)


def test_commits_made_by_many_threads_while_sweeps_go_on_lose_nothing(tmp_path: Path) -> None:
    """Each thread commits files that the others have had and given up, and holds only its latest commit."""
    store = ContentDatabase(tmp_path / "content.db")
    live: dict[int, str] = {}
    lock, ended = threading.Lock(), threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        folder, cache = make_folder(tmp_path / f"w{number}"), StatCache()
        try:
            for turn in range(40):
                for name in range(6):
                    kind = (number + turn + name) % 5
                    folder.write(f"{name % 3}/{name}", b"%d" % kind * (10 if kind else MIB + 3))
                with store.hold() as hold:
                    digest = store.snapshot(folder, cache, hold=hold).digest
                    with lock:
                        live[number] = digest
                assert sum(one.size for one in store.entries(digest))
                for entry in store.entries(digest):
                    if entry.kind == "file":
                        assert sum(map(len, store.read(entry.digest))) == entry.size
        except BaseException as failure:
            failures.append(failure)

    def sweep() -> None:
        try:
            while not ended.is_set():
                with lock:
                    roots = list(live.values())
                store.collect(roots, keep_younger_than=0, rest_seconds=0)
        except BaseException as failure:
            failures.append(failure)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    sweeper = threading.Thread(target=sweep)
    for thread in (*workers, sweeper):
        thread.start()
    for thread in workers:
        thread.join()
    ended.set()
    sweeper.join()
    assert failures == []
    assert store.verify() == []
    store.collect(live.values(), keep_younger_than=0)
    for number, digest in live.items():
        folder = make_folder(tmp_path / f"r{number}")
        store.materialise(digest, folder)
        assert look(folder.path, times=False) == look(tmp_path / f"w{number}", times=False)
    store.close()


def test_a_store_that_is_closed_ends_its_sweep(tmp_path: Path) -> None:
    store = ContentDatabase(tmp_path / "content.db")
    for _ in range(300):
        store.put_blob(os.urandom(MIB // 100))
    kept = store.put_blob(b"kept")
    thread = threading.Thread(target=lambda: store.collect([kept], keep_younger_than=0, rest_seconds=30))
    thread.start()
    while not store._collecting.locked():
        pass
    store.close()
    thread.join(10)
    assert not thread.is_alive()
    store = ContentDatabase(tmp_path / "content.db")
    assert store.verify() == []
    assert store.get_blob(kept) == b"kept"
    store.close()


def test_a_damaged_tree_stops_the_sweep_before_anything_is_deleted(tmp_path: Path) -> None:
    import apsw

    store, folder = ContentDatabase(tmp_path / "content.db"), make_folder(tmp_path / "files")
    folder.write("a/b", b"x")
    tree = store.snapshot(folder).digest
    blob = store.put_blob(b"dead, but who knows")
    store.close()
    connection = apsw.Connection(str(tmp_path / "content.db"))
    connection.execute("UPDATE trees SET body = zeroblob(length(body)) WHERE height = 1")
    connection.close()
    store = ContentDatabase(tmp_path / "content.db")
    with pytest.raises(StateroomError):
        store.collect([tree], keep_younger_than=0)
    assert store.get_blob(blob) == b"dead, but who knows"
    store.close()


class Sweeping(RuleBasedStateMachine):
    """Commits, forks, restores and sweeps in any order: what is alive is always whole, what is not goes."""

    trees = Bundle("trees")

    @initialize()
    def begin(self) -> None:
        self.path = Path(mkdtemp(prefix="stateroom-sweeping-"))
        self.store = ContentDatabase(self.path / "content.db")
        self.folders = [make_folder(self.path / "f0"), make_folder(self.path / "f1")]
        self.caches = [StatCache(), StatCache()]
        self.live: dict[str, tuple[int, dict[str, object]]] = {}

    @rule(number=st.integers(0, 1), steps=changes)
    def change(self, number: int, steps: Changes) -> None:
        apply(self.folders[number].path, steps)

    @rule(target=trees, number=st.integers(0, 1), cached=st.booleans())
    def commit(self, number: int, cached: bool) -> str:
        seen = look(self.folders[number].path)
        digest = self.store.snapshot(self.folders[number], self.caches[number] if cached else None).digest
        count = self.live.get(digest, (0, seen))[0]
        self.live[digest] = count + 1, seen
        return digest

    @rule(target=trees, digest=trees)
    def fork(self, digest: str) -> str:
        count, seen = self.live[digest]
        self.live[digest] = count + 1, seen
        return digest

    @rule(digest=consumes(trees))
    def drop(self, digest: str) -> None:
        count, seen = self.live[digest]
        if count > 1:
            self.live[digest] = count - 1, seen
        else:
            del self.live[digest]

    @rule(digest=trees, number=st.integers(0, 1), cached=st.booleans())
    def restore(self, digest: str, number: int, cached: bool) -> None:
        self.store.materialise(digest, self.folders[number], self.caches[number] if cached else None)
        assert look(self.folders[number].path) == self.live[digest][1]

    @rule(young=st.sampled_from([0.0, 0.0, 3600.0]))
    def sweep(self, young: float) -> None:
        self.store.collect(list(self.live), keep_younger_than=young)
        assert self.store.verify() == []
        if not young:
            named = {entry.digest for digest in self.live for entry in self.store.entries(digest)} | self.live.keys()
            with self.store._file.read() as cursor:
                found = {row[0].hex() for row in cursor.execute("SELECT digest FROM trees").fetchall()}
            # Pages of large directories have no name of their own; there are none in such small ones.
            assert found <= named

    @invariant()
    def all_that_is_alive_is_whole(self) -> None:
        for digest, (_, seen) in getattr(self, "live", {}).items():
            assert {entry.path for entry in self.store.entries(digest)} == seen.keys()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.path)


TestSweeping = Sweeping.TestCase
TestSweeping.settings = settings(
    max_examples=EXAMPLES // 2, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
