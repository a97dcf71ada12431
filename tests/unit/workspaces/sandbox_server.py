"""A server as far as sandboxes go: starts one in the data directory it is given, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from stateroom.testing import driver_conformance
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver


async def main() -> None:
    data = Path(sys.argv[1])
    async with driver_conformance.opened(BubblewrapDriver(data), data, name="served") as bench:
        await bench.shell(f"setsid -f sleep {sys.argv[2]} >/dev/null 2>&1; sleep {sys.argv[2]} &")
        await bench.agent.spawn(["/bin/sh", "-c", f"sleep {sys.argv[2]}; true"])
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
