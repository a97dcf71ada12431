"""The loads under which the server can be profiled."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from benchmarks import model
from benchmarks.processes import ROOT
from benchmarks.profiling import Recording
from benchmarks.scenarios import Bench

SECONDS: Final = 10.0
PROFILES: Final[dict[str, dict[str, object]]] = {
    "turns": {"model": model.TYPICAL, "workers": 16, "turns": 800},
    "turns-1": {"model": model.TYPICAL, "workers": 1, "turns": 300},
    "burst": {"model": model.BURST, "turns": 60, "stream": True, "chain": 1},
    "paced": {"model": model.PACED, "workers": 16, "turns": 16, "stream": True, "chain": 1, "stagger": 0.00125},
    "chain": {"model": model.SHORT, "turns": 1000, "chain": 1000, "user_characters": 24},
}


def profile(bench: Bench, py_spy: str, name: str) -> str:
    """Repeats the load for some seconds while py-spy watches; the report."""
    with bench.server() as server:
        order = msgspec.structs.replace(bench.order(server, "response", "", 0), **PROFILES[name])
        bench.run(order)
        recording = Recording(py_spy, server.pid, ROOT / "benchmarks" / "results" / f"{name}.stacks")
        until = time.perf_counter() + SECONDS
        cpu = done = 0.0
        while time.perf_counter() < until:
            outcome = bench.run(order)
            cpu += outcome.cpu[1]
            done += outcome.turns
        turn_ms = cpu / done * 1000
        report = recording.end(turn_ms)
    return f"{name}: {turn_ms:.2f} ms of CPU a turn while watched\n\n{report}"
