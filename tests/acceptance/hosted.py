"""What the tests of hosted tools say to the scripted model, and how they read what came of it."""

from __future__ import annotations

import json
from typing import Any

SHELL: Any = {"type": "shell", "environment": {"type": "container_auto"}}
PYTHON: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
PATCH: Any = {"type": "apply_patch"}
OUTPUTS: Any = ["code_interpreter_call.outputs"]


def shell(*commands: str, **more: Any) -> str:
    """The control words for one shell call."""
    return f"call: shell {json.dumps({'commands': commands, **more})}"


def python(code: str) -> str:
    return f"call: python {json.dumps({'code': code})}"


def patch(kind: str, path: str, diff: str | None = None) -> str:
    operation = {"type": kind, "path": path} | ({} if diff is None else {"diff": diff})
    return f"call: apply_patch {json.dumps({'operation': operation})}"


def kinds(response: Any) -> list[str]:
    return [item.type for item in response.output]


def of_type(response: Any, kind: str) -> list[Any]:
    return [item for item in response.output if item.type == kind]


def said(response: Any) -> list[tuple[str, str, int | None]]:
    """What each command of a response said, and its exit code; None: its time was over."""
    return [
        (chunk.stdout, chunk.stderr, chunk.outcome.exit_code if chunk.outcome.type == "exit" else None)
        for item in of_type(response, "shell_call_output")
        for chunk in item.output
    ]


def container_of(response: Any) -> str:
    """The container in which the response worked."""
    for item in response.output:
        if item.type == "shell_call":
            return str(item.environment.container_id)
        if item.type == "code_interpreter_call":
            return str(item.container_id)
    raise AssertionError("the response worked in no container")


def told_kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of events, short, several deltas in a row as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if not (at and name.endswith("delta") and names[at - 1] == name)]
