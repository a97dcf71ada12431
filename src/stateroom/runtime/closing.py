"""Waiting for what goes on when the server stops: for a while, or until somebody has had enough of waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def wait_ended(tasks: Iterable[asyncio.Task[Any]], seconds: float, enough: asyncio.Event | None = None) -> None:
    """Wait until all have ended, for so long at most, and no longer than until `enough` is set. Cancels none."""
    left = [task for task in tasks if not task.done()]
    if not left:
        return
    loop = asyncio.get_running_loop()
    ended = loop.create_task(asyncio.wait(left))
    waiters: list[asyncio.Task[Any]] = [ended]
    if enough is not None:
        waiters.append(loop.create_task(enough.wait()))
    try:
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
