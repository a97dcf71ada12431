"""What is measured of each contender: each scenario has a server and a data directory of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import model
from benchmarks.load import Order, Outcome
from benchmarks.measure import MIB, disk_bytes, family_cpu_seconds, resident_bytes
from benchmarks.model import MODELS
from benchmarks.peers.contenders import Contender
from benchmarks.peers.kills import left_after_kill
from benchmarks.peers.servers import Running
from benchmarks.peers.table import Figure
from benchmarks.processes import Loader
from benchmarks.restarts import first_answer_seconds
from benchmarks.table import number

EARLY, WINDOW = 10, 16
STREAMS: Final = 16
STATELESS: Final = "stateless"


class Scale(msgspec.Struct, frozen=True):
    """How much is measured: little, for the peers take their time."""

    repeats: int
    turns: int
    """Measured turns of one repeat at 16; a third of it at 1."""
    bursts: int
    """Streams of one repeat."""
    paced: str
    """The model that paces."""
    late: int
    """The turn of a chain that is compared with an early one."""
    disk_turns: int
    starts: int


FULL: Final = Scale(repeats=3, turns=192, bursts=8, paced=model.PACED, late=200, disk_turns=200, starts=3)
QUICK: Final = Scale(repeats=1, turns=48, bursts=2, paced=model.PACED_BRIEFLY, late=40, disk_turns=40, starts=1)


class Bench:
    """What all scenarios share, and how much to measure."""

    def __init__(self, scale: Scale, folder: Path, loader: Loader) -> None:
        self.scale = scale
        self._folder = folder
        self._loader = loader
        self._number = itertools.count(1)

    def new_data(self) -> Path:
        return self._folder / f"data-{next(self._number)}"

    def run(self, contender: Contender, server: Running, name: str, turns: int, **load: Any) -> Outcome:
        """Raises LoadFailed."""
        order = Order(
            port=server.port,
            pids=[server.pid],
            surface=contender.surface,
            model=name,
            prefix=contender.prefix,
            turns=turns,
            **load,
        )
        return self._loader.run(order)


def turns(bench: Bench, contender: Contender) -> Iterator[Figure]:
    """Turns of 20-turn chains, each worker with its own."""
    done = 0
    with contender.start(bench.new_data()) as server:
        for workers in (1, 16):
            count = bench.scale.turns // (3 if workers == 1 else 1)
            outcomes = [
                bench.run(contender, server, model.TYPICAL, count, workers=workers, warmup=max(10, workers * 2))
                for _ in range(bench.scale.repeats)
            ]
            done += sum(outcome.turns for outcome in outcomes)
            yield Figure(
                group="CPU of a stateful turn, not streamed (chains of 20 turns)",
                figure=f"at concurrency {workers}",
                unit="ms",
                values=[outcome.cpu[0] / outcome.turns * 1000 for outcome in outcomes],
                beside=STATELESS if contender.surface == "history" else "",
            )
        weight = resident_bytes(server.pid) / MIB
    yield Figure(group="Resident memory", figure=f"after {number(done)} turns", unit="MiB", values=[weight])


def streams(bench: Bench, contender: Contender) -> Iterator[Figure]:
    """Chunks that come all at once, one stream after the other; and one by one, in several streams side by side."""
    loads: list[tuple[str, str, int, dict[str, Any]]] = [
        ("a burst", model.BURST, bench.scale.bursts, {"warmup": 3}),
        (
            f"paced {model.PACE_MS} ms, {STREAMS} streams",
            bench.scale.paced,
            STREAMS,
            {"workers": STREAMS, "stagger": model.PACE_MS / 1000 / STREAMS},
        ),
    ]
    with contender.start(bench.new_data()) as server:
        for title, name, count, load in loads:
            chunks = MODELS[name].chunks
            outcomes = [
                bench.run(contender, server, name, count, stream=True, chain=1, **load)
                for _ in range(bench.scale.repeats)
            ]
            deltas = sum(outcome.deltas for outcome in outcomes) / sum(outcome.turns for outcome in outcomes)
            yield Figure(
                group="CPU of a streamed event (that of a whole stream, divided by the chunks of the model server)",
                figure=f"{title}, {chunks} chunks",
                unit="µs",
                values=[outcome.cpu[0] / outcome.turns / chunks * 1e6 for outcome in outcomes],
                beside="" if round(deltas) == chunks else f"{number(deltas)} deltas",
            )


def chain(bench: Bench, contender: Contender) -> Iterator[Figure]:
    """A late turn of one chain against an early one, with short texts."""
    late = bench.scale.late
    marks = [EARLY - WINDOW // 2, EARLY + WINDOW // 2, late - WINDOW // 2, late + WINDOW // 2]
    with contender.start(bench.new_data()) as server:
        bench.run(contender, server, model.SHORT, 30)
        load: dict[str, Any] = {"chain": marks[-1], "marks": marks, "user_characters": 24}
        samples = bench.run(contender, server, model.SHORT, marks[-1], **load).samples
    cpu = [sample.cpu[0] * 1000 / WINDOW for sample in samples]
    early, later = cpu[1] - cpu[0], cpu[3] - cpu[2]
    group = f"Growth: one chain, short texts, CPU a turn (means of {WINDOW} turns)"
    yield Figure(group=group, figure=f"turn {EARLY}", unit="ms", values=[early])
    yield Figure(group=group, figure=f"turn {late}", unit="ms", values=[later])
    yield Figure(
        group=group,
        figure="grown to",
        beside=f"{number(later / early)} of it; the prompt to {number(samples[3].prompt_bytes / 1000)} KB",
    )


def disk(bench: Bench, contender: Contender) -> Iterator[Figure]:
    """What a data directory grows by, once its server has stopped."""
    data = bench.new_data()
    contender.start(data).stop()
    empty = disk_bytes(data)
    with contender.start(data) as server:
        load: dict[str, Any] = {"workers": 4, "chain": 50, "weigh": True}
        outcome = bench.run(contender, server, model.TYPICAL, bench.scale.disk_turns, **load)
    grown = disk_bytes(data) - empty
    stateless = contender.surface == "history"
    yield Figure(
        group=f"Disk for {number(outcome.turns)} turns in chains of 50",
        figure="a turn",
        unit="KB",
        values=[] if stateless else [grown / outcome.turns / 1000],
        beside=f"{STATELESS}: nothing is kept"
        if stateless
        else f"{number(grown / outcome.dialogue_bytes)} x the dialogue's JSON",
    )


def start(bench: Bench, contender: Contender) -> Iterator[Figure]:
    """A new server on an empty directory, until it has answered; and what it weighs then."""
    answered: list[float] = []
    burnt: list[float] = []
    resident: list[float] = []
    for _ in range(bench.scale.starts):
        with contender.start(bench.new_data()) as server:
            answered.append(first_answer_seconds(server, contender.prefix))
            resident.append(resident_bytes(server.pid) / MIB)
            burnt.append(family_cpu_seconds(server.pid))
    yield Figure(group="Start", figure="process to first answer", unit="s", values=answered)
    yield Figure(group="Start", figure="of that CPU", unit="s", values=burnt)
    yield Figure(group="Resident memory", figure="after the first answer", unit="MiB", values=resident)


def kill(bench: Bench, contender: Contender) -> Iterator[Figure]:
    """kill -9 in the middle of a stream and of a background run, then a new server on the same directory."""
    left = left_after_kill(contender, bench.new_data(), bench.scale.paced)
    told = {
        "a finished turn before it": left.earlier,
        "the next turn after that one": left.going_on,
        "the stream, from the next event": left.stream,
        "its response": left.streamed,
        "a background run": left.background,
    }
    group = "What is left after kill -9 in mid-stream, on a new process"
    for figure, words in told.items():
        yield Figure(group=group, figure=figure, beside=words)
    yield Figure(group=group, figure="kill to first answer", unit="s", values=[left.up])


SCENARIOS: Final[dict[str, Callable[[Bench, Contender], Iterator[Figure]]]] = {
    "turns": turns,
    "streams": streams,
    "chain": chain,
    "disk": disk,
    "start": start,
    "kill": kill,
}
