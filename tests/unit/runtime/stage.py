"""The runtime on a journal in memory, with a model that plays what a test wrote down and a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Literal

from stateroom import ids
from stateroom.access.outbound import FILE_CODES, OutboundGuard
from stateroom.access.policy import Policy
from stateroom.access.sealing import Sealer
from stateroom.api.chat_surface import ChatSurface
from stateroom.api.surface import ResponsesSurface
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.memory import MemoryBlobs
from stateroom.clock import Clock
from stateroom.errors import BackendError
from stateroom.journal.entries import Effect, Fact, Frame, Item, RunSettings, Usage, decode
from stateroom.journal.memory import MemoryJournal
from stateroom.models.backend import (
    Delta,
    Finished,
    FunctionSpec,
    Model,
    ModelCall,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.router import Router
from stateroom.runtime.branches import Branches
from stateroom.runtime.compaction import Compactor
from stateroom.runtime.conversations import Conversations
from stateroom.runtime.dispatch import LocalDispatcher
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.files.documents import Documents
from stateroom.runtime.files.files import Files
from stateroom.runtime.files.inputs import FileInputs
from stateroom.runtime.generate import Generator
from stateroom.runtime.hosted_calls import HostedCalls
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.live import LiveRun
from stateroom.runtime.records import Records
from stateroom.runtime.runs import RunRequest, Runs
from stateroom.runtime.worker import Worker
from stateroom.runtime.writer import Flusher
from stateroom.settings import Limits, PolicyRule
from stateroom.tools.program.engine import Programs
from stateroom.tools.tool import HostedFunction, Printed, Tool, ToolCall, ToolResult

PROJECT = "p"
USAGE = Usage(10, 5)
PIXEL = "data:image/png;base64,iVBORw0KGgo="

Play = Sequence[Delta] | BackendError | asyncio.Event
"""A batch that is given out, an error that is raised, or a gate that is waited for."""


def says(*words: str, usage: Usage | None = USAGE, finish: str = "stop") -> list[Play]:
    """An answer of text, a batch for each word."""
    return [*[[TextDelta(word)] for word in words], [Finished(finish, usage)]]


def calls(name: str, arguments: str = "{}", *, key: int = 0, finish: str = "stop") -> list[Play]:
    """An answer of one call."""
    return [[ToolCallDelta(key, f"call_{name}", name, arguments)], [Finished(finish, USAGE)]]


class Asked:
    """What one model call was, as it stood then."""

    def __init__(self, call: ModelCall) -> None:
        self.items = list(call.items)
        self.tool_choice = call.tool_choice
        self.functions: list[FunctionSpec] = list(call.functions)
        self.prefill = call.prefill
        self.format = call.format
        self.stream = call.stream

    def texts(self) -> list[str]:
        return [text_of(held.item) for held in self.items]


class PlayedBackend:
    """A `Backend` that gives out the answers it was handed, one for each call, and remembers what it was asked."""

    def __init__(self, *answers: Sequence[Play], can_prefill: bool = False) -> None:
        self.name = "played"
        self.can_prefill = can_prefill
        self.answers = deque(answers)
        self.asked: list[Asked] = []
        self.closed = 0
        """Answers that were ended, properly or not."""
        self.unreachable: BackendError | None = None
        self.serves = "m"
        self.temperature: float | None = None
        self.listed = 0
        """How often it was asked what it serves."""

    async def models(self) -> list[Model]:
        self.listed += 1
        if self.unreachable is not None:
            raise self.unreachable
        return [Model(self.serves, temperature=self.temperature)]

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        self.asked.append(Asked(call))
        answer = self.answers.popleft() if self.answers else says("ok")
        try:
            for play in answer:
                if isinstance(play, asyncio.Event):
                    await play.wait()
                elif isinstance(play, BackendError):
                    raise play
                else:
                    await asyncio.sleep(0)
                    yield play
        finally:
            self.closed += 1

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        return len(call.items), True

    async def close(self) -> None:
        return None


class MovedClock:
    """A `Clock` on which nothing passes but what is slept and what a test adds."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)


class CountedTool:
    """A hosted tool that notes each time it is carried out."""

    def __init__(self, effect: Effect = Effect.EFFECT) -> None:
        self.type = "stateroom:counted"
        self.function = HostedFunction("counted", "Counts.", {"type": "object", "properties": {}})
        self.kind = effect
        self.made: list[ToolCall] = []
        self.before: Callable[[], Any] = lambda: None
        """Called when it begins."""
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    def effect(self, call: ToolCall) -> Effect:
        return self.kind

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        self.made.append(call)
        self.before()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return ToolResult(f"counted {len(self.made)}")


