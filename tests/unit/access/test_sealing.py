"""Sealed texts: they open for whom they were sealed, and for nobody and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.access.sealing import Sealer, load_key

SEALER = Sealer(bytes(range(32)))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(TEXT, st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
def test_what_was_sealed_opens_for_its_project_alone(text: str, project: str) -> None:
    sealed = SEALER.seal(project, text)
    assert SEALER.open(project, sealed) == text
    assert SEALER.open(project + "x", sealed) is None
    assert Sealer(bytes(32)).open(project, sealed) is None
    assert sealed != SEALER.seal(project, text)


@given(st.text(max_size=80))
def test_strange_texts_open_as_nothing(text: str) -> None:
    for sealed in (text, f"sr1.{text}", f"sr1.{'A' * len(text)}"):
        assert SEALER.open("p", sealed) is None


@given(st.data())
def test_whoever_changes_a_sealed_text_has_nothing(data: st.DataObject) -> None:
    sealed = SEALER.seal("p", "thought")
    position = data.draw(st.integers(4, len(sealed) - 3))
    changed = sealed[:position] + ("A" if sealed[position] != "A" else "B") + sealed[position + 1 :]
    assert SEALER.open("p", changed) is None


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    key = load_key(path)
    assert len(key) == 32
    assert load_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


@pytest.mark.parametrize("content", [b"", b"short", bytes(range(33))])
def test_a_key_that_is_none_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    assert len(load_key(path)) == 32
    assert path.read_bytes() != content
