"""What the kernel says of a process and a folder: CPU time, resident memory, bytes on disk. Linux only."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

KIB = 1024
MIB = 1024 * 1024


class NotMeasured(Exception):
    """A scenario needs what this machine does not have."""


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, also those that have ended, to the nanosecond.

    It is the clock that clock_getcpuclockid(3) names, built here because Python has no name for it. It counts what
    /proc/PID/stat does, which is told in ticks of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    below: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            below += [each for child in children.read_text().split() for each in family(int(child))]
    return [pid, *below]


def family_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all below it, also of those that have ended (these to the tick)."""
    total = 0.0
    for each in family(pid):
        with suppress(OSError):  # it has ended meanwhile: its parent tells its time from now on
            ended = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[13:15]
            total += cpu_seconds(each) + sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
    return total


def resident_bytes(pid: int, *, alone: bool = False) -> int:
    """Resident memory of a process and of all below it, unless it is to be `alone`."""
    total = 0
    for each in [pid] if alone else family(pid):
        with suppress(OSError):  # it has ended meanwhile
            status = Path(f"/proc/{each}/status").read_text()
            total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    return total


def held_bytes(pids: list[int]) -> tuple[int, str]:
    """Memory of processes, with what several hold divided among them where that may be read; and which it is."""
    try:
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    except PermissionError:  # of another user, or shut off
        return sum(resident_bytes(pid, alone=True) for pid in pids), "resident"
    lines = [line for text in texts for line in text.splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), "PSS"


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take up."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def import_seconds(module: str, repeats: int) -> float:
    """How long a fresh interpreter takes to import a module, less what it takes to do nothing."""
    return _interpreter_seconds(f"import {module}", repeats) - _interpreter_seconds("pass", repeats)


def _interpreter_seconds(code: str, repeats: int) -> float:
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


class Cores:
    """One core for the server, the others for all the rest; on a machine with one core they share it."""

    def __init__(self) -> None:
        available = sorted(os.sched_getaffinity(0))
        self.server = {available[-1]}
        self.rest = set(available[:-1]) or self.server

    @contextmanager
    def of_server(self) -> Iterator[None]:
        """Processes started in here run on the server's core."""
        os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.rest)


def machine(cores: Cores) -> dict[str, str]:
    """Where the figures come from. The loop tells how fast it is just now, the load whether others use it."""
    return {
        "machine": f"{_processor()}, {len(cores.server | cores.rest)} cores, Linux {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "stateroom": version("stateroom"),
        "packages": ", ".join(
            f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "aiohttp", "apsw", "msgspec")
        ),
        "a million additions": f"{_loop_seconds() * 1000:.0f} ms; load average before: {os.getloadavg()[0]:.1f}",
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _loop_seconds() -> float:
    took = []
    for _ in range(5):
        began, total = time.thread_time(), 0
        for number in range(1_000_000):
            total += number
        took.append(time.thread_time() - began)
    return statistics.median(took)
