"""A content store, which is whole when a test has ended, and files to keep in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stateroom.workspaces.content.store import ContentDatabase
from stateroom.workspaces.files.folder import Folder
from tests.unit.workspaces.files import make_folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentDatabase]:
    store = ContentDatabase(tmp_path / "content.db")
    yield store
    assert store.verify() == []
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return make_folder(tmp_path / "files")
