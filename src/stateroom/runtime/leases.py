"""Keeping the leases of runs in progress: one timer for all, well within their term.

The same timer is how a server without work learns that another one has taken over its data directory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from stateroom.errors import Fenced, StorageError
from stateroom.journal.store import Journal
from stateroom.runtime.runs import Runs

log = logging.getLogger("stateroom.runtime")

LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0


class LeaseKeeper:
    """Renews what this process holds; `on_fenced` is called when it may write nothing more."""

    def __init__(self, journal: Journal, runs: Runs, on_fenced: Callable[[], None]) -> None:
        self._journal = journal
        self._runs = runs
        self._on_fenced = on_fenced
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew; `close` ends it."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            leases = [run.writer.lease for run in self._runs.live.values() if run.stored and run.writer.lease]
            try:
                await self._journal.renew(leases, LEASE_SECONDS)
            except Fenced:
                self._on_fenced()
            except StorageError as error:
                # Not fatal in itself: an append with a lost lease is fenced, and that ends the run.
                log.warning("leases.not_renewed code=%s", error.code)
