"""What is measured: each scenario has a server and a data directory of its own and gives rows of the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import model
from benchmarks.content import content
from benchmarks.dialogues import LoadFailed, Surface
from benchmarks.load import Order, Outcome
from benchmarks.measure import MIB, Cores, disk_bytes, import_seconds, resident_bytes
from benchmarks.model import MODELS
from benchmarks.processes import Loader, ModelServer, Server
from benchmarks.restarts import first_answer_seconds, killed_and_resumed
from benchmarks.sockets import sockets
from benchmarks.table import Row, number, spread
from benchmarks.workspaces import workspaces

TURN_LEVELS: Final = (1, 16, 64)
PACED_LEVELS: Final = (1, 16, 64)
EARLY, LATE, WINDOW = 10, 1000, 16


class Scale(msgspec.Struct, frozen=True):
    """How much is measured."""

    repeats: int
    turns: int
    """Measured turns of one repeat at 16 and 64; a quarter of it at 1."""
    bursts: int
    """Streams of one repeat."""
    paced: str
    """The model that paces."""
    paced_repeats: int
    chains: int
    disk_turns: int
    starts: int
    idle_sockets: int
    socket_streams: int
    commits: int
    """Of the content store."""
    large_mib: int
    """Its large file."""
    fork_commits: int
    """Of a container that is forked."""
    idle_seconds: float
    """For which live workspaces are watched."""


FULL: Final = Scale(
    repeats=5,
    turns=1200,
    bursts=40,
    paced=model.PACED,
    paced_repeats=3,
    chains=5,
    disk_turns=1000,
    starts=5,
    idle_sockets=2000,
    socket_streams=64,
    commits=50,
    large_mib=200,
    fork_commits=1000,
    idle_seconds=10.0,
)
QUICK: Final = Scale(
    repeats=1,
    turns=320,
    bursts=8,
    paced=model.PACED_BRIEFLY,
    paced_repeats=1,
    chains=1,
    disk_turns=200,
    starts=1,
    idle_sockets=200,
    socket_streams=8,
    commits=5,
    large_mib=20,
    fork_commits=100,
    idle_seconds=2.0,
)


class Bench:
    """The processes that all scenarios share, and how much to measure."""

    def __init__(self, scale: Scale, cores: Cores, folder: Path, models: ModelServer, loader: Loader) -> None:
        self.scale = scale
        self.cores = cores
        self.folder = folder
        self.models = models
        self._loader = loader
        self._servers = 0

    def new_data(self) -> Path:
        self._servers += 1
        return self.folder / f"data-{self._servers}"

    def start(self, data: Path) -> Server:
        return Server(self.cores, data, self.models.port)

    @contextmanager
    def server(self) -> Iterator[Server]:
        with self.start(self.new_data()) as server:
            yield server

    def run(self, order: Order) -> Outcome:
        return self._loader.run(order)

    def order(self, server: Server | None, surface: Surface, model_name: str, turns: int) -> Order:
        """An order to the server, or without one to the model server directly."""
        pids = [self.models.pid, *([server.pid] if server else [])]
        port = server.port if server else self.models.port
        return Order(port=port, pids=pids, surface=surface, model=model_name, turns=turns)


def turns(bench: Bench) -> Iterator[Row]:
    """Turns of 20-turn chains, each worker with its own."""
    with bench.server() as server:
        done = 0
        for workers in TURN_LEVELS:
            count = bench.scale.turns // (4 if workers == 1 else 1)
            load = {"workers": workers, "turns": count, "warmup": max(20, workers * 2)}
            order = bench.order(server, "response", model.TYPICAL, count)
            ours = [bench.run(msgspec.structs.replace(order, **load)) for _ in range(bench.scale.repeats)]
            order = bench.order(None, "direct", model.TYPICAL, count)
            direct = [bench.run(msgspec.structs.replace(order, **load)) for _ in range(bench.scale.repeats)]
            done += sum(outcome.turns for outcome in ours)
            yield _turn_row(workers, ours, direct)
        yield Row(
            group="Memory",
            figure=f"resident after {number(done)} turns",
            unit="MiB",
            value=resident_bytes(server.pid) / MIB,
        )


def _turn_row(workers: int, ours: list[Outcome], direct: list[Outcome]) -> Row:
    costs = [outcome.cpu[1] / outcome.turns * 1000 for outcome in ours]
    return Row(
        group="CPU of a stateful turn, not streamed, SQLite (chains of 20 turns by previous_response_id)",
        figure=f"at concurrency {workers}",
        unit="ms",
        value=statistics.median(costs),
        budget=1.0 if workers == 16 else None,
        values=costs,
        direct=f"{_rate(direct)}, {_latency(direct)}, its CPU {_cpu_ms(direct)}",
        beside=f"{_rate(ours)}, {_latency(ours)}; {spread(costs)}",
    )


def _rate(outcomes: list[Outcome]) -> str:
    return f"{number(statistics.median(each.turns / each.seconds for each in outcomes))}/s"


def _latency(outcomes: list[Outcome]) -> str:
    return f"p50 {number(statistics.median(each.latency_p50 for each in outcomes) * 1000)} ms"


def _cpu_ms(outcomes: list[Outcome]) -> str:
    return f"{number(statistics.median(each.cpu[0] / each.turns for each in outcomes) * 1000)} ms"


def burst(bench: Bench) -> Iterator[Row]:
    """Streams whose chunks come all at once, one stream after the other."""
    chunks = MODELS[model.BURST].chunks
    load = {"stream": True, "chain": 1, "warmup": 5}
    with bench.server() as server:
        order = bench.order(server, "response", model.BURST, bench.scale.bursts)
        ours = [bench.run(msgspec.structs.replace(order, **load)) for _ in range(bench.scale.repeats)]
        order = bench.order(None, "direct", model.BURST, bench.scale.bursts)
        direct = [bench.run(msgspec.structs.replace(order, **load)) for _ in range(bench.scale.repeats)]
    yield _stream_row(f"burst of {chunks} chunks", chunks, 12.0, ours, direct)


def paced(bench: Bench) -> Iterator[Row]:
    """Streams whose chunks come one by one, several streams side by side."""
    name = bench.scale.paced
    chunks = MODELS[name].chunks
    with bench.server() as server:
        warm = bench.order(server, "response", model.BURST, 20)
        bench.run(msgspec.structs.replace(warm, stream=True, chain=1))
        for workers in PACED_LEVELS:
            stagger = model.PACE_MS / 1000 / workers
            load = {"workers": workers, "stream": True, "chain": 1, "stagger": stagger}
            order = bench.order(server, "response", name, workers)
            ours = [bench.run(msgspec.structs.replace(order, **load)) for _ in range(bench.scale.paced_repeats)]
            order = bench.order(None, "direct", name, workers)
            direct = [bench.run(msgspec.structs.replace(order, **load))]
            budget = 120.0 if workers == 16 else None
            streams = f"{workers} stream{'s' if workers > 1 else ''}"
            yield _stream_row(f"paced {model.PACE_MS} ms, {streams}", chunks, budget, ours, direct)


def _stream_row(figure: str, chunks: int, budget: float | None, ours: list[Outcome], direct: list[Outcome]) -> Row:
    costs = [outcome.cpu[1] / outcome.turns / chunks * 1e6 for outcome in ours]
    theirs = statistics.median(outcome.cpu[0] / outcome.turns / chunks * 1e6 for outcome in direct)
    deltas = sum(outcome.deltas for outcome in ours) / sum(outcome.turns for outcome in ours)
    return Row(
        group="CPU of a streamed event, backend chunk to socket, frames committed",
        figure=figure,
        unit="µs",
        value=statistics.median(costs),
        budget=budget,
        values=costs,
        direct=f"{_latency(direct)} a stream, its CPU {number(theirs)} µs",
        beside=f"{_latency(ours)} a stream, {number(deltas)} deltas; {spread(costs)}",
    )


def chain(bench: Bench) -> Iterator[Row]:
    """The thousandth turn against the tenth, with short texts: ours must not grow with the history."""
    marks = [EARLY - WINDOW // 2, EARLY + WINDOW // 2, LATE - WINDOW // 2, LATE + WINDOW // 2]
    load = {"chain": marks[-1], "marks": marks, "user_characters": 24}
    order = bench.order(None, "direct", model.SHORT, marks[-1])
    direct = _windows(bench.run(msgspec.structs.replace(order, **load)), process=0)
    beside_direct = f"its CPU {number(direct[0])} → {number(direct[1])} ms"
    surfaces: tuple[tuple[Surface, str], ...] = (("response", "previous_response_id"), ("conversation", "conversation"))
    for surface, field in surfaces:
        with bench.server() as server:
            order = bench.order(server, surface, model.SHORT, marks[-1])
            bench.run(msgspec.structs.replace(order, turns=60))
            outcomes = [bench.run(msgspec.structs.replace(order, **load)) for _ in range(bench.scale.chains)]
        costs = [_windows(outcome, process=1) for outcome in outcomes]
        early, late = (statistics.median(cost[at] for cost in costs) for at in (0, 1))
        sizes = [outcomes[0].samples[at].prompt_bytes / 1000 for at in (1, 3)]
        yield Row(
            group=f"Turn {number(LATE)} of a chain against turn {EARLY}, CPU (means of {WINDOW} turns, short texts)",
            figure=f"by {field}",
            unit="x",
            value=late / early,
            budget=2.0,
            values=[cost[1] / cost[0] for cost in costs],
            direct=beside_direct,
            beside=f"{number(early)} → {number(late)} ms; prompt {number(sizes[0])} → {number(sizes[1])} KB",
        )


def _windows(outcome: Outcome, process: int) -> tuple[float, float]:
    """Milliseconds of CPU a turn in the early and in the late window."""
    cpu = [sample.cpu[process] * 1000 / WINDOW for sample in outcome.samples]
    return cpu[1] - cpu[0], cpu[3] - cpu[2]


def disk(bench: Bench) -> Iterator[Row]:
    """What a data directory grows by, once its server has stopped."""
    for stream in (False, True):
        data = bench.new_data()
        bench.start(data).stop()
        empty = disk_bytes(data)
        with bench.start(data) as server:
            order = bench.order(server, "response", model.TYPICAL, bench.scale.disk_turns)
            outcome = bench.run(msgspec.structs.replace(order, workers=4, chain=50, stream=stream, weigh=True))
            running = disk_bytes(data) - empty
        grown = disk_bytes(data) - empty
        yield Row(
            group=f"Disk for {number(outcome.turns)} turns, against the JSON of the dialogue itself",
            figure="streamed, with its frames" if stream else "not streamed",
            unit="x",
            value=grown / outcome.dialogue_bytes,
            budget=3.0,
            beside=f"{_kilobytes(outcome.dialogue_bytes)} of dialogue, {_kilobytes(grown)} on disk "
            f"({_kilobytes(running)} while it runs)",
        )


def _kilobytes(size: int) -> str:
    return f"{number(size / 1000)} KB"


def start(bench: Bench) -> Iterator[Row]:
    """A new server on an empty directory, until it has answered; and what it weighs then."""
    answered: list[float] = []
    ready: list[float] = []
    resident: list[float] = []
    for _ in range(bench.scale.starts):
        with bench.server() as server:
            resident.append(resident_bytes(server.pid) / MIB)
            ready.append(server.ready_seconds)
            answered.append(first_answer_seconds(server))
    yield Row(
        group="Start",
        figure="process to first answer",
        unit="s",
        value=statistics.median(answered),
        budget=1.0,
        values=answered,
        beside=f"ready after {number(statistics.median(ready))} s; {spread(answered)}",
    )
    imported = import_seconds("stateroom.cli.serve, stateroom.serving", bench.scale.starts)
    yield Row(group="Start", figure="import", unit="ms", value=imported * 1000)
    yield Row(
        group="Memory",
        figure="resident, idle",
        unit="MiB",
        value=statistics.median(resident),
        budget=100.0,
        values=resident,
    )


def kill(bench: Bench) -> Iterator[Row]:
    """kill -9 in the middle of a background stream, then a new server on the same directory."""
    resumes = [killed_and_resumed(bench.start, bench.new_data(), bench.scale.paced) for _ in range(bench.scale.starts)]
    after = [resume.first_event - resume.up for resume in resumes]
    totals = [resume.first_event - resume.killed for resume in resumes]
    texts = [resume.first_text - resume.up for resume in resumes]
    yield Row(
        group="kill -9, restart, first resumed event of a background stream",
        figure="after the process is up",
        unit="s",
        value=statistics.median(after),
        budget=1.0,
        values=after,
        beside=f"new text after {number(statistics.median(texts))} s; {spread(after)}",
    )
    yield Row(
        group="kill -9, restart, first resumed event of a background stream",
        figure="after the kill",
        unit="s",
        value=statistics.median(totals),
        values=totals,
        beside=spread(totals),
    )


SCENARIOS: Final[dict[str, Callable[[Bench], Iterator[Row]]]] = {
    "turns": turns,
    "burst": burst,
    "paced": paced,
    "chain": chain,
    "disk": disk,
    "start": start,
    "kill": kill,
    "sockets": sockets,
    "content": content,
    "workspaces": workspaces,
}

__all__ = ["FULL", "QUICK", "SCENARIOS", "Bench", "LoadFailed", "Scale"]
