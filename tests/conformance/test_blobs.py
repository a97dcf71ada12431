"""Every blob store passes the conformance suite. A new one adds its name and how it is opened to STORES."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stateroom.blobs.directory import open_directory
from stateroom.blobs.memory import MemoryBlobs
from stateroom.blobs.store import Blobs
from stateroom.testing.blob_conformance import CASES, Case

STORES: dict[str, Callable[[Path], Blobs]] = {
    "directory": lambda folder: open_directory(folder / "blobs"),
    "directory full": lambda folder: open_directory(folder / "blobs", durability="full"),
    "memory": lambda folder: MemoryBlobs(),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", STORES)
async def test_a_blob_store_keeps_the_promises_of_the_seam(name: str, case: Case, tmp_path: Path) -> None:
    await case(STORES[name](tmp_path))
