"""A run in this process: its state, its branch, its stream and whoever waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

from stateroom.agent.assembler import Assembler
from stateroom.agent.state import RunState
from stateroom.errors import StateroomError
from stateroom.journal.entries import OpenItem, RunSettings, RunView, Usage
from stateroom.runtime.branches import ActiveBranch
from stateroom.runtime.local import LocalContexts
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import Renderer, Surface, ToolPlan
from stateroom.runtime.writer import BranchWriter
from stateroom.telemetry.context import TraceContext, current_trace


class LiveRun:
    """One run while it is carried out."""

    def __init__(
        self,
        *,
        state: RunState,
        settings: RunSettings,
        branch: ActiveBranch,
        writer: BranchWriter,
        plan: ToolPlan,
        stored: bool,
        surface: Surface | None = None,
    ) -> None:
        self.id = state.started.id
        self.state = state
        self.settings = settings
        """With tools and instructions in full."""
        self.branch = branch
        self.writer = writer
        self.plan = plan
        self.surface = surface
        """Makes the plan anew when the run's own items bring tools along."""
        self.stored = stored
        self.status = "queued" if state.started.background else "in_progress"
        self.resumed: OpenItem | None = None
        """A message that a crash cut off and the backend is to go on with."""
        self.assembler: Assembler | None = None
        """Of the answer being generated."""
        self.context_outputs = 0
        """Output items that the model's context holds already."""
        self.spent: Usage | None = None
        """What model calls used whose answer is not written down yet."""
        self.compacting_at = -1
        """Output index of a compaction item that a crash left open in the stream."""
        self.patience_seconds = 0.0
        """How long to go on asking while the model server cannot be reached."""
        self.begun = False
        """Its task has taken its first step: before that a cancellation would never reach the run."""
        self.cancelling = False
        self.interruptible = False
        """Its model is being read: the answer may be cut short where it stands."""
        self.interrupted = False
        self.successor: LiveRun | None = None
        """The run that goes on with its branch, because its user said something meanwhile."""
        self.local: LocalContexts | None = None
        """Where an unstored run is kept for those that continue it: with the connection that it came over."""
        self.folders: dict[str, Any] = {}
        """Files of the containers that it has worked in, in this process."""
        self.trace: TraceContext | None = current_trace.get()
        """Where it belongs in the trace of who asked for it."""
        self.taken_up = False
        """A crash or a stop cut it off, and this process goes on with it."""
        self.since = 0.0
        """When it began in this process, by the clock that never runs backwards."""
        self.first_at = 0.0
        """The same for the first piece of its first answer; 0 while there is none."""
        self.answer_at = 0.0
        """The same for the answer being generated."""
        self.failure: StateroomError | None = None
        self.task: asyncio.Task[None] | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Resolved when the run has ended or this process has given it up."""

    @property
    def project(self) -> str:
        return self.branch.project

    @property
    def renderer(self) -> Renderer | None:
        return self.writer.renderer

    @property
    def stream(self) -> LiveStream | None:
        return self.writer.stream

    def interrupt_if_steered(self) -> None:
        """Cut the answer short that is being generated, unless it has begun to call: calls are to be whole."""
        calls = self.assembler is not None and self.assembler.calls
        if not self.interruptible or calls or not self.state.steers or self.state.ended is not None:
            return
        if not self.interrupted and not self.cancelling and self.task is not None:
            self.interrupted = True
            self.task.cancel()

    def view(self) -> RunView:
        """How it stands, including what may not be durable yet: commit before showing it."""
        return self.state.view(stored=self.stored, settings=self.settings, status=self.status)
