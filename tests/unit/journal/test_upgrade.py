"""A data file that an earlier version wrote opens, says what it said, and takes what only this version knows."""

from __future__ import annotations

import gzip
from pathlib import Path

import apsw
import msgspec
import pytest

from stateroom.journal.entries import Frame, RecordPut
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.sqlite_check import check_file
from stateroom.journal.statements import read_migrations
from stateroom.journal.store import Append, ConversationRow
from stateroom.testing.index_conformance import index_answers
from stateroom.testing.journal_stage import OTHER, P, begin, draft, turn

WRITTEN = Path(__file__).parent / "version_1.db.gz"
"""By the version before records: a conversation with an open run and a fork, and a branch of which part is erased."""

ASKED = (
    (P, OTHER),
    ("br_a", "br_b", "br_c"),
    (*[f"resp_{n}" for n in range(1, 6)], "conv_1", "msg_own", "k", "ab" * 32),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    path.write_bytes(gzip.decompress(WRITTEN.read_bytes()))
    return path


async def test_a_file_of_version_1_says_what_it_said(path: Path) -> None:
    journal = open_sqlite(path)
    assert apsw.Connection(str(path)).pragma("user_version") == len(read_migrations())
    conversation = ConversationRow("conv_1", "br_a", 1_000, {"topic": "x"})
    assert await journal.conversation(P, "conv_1") == conversation
    assert [row.id for row in await journal.open_runs()] == ["resp_2"]
    assert [row.id for row in await journal.runs(P, descending=False)] == ["resp_1", "resp_2", "resp_3"]
    assert [row.id for row in await journal.runs(OTHER)] == ["resp_5"]
    assert await journal.frames(P, "br_a", 5) == [Frame(0, 3, b"event: a\n\n")]
    assert await journal.frames(OTHER, "br_c", 4) == [Frame(0, 9, b"event: b\n\n" * 9)]
    assert [entry.kind for entry in await journal.read(P, "br_b")][:3] == [
        "conversation.created",
        "run.started",
        "item.finished",
    ]
    assert [entry.kind for entry in await journal.read(OTHER, "br_c")][:4] == [
        "items.added",
        "erased",
        "erased",
        "erased",
    ]
    assert await journal.blob_in_use("ab" * 32)
    await journal.close()
    assert check_file(path) == []


async def test_an_index_derived_anew_from_a_file_of_version_1_is_the_one_it_had(path: Path) -> None:
    journal = open_sqlite(path)
    before = await index_answers(journal, *ASKED)
    await journal.rebuild()
    assert await index_answers(journal, *ASKED) == before
    await journal.close()


async def test_a_file_of_version_1_takes_records_and_runs(path: Path) -> None:
    journal = open_sqlite(path)
    put = RecordPut("file", "f", msgspec.Raw(b"{}"), open=True, blobs=["cd" * 32])
    await begin(journal, "br_new", [draft(put), *turn("resp_6")])
    await journal.append(Append(P, "br_b", 5, turn("resp_7")))
    await journal.close()
    journal = open_sqlite(path)
    assert [row.id for row in await journal.open_records("file")] == ["f"]
    assert await journal.blob_in_use("cd" * 32)
    assert [row.id for row in await journal.runs_on(P, "br_b")] == ["resp_3", "resp_7"]
    await journal.close()
    assert check_file(path) == []
