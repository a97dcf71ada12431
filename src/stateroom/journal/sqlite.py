"""The journal on SQLite: one file, a single writer thread with group commit, reads on connections of their own.

The flow: `append` hands a change to the writer; the writer's `_commit` carries out all that gathered in one transaction
through the ledger (sqlite_ledger.py), and a refused change leaves the others alone. Reads are in sqlite_reads.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from stateroom.clock import Clock, SystemClock
from stateroom.errors import Fenced, HeadMoved, StorageError
from stateroom.journal.migrations import check_header, migrate
from stateroom.journal.sqlite_check import find_damage
from stateroom.journal.sqlite_connections import BUSY_MILLISECONDS, Durability, connect_reader, connect_writer
from stateroom.journal.sqlite_errors import TRANSLATED, translate
from stateroom.journal.sqlite_ledger import Ledger, read_generation
from stateroom.journal.sqlite_reads import SqliteReads
from stateroom.journal.statements import Migration, read_migrations, read_queries
from stateroom.journal.store import Append, Appended, Lease
from stateroom.journal.writer import Writer
from stateroom.telemetry.metrics import CommitMeter

_SCRUB_MILLISECONDS: Final = 250
"""How long cutting the log waits for readers before it is put off."""


def open_sqlite(
    path: str | Path,
    *,
    durability: Durability = "normal",
    generation: bool = True,
    clock: Clock | None = None,
    migrations: Sequence[Migration] | None = None,
) -> SqliteJournal:
    """Open the journal at `path`, creating or upgrading it. Close it when done.

    `generation` says that this is a server taking over the file: every lease and every store of before is void. Raises
    JournalDamaged, JournalNewer and other StorageErrors.
    """
    path = Path(path)
    clock = clock or SystemClock()
    migrations = read_migrations() if migrations is None else migrations
    queries = read_queries()
    try:
        check_header(path, len(migrations))
        connection = connect_writer(path, durability)
        try:
            migrate(connection, migrations, path, int(clock.now() * 1000))
            if generation:
                # The log of a killed server may still hold what was erased: it ends here.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                connection.execute(queries["raise_generation"])
            number = read_generation(connection, queries)
        except BaseException:
            connection.close()
            raise
    except (apsw.Error, OSError) as error:
        raise translate(error) from error
    return SqliteJournal(path, connection, queries, generation=number, clock=clock)


class _Renewal(msgspec.Struct, frozen=True):
    leases: Sequence[Lease]
    seconds: float


class _Redaction(msgspec.Struct, frozen=True):
    project: str
    branch: str
    bodies: Mapping[int, bytes | None]
    at: int


class _Rebuild(msgspec.Struct, frozen=True):
    pass


class _Compaction(msgspec.Struct, frozen=True):
    pass


class SqliteJournal(SqliteReads):
    """Implements `Journal` and `Index`. Made by `open_sqlite`."""

    def __init__(
        self, path: Path, connection: apsw.Connection, queries: Mapping[str, str], *, generation: int, clock: Clock
    ) -> None:
        super().__init__(partial(connect_reader, path), queries)
        self._connection = connection
        self._execute = connection.cursor().execute
        self._ledger = Ledger(connection, queries, generation)
        self._clock = clock
        self._scrub = False
        self._closed = False
        self._writer = Writer(self._commit, self._scrub_log, name="stateroom-journal")

    @property
    def meter(self) -> CommitMeter:
        """What its commits took."""
        return self._writer.meter

    @property
    def waiting(self) -> int:
        """Changes that wait for a commit."""
        return self._writer.waiting

    def append(self, change: Append) -> asyncio.Future[Appended]:
        return self._submit(change)

    def renew(self, leases: Sequence[Lease], seconds: float) -> asyncio.Future[Sequence[Lease]]:
        return self._submit(_Renewal(leases, seconds))

    def redact(self, project: str, branch: str, bodies: Mapping[int, bytes | None], *, at: int) -> asyncio.Future[None]:
        return self._submit(_Redaction(project, branch, dict(bodies), at))

    async def rebuild(self) -> None:
        await self._submit(_Rebuild())

    async def compact(self) -> None:
        """Write the file anew without the room that erased content left. Appends wait: about a second for 100 MB."""
        await self._submit(_Compaction())

    async def check(self) -> list[str]:
        """Read every page and hold the entries against their branches; what is wrong, in words. Takes its time."""
        with TRANSLATED:
            return await self.in_thread(find_damage)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._close)

    def _submit(self, request: Any) -> asyncio.Future[Any]:
        if not self._closed:
            return self._writer.submit(request)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(StorageError("The journal is closed.", code="journal_closed"))
        return future

    def _close(self) -> None:
        self._writer.stop()
        self.close_reads()
        self._scrub_log()
        self._connection.close()

    def _commit(self, requests: Sequence[Any]) -> list[Any]:
        """Carry out all requests in one transaction; when that fails, each in one of its own: it spoils only itself."""
        compacts = any(type(request) is _Compaction for request in requests)
        if compacts and len(requests) > 1:
            return [self._commit([request])[0] for request in requests]
        try:
            outcomes = self._transact(requests)
            if compacts:
                self._execute("VACUUM")
                self._scrub = True
        except Exception as error:  # whatever it was, it has been rolled back and must be answered
            if len(requests) == 1:
                return [translate(error, system_errno=self._connection.system_errno)]
            outcomes = [self._commit([request])[0] for request in requests]
        if self._scrub:
            self._scrub_log()
        return outcomes

    def _transact(self, requests: Sequence[Any]) -> list[Any]:
        now = int(self._clock.now() * 1000)
        outcomes: list[Any] = []
        try:
            if self._connection.in_transaction:
                # An earlier roll-back failed as well, with the disk.
                self._execute("ROLLBACK")
            self._execute("BEGIN IMMEDIATE")
            self._ledger.check_generation()
            for request in requests:
                try:
                    outcomes.append(self._carry_out(request, now))
                except (HeadMoved, Fenced) as refusal:
                    outcomes.append(refusal)
            self._ledger.finish()
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            self._ledger.reset()
            raise
        return outcomes

    def _carry_out(self, request: Any, now: int) -> Any:
        if type(request) is Append:
            return self._ledger.append(request, now)
        self._ledger.finish()
        match request:
            case _Renewal():
                return self._ledger.renew(request.leases, now + round(request.seconds * 1000))
            case _Redaction():
                self._scrub = True
                self._ledger.redact(request.project, request.branch, request.bodies, request.at)
            case _Rebuild():
                self._ledger.rebuild()
            case _Compaction():
                self._ledger.trim()
        return None

    def _scrub_log(self) -> bool:
        """Cut the log, which still holds what a redaction overwrote; True when a reader stood in the way."""
        if not self._scrub:
            return False
        try:
            self._connection.set_busy_timeout(_SCRUB_MILLISECONDS)
            [(busy, _, _)] = self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._scrub = bool(busy)
        except apsw.Error:
            return True
        finally:
            self._connection.set_busy_timeout(BUSY_MILLISECONDS)
        return self._scrub
