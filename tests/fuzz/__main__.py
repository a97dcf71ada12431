"""Looks for input that a parser does not survive, guided by coverage: python -m tests.fuzz [--seconds N] [NAME ...]

Every target runs in a process of its own. What breaks one is written to `--keep` and printed; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.hunt import TARGET
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS


def main() -> int:
    options = _arguments()
    broken = [name for name in options.names or TARGETS if not _hunt(name, options.seconds, options.keep)]
    print(
        f"{len(broken)} of {len(options.names or TARGETS)} targets broke{': ' + ', '.join(broken) if broken else '.'}"
    )
    return 1 if broken else 0


def _hunt(name: str, seconds: int, keep: Path) -> bool:
    """Whether the target survived."""
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[name]):
            (Path(folder) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10"]
        print(f"{name}: {seconds} s …", flush=True)
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.hunt", *options, f"-artifact_prefix={keep}/{name}-", folder],
            env={**os.environ, TARGET: name},
            capture_output=True,
            text=True,
            check=False,
        )
    said = ran.stdout + ran.stderr
    if ran.returncode:
        print(said[-6_000:])
    runs = [line for line in said.splitlines() if line.startswith("Done ")]
    print(f"{name}: {runs[-1] if runs else 'broke'}")
    return ran.returncode == 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*TARGETS, []], metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=30, help="for each target (default: 30)")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where breaking input goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
