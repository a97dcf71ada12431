"""Keeping the leases of runs in progress: one timer for all, well within their term."""

from __future__ import annotations

import asyncio
import logging

from stateroom.errors import StorageError
from stateroom.journal.store import Journal
from stateroom.runtime.runs import Runs

log = logging.getLogger("stateroom.runtime")

LEASE_SECONDS = 30.0
RENEW_SECONDS = 8.0


class LeaseKeeper:
    """Renews what this process holds."""

    def __init__(self, journal: Journal, runs: Runs) -> None:
        self._journal = journal
        self._runs = runs
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
            if not leases:
                continue
            try:
                await self._journal.renew(leases, LEASE_SECONDS)
            except StorageError as error:
                # Not fatal in itself: an append with a lost lease is fenced, and that ends the run.
                log.warning("leases.not_renewed code=%s", error.code)
