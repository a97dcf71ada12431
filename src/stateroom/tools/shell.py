"""The hosted shell: commands in the container of the run, those of one call at the same time."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from stateroom.journal.entries import Effect, Item
from stateroom.journal.hosted_items import caller_of
from stateroom.settings import WorkspaceSettings
from stateroom.tools.tool import HostedFunction, Printed, ToolCall, ToolResult
from stateroom.workspaces.live.jobs import told_of
from stateroom.workspaces.live.shapes import ended_for
from stateroom.workspaces.live.workspace import Executed, Workspace

COMMANDS_MAX: Final = 32
COMMAND_BYTES: Final = 128 * 1024
"""What the system takes as one argument."""


class ShellTool:
    """Implements `tools.tool.Tool` for `shell`."""

    type = "shell"
    function: HostedFunction | None = None

    def __init__(self, settings: WorkspaceSettings) -> None:
        self._settings = settings

    def effect(self, call: ToolCall) -> Effect:
        return Effect.EFFECT

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        action = call.item["action"]
        commands: list[str] = action["commands"]
        problem = _problem(commands)
        if problem or call.workspace is None:
            return ToolResult(problem or "There is no container for this call.", failed=True)
        workspace: Workspace = await call.workspace()
        seconds = self._seconds(action.get("timeout_ms"))
        kept = self._kept(action.get("max_output_length"), len(commands))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_execute(workspace, command, position, seconds, kept, printed))
                    for position, command in enumerate(commands)
                ]
        except ExceptionGroup as broken:  # where one cannot be carried out, none can
            raise broken.exceptions[0] from None
        done = [task.result() for task in tasks]
        # A program may throw away what it is told: it is the model that is to know.
        gone = "" if caller_of(call.item) else told_of(workspace.take_ended())
        item: Item = {
            "type": "shell_call_output",
            "call_id": call.item["call_id"],
            "output": [_chunk(each, "" if at else gone) for at, each in enumerate(done)],
        }
        if action.get("max_output_length") is not None:
            item["max_output_length"] = action["max_output_length"]
        return ToolResult(item=item, failed=any(each.timed_out or each.exit_code for each in done))

    def _seconds(self, asked_ms: Any) -> float:
        """How long a command may take. What is no time is as if nothing was said."""
        if not isinstance(asked_ms, int) or asked_ms <= 0:
            return self._settings.command_seconds
        return min(asked_ms / 1000, self._settings.command_seconds_max)

    def _kept(self, asked: Any, commands: int) -> int:
        """How much of the output of each command is kept: they share what there is for a call."""
        share = max(1, self._settings.output_bytes // commands)
        return min(asked, share) if isinstance(asked, int) and asked > 0 else share


def _problem(commands: list[str]) -> str:
    if not commands:
        return "There is no command in this call."
    if len(commands) > COMMANDS_MAX:
        return f"A call may hold at most {COMMANDS_MAX} commands."
    if any(len(command.encode(errors="replace")) >= COMMAND_BYTES for command in commands):
        return f"A command is longer than {COMMAND_BYTES} bytes. Write it to a file, and run that."
    return "A command holds a zero byte." if any("\0" in command for command in commands) else ""


async def _execute(
    workspace: Workspace, command: str, position: int, seconds: float, kept: int, printed: Printed | None
) -> Executed:
    on_output = None if printed is None else partial(_print, printed, position)
    return await workspace.execute(command, timeout=seconds, output_bytes=kept, on_output=on_output)


def _print(printed: Printed, position: int, stream: str, text: str) -> None:
    printed(position, text if stream == "stdout" else "", text if stream == "stderr" else "")


def _chunk(done: Executed, gone: str) -> dict[str, Any]:
    """What came of a command, as the item shows it; what the model should know besides is added to stderr."""
    notes = []
    if done.restarted:
        notes.append("[the environment was restarted: files are as they were, processes are gone]")
    if done.breach:
        notes.append(ended_for(done.breach))
    if gone:
        notes.append(gone)
    if done.background:
        notes.append("[still running: " + "; ".join(done.background) + "]")
    stderr = "\n".join([part for part in (done.stderr, *notes) if part])
    ended = {"type": "exit", "exit_code": done.exit_code or 0}
    outcome = {"type": "timeout"} if done.timed_out or done.exit_code is None else ended
    return {"stdout": done.stdout, "stderr": stderr, "outcome": outcome}
