"""Measures Stateroom beside its peers and prints one table.

python -m benchmarks.peers [--quick] [--only NAME ...] [--without PEER ...] [--cache FOLDER] [--json FILE]

A peer that cannot be installed or started here is told as such; only a failure of Stateroom itself is one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.dialogues import LoadFailed
from benchmarks.measure import Cores, machine
from benchmarks.peers.contenders import RECIPES, Contender, Peer, Recipe, Stateroom
from benchmarks.peers.environments import NotInstalled, prepare
from benchmarks.peers.figures import FULL, QUICK, SCENARIOS, Bench
from benchmarks.peers.pythons import find
from benchmarks.peers.table import Figure, render
from benchmarks.processes import ROOT, Loader, ModelServer


def main() -> int:
    options = _arguments()
    if not hasattr(os, "sched_setaffinity"):
        print("The benchmarks read the Linux kernel's accounts of each process; they do not run elsewhere.")
        return 2
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:4.0f} s] {line}", file=sys.stderr, flush=True)

    cores = Cores()
    os.sched_setaffinity(0, cores.rest)
    with tempfile.TemporaryDirectory(prefix="stateroom-peers-") as name:
        folder = Path(name)
        with ModelServer(folder) as models, Loader(folder) as loader:
            run = Run(Bench(QUICK if options.quick else FULL, folder, loader), say)
            run.add(Stateroom(cores, models))
            for recipe in RECIPES:
                if recipe.package in options.without:
                    run.leave_out(recipe.name, "left out by --without")
                else:
                    run.install(recipe, options.cache, cores, models)
            facts = machine(cores)
            run.measure(options.only or list(SCENARIOS))
    del facts["stateroom"]
    facts |= {**run.told, "took": f"{time.perf_counter() - began:.0f} s"}
    print(render(run.found, facts, run.notes))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"facts": facts, "notes": run.notes, "found": run.found}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 1 if run.ours_failed else 0


class Run:
    """Who takes part, and what was found of each."""

    def __init__(self, bench: Bench, say: Callable[[str], None]) -> None:
        self._bench = bench
        self._say = say
        self._contenders: list[Contender] = []
        self.found: dict[str, list[Figure]] = {}
        self.told: dict[str, str] = {}
        """A line on each, for the head of the table."""
        self.notes: list[str] = []
        self.ours_failed = False

    def add(self, contender: Contender) -> None:
        self._contenders.append(contender)
        self.found[contender.name] = []
        self.told[contender.name] = contender.told

    def leave_out(self, name: str, reason: str) -> None:
        self.found[name] = []
        self.told[name] = f"not measured: {reason}"
        self._say(f"{name} is skipped: {reason}")

    def install(self, recipe: Recipe, cache: Path, cores: Cores, models: ModelServer) -> None:
        python = find(recipe.least_python)
        if python is None:
            least = ".".join(map(str, recipe.least_python))
            return self.leave_out(recipe.name, f"it needs Python {least} or newer, and none was found on this machine")
        try:
            environment = prepare(recipe.package, recipe.requirement, python, cache, self._say)
        except NotInstalled as reason:
            return self.leave_out(recipe.name, f"{recipe.requirement} does not install: {reason}")
        return self.add(Peer(recipe, environment, cores, models))

    def measure(self, scenarios: list[str]) -> None:
        """Each scenario with all contenders in a row, so that they meet the same weather on the machine."""
        for name in scenarios:
            for contender in self._contenders:
                self._say(f"measuring {name}: {contender.name} …")
                try:
                    self.found[contender.name] += SCENARIOS[name](self._bench, contender)
                except (LoadFailed, OSError) as failure:
                    self.ours_failed |= contender is self._contenders[0]
                    self.notes.append(f"{contender.name}, {name}: {_brief(failure)}")


def _brief(failure: Exception) -> str:
    """Its first line and, of a traceback that follows, the last."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()] or [repr(failure)]
    return " … ".join(dict.fromkeys([lines[0], lines[-1]]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure Stateroom and its peers.")
    packages = [recipe.package for recipe in RECIPES]
    parser.add_argument("--quick", action="store_true", help="few repeats: whether it works, not how fast it is")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--without", action="append", default=[], choices=packages, help="a peer to leave out")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".venv-peers", metavar="FOLDER", help="where the peers are installed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
