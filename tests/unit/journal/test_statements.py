"""The SQL beside the code: every statement has a name, a sentence and a use, and SQLite understands it."""

from __future__ import annotations

import re
from pathlib import Path

import apsw
import pytest

from stateroom import journal
from stateroom.errors import JournalNewer
from stateroom.journal.codes import KIND_CODES, STATUS_CODES, SURFACE_CODES, erased_body, pack_digest, read_entry
from stateroom.journal.entries import Erased, Kind, decode
from stateroom.journal.migrations import migrate
from stateroom.journal.statements import read_migrations, read_queries

FOLDER = Path(journal.__path__[0])
FILES = ("queries.sql", "index.sql", "verify.sql")


@pytest.mark.parametrize("name", FILES)
def test_every_query_has_a_name_and_a_sentence(name: str) -> None:
    for block in (FOLDER / "sql" / name).read_text().split("\n\n")[1:]:
        lines = block.strip().splitlines()
        assert re.fullmatch(r"-- name: [a-z_]+", lines[0]), block
        assert re.fullmatch(r"-- [A-Z].*\.", lines[1]), block
        assert lines[-1].endswith(";"), block


def test_names_are_given_once() -> None:
    names = [name for file in FILES for name in re.findall(r"-- name: (\w+)", (FOLDER / "sql" / file).read_text())]
    assert sorted(names) == sorted(read_queries())


def test_every_query_is_used() -> None:
    source = "".join([path.read_text() for path in FOLDER.glob("*.py")])
    tables = ("runs", "run_ids", "items", "conversations", "blob_uses", "records", "record_entries")
    built = {f"clear_{table}" for table in tables}
    assert [name for name in read_queries() if name not in built and f'"{name}"' not in source] == []


@pytest.mark.parametrize("name", read_queries())
def test_sqlite_understands_every_query(name: str) -> None:
    connection = apsw.Connection(":memory:")
    migrate(connection, read_migrations(), Path("memory"), 0)
    query = read_queries()[name]
    assert connection.execute(f"EXPLAIN {query}", zeros(query)).fetchall() != []


def zeros(query: str) -> list[int]:
    """As many zeros as a statement asks for."""
    numbered = [int(number) for number in re.findall(r"\?(\d+)", query)]
    return [0] * (max(numbered) if numbered else query.count("?"))


@pytest.mark.parametrize(
    "name",
    [
        "runs_before",
        "runs_after",
        "find_run",
        "open_runs",
        "read_entries",
        "find_item",
        "find_record",
        "records_before",
        "records_after",
        "record_mark",
        "record_death",
        "record_life",
        "open_records",
        "expired_records",
        "record_places",
        "notes_before",
        "notes_after",
        "record_keys",
        "unerased_records",
    ],
)
def test_no_look_up_reads_a_whole_table(name: str) -> None:
    connection = apsw.Connection(":memory:")
    migrate(connection, read_migrations(), Path("memory"), 0)
    query = read_queries()[name]
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", zeros(query))]
    assert [step for step in plan if step.startswith("SCAN") and "USING" not in step] == []
    assert [step for step in plan if "TEMP B-TREE" in step] == []


def test_numbers_of_words_are_never_given_anew() -> None:
    assert KIND_CODES == {
        "run.started": 2,
        "item.finished": 3,
        "item.abandoned": 4,
        "tool.intent": 5,
        "tool.outcome": 6,
        "run.ended": 7,
        "conversation.created": 8,
        "conversation.updated": 9,
        "conversation.deleted": 10,
        "items.added": 11,
        "erased": 12,
        "record.put": 13,
        "record.noted": 14,
        "record.dropped": 15,
        "run.steered": 16,
        "tool.decided": 17,
    }
    assert STATUS_CODES == {"in_progress": 0, "completed": 1, "incomplete": 2, "failed": 3, "cancelled": 4}
    assert SURFACE_CODES == {"responses": 0, "chat": 1}
    assert set(KIND_CODES) == {str(kind) for kind in Kind}


def test_an_entry_of_an_unknown_kind_is_from_a_newer_version() -> None:
    for code in (0, 1, 62, 63, 64, 127, 1_000):
        with pytest.raises(JournalNewer):
            read_entry(0, code, -1, 0, b"{}")


@pytest.mark.parametrize("length", [7, 20, 5_000])
def test_an_erased_body_has_the_length_of_what_was_there(length: int) -> None:
    body = erased_body("run.ended", 1_790_000_000_123, length)
    assert len(body) == length
    entry = read_entry(4, KIND_CODES["erased"], 2, 9, body)
    assert decode(entry.kind, entry.body) == Erased("run.ended", 1_790_000_000_123)


def test_only_what_looks_like_a_hash_is_packed_as_one() -> None:
    assert pack_digest("ab" * 32) == b"\xab" * 32
    for other in ("", "AB" * 32, "ab" * 31, "zz" * 32, " ".join(["ab"] * 21) + "a"):
        assert pack_digest(other) == other
