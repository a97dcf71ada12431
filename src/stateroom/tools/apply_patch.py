"""Patches in the container of the run: files are created, changed or deleted by V4A diffs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from stateroom.errors import NotFound, RequestError
from stateroom.journal.entries import Effect, Item
from stateroom.tools.tool import HostedFunction, Printed, ToolCall, ToolResult
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.live.workspace import Workspace
from stateroom.workspaces.patch import PatchFailed, patched

FILE_BYTES: Final = 10 * 1024 * 1024
"""The largest file that is patched."""
_ROOTS: Final = ("/workspace/", "/mnt/data/")


class ApplyPatchTool:
    """Implements `tools.tool.Tool` for `apply_patch`."""

    type = "apply_patch"
    function: HostedFunction | None = None

    def effect(self, call: ToolCall) -> Effect:
        return Effect.EFFECT

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        if call.workspace is None:
            return ToolResult("There is no container for this call.", failed=True)
        workspace: Workspace = await call.workspace()
        operation = call.item["operation"]
        try:
            with workspace.working():  # so that its files stay where they are until the patch is in them
                async with workspace.editing:
                    done = await _apply(workspace, operation, _relative(str(operation["path"])))
        except RequestError as error:
            return _result(call, str(error), failed=True)
        return _result(call, done, failed=False)


async def _apply(workspace: Workspace, operation: dict[str, Any], path: str) -> str:
    """Do it; what was done. Raises RequestError."""
    kind, diff = operation["type"], operation.get("diff") or ""
    folder = await workspace.prepare()
    if kind == "delete_file":
        await workspace.remove(path)
        return f"Deleted {path}."
    if kind == "create_file":
        if await _exists(folder, path):
            raise PatchFailed(f"{path} is there already: use `update_file`, or delete it first.")
        await workspace.write(path, _pieces(await _patched("", diff, create=True)))
        return f"Created {path}."
    if kind != "update_file":
        raise PatchFailed("`operation.type` must be `create_file`, `update_file` or `delete_file`.")
    before = await _read(folder, path)
    try:
        text = before.decode()
    except UnicodeDecodeError:
        raise PatchFailed(f"{path} is no text in UTF-8, so that it cannot be patched.") from None
    await workspace.write(path, _pieces(await _patched(text, diff)))
    return f"Updated {path}."


async def _patched(text: str, diff: str, *, create: bool = False) -> str:
    """In a thread: a large file and a diff that fits nowhere take seconds. Raises PatchFailed."""
    return await asyncio.to_thread(patched, text, diff, create=create)


async def _exists(folder: Folder, path: str) -> bool:
    try:
        await asyncio.to_thread(folder.stat, path)
    except NotFound:
        return False
    return True


async def _read(folder: Folder, path: str) -> bytes:
    return await asyncio.to_thread(folder.read, path, bytes_max=FILE_BYTES)


async def _pieces(text: str) -> AsyncIterator[bytes]:
    yield text.encode()


def _relative(path: str) -> str:
    """The path within the working directory."""
    for root in _ROOTS:
        if path.startswith(root):
            return path[len(root) :]
    return path.removeprefix("./")


def _result(call: ToolCall, text: str, *, failed: bool) -> ToolResult:
    item: Item = {"type": "apply_patch_call_output", "call_id": call.item["call_id"], "output": text}
    return ToolResult(item={**item, "status": "failed"} if failed else {**item, "status": "completed"}, failed=failed)
