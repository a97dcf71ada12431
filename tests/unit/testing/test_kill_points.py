"""Kill points: which of them a commit passes, by what is in it. Nobody dies here."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.clock import SystemClock
from stateroom.journal.entries import ItemFinished, encode, kind_of
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.store import Append, Branch, Draft
from stateroom.runtime.records import Records
from stateroom.testing.kill_points import POINTS, KillPoints, make_mortal


class Watched(KillPoints):
    """Takes down what is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []

    def reach(self, point: str) -> None:
        assert point in POINTS, f"{point} cannot be asked for"
        self.passed.append(point)
        super().reach(point)

    def taken(self) -> list[str]:
        """What was passed since the last look, but for `commit`."""
        passed, self.passed = self.passed, []
        return [point for point in passed if not point.endswith("_commit")]


class State(msgspec.Struct, frozen=True):
    text: str


async def test_a_commit_passes_the_points_of_the_records_that_are_in_it(tmp_path: Path) -> None:
    points = Watched()
    journal = make_mortal(open_sqlite(tmp_path / "journal.db"), points)
    blobs = MemoryBlobs()
    records = Records(journal, journal, blobs, HeldBlobs(blobs), SystemClock())
    batches, files = records.collection("batch", State), records.collection("file", State)
    await batches.create("p", "b1", State("new"), also=[files.put("f1", State("with it"))])
    assert points.taken() == ["before_put_batch", "before_put_file", "after_put_batch", "after_put_file"]
    await batches.note("p", "b1", State("a line"))
    assert points.taken() == ["before_note_batch", "after_note_batch"]
    await files.drop("p", "f1")
    assert points.taken() == ["before_drop_file", "after_drop_file", "before_redact", "after_redact"]
    await journal.close()


async def test_a_compaction_item_is_a_point_besides_that_of_its_item(tmp_path: Path) -> None:
    points = Watched()
    journal = make_mortal(open_sqlite(tmp_path / "journal.db"), points)
    item = ItemFinished(0, {"type": "compaction", "encrypted_content": "x"})
    draft = Draft(kind_of(item), encode(item), 0)
    await journal.append(Append("p", "branch", -1, [draft], create=Branch("branch", "p")))
    assert points.taken() == ["before_item", "before_compaction", "after_item", "after_compaction"]
    await journal.close()


async def test_a_slow_disk_makes_each_commit_wait(tmp_path: Path) -> None:
    points = Watched()
    journal = make_mortal(open_sqlite(tmp_path / "journal.db"), points)
    records = Records(journal, journal, MemoryBlobs(), HeldBlobs(MemoryBlobs()), SystemClock())
    points.arm("slow:50")
    began = time.monotonic()
    await records.collection("file", State).create("p", "f1", State("slow"))
    assert time.monotonic() - began >= 0.05
    points.arm("slow:0")
    assert points.commit_seconds == 0.0
    await journal.close()


def test_a_point_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a kill point"):
        KillPoints().arm("before_lunch:1")
