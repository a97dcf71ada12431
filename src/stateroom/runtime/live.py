"""A run in this process: its state, its branch, its stream and whoever waits for it."""

from __future__ import annotations

import asyncio

from stateroom.agent.assembler import Assembler
from stateroom.agent.state import RunState
from stateroom.errors import StateroomError
from stateroom.journal.entries import OpenItem, RunSettings, RunView
from stateroom.runtime.branches import ActiveBranch
from stateroom.runtime.stream import LiveStream
from stateroom.runtime.surface import Renderer, ToolPlan
from stateroom.runtime.writer import BranchWriter


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
    ) -> None:
        self.id = state.started.id
        self.state = state
        self.settings = settings
        """With tools and instructions in full."""
        self.branch = branch
        self.writer = writer
        self.plan = plan
        self.stored = stored
        self.status = "queued" if state.started.background else "in_progress"
        self.resumed: OpenItem | None = None
        """A message that a crash cut off and the backend is to go on with."""
        self.assembler: Assembler | None = None
        """Of the answer being generated."""
        self.context_outputs = 0
        """Output items that the model's context holds already."""
        self.patience_seconds = 0.0
        """How long to go on asking while the model server cannot be reached."""
        self.begun = False
        """Its task has taken its first step: before that a cancellation would never reach the run."""
        self.cancelling = False
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

    def view(self) -> RunView:
        """How it stands, including what may not be durable yet: commit before showing it."""
        return self.state.view(stored=self.stored, settings=self.settings, status=self.status)
