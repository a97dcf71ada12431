"""The crash suite: load a real server, kill it, start it again, hold it against everything it has acknowledged.

    python -m tests.simulation.crash --rounds 300 [--seed S] [--keep FOLDER]

Each round has its own load and its own way to die, drawn from the seed. Several rounds share a data directory, so that
later crashes meet what earlier ones left. What is killed, when and how is in `Plan` (deaths.py); what must hold, in
checks.py, files.py, workspaces.py and remains.py.

A round is either one of everything or, `at work`, one of hosted tools in containers, in which sandboxes and what runs
in them are killed as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from stateroom.testing.kill_points import KILL_AT, KILL_FIFO
from stateroom.testing.mortal_workspaces import STRUCK
from stateroom.testing.probe_server import EFFECTS, HURRY
from stateroom.testing.process import ModelProcess, ProcessFailed, ServerProcess, quiet_port
from stateroom.testing.sandboxes import at_work
from stateroom.workspaces.drivers.processes import send_signal
from tests.simulation.batching import Durable, check_asked, note_durable
from tests.simulation.cast import cast_at_work, cast_for
from tests.simulation.checks import check_all, settle
from tests.simulation.client import Client, Refused
from tests.simulation.deaths import POINTS, WORK_POINTS, Plan
from tests.simulation.files import check_erased, check_files, check_verified, copy_data
from tests.simulation.hooks import Receiver
from tests.simulation.ledger import Ledger
from tests.simulation.load import Round
from tests.simulation.remains import check_remains, until_quiet
from tests.simulation.uploading import check_no_orphans
from tests.simulation.working import struck
from tests.simulation.workspaces import Book, check_workspaces

ROUNDS_PER_DIRECTORY: Final = 6
SIGKILLED: Final = -9
LOAD_SECONDS: Final = 4.0
"""A server that has not reached its kill point by then is killed from outside."""
RESUME_SECONDS: Final = 1.0
LIVE: Final = 4
"""Workspaces that may have processes, and directories without that are kept beside them."""
WORKSPACES: Final = f"""
[workspaces]
live = {LIVE}
folders = {LIVE}
idle_minutes = 0.03
"""
_STRUCK: Final = re.compile(rf"^{STRUCK} (\w+) ([1-9]\d*)$", re.MULTILINE)


@dataclass
class Figures:
    """What the whole run came to."""

    kills: Counter[str] = field(default_factory=Counter)
    resumes: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """Seconds from the start of a process to its banner."""
    responses: int = 0
    events: int = 0
    conversations: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    """What was killed besides servers."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of the effects of hosted calls in containers."""
    containers: int = 0
    commits: int = 0

    def add(self, ledger: Ledger) -> None:
        self.resumes += ledger.resumes
        self.responses += len(ledger.responses)
        self.conversations += len(ledger.conversations)
        self.events += sum(len(response.events) for response in ledger.responses.values())

    def add_work(self, book: Book) -> None:
        self.outcomes += book.outcomes
        self.containers += len(book.histories)
        self.commits += len(book.commits)

    def summary(self) -> str:
        told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(self.outcomes.items()))
        lines = [
            f"{sum(self.kills.values())} kills, {self.responses} responses, {self.conversations} conversations, "
            f"{self.events} events of streams held against what was acknowledged",
            "kills: " + ", ".join(f"{point} {count}" for point, count in sorted(self.kills.items())),
            f"{self.containers} containers, {self.commits} commits, effects in them: {told}",
            "killed in sandboxes: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.struck.items())),
            f"start to banner: {spread(self.starts)}",
            f"up to the next event of a cut stream: {spread(self.resumes)}",
        ]
        return "\n".join(lines)


