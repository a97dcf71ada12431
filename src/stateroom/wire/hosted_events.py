"""The events between the beginning and the end of items that the runtime itself writes: which, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from stateroom.journal.entries import Item

Event: TypeAlias = tuple[str, dict[str, Any]]
"""Type and fields."""

EMPTY: Final[dict[str, dict[str, Any]]] = {
    "shell_call": {"action": {"commands": []}},
    "shell_call_output": {"output": []},
    "local_shell_call": {"action": {"type": "exec", "command": [], "env": {}}},
    "apply_patch_call": {"operation": {"type": "update_file", "path": "", "diff": ""}},
    "code_interpreter_call": {"code": "", "outputs": None},
    "mcp_call": {"arguments": "", "output": None, "error": None},
    "mcp_list_tools": {"tools": []},
    "tool_search_call": {"arguments": {}},
}
"""What of such an item is not there yet when it begins, by its type."""

IN_PROGRESS: Final = frozenset((*EMPTY, "tool_search_output", "program")) - {"mcp_list_tools", "program"}
"""Types that have a status, which is `in_progress` when they begin."""

TOLD: Final = frozenset(("response.code_interpreter_call_code.done", "response.mcp_call_arguments.done"))
"""After one of these the call has been told; what is left is its outcome."""


def opened(kind: str, place: dict[str, Any]) -> Iterator[Event]:
    """Right after such an item was announced."""
    if kind in ("code_interpreter_call", "mcp_call", "mcp_list_tools"):
        yield f"response.{kind}.in_progress", place


def called(item: Item, place: dict[str, Any]) -> Iterator[Event]:
    """The model has written the call; it is carried out next."""
    kind = item.get("type")
    if kind == "code_interpreter_call":
        code = item.get("code") or ""
        if code:
            yield "response.code_interpreter_call_code.delta", {**place, "delta": code}
        yield "response.code_interpreter_call_code.done", {**place, "code": code}
        yield "response.code_interpreter_call.interpreting", place
    elif kind == "mcp_call":
        arguments = item.get("arguments") or ""
        if arguments:
            yield "response.mcp_call_arguments.delta", {**place, "delta": arguments}
        yield "response.mcp_call_arguments.done", {**place, "arguments": arguments}


def closing(item: Item, place: dict[str, Any], *, told: bool) -> Iterator[Event]:
    """Right before the item is shown as done. `told`: what `called` gives was given."""
    kind, index = item.get("type"), place["output_index"]
    if not told:
        yield from called(item, place)
    if kind == "code_interpreter_call":
        yield "response.code_interpreter_call.completed", place
    elif kind == "mcp_call":
        well = item.get("status", "completed") == "completed"
        yield f"response.mcp_call.{'completed' if well else 'failed'}", place
    elif kind == "mcp_list_tools":
        yield f"response.mcp_list_tools.{'failed' if item.get('error') else 'completed'}", place
    elif kind == "shell_call":
        for position, command in enumerate(item["action"].get("commands") or ()):
            where = {"output_index": index, "command_index": position}
            yield "response.shell_call_command.added", {**where, "command": ""}
            if command:
                yield "response.shell_call_command.delta", {**where, "delta": command}
            yield "response.shell_call_command.done", {**where, "command": command}
    elif kind == "shell_call_output":
        for position, chunk in enumerate(item["output"]):
            yield "response.shell_call_output_content.done", {**place, "command_index": position, "output": [chunk]}


def printed(place: dict[str, Any], command: int, stdout: str, stderr: str) -> Event:
    """A command said something."""
    said = {"stdout": stdout, "stderr": stderr}
    return "response.shell_call_output_content.delta", {**place, "command_index": command, "delta": said}
