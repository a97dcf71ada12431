"""Whether a sandbox can be had on this machine, and why not."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from stateroom.errors import StateroomError


def reason_against(opened: Callable[[Path], AbstractAsyncContextManager[object]]) -> str:
    """Open one over a directory of its own, and end it. Why that cannot be done; empty: it can."""

    async def tried() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with opened(Path(folder)):
                pass

    try:
        asyncio.run(tried())
    except StateroomError as error:
        return str(error)
    return ""