def spread(seconds: list[float]) -> str:
    """Median, 99th percentile and maximum."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    at_99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    figures = (statistics.median(ordered), at_99, ordered[-1])
    return f"{len(ordered)} times, " + ", ".join(
        f"{name} {value * 1000:.0f} ms" for name, value in zip(("p50", "p99", "max"), figures, strict=True)
    )


class Directory:
    """One data directory, the servers that live on it one after the other, and the ledger of what they said.

    The variants differ in durability and in whether the model can go on from given text.
    """

    def __init__(self, folder: Path, model: str, asked: Path, figures: Figures, *, variant: int) -> None:
        """`asked`: where the model at this URL writes down what it was asked."""
        folder.mkdir()
        self.folder = folder
        self.ledger = Ledger()
        self.durable = Durable(asked)
        self.ledger.of(Durable).append(self.durable)
        self.receiver = Receiver(random.Random(variant))
        self.book = Book()
        self.figures = figures
        self.fifo = folder / "kill.fifo"
        self.effects = folder / "effects.txt"
        os.mkfifo(self.fifo)
        config = folder / "stateroom.toml"
        durability = "full" if variant % 3 == 2 else "normal"
        prefill = "assistant" if variant % 2 == 1 else "none"
        config.write_text(
            f'shutdown_seconds = 2\ndurability = "{durability}"\nallow_private_addresses = true\n'
            f'{WORKSPACES}[[backends]]\nurl = "{model}"\nprefill = "{prefill}"\n'
        )
        self.server = ServerProcess(
            folder / "data",
            port=quiet_port(),
            options=("--config", str(config)),
            environment={KILL_FIFO: str(self.fifo), EFFECTS: str(self.effects), HURRY: "1"},
            module="stateroom.testing.probe_server",
            log=folder / "server.log",
        )
        self.client = Client(f"http://127.0.0.1:{self.server.port}/v1")

    async def open(self) -> None:
        """The first server, and somebody who is to be told of everything."""
        await self.start()
        await self.receiver.start()
        await self.receiver.subscribe(self.client)

    async def start(self) -> float:
        """A server that is up; by the monotonic clock, since when."""
        began = time.monotonic()
        await asyncio.to_thread(self.server.start)
        up_at = time.monotonic()
        self.figures.starts.append(up_at - began)
        return up_at

    async def round(self, plan: Plan, rng: random.Random, salt: str) -> None:
        """One life and death. Raises AssertionError when a promise is broken."""
        load = Round(self.client, self.ledger, rng, salt)
        load.kill = self.server.kill if plan.manner == "client" else None
        load.strike = self._strike
        await self._load_and_kill(load, plan)
        await until_quiet(self.server.data)
        copy = await asyncio.to_thread(copy_data, self.server.data, self.folder / "copy")
        await asyncio.to_thread(note_durable, self.durable, copy)
        for again in plan.again:
            await self._die_again(again)
        load.up_at = await self.start()
        load.up.set()
        await asyncio.gather(*load.readers)
        await check_files(copy)
        await check_all(self.client, self.ledger, self.effects, self.receiver, rng)
        shown = await settle(self.client)
        await check_workspaces(self.client, self.ledger, self.book, shown, self.server.data)
        await check_remains(self.server.data, self.server.pid, 2 * LIVE)
        check_asked(self.durable)
        await check_no_orphans(self.server.data)
        await check_erased(self.server.data, self.ledger.erased | self.ledger.secret)
        slowest = max(self.ledger.resumes, default=0.0)
        assert slowest <= RESUME_SECONDS, f"a stream went on only {slowest:.2f} s after the server was up"
        text = await asyncio.to_thread(self.server.log.read_text)
        assert "Traceback" not in text, f"the server's log has a traceback: {self.server.log}"

    async def _load_and_kill(self, load: Round, plan: Plan) -> None:
        cast = cast_at_work(plan.manner, sabotaged=plan.sabotaged) if plan.at_work else cast_for(plan.manner)
        working = asyncio.get_running_loop().create_task(load.run(plan.actors, cast))
        dead = asyncio.get_running_loop().create_task(asyncio.to_thread(self.server.wait, 60))
        seconds = plan.seconds if plan.manner == "time" else LOAD_SECONDS
        for strike in plan.strikes:
            await asyncio.to_thread(self._arm, strike)
        if plan.manner not in ("time", "client"):
            await asyncio.to_thread(self._arm, f"{plan.manner}:{plan.count}")
        await asyncio.wait((dead, working), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await asyncio.wait((dead,), timeout=1.0)
        by_itself = dead.done()
        if not by_itself:
            await asyncio.to_thread(self.server.kill)
        assert await dead == SIGKILLED, f"the server ended with {dead.result()}: {self.server.output[-4000:]}"
        load.killed.set()
        await working
        self.figures.kills[plan.manner if by_itself else "time"] += 1
        self.figures.struck += struck(load)
        struck(load).clear()
        for kind, count in _STRUCK.findall(self.server.output):
            self.figures.struck[f"{kind} at a point"] += int(count)

    async def _die_again(self, how: str) -> None:
        """A server that dies while it recovers, or soon after."""
        point = ":" in how
        self.server.spawn(environment={KILL_AT: how} if point else {})
        try:
            await asyncio.to_thread(self.server.wait, 1.5 if point else float(how))
        except TimeoutError:
            pass
        except Exception as error:  # subprocess.TimeoutExpired: it is still alive
            if type(error).__name__ != "TimeoutExpired":
                raise
        by_itself = self.server.status is not None
        await asyncio.to_thread(self.server.kill)
        assert self.server.status == SIGKILLED, f"the server ended with {self.server.status}: {self.server.output}"
        self.figures.kills[f"recovery {how.split(':')[0] if point and by_itself else 'time'}"] += 1

    def _strike(self, rng: random.Random) -> str:
        """Kill a process of some sandbox; of which kind."""
        there = at_work(self.server.data)
        kinds = sorted({member.kind for member in there})
        if not kinds:
            return ""
        kind = rng.choice(kinds)
        send_signal(rng.choice([member.pid for member in there if member.kind == kind]), signal.SIGKILL)
        return kind

    def _arm(self, spec: str) -> None:
        with self.fifo.open("w") as fifo:
            fifo.write(spec + "\n")

    async def close(self) -> None:
        """The last server stops in good order, and leaves everything as it was written. Raises AssertionError."""
        await self.client.close()
        await self.receiver.close()
        if self.server.process is not None and self.server.status is None:
            status = await asyncio.to_thread(self.server.terminate)
            assert status == 0, f"the server stopped with {status}: {self.server.output[-4000:]}"
        await check_remains(self.server.data, None, 2 * LIVE)
        await asyncio.to_thread(check_verified, self.server.data)
        self.figures.add(self.ledger)
        self.figures.add_work(self.book)


async def crash(plans: Iterable[tuple[int, Plan]], seed: str, folder: Path, out: IO[str]) -> Figures:
    """Carry out numbered rounds. Raises AssertionError on a broken promise; `folder` then shows what there was."""
    figures = Figures()
    directory: Directory | None = None
    asked = folder / "asked.jsonl"
    with ModelProcess("--delay-ms", "2", "--log", str(asked), log=folder / "model.log") as model:
        for number, plan in plans:
            if directory is None or number % ROUNDS_PER_DIRECTORY == 0:
                if directory is not None:
                    await directory.close()
                    await asyncio.to_thread(shutil.rmtree, directory.folder)
                variant = number // ROUNDS_PER_DIRECTORY
                directory = Directory(folder / f"round-{number}", model.url, asked, figures, variant=variant)
                await directory.open()
            began = time.monotonic()
            try:
                await directory.round(plan, random.Random(f"{seed}/{number}/load"), f"r{number}")
            except BaseException:
                out.write(f"round {number}: {plan}: failed\n")
                directory.server.kill()
                await directory.client.close()
                await directory.receiver.close()
                raise
            held = directory.ledger
            known = f"up in {figures.starts[-1]:.1f} s, {len(held.responses)} responses"
            out.write(f"round {number}  {time.monotonic() - began:4.1f} s  {plan}  ({known})\n")
            out.flush()
        if directory is not None:
            await directory.close()
    return figures


def drawn(rounds: int, seed: str, first: int, stage: str, point: str = "") -> Iterator[tuple[int, Plan]]:
    """Plans from a seed, numbered. `stage`: `work`, `everything`, or half of each for any other.

    `point`: every round dies there, if it can.
    """
    for number in range(first, first + rounds):
        rng = random.Random(f"{seed}/{number}")
        at_work = stage == "work" or (stage != "everything" and number // ROUNDS_PER_DIRECTORY % 2 == 1)
        plan = Plan.draw_at_work(rng, number) if at_work else Plan.draw(rng, number)
        if point:
            plan = replace(plan, manner=point, count=rng.randint(1, (WORK_POINTS if at_work else POINTS)[point]))
        yield number, plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", default="", help="the seed of a run that is to be repeated; default: a new one")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument(
        "--stage",
        choices=("both", "everything", "work"),
        default="both",
        help="work: only rounds in which hosted tools work in containers; everything: only the others",
    )
    parser.add_argument("--point", default="", help="every round is to die at this kill point")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave there what a failure left")
    options = parser.parse_args()
    seed = options.seed or str(time.time_ns() % 10**8)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="stateroom-crash-"))
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{options.rounds} rounds with seed {seed}, in {folder}\n")
    began = time.monotonic()
    try:
        figures = asyncio.run(
            crash(drawn(options.rounds, seed, options.first, options.stage, options.point), seed, folder, sys.stdout)
        )
    except (AssertionError, ProcessFailed, Refused) as error:
        sys.stdout.write(f"\nA promise was broken: {error}\nseed {seed}; everything is in {folder}\n")
        return 1
    if options.keep is None:
        shutil.rmtree(folder)
    sys.stdout.write(f"\nseed {seed}: {options.rounds} rounds in {time.monotonic() - began:.0f} s, no promise broken\n")
    sys.stdout.write(figures.summary() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
