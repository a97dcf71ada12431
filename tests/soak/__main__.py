"""The soak: mixed load with faults for an hour, and whether anything has grown, stuck or been left behind by then.

    python -m tests.soak [--minutes 60] [--seed S] [--clients 8] [--picture FILE] [--keep FOLDER]

One server process is killed early, another a little later; the third lives for most of the time. Its caches are filled
first, lest they look like a leak; then come slow disks, model servers that are cut off, and all the time clients that
drop their connections, with pauses in which an idle server is looked at. It is killed as well, and the fourth drains:
all that was made is deleted, and `verify` looks at what is left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import msgspec

from stateroom.journal.verify import verify_data
from stateroom.testing.kill_points import KILL_FIFO
from stateroom.testing.probe_server import EFFECTS, TASKS
from stateroom.testing.process import ModelProcess, ServerProcess, quiet_port
from tests.simulation.client import Client, Gone, Refused
from tests.simulation.hooks import Receiver
from tests.soak import samples
from tests.soak.clients import Load, delete_all
from tests.soak.judge import MIB, Verdict, judge_findings, judge_idle, judge_left, judge_memory
from tests.soak.picture import Event, draw
from tests.soak.samples import Process, Sample

CONFIG: Final = """\
shutdown_seconds = 2
allow_private_addresses = true
[limits]
# Small, so that it is full soon: what memory does afterwards is no cache that fills.
cached_context_bytes = 8388608
[[backends]]
url = "{url}"
"""
KILLS: Final = (0.07, 0.13, 0.92)
PAUSES: Final = (0.22, 0.4, 0.58, 0.74, 0.9)
"""When, in parts of the whole."""
FAULTS: Final = 12
"""Slow disks and cut backends, taken in turns."""
FILLED: Final = 17_000
"""Responses that fill what the journal remembers of its branches: 16,384 of them."""
SLOW_MS: Final = 25
EXCUSED_SECONDS: Final = 20.0
"""After a kill or a cut: until then clients may still see what came of it."""
IDLE_SECONDS: Final = 8.0
"""How long a server is left alone before it counts as idle: connections that were kept open are closed by then."""
DRAIN_SECONDS: Final = 60.0


class Soak:
    """One soak."""

    def __init__(self, folder: Path, seconds: float, seed: str, clients: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.clients = clients
        self.model = ModelProcess("--delay-ms", "1", log=folder / "model.log").start()
        config = folder / "stateroom.toml"
        config.write_text(CONFIG.format(url=self.model.url))
        self.fifo, self.tasks = folder / "fifo", folder / "tasks.json"
        os.mkfifo(self.fifo)
        self.server = ServerProcess(
            folder / "data",
            port=quiet_port(),
            options=("--config", str(config)),
            environment={
                KILL_FIFO: str(self.fifo),
                TASKS: str(self.tasks),
                EFFECTS: str(folder / "effects.txt"),
            },
            module="stateroom.testing.probe_server",
            log=folder / "server.log",
        )
        self.client = Client(f"http://127.0.0.1:{self.server.port}/v1")
        self.load = Load(self.client, random.Random(seed))
        self.receiver = Receiver(random.Random(seed))
        self.samples: list[Sample] = []
        self.rows: list[samples.Rows] = []
        self.events: list[Event] = []
        self.phase = "load"
        self.life = 0
        self.looking = asyncio.Lock()
        """Held while the server is looked at, or is replaced by another one."""
        self.began = time.monotonic()
        self._counted = 0

    def now(self) -> float:
        return time.monotonic() - self.began

    async def run(self) -> list[Verdict]:
        """The whole of it; what it came to."""
        await asyncio.to_thread(self.server.start)
        await self.receiver.start()
        await self.receiver.subscribe(self.client)
        self.began = time.monotonic()
        loop = asyncio.get_running_loop()
        sampling = loop.create_task(self._sample())
        working = loop.create_task(self.load.run(self.clients))
        try:
            for at, _, doing in sorted(self._plan(), key=lambda each: each[:2]):
                await self._until(at, working, sampling)
                await doing()
            await self._until(self.seconds, working, sampling)
            self.load.stopped = True
            await asyncio.wait_for(working, 120)
            left = await self._drain()
        finally:
            for task in (sampling, working):
                task.cancel()
            await asyncio.gather(sampling, working, return_exceptions=True)
            await self.receiver.close()
            await self.client.close()
        return [judge_memory(self.samples), *judge_idle(self.samples), *left, *await self._end()]

    def _plan(self) -> list[tuple[float, int, Callable[[], Awaitable[None]]]]:
        plan: list[tuple[float, int, Callable[[], Awaitable[None]]]] = []
        plan += [(part * self.seconds, 0, self._kill) for part in KILLS]
        plan += [(part * self.seconds, 1, self._pause) for part in PAUSES]
        plan.append((KILLS[1] * self.seconds, 1, self._fill_caches))
        first, last = KILLS[1] + 0.03, KILLS[2] - 0.03
        for number in range(FAULTS):
            at = (first + (last - first) * number / (FAULTS - 1)) * self.seconds
            plan.append((at, 2, self._slow_disk if number % 2 else self._cut_backend))
        return plan

    async def _until(self, at: float, *tasks: asyncio.Task[Any]) -> None:
        """Wait for a moment, or for one of these to fail."""
        left = at - self.now()
        if left > 0:
            done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()

    # Faults.

    async def _kill(self) -> None:
        self.load.faulty_until = time.monotonic() + 600
        began = self.now()
        async with self.looking:
            await asyncio.to_thread(self.server.kill)
            await asyncio.to_thread(self.server.start)
            self.life += 1
        self.load.faulty_until = time.monotonic() + EXCUSED_SECONDS
        self.events.append(Event(began, self.now(), "kill"))

    async def _fill_caches(self) -> None:
        began, self.phase = self.now(), "filling"
        left = iter(range(FILLED if self.seconds >= 600 else FILLED // 50))

        async def fill() -> None:
            for _ in left:
                await self.load.delete(f"/responses/{(await self.load.ask('say: on'))['id']}")

        await asyncio.gather(*[fill() for _ in range(8)])
        self.events.append(Event(began, self.now(), "filling"))
        self.phase = "load"

    async def _cut_backend(self) -> None:
        self.load.faulty_until = time.monotonic() + 600
        began, self.phase = self.now(), "cut backend"
        await asyncio.to_thread(self.model.kill)
        await asyncio.sleep(min(4.0, self.seconds / 100))
        await asyncio.to_thread(self.model.start)
        self.load.faulty_until = time.monotonic() + EXCUSED_SECONDS
        self.events.append(Event(began, self.now(), "cut backend"))
        self.phase = "load"

    async def _slow_disk(self) -> None:
        began, self.phase = self.now(), "slow disk"
        await asyncio.to_thread(self._say, f"slow:{SLOW_MS}")
        await asyncio.sleep(min(20.0, self.seconds / 40))
        await asyncio.to_thread(self._say, "slow:0")
        self.events.append(Event(began, self.now(), "slow disk"))
        self.phase = "load"

    async def _pause(self) -> None:
        began = self.now()
        await self.load.pause(120)
        await asyncio.sleep(IDLE_SECONDS)
        self.phase = "idle"
        async with self.looking:
            self.samples.append(await asyncio.to_thread(self._look))
        self.rows.append(samples.Rows(self.now(), await asyncio.to_thread(samples.rows, self.server.data)))
        self.events.append(Event(began, self.now(), "idle"))
        self.phase = "load"
        self.load.running.set()

    def _say(self, line: str) -> None:
        with self.fifo.open("w") as fifo:
            fifo.write(line + "\n")

    # Looking.

    async def _sample(self) -> None:
        every = max(1.0, min(5.0, self.seconds / 240))
        while True:
            async with self.looking:
                self.samples.append(await asyncio.to_thread(self._look))
            await asyncio.sleep(every)

    def _look(self) -> Sample:
        life, data = self.life, self.server.data
        process = Process(self.server.pid, self.tasks)
        latencies, self.load.latencies = sorted(self.load.latencies), []
        done = sum(self.load.done.values())
        since, self._counted = done - self._counted, done
        cuts = quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else [0.0] * 99
        return Sample(
            at=self.now(),
            life=life,
            rss=process.memory(),
            threads=process.threads(),
            descriptors=process.descriptors(),
            tasks=sum(process.tasks().values()),
            open_runs=samples.open_runs(data),
            wal=samples.size(data / "journal.db-wal"),
            journal=samples.size(data / "journal.db"),
            blobs=samples.count_blobs(data),
            done=since,
            p50=cuts[49],
            p99=cuts[98],
            phase=self.phase,
        )

    # The end.

    async def _drain(self) -> list[Verdict]:
        """Wait until nothing goes on, delete all that is left, and look at what remains."""
        deadline = time.monotonic() + DRAIN_SECONDS
        data = self.server.data
        stuck = await asyncio.to_thread(samples.open_runs, data)
        while stuck and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            stuck = await asyncio.to_thread(samples.open_runs, data)
        while time.monotonic() < deadline:
            with suppress(Gone, Refused):
                if not await delete_all(self.client):
                    break
        while True:
            tables, collections = samples.rows(data), samples.records(data)
            verdicts = judge_left(tables, collections, stuck, samples.count_blobs(data))
            if all(verdict.good for verdict in verdicts) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        self.rows.append(samples.Rows(self.now(), tables))
        return verdicts

    async def _end(self) -> list[Verdict]:
        """Stop the server, and have `verify` look at its data."""
        status = await asyncio.to_thread(self.server.terminate)
        self.model.kill()
        report = await asyncio.to_thread(verify_data, self.server.data, lambda *_: None)
        traces = self.server.log.read_text().count("Traceback")
        load = self.load
        return [
            judge_findings(load.findings, sum(load.done.values()), sum(load.excused.values())),
            Verdict("exit status of the last server", str(status), "0", status == 0),
            Verdict("stateroom verify", "clean" if report.ok else str(report.findings[:3]), "clean", report.ok),
            Verdict("traces in the servers' logs", str(traces), "0", traces == 0),
        ]


def show(soak: Soak, verdicts: list[Verdict], seed: str) -> None:
    """Print the table."""
    out = sys.stdout.write
    done = sum(soak.load.done.values())
    out(f"\nseed {seed}, {soak.now() / 60:.0f} minutes, {soak.clients} clients, {done:,} deeds: ")
    out(", ".join(f"{name} {count}" for name, count in sorted(soak.load.done.items())) + "\n")
    faults = [event.what for event in soak.events]
    out(f"kills {faults.count('kill')}, cut backends {faults.count('cut backend')}, ")
    out(f"slow disks {faults.count('slow disk')}, pauses {faults.count('idle')}, ")
    out(f"webhooks heard {len(soak.receiver.heard)}\n\n   minute   MiB  fds  tasks  threads  WAL MiB    p50    p99\n")
    for each in [sample for sample in soak.samples if sample.phase == "idle"]:
        out(f"   {each.at / 60:6.1f} {each.rss / MIB:5.1f} {each.descriptors:4} {each.tasks:6} {each.threads:8}")
        out(f" {each.wal / MIB:8.1f}   idle\n")
    part = max(1, len(soak.samples) // 10)
    for each in soak.samples[::part]:
        out(f"   {each.at / 60:6.1f} {each.rss / MIB:5.1f} {each.descriptors:4} {each.tasks:6} {each.threads:8}")
        out(f" {each.wal / MIB:8.1f} {each.p50 * 1000:6.1f} {each.p99 * 1000:6.1f} ms\n")
    for held in soak.rows:
        shown = ", ".join(f"{name} {count}" for name, count in held.tables.items())
        out(f"   rows at {held.at / 60:.1f}: {shown}\n")
    out("\n")
    for verdict in verdicts:
        out(f"{'✓' if verdict.good else '✗'}  {verdict.what}: {verdict.found} ({verdict.allowed})\n")
    for finding in soak.load.findings[:20]:
        out(f"   {finding}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", default="", help="default: a new one")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--picture", type=Path, help="draw the curve into this SVG file")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave everything there")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_soak(options, options.seed or str(time.time_ns() % 10**8)))


async def _soak(options: argparse.Namespace, seed: str) -> int:
    folder: Path = options.keep or Path(tempfile.mkdtemp(prefix="stateroom-soak-"))
    sys.stdout.write(f"{options.minutes:g} minutes with seed {seed}, in {folder}\n")
    sys.stdout.flush()
    soak = Soak(folder, options.minutes * 60, seed, options.clients)
    try:
        verdicts = await soak.run()
    finally:
        soak.model.kill()
        if soak.server.process is not None and soak.server.status is None:
            soak.server.kill()
        known = {"samples": soak.samples, "rows": soak.rows, "events": soak.events, "findings": soak.load.findings}
        (folder / "samples.json").write_bytes(msgspec.json.encode(known))
    show(soak, verdicts, seed)
    if options.picture is not None:
        title = f"{soak.now() / 60:.0f} minutes of mixed load by {options.clients} clients, with faults"
        options.picture.write_text(draw(title, soak.samples, soak.events))
    good = all(verdict.good for verdict in verdicts)
    if options.keep is None and good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
