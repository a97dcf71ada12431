"""Measures Stateroom against its budgets and prints the table.

python -m benchmarks [--quick] [--only NAME ...] [--json FILE] [--profile [NAME]]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks import profiling
from benchmarks.measure import Cores, NotMeasured, machine
from benchmarks.processes import Loader, ModelServer
from benchmarks.profiles import PROFILES, profile
from benchmarks.scenarios import FULL, QUICK, SCENARIOS, Bench, LoadFailed
from benchmarks.table import Row, render


def main() -> int:
    options = _arguments()
    if not hasattr(os, "sched_setaffinity"):
        print("The benchmarks read the Linux kernel's accounts of each process; they do not run elsewhere.")
        return 2
    py_spy = profiling.find() if options.profile else None
    if options.profile and py_spy is None:
        print(profiling.HOW)
        return 2
    cores = Cores()
    os.sched_setaffinity(0, cores.rest)
    with tempfile.TemporaryDirectory(prefix="stateroom-benchmarks-") as name:
        folder = Path(name)
        try:
            with ModelServer(folder) as models, Loader(folder) as loader:
                bench = Bench(QUICK if options.quick else FULL, cores, folder, models, loader)
                if py_spy is not None:
                    print(profile(bench, py_spy, options.profile))
                    return 0
                return 0 if _measure(bench, options.only or list(SCENARIOS), options.json) else 1
        except LoadFailed as failure:
            _print_failure(failure, folder)
            return 1


def _measure(bench: Bench, names: list[str], target: Path | None) -> bool:
    """Print the table of what could be measured; whether that is everything."""
    began = time.perf_counter()
    whole = True
    facts = machine(bench.cores)
    rows: list[Row] = []
    for name in names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows += SCENARIOS[name](bench)
        except NotMeasured as reason:
            facts[name] = f"not measured: {reason}"
        except LoadFailed as failure:
            whole = False
            _print_failure(failure, bench.folder)
    order = list(dict.fromkeys(row.group for row in rows))
    rows.sort(key=lambda row: order.index(row.group))
    print(render(rows, {**facts, "took": f"{time.perf_counter() - began:.0f} s"}))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        told = [{**msgspec.structs.asdict(row), "met": row.met} for row in rows]
        target.write_bytes(msgspec.json.format(msgspec.json.encode({"facts": facts, "rows": told})) + b"\n")
    return whole


def _print_failure(failure: LoadFailed, folder: Path) -> None:
    print(f"The measurement failed: {failure}", file=sys.stderr)
    for log in sorted(folder.glob("*.log")):
        if text := log.read_text(errors="replace").strip():
            print(f"--- {log.name}", *text.splitlines()[-20:], sep="\n", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Stateroom against its budgets.")
    parser.add_argument("--quick", action="store_true", help="few repeats: whether it works, not how fast it is")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument(
        "--profile", nargs="?", const="turns", choices=PROFILES, help="where the time goes, by py-spy (default: turns)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