class GatedBlobs(MemoryBlobs):
    """Blobs that are put once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def put(self, data: bytes) -> str:
        await self.gate.wait()
        return await super().put(data)


class Stage:
    """One process's runtime. Another one on the same journal is what comes after a crash."""

    def __init__(
        self,
        *answers: Sequence[Play],
        backend: PlayedBackend | None = None,
        journal: Any = None,
        blobs: MemoryBlobs | None = None,
        tools: Sequence[Tool] = (),
        limits: Limits | None = None,
        clock: Clock | None = None,
        memory_bytes: int = 1 << 28,
        allow_private: bool = False,
        beside: Sequence[PlayedBackend] = (),
        unknown_models: Literal["default", "reject"] = "default",
        policy: Sequence[PolicyRule] = (),
    ) -> None:
        self.backend = backend or PlayedBackend(*answers)
        self.clock = clock or MovedClock()
        self.journal = journal if journal is not None else MemoryJournal(clock=self.clock)
        self.blobs = blobs or MemoryBlobs()
        self.limits = limits or Limits()
        self.fenced = 0
        self.ephemeral = MemoryJournal(clock=self.clock)
        self.branches = Branches(
            self.journal,
            Flusher(0.0),
            self.clock,
            memory_bytes=memory_bytes,
            holder=ids.new_id("holder"),
            on_fenced=self._on_fenced,
        )
        self.router = Router([self.backend, *beside], unknown_models=unknown_models, clock=self.clock)
        self.sealer = Sealer(bytes(32))
        guard = OutboundGuard(
            allow_private=allow_private,
            bytes_max=self.limits.image_bytes,
            timeout_seconds=self.limits.image_timeout_seconds,
        )
        self.held = HeldBlobs(self.blobs)
        self.all_records = Records(self.journal, self.journal, self.blobs, self.held, self.clock)
        self.files = Files(self.all_records, self.blobs, self.held, bytes_max=self.limits.file_bytes)
        file_guard = OutboundGuard(
            allow_private=allow_private,
            bytes_max=self.limits.file_input_bytes,
            timeout_seconds=self.limits.file_seconds,
            codes=FILE_CODES,
        )
        file_inputs = FileInputs(self.files, Documents(self.limits), self.blobs, self.held, file_guard, self.limits)
        self.inputs = Inputs(
            self.journal, self.journal, self.blobs, self.held, guard, self.sealer, self.limits, file_inputs
        )
        self.erasure = Erasure(self.journal, self.journal, self.blobs, self.held, self.branches, self.clock)
        generator = Generator(self.router, self.blobs, self.sealer, self.limits, self.clock)
        hosted: Mapping[str, Tool] = {tool.type: tool for tool in tools}
        self.programs = Programs(bytes(range(32)))
        surface, chat = ResponsesSurface(hosted, self.programs), ChatSurface(hosted)
        self.hosted = HostedCalls(
            hosted,
            policy=Policy(policy),
            open_tools=self.inputs.opened,
            held=self.held,
            programs=self.programs,
            clock=self.clock,
        )
        self.runs = Runs(
            journal=self.journal,
            ephemeral=self.ephemeral,
            index=self.journal,
            branches=self.branches,
            inputs=self.inputs,
            erasure=self.erasure,
            generator=generator,
            router=self.router,
            surfaces={surface.name: surface, chat.name: chat},
            limits=self.limits,
            hosted=self.hosted,
        )
        self.compactor = Compactor(generator, self.router, self.sealer, self.clock)
        worker = Worker(generator, self.compactor, self.hosted, self.limits, self.runs.steering)
        self.dispatcher = self.runs.dispatcher = LocalDispatcher(
            worker, runs_max=self.limits.runs, waiting_max=self.limits.waiting_runs, on_done=self.runs.ended
        )
        self.conversations = Conversations(self.journal, self.branches, self.runs, self.inputs, self.erasure)

    def _on_fenced(self) -> None:
        self.fenced += 1

    def after_crash(self, *answers: Sequence[Play], **changed: Any) -> Stage:
        """Another process on the same journal and blobs, once the leases of this one have run out."""
        if isinstance(self.clock, MovedClock):
            self.clock.seconds += 60
        return Stage(*answers, journal=self.journal, blobs=self.blobs, clock=self.clock, **changed)

    async def start(
        self, said: str | list[Item] = "hi", *, project: str = PROJECT, surface: str = "responses", **asked: Any
    ) -> LiveRun:
        """Start a run; keyword arguments are those of RunRequest and of RunSettings."""
        names = {field for field in RunRequest.__struct_fields__ if field in asked}
        request = {name: asked.pop(name) for name in names}
        items = [user(said)] if isinstance(said, str) else said
        settings = RunSettings(**{"model": "m", **asked})
        return await self.runs.create(project, RunRequest(settings=settings, input=items, **request), surface=surface)

    async def ask(self, said: str | list[Item] = "hi", **asked: Any) -> LiveRun:
        """Start a run and wait for its end."""
        run = await self.start(said, **asked)
        await asyncio.wait_for(asyncio.shield(run.done), 5)
        return run

    async def records(self, run: LiveRun) -> list[Fact]:
        """What the journal holds of a run."""
        entries = await self.journal.read(run.project, run.branch.branch, run=run.state.start)
        return [decode(entry.kind, entry.body) for entry in entries]

    async def frames(self, run: LiveRun) -> list[Frame]:
        return list(await self.journal.frames(run.project, run.branch.branch, run.state.start))

    async def recover(self) -> None:
        """What a server does when it starts, until all that it took up has ended."""
        await self.router.refresh()
        await self.runs.recover()
        await until(lambda: not self.runs.live)

    async def give_up(self, run: LiveRun) -> None:
        """End the process around a run, as far as the run can tell: its task is gone, its entries stay."""
        assert run.task is not None
        run.task.cancel()
        await asyncio.wait_for(asyncio.shield(run.done), 5)


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def picture(url: str = PIXEL) -> Item:
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}


def text_of(item: Item) -> str:
    content = item.get("content", item.get("output", item.get("arguments", "")))
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer_of(run: LiveRun) -> str:
    """The text of a run's last item."""
    return text_of(run.state.output[-1].item)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let the others go on until it holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for says nothing of itself
            await asyncio.sleep(0.001)
