"""The code interpreter: Python cells in the container of the run, with variables that stay."""

from __future__ import annotations

from typing import Any

from stateroom.journal.entries import Effect
from stateroom.journal.hosted_items import caller_of
from stateroom.settings import WorkspaceSettings
from stateroom.tools.tool import HostedFunction, Printed, ToolCall, ToolResult
from stateroom.workspaces.live.jobs import told_of
from stateroom.workspaces.live.workspace import Workspace


class CodeInterpreterTool:
    """Implements `tools.tool.Tool` for `code_interpreter`."""

    type = "code_interpreter"
    function: HostedFunction | None = None

    def __init__(self, settings: WorkspaceSettings) -> None:
        self._settings = settings

    def effect(self, call: ToolCall) -> Effect:
        return Effect.EFFECT

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        if call.workspace is None:
            return ToolResult("There is no container for this call.", failed=True)
        workspace: Workspace = await call.workspace()
        cell = await workspace.run_code(
            call.item["code"], timeout=self._settings.command_seconds, output_bytes=self._settings.output_bytes
        )
        # A program may throw away what it is told: it is the model that is to know.
        ended = "" if caller_of(call.item) else told_of(workspace.take_ended())
        logs = "\n".join([part for part in (ended, cell.logs.rstrip("\n"), cell.error or "") if part])
        if cell.timed_out and not cell.error:
            said = f"[it took longer than {self._settings.command_seconds:g} seconds and was ended]"
            logs = f"{logs}\n{said}" if logs else said
        failed = cell.error is not None or cell.timed_out or cell.died
        outputs: list[dict[str, Any]] = [{"type": "logs", "logs": logs}] if logs else []
        fields: dict[str, Any] = {"outputs": outputs}
        if failed:
            fields["status"] = "failed"
        return ToolResult(failed=failed, fields=fields, images=cell.images)
