"""How often the kernel has ended processes of a container for want of memory, where its control group can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MOUNT: Final = Path("/sys/fs/cgroup")


class MemoryKills:
    """`first`: a process of the container on this machine; 0: none can be seen."""

    def __init__(self, first: int) -> None:
        self._file = _counter(first)
        self._seen = 0

    def fresh(self) -> int:
        """How many since this was last asked."""
        if self._file is None:
            return 0
        try:
            lines = self._file.read_text().splitlines()
        except OSError:
            return 0
        kills = next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        fresh, self._seen = kills - self._seen, kills
        return fresh


def _counter(first: int) -> Path | None:
    try:
        lines = Path(f"/proc/{first}/cgroup").read_text().splitlines() if first else []
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _MOUNT / "memory" / path.lstrip("/") / "memory.oom_control"
        if not controllers and (_MOUNT / path.lstrip("/") / "memory.events").exists():
            return _MOUNT / path.lstrip("/") / "memory.events"
    return None
