"""What must hold of the files that a dead server leaves: whole, an index that follows from the entries, nothing erased.

Everything is done on a copy, which is what a disk would have kept.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from stateroom.journal.frames import FramePacker
from stateroom.journal.sqlite import open_sqlite
from stateroom.journal.verify import verify_data

INDEX_TABLES = ("runs", "run_ids", "items", "conversations", "blob_uses", "records", "record_entries")
TOKEN = re.compile(rb"zq[a-z0-9]+x[a-j]+zq")
ERASE_SECONDS = 5.0


def copy_data(data: Path, copy: Path) -> Path:
    """The data directory as it lies there now."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(data, copy)
    return copy


async def check_files(copy: Path) -> None:
    """The journal is whole, `verify` says so, and rebuilding its index changes nothing. Raises AssertionError."""
    report = await asyncio.to_thread(verify_data, copy, lambda *_: None)
    assert report.ok, f"verify finds: {report.findings}"
    journal = open_sqlite(copy / "journal.db", generation=False)
    try:
        damage = await journal.check()
        assert damage == [], f"the journal is damaged: {damage}"
        before = _index(copy)
        await journal.rebuild()
        after = _index(copy)
    finally:
        await journal.close()
    for table in INDEX_TABLES:
        assert before[table] == after[table], (
            f"{table} does not follow from the entries: {before[table]}, {after[table]}"
        )


def check_verified(data: Path) -> None:
    """`stateroom verify` finds nothing. Raises AssertionError."""
    report = verify_data(data, lambda *_: None)
    assert report.ok, f"verify finds: {report.findings}"
    assert not report.notes, f"verify notes: {report.notes}"


def _index(copy: Path) -> dict[str, list[Any]]:
    with closing(apsw.Connection(str(copy / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in INDEX_TABLES
        }


async def check_erased(data: Path, tokens: set[str]) -> None:
    """None of these words is in any file, packed streams included. What is put off while others read is waited for."""
    wanted = {token.encode() for token in tokens}
    deadline = time.monotonic() + ERASE_SECONDS
    while True:
        found = await asyncio.to_thread(_find, data, wanted)
        if not found:
            return
        assert time.monotonic() < deadline, f"erased content is still there: {found}"
        await asyncio.sleep(0.1)


def _find(data: Path, wanted: set[bytes]) -> dict[str, set[bytes]]:
    found: dict[str, set[bytes]] = {}
    for file in data.rglob("*"):
        if file.is_file():
            try:
                held = file.read_bytes()
            except FileNotFoundError:
                continue
            if there := wanted & set(TOKEN.findall(held)):
                found[file.name] = there
    unpack = FramePacker().unpack
    with closing(apsw.Connection(str(data / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        for (body,) in connection.execute("SELECT body FROM sealed"):
            if there := wanted & set(TOKEN.findall(unpack(body))):
                found.setdefault("sealed", set()).update(there)
    return found
