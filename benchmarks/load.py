"""The load generator, a process of its own: takes orders as lines of JSON, carries them out, answers in lines of JSON.

    python -m benchmarks.load

It reads the CPU clocks of the measured processes itself, so that warm-up and the start of connections stay outside.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from typing import Final

import msgspec

from benchmarks.dialogues import DIALOGUES, Dialogue, LoadFailed, Surface, dialogue_bytes, read
from benchmarks.measure import family_cpu_seconds
from benchmarks.model import MODELS
from benchmarks.texts import USER_CHARACTERS, texts
from benchmarks.wire import Connection

# With its quotes it stands once in an event, whether or not the server also writes `event:` lines.
_DELTA: Final = b'"response.output_text.delta"'


class Order(msgspec.Struct, kw_only=True):
    """What load to make."""

    port: int
    pids: list[int]
    """The processes whose CPU time is asked for, each with all below it."""
    surface: Surface
    model: str
    prefix: str = ""
    """What the server puts before the model's name."""
    turns: int
    """All workers together."""
    workers: int = 1
    warmup: int = 0
    """Turns before the measured ones, all workers together."""
    chain: int = 20
    """Turns of one dialogue; then the worker begins a new one."""
    stream: bool = False
    stagger: float = 0.0
    """Seconds between the starts of neighbouring workers."""
    user_characters: int = USER_CHARACTERS
    marks: list[int] = []
    """Sample after so many measured turns; for one worker."""
    weigh: bool = False
    """Also count the bytes of the dialogue."""


class Sample(msgspec.Struct):
    """The clocks after a turn."""

    turn: int
    at: float
    cpu: list[float]
    prompt_bytes: int


class Outcome(msgspec.Struct):
    """What the load met."""

    turns: int = 0
    seconds: float = 0.0
    cpu: list[float] = []
    """Seconds of each process asked for."""
    latency_p50: float = 0.0
    latency_p95: float = 0.0
    deltas: int = 0
    """Text deltas received."""
    dialogue_bytes: int = 0
    samples: list[Sample] = []
    error: str = ""


class Load:
    """Carries out one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._said = itertools.cycle(texts(512, order.user_characters, seed=1))
        self._connections: list[Connection] = []
        self._dialogues: list[Dialogue] = []
        self._turns_in: list[int] = []
        self._latencies: list[float] = []
        self._left = 0
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        order = self._order
        for _ in range(order.workers):
            self._connections.append(await Connection.open(order.port))
        self._dialogues = [self._dialogue(worker) for worker in range(order.workers)]
        self._turns_in = [0] * order.workers
        try:
            await self._spread(order.warmup)
            self._outcome = outcome = Outcome()
            self._latencies = []
            cpu, began = self._clocks(), time.perf_counter()
            await self._spread(order.turns)
            outcome.seconds = time.perf_counter() - began
            outcome.cpu = [after - before for before, after in zip(cpu, self._clocks(), strict=True)]
        finally:
            for connection in self._connections:
                connection.close()
        outcome.latency_p50 = statistics.median(self._latencies)
        outcome.latency_p95 = sorted(self._latencies)[int(len(self._latencies) * 0.95)]
        return outcome

    async def _spread(self, turns: int) -> None:
        """So many turns over all workers: whoever is done takes the next."""
        self._left = turns
        async with asyncio.TaskGroup() as group:
            for worker in range(self._order.workers):
                group.create_task(self._work(worker))

    async def _work(self, worker: int) -> None:
        if self._order.stagger:
            await asyncio.sleep(worker * self._order.stagger)
        while self._left:
            self._left -= 1
            await self._turn(worker)

    async def _turn(self, worker: int) -> None:
        order, outcome = self._order, self._outcome
        if self._turns_in[worker] == order.chain:
            self._dialogues[worker] = self._dialogue(worker)
            self._turns_in[worker] = 0
        said = next(self._said)
        began = time.perf_counter()
        answer = await self._dialogues[worker].say(said)
        self._latencies.append(time.perf_counter() - began)
        self._turns_in[worker] += 1
        outcome.turns += 1
        if order.surface != "direct":
            self._check(said, answer)
        if outcome.turns in order.marks:
            self._sample(answer)

    def _check(self, said: str, answer: bytes) -> None:
        """Nothing counts that is not a whole answer."""
        order, outcome = self._order, self._outcome
        if order.stream:
            outcome.deltas += answer.count(_DELTA)
        if order.weigh:
            outcome.dialogue_bytes += dialogue_bytes(said, read(answer).text)
        elif b'"status":"completed"' not in answer[-20_000:] and b'"status": "completed"' not in answer[-20_000:]:
            raise LoadFailed(f"no complete answer: {answer[-500:]!r}")

    def _sample(self, answer: bytes) -> None:
        prompt = 0 if self._order.surface == "direct" else read(answer).usage.input_tokens
        self._outcome.samples.append(Sample(self._outcome.turns, time.perf_counter(), self._clocks(), prompt))

    def _clocks(self) -> list[float]:
        return [family_cpu_seconds(pid) for pid in self._order.pids]

    def _dialogue(self, worker: int) -> Dialogue:
        order = self._order
        return DIALOGUES[order.surface](self._connections[worker], order.prefix + order.model, order.stream)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        order = msgspec.json.decode(line, type=Order)
        assert order.model in MODELS
        try:
            outcome = await Load(order).run()
        except* (LoadFailed, OSError, msgspec.MsgspecError) as errors:
            outcome = Outcome(error=str(errors.exceptions[0]))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    import uvloop  # lazy: whoever only wants Order needs no loop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
