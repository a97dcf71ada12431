"""What is measured of a server that is being soaked, from the outside: its process, its files, its tasks."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TASKS_SECONDS: Final = 2.0

INDEX_TABLES: Final = ("runs", "run_ids", "items", "conversations", "blob_uses", "frames", "sealed")
"""Those that must be empty when everything that clients made has been deleted."""
TABLES: Final = ("entries", *INDEX_TABLES, "records", "record_entries", "branches")
_COUNT: Final = {"sealed": "SELECT count(*) FROM sealed WHERE last >= 0"}


class Sample(msgspec.Struct):
    """One moment."""

    at: float
    """Seconds since the soak began."""
    life: int
    """Which server process it was, from 0."""
    rss: int
    """Bytes."""
    threads: int
    descriptors: int
    tasks: int
    """Of the event loop; 0: it did not say in time."""
    open_runs: int
    wal: int
    """Bytes of the journal's log."""
    journal: int
    blobs: int
    done: int
    """Things that clients did since the sample before."""
    p50: float
    """Seconds that a short answer took, over the same time; 0: there was none."""
    p99: float
    phase: str
    """load, pause, or the fault that goes on."""


class Rows(msgspec.Struct):
    """Rows of every table at one moment."""

    at: float
    tables: dict[str, int]


class Process:
    """A server process under /proc."""

    def __init__(self, pid: int, tasks: Path) -> None:
        self._pid = pid
        self._tasks = tasks

    def memory(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * PAGE

    def threads(self) -> int:
        found = re.search(r"^Threads:\s+(\d+)", Path(f"/proc/{self._pid}/status").read_text(), re.MULTILINE)
        return int(found.group(1)) if found else 0

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self._pid}/fd").iterdir()))

    def tasks(self) -> dict[str, int]:
        """Tasks of its event loop, by the names of their coroutines; nothing when it does not say in time."""
        self._tasks.unlink(missing_ok=True)
        os.kill(self._pid, signal.SIGUSR1)
        deadline = time.monotonic() + TASKS_SECONDS
        while time.monotonic() < deadline:
            if self._tasks.exists():
                return msgspec.json.decode(self._tasks.read_bytes(), type=dict[str, int])
            time.sleep(0.01)
        return {}


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def count_blobs(data: Path) -> int:
    return sum(1 for _ in (data / "blobs").glob("??/*"))


def open_runs(data: Path) -> int:
    with _reader(data) as connection:
        return _number(connection, "SELECT count(*) FROM runs WHERE ended IS NULL")


def rows(data: Path) -> dict[str, int]:
    """Rows of every table. Of `sealed`, those that hold a stream: erased ones are zeros until the file is compacted."""
    with _reader(data) as connection:
        queries = {table: _COUNT.get(table, f"SELECT count(*) FROM {table}") for table in TABLES}
        return {table: _number(connection, query) for table, query in queries.items()}


def records(data: Path) -> dict[str, int]:
    """Living records, by collection."""
    with _reader(data) as connection:
        query = "SELECT collection, count(*) FROM records GROUP BY collection"
        found: list[Any] = connection.execute(query).fetchall()
        return dict(found)


def _number(connection: apsw.Connection, query: str) -> int:
    found: Any = connection.execute(query).fetchall()
    return int(found[0][0])


def _reader(data: Path) -> closing[apsw.Connection]:
    connection = apsw.Connection(str(data / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5_000)
    return closing(connection)
