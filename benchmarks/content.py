"""The content store of workspaces: what a commit and a restore cost without a server, and a fork in one."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.forks import forks
from benchmarks.measure import MIB
from benchmarks.table import Row, number, spread
from stateroom.workspaces.content.store import ContentDatabase, StatCache
from stateroom.workspaces.files.folder import Folder

if TYPE_CHECKING:
    from benchmarks.scenarios import Bench

DIRECTORIES: Final = 100
FILES: Final = 20
"""In each directory."""
FILE_BYTES: Final = 10_000
CHANGES: Final = 10
COMMIT_BUDGET_MS: Final = 40.0
STORED_BUDGET_KB: Final = 100.0
WRITE_BYTES: Final = 4096
_REST_SECONDS: Final = 0.03
"""Until no file is so young that it has to be read again."""


class Took(msgspec.Struct, frozen=True):
    """What one call took, in milliseconds."""

    wall: float
    cpu: float


def content(bench: Bench) -> Iterator[Row]:
    """Commits and restores of many small files, and of one large file; then forks."""
    root = bench.folder / "content"
    root.mkdir()
    try:
        with bench.cores.of_server():
            yield from _many(root, bench.scale.commits)
            yield from _large(root, bench.scale.commits, bench.scale.large_mib)
    finally:
        shutil.rmtree(root)
    yield from forks(bench)


def _many(root: Path, commits: int) -> Iterator[Row]:
    chance = random.Random(1)
    folder = _folder(root / "many")
    for name in range(DIRECTORIES * FILES):
        folder.write(_path(name), _text(chance))
    store, cache = ContentDatabase(root / "many.db"), StatCache()
    group = f"Content store: {DIRECTORIES * FILES:,} files, {DIRECTORIES * FILES * FILE_BYTES / 1e6:.0f} MB"
    first = _measured(lambda: store.snapshot(folder, cache))
    yield Row(group=group, figure="first commit", unit="ms", value=first.wall, beside=f"CPU {number(first.cpu)} ms")

    committed, packed, trees = [], [], [store.snapshot(folder, cache).digest]

    def commit() -> None:
        tree = store.snapshot(folder, cache)
        packed.append(tree.new_bytes / 1000)
        trees.append(tree.digest)

    store.cut_log()
    before = (root / "many.db").stat().st_size
    for _ in range(commits):
        _change(folder, chance)
        time.sleep(_REST_SECONDS)
        committed.append(_measured(commit))
    store.cut_log()
    grown = ((root / "many.db").stat().st_size - before) / 1000
    yield _row(group, f"commit of {CHANGES} changed files, p50", committed, COMMIT_BUDGET_MS)
    unchanged = [_measured(lambda: store.snapshot(folder, cache)) for _ in range(commits)]
    yield _row(group, "commit of nothing, p50", unchanged)
    yield Row(
        group=group,
        figure=f"the file grows by, for {CHANGES} changed files",
        unit="KB",
        value=grown / commits,
        budget=STORED_BUDGET_KB,
        beside=f"{CHANGES * FILE_BYTES / 1000:.0f} KB were written; {number(statistics.median(packed))} KB packed",
    )
    yield from _restored(group, store, root, trees)
    store.close()


def _restored(group: str, store: ContentDatabase, root: Path, trees: list[str]) -> Iterator[Row]:
    whole = []
    for number_, tree in enumerate(trees[-3:]):
        target, cache = _folder(root / f"restored-{number_}"), StatCache()
        whole.append(_measured(partial(store.materialise, tree, target, cache)))
    yield _row(group, "restored into an empty directory, p50", whole)
    time.sleep(_REST_SECONDS)
    store.snapshot(target, cache)
    there = []
    for tree in [*trees[-2:0:-1], *trees[1:]][: 2 * len(trees)]:
        there.append(_measured(partial(store.materialise, tree, target, cache)))
        time.sleep(_REST_SECONDS)
    yield _row(group, "restored in place, one commit away, p50", there)


def _large(root: Path, commits: int, mib: int) -> Iterator[Row]:
    chance = random.Random(2)
    folder = _folder(root / "large")
    folder.write("large.bin", (chance.randbytes(MIB // 2) + bytes(MIB // 2) for _ in range(mib)))
    store, cache = ContentDatabase(root / "large.db"), StatCache()
    store.snapshot(folder, cache)
    took, stored = [], []

    def commit() -> None:
        stored.append(store.snapshot(folder, cache).new_bytes / 1000)

    for _ in range(max(1, commits // 5)):
        with (folder.path / "large.bin").open("r+b") as file:
            for _ in range(CHANGES):
                file.seek(chance.randrange(mib * MIB - WRITE_BYTES))
                file.write(os.urandom(WRITE_BYTES))
        time.sleep(_REST_SECONDS)
        took.append(_measured(commit))
    group = f"Content store: a file of {mib} MiB, {CHANGES} writes of {WRITE_BYTES // 1024} KiB in it"
    yield _row(group, "commit, p50", took)
    yield Row(
        group=group, figure="stored", unit="KB", value=statistics.median(stored), values=stored, beside=spread(stored)
    )
    store.close()


def _row(group: str, figure: str, took: list[Took], budget: float | None = None) -> Row:
    walls = [one.wall for one in took]
    cpu = statistics.median(one.cpu for one in took)
    return Row(
        group=group,
        figure=figure,
        unit="ms",
        value=statistics.median(walls),
        budget=budget,
        values=walls,
        beside=f"CPU {number(cpu)} ms; {spread(walls)}",
    )


def _measured(call: Callable[[], object]) -> Took:
    cpu, began = time.process_time(), time.perf_counter()
    call()
    return Took((time.perf_counter() - began) * 1000, (time.process_time() - cpu) * 1000)


def _folder(path: Path) -> Folder:
    path.mkdir()
    return Folder(path)


def _path(name: int) -> str:
    return f"package_{name % DIRECTORIES}/module_{name}.py"


def _text(chance: random.Random) -> bytes:
    """Packs to about half, like source and data mixed."""
    return chance.randbytes(FILE_BYTES * 4 // 10) + b"    return value\n" * (FILE_BYTES * 6 // 170)


def _change(folder: Folder, chance: random.Random) -> None:
    for name in chance.sample(range(DIRECTORIES * FILES), CHANGES):
        folder.write(_path(name), _text(chance))
