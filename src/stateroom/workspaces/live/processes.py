"""`Processes`: the sandbox of one workspace, with the agent, the interpreter and the jobs in it.

It is started, looked at, saved and ended by whoever holds the workspace's lock; who works in it meanwhile has no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from stateroom.errors import SandboxDied, SandboxFailed, WorkspaceError
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.channels.interpreter import CellResult, Interpreter
from stateroom.workspaces.channels.process import Finished
from stateroom.workspaces.live.jobs import Jobs
from stateroom.workspaces.live.shapes import Commit, Decoding, Output, WorkspaceSpec
from stateroom.workspaces.workspace import Sandbox

if TYPE_CHECKING:
    from stateroom.workspaces.live.workspace import Workspace
    from stateroom.workspaces.live.workspaces import Workspaces

log = logging.getLogger("stateroom.workspaces")

SHELL: Final = ("/bin/bash", "-c")


class Processes:
    """What runs in one workspace; nothing at first."""

    def __init__(self, live: Workspaces, workspace: Workspace) -> None:
        self._live = live
        self._workspace = workspace
        self.sandbox: Sandbox | None = None
        self.agent: Agent | None = None
        self.started_as: WorkspaceSpec | None = None
        self.interpreter: Interpreter | None = None
        self.jobs = Jobs()
        self.cells = 0
        """How many have run since the interpreter was started."""
        self.one_cell = asyncio.Lock()
        """Held by whoever has one carried out."""
        self._saved = 0
        """How many of them the commit at which it stands has."""
        self._saving = 0
        self._breached = ""
        """The limit for which processes were ended, until whoever works here is told."""

    @property
    def is_well(self) -> bool:
        """Whether something can be asked of it."""
        sandbox, agent = self.sandbox, self.agent
        return sandbox is not None and sandbox.is_alive and agent is not None and agent.is_alive

    async def start(self) -> Agent:
        """Raises NoSandbox, SandboxFailed."""
        spec = self._workspace.spec
        sandbox = await self._live.start(self._workspace)
        try:
            agent = await Agent.connect(sandbox)
        except BaseException:
            await self._live.end(self._workspace, sandbox)
            raise
        self.sandbox, self.agent, self.started_as = sandbox, agent, spec
        return agent

    async def stop(self) -> None:
        """End all of it. Its jobs are noted as ended."""
        sandbox, agent, interpreter = self.sandbox, self.agent, self.interpreter
        self.sandbox = self.agent = self.interpreter = None
        self.cells = self._saved = self._saving = 0
        self.jobs.stopped()
        if interpreter is not None:
            with suppress(WorkspaceError):
                await interpreter.close()
        if agent is not None:
            await agent.close()
        if sandbox is not None:
            await self._live.end(self._workspace, sandbox)

    async def execute(
        self,
        agent: Agent,
        command: str,
        *,
        timeout: float,
        output_bytes: int,
        on_output: Output | None,
        environment: Mapping[str, str] | None,
    ) -> Finished:
        """Carry a command out, in a shell of its own. Raises SandboxDied."""
        told = None if on_output is None else Decoding(on_output)
        try:
            finished = await agent.run(
                (*SHELL, command), timeout=timeout, keep_bytes=output_bytes, env=environment, on_output=told
            )
        except SandboxFailed as error:
            raise SandboxDied(error.message) from error
        finally:
            if told is not None:
                told.finish()
        if finished.job is not None:
            self.jobs.began(finished.job.number, command, is_gone=agent is not self.agent)
        return finished

    async def run_code(
        self, agent: Agent, at: Commit | None, code: str, *, timeout: float, output_bytes: int, on_output: Output | None
    ) -> CellResult:
        """Carry code out. `at`: what the interpreter begins from, if there is none yet. The caller has `one_cell`.

        Raises SandboxDied, SandboxFailed, StorageError.
        """
        interpreter = self.interpreter
        if interpreter is None:
            interpreter = Interpreter(agent)
            if at is not None and at.interpreter:
                await interpreter.restore(await self._live.content.get_blob(at.interpreter))
            self.interpreter, self.cells, self._saved = interpreter, 0, 0
        self.cells += 1
        result = await interpreter.run(code, timeout=timeout, output_bytes=output_bytes, on_output=on_output)
        if result.died and not self.is_well:  # not the interpreter alone: as with a command
            raise SandboxDied("the sandbox has ended")
        return result

    async def save(self) -> tuple[bytes | None, bool, dict[str, str]]:
        """The variables, when a cell ran since they were kept; whether they could not be; what is not among them."""
        interpreter, settings = self.interpreter, self._live.settings
        if interpreter is None or self.cells == self._saved or not self.is_well:
            return None, False, {}
        try:
            async with asyncio.timeout(settings.state_seconds):
                await self.one_cell.acquire()
        except TimeoutError:  # a cell is under way: what is kept stays what it was
            return None, False, {}
        try:
            self._saving = self.cells
            blob = await interpreter.save(bytes_max=settings.state_bytes, seconds_max=settings.state_seconds)
            return blob, blob is None, dict(interpreter.unsaved)
        except WorkspaceError as error:
            log.warning("workspace.variables_not_kept workspace=%s reason=%s", self._workspace.id, error.message)
            return None, True, {}
        finally:
            self.one_cell.release()

    def kept(self) -> None:
        """What was saved last is in a commit that the journal knows."""
        self._saved = max(self._saved, self._saving)

    async def freeze(self) -> Sandbox | None:
        """Let it stand still; what does now, to be set going again. None: nothing that runs there can be stopped."""
        sandbox = self.sandbox
        if sandbox is None or not self.is_well:
            return None
        try:
            await sandbox.freeze()
        except SandboxFailed:
            return None
        return sandbox

    async def thaw(self, sandbox: Sandbox) -> None:
        """Set it going. One that cannot be, since it has just died, say, must not keep its files from being kept."""
        try:
            await sandbox.thaw()
        except SandboxFailed as error:
            log.warning("workspace.not_thawed workspace=%s reason=%s", self._workspace.id, error.message)
            await self.stop()

    async def look(self) -> None:
        """See which jobs still run."""
        agent = self.agent
        self.note_breach()
        if agent is not None and self.jobs.running and self.is_well:
            with suppress(SandboxFailed):
                alive = [job.number for job in await agent.jobs() if job.pids]
                self.note_breach()
                self.jobs.look(alive, breach=bool(self._breached))

    def note_breach(self) -> None:
        """Ask for which limit processes were ended since this was last asked."""
        said = "" if self.sandbox is None else self.sandbox.breach()
        if said:
            self._breached = said
            self._live.meter.breaches += 1
            log.warning("workspace.breach workspace=%s reason=%s", self._workspace.id, said)

    def take_breach(self) -> str:
        """The limit for which processes were ended, in words, for whoever tells it; '': for none."""
        said, self._breached = self._breached, ""
        return said
