"""Commands that clients have carried out in a container themselves: past the gate, noted, and committed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from stateroom import ids
from stateroom.access.policy import Policy
from stateroom.errors import Forbidden
from stateroom.runtime.containers.containers import Containers
from stateroom.runtime.containers.state import EXEC, Container, ExecNote
from stateroom.runtime.records import Held
from stateroom.workspaces.live.workspaces import Executed, Workspace

log = logging.getLogger("stateroom.containers")

Output: TypeAlias = Callable[[str, str], None]
"""Is told which stream, and what came on it."""


class Ran(msgspec.Struct, frozen=True):
    """What came of a command."""

    executed: Executed
    commit_id: str
    """Where the container stands afterwards; '' while nothing was ever kept of it."""


class ContainerCommands:
    """Carries them out."""

    def __init__(self, containers: Containers, policy: Policy) -> None:
        """`policy`: the one that holds for the shell of models. Who asks here is asked by nobody."""
        self._containers = containers
        self._parts = containers.parts
        self._policy = policy

    async def check(self, project: str, container_id: str, command: str, timeout_ms: int | None) -> float:
        """Whether it may be carried out; how many seconds it may take. Raises RequestError, NoSandbox."""
        await self._containers.get(project, container_id)
        said = self._policy.decide(project, "shell", [(command,)])
        if said.decision == "deny":
            log.warning("container.command_denied container=%s by=%s", container_id, said.by)
            reason = f": {said.reason}" if said.reason else "."
            message = f"The policy of this server does not allow this command ({said.by}){reason}"
            raise Forbidden(message, code="denied_by_policy", param="command")
        self._parts.live.check_driver()
        settings = self._parts.settings
        if timeout_ms is None:
            return settings.command_seconds
        return min(timeout_ms / 1000, settings.command_seconds_max)

    async def run(
        self, project: str, container_id: str, command: str, seconds: float, *, who: str, on_output: Output
    ) -> Ran:
        """Carry it out. When this is cancelled the command ends, and what it did is committed all the same."""
        held = await self._containers.get(project, container_id)
        note = ExecNote(id=ids.new_id("exec"), command=command, at=self._parts.records.now(), who=who)
        await self._containers.held.note(project, container_id, note)
        workspace = await self._containers.workspace(held)
        executed: Executed | None = None
        try:
            executed = await workspace.execute(
                command, timeout=seconds, output_bytes=self._parts.settings.output_bytes, on_output=on_output
            )
        finally:
            # In a task of its own: a client that goes away must not keep the note from being written.
            ending = asyncio.get_running_loop().create_task(self._end(held, workspace, note, executed))
            after = await asyncio.shield(ending)
        head = after.state.head
        return Ran(executed, "" if head is None else head.id)

    async def _end(
        self, held: Held[Container], workspace: Workspace, note: ExecNote, executed: Executed | None
    ) -> Held[Container]:
        ended = msgspec.structs.replace(
            note,
            at=self._parts.records.now(),
            ended=True,
            exit_code=None if executed is None else executed.exit_code,
            timed_out=executed is not None and executed.timed_out,
        )
        async with self._containers.changing(held.id):
            now = await self._containers.get(held.project, held.id)
            fact = self._containers.held.noted(held.id, ended)
            return await self._containers.keep(now, workspace, EXEC, also=[fact])
