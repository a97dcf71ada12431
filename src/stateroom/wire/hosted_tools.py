"""Tools with item types of their own: how a model is offered them, and the items that its calls become.

The shell, patches and the code interpreter are carried out by the server in a container, or by the client, as the
declaration says. Whoever does it, a model knows them as functions and the caller as `shell_call`, `apply_patch_call`,
`code_interpreter_call`, `mcp_call` and `tool_search_call`. An item that the runtime is to carry out says so in its
field `hosted`, which never leaves the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from stateroom.journal.entries import Item
from stateroom.journal.hosted_items import (
    APPROVAL_REQUEST,
    HOSTED,
    LOCAL_SHELL,
    PATCH,
    PROGRAM,
    PYTHON,
    SEARCH,
    SHELL,
)
from stateroom.wire.tool_types import Function, ToolRef

IN_CONTAINERS: Final = frozenset({"shell", "apply_patch", "code_interpreter"})
"""Types of tools that work in a container."""

PROGRAMMATIC: Final = "programmatic_tool_calling"
"""Type of the tool that lets the model write programs."""

_STRING: Final = {"type": "string"}
_COMMANDS_SAID: Final = {
    "type": "object",
    "properties": {
        "output": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "stdout": _STRING,
                    "stderr": _STRING,
                    "outcome": {
                        "type": "object",
                        "properties": {"type": {"enum": ["exit", "timeout"]}, "exit_code": {"type": "integer"}},
                        "required": ["type"],
                    },
                },
                "required": ["stdout", "stderr", "outcome"],
            },
        }
    },
    "required": ["output"],
}
"""What a shell call gives to a program: for each command what it said, and how it ended."""

FUNCTIONS: Final[dict[str, Function]] = {
    "shell": Function(
        SHELL,
        "Runs shell commands (bash) in a persistent Linux environment and returns what they print. Commands of one "
        "call run at the same time, each from the working directory; put commands that depend on each other into "
        "one, with `&&`. There is no terminal: nothing can be asked while a command runs.",
        {
            "type": "object",
            "properties": {
                "commands": {"type": "array", "items": _STRING, "description": "The commands."},
                "timeout_ms": {"type": "integer", "description": "How long each may take, in milliseconds."},
                "max_output_length": {"type": "integer", "description": "How many characters to return of each."},
            },
            "required": ["commands"],
            "additionalProperties": False,
        },
        output_schema=_COMMANDS_SAID,
    ),
    "local_shell": Function(
        LOCAL_SHELL,
        "Runs one command on the user's machine and returns what it prints.",
        {
            "type": "object",
            "properties": {
                "command": {"type": "array", "items": _STRING, "description": "The program and its arguments."},
                "working_directory": {**_STRING, "description": "Where to run it."},
                "timeout_ms": {"type": "integer", "description": "How long it may take, in milliseconds."},
                "env": {"type": "object", "additionalProperties": _STRING, "description": "Environment variables."},
            },
            "required": ["command"],
            "additionalProperties": False,
        },
    ),
    "apply_patch": Function(
        PATCH,
        "Creates, changes or deletes one file. `diff` is a V4A diff without file headers: for a new file, every line "
        "begins with `+`; for a change, sections begin with `@@` (and, after it, the line of a class or function in "
        "which they stand), and lines begin with a space (unchanged, three before and after each change), `-` (taken "
        "out) or `+` (put in).",
        {
            "type": "object",
            "properties": {
                "operation": {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
                        "path": {**_STRING, "description": "The file, relative to the working directory."},
                        "diff": {**_STRING, "description": "The diff; left out to delete the file."},
                    },
                    "required": ["type", "path"],
                    "additionalProperties": False,
                }
            },
            "required": ["operation"],
            "additionalProperties": False,
        },
    ),
    "code_interpreter": Function(
        PYTHON,
        "Runs Python code in a persistent interpreter: variables stay from call to call. Returns what the code prints, "
        "and the value of its last expression. Files are in the working directory, /mnt/data; figures are shown to the "
        "user.",
        {
            "type": "object",
            "properties": {"code": {**_STRING, "description": "The code."}},
            "required": ["code"],
            "additionalProperties": False,
        },
    ),
    "tool_search": Function(
        SEARCH,
        "Finds further tools by what they do. The tools that it names can be called from then on.",
        {
            "type": "object",
            "properties": {
                "query": {**_STRING, "description": "What the tool is to do, in a few words."},
                "limit": {"type": "integer", "description": "How many tools to find at most; 8 when left out."},
            },
            "required": ["query"],
            "additionalProperties": False,
        },
    ),
}
"""By the type of the declaration."""


class _Shell(msgspec.Struct):
    commands: list[str]
    timeout_ms: int | None = None
    max_output_length: int | None = None


class _LocalShell(msgspec.Struct):
    command: list[str]
    working_directory: str | None = None
    timeout_ms: int | None = None
    env: dict[str, str] | None = None


class _Operation(msgspec.Struct):
    type: str
    path: str
    diff: str | None = None


class _Patch(msgspec.Struct):
    operation: _Operation


class _Code(msgspec.Struct):
    code: str


class _Search(msgspec.Struct):
    query: str
    limit: int | None = None


class _Program(msgspec.Struct):
    code: str


def build_item(ref: ToolRef, name: str, call_id: str, arguments: str, container: str) -> Item:
    """The packed item of a call of one of these tools, known to the model as `name`.

    What is no sense stays in `malformed` as the model wrote it: who carries the call out tells the model.
    """
    if ref.kind == "mcp":
        return _mcp_item(ref, name, arguments)
    item = _BUILDERS[ref.name](call_id, arguments, ref.hosted, container)
    if ref.hosted:
        item[HOSTED] = ref.name
    return item


def _shell_item(call_id: str, arguments: str, hosted: bool, container: str) -> Item:
    asked = _read(arguments, _Shell)
    action: dict[str, Any] = {"commands": []}
    if asked is not None:
        action = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    where = {"type": "container_reference", "container_id": container} if hosted else {"type": "local"}
    item = {"type": "shell_call", "call_id": call_id, "action": action, "environment": where}
    return item if asked is not None else {**item, "malformed": arguments}


def _local_shell_item(call_id: str, arguments: str, hosted: bool, container: str) -> Item:
    asked = _read(arguments, _LocalShell)
    action: dict[str, Any] = {"type": "exec", "command": [], "env": {}}
    if asked is not None:
        given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
        action = {"type": "exec", "env": {}, **given}
    item = {"type": "local_shell_call", "call_id": call_id, "action": action}
    return item if asked is not None else {**item, "malformed": arguments}


def _patch_item(call_id: str, arguments: str, hosted: bool, container: str) -> Item:
    asked = _read(arguments, _Patch)
    operation: dict[str, Any] = {"type": "update_file", "path": "", "diff": ""}
    if asked is not None:
        operation = {
            name: value for name, value in msgspec.structs.asdict(asked.operation).items() if value is not None
        }
        if operation["type"] != "delete_file":
            operation.setdefault("diff", "")
    item = {"type": "apply_patch_call", "call_id": call_id, "operation": operation}
    if hosted:
        item["in_container"] = container
    return item if asked is not None else {**item, "malformed": arguments}


def _code_item(call_id: str, arguments: str, hosted: bool, container: str) -> Item:
    asked = _read(arguments, _Code)
    item = {"type": "code_interpreter_call", "container_id": container}
    return {**item, "code": asked.code} if asked is not None else {**item, "code": "", "malformed": arguments}


def _search_item(call_id: str, arguments: str, hosted: bool, container: str) -> Item:
    item: Item = {"type": "tool_search_call", "call_id": call_id}
    if not hosted:  # its parameters are the client's own
        item["execution"] = "client"
        said = _read(arguments, dict[str, Any])
        return {**item, "arguments": said} if said is not None else {**item, "arguments": {}, "malformed": arguments}
    asked = _read(arguments, _Search)
    if asked is None:
        return {**item, "arguments": {}, "malformed": arguments}
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    return {**item, "arguments": given}


_BUILDERS: Final = {
    "shell": _shell_item,
    "local_shell": _local_shell_item,
    "apply_patch": _patch_item,
    "code_interpreter": _code_item,
    "tool_search": _search_item,
}


def program_item(call_id: str, arguments: str, fingerprint: Callable[[str], str]) -> Item:
    """The packed item of a program that the model wrote."""
    asked = _read(arguments, _Program)
    code = asked.code if asked is not None else ""
    item = {"type": PROGRAM, "call_id": call_id, "code": code, "fingerprint": fingerprint(code)}
    return item if asked is not None else {**item, "malformed": arguments}


def _mcp_item(ref: ToolRef, name: str, arguments: str) -> Item:
    """A call of a tool of an MCP server; the request for an approval where that is asked for beforehand."""
    said = {"server_label": ref.namespace, "name": ref.name, "arguments": arguments or "{}"}
    kept = {"called": name, "effect": ref.effect}
    if ref.needs_approval:
        return {"type": APPROVAL_REQUEST, **said, **kept}
    return {"type": "mcp_call", **said, HOSTED: "mcp", **kept}


def _read(arguments: str, shape: type[Any]) -> Any:
    try:
        return msgspec.json.decode(arguments, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
