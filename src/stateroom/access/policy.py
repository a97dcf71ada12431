"""The gate before every hosted tool call: may it be made, must somebody be asked, or not at all. Pure.

The first rule that matches decides; where none does, the call is allowed. A rule with `arguments` looks at the parts of
a call: each command of a shell call, the code, the patch (its path and its diff), the arguments as JSON of any other
call. One that denies or asks matches when its expression is found in any part; one that allows, when it is in each.
What can be written in several ways is a part as it was written, and another one as it is understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

from stateroom.journal.entries import Item
from stateroom.settings import PolicyRule

DEFAULT: Final = "default"
_ROOTS: Final = ("/workspace/", "/mnt/data/")
"""By which a workspace is known inside."""


class Decision(msgspec.Struct, frozen=True):
    """What the policy says of a call."""

    decision: Literal["allow", "ask", "deny"] = "allow"
    by: str = DEFAULT
    """Which rule it was, counted from 1 (`rule 2`)."""
    reason: str = ""


class Policy:
    """The rules of this server."""

    def __init__(self, rules: Sequence[PolicyRule]) -> None:
        """Raises ValueError, with the rule's number, when an expression is none."""
        self._rules: list[tuple[PolicyRule, re.Pattern[str] | None]] = []
        for number, rule in enumerate(rules, 1):
            try:
                self._rules.append((rule, re.compile(rule.arguments) if rule.arguments else None))
            except re.error as error:
                raise ValueError(f"rule {number} of `policy`: `arguments` is no regular expression: {error}") from None

    def decide(self, project: str, tool: str, parts: Sequence[Sequence[str]]) -> Decision:
        """What is to become of a call of the tool, given its parts, each with its texts."""
        for number, (rule, wanted) in enumerate(self._rules, 1):
            if not fnmatchcase(project, rule.project) or not fnmatchcase(tool, rule.tool):
                continue
            if wanted is not None:
                found = [any(wanted.search(text) for text in texts) for texts in parts]
                if not (found and all(found) if rule.decision == "allow" else any(found)):
                    continue
            return Decision(rule.decision, f"rule {number}", rule.reason)
        return Decision()


def named(item: Item, tool: str) -> str:
    """What a rule calls the tool of this call."""
    return f"mcp.{item['server_label']}.{item['name']}" if item.get("type") == "mcp_call" else tool


def parts_of(item: Item) -> list[tuple[str, ...]]:
    """The parts of a call that rules look at, each with its texts."""
    kind = item.get("type")
    if kind == "shell_call":
        return [(str(command),) for command in item["action"].get("commands") or ()]
    if kind == "code_interpreter_call":
        return [(str(item.get("code") or ""),)]
    if kind == "apply_patch_call":
        operation: Mapping[str, Any] = item["operation"]
        path = str(operation.get("path") or "")
        diff = "" if operation.get("type") == "delete_file" else str(operation.get("diff") or "")
        return [(each, diff) for each in dict.fromkeys((path, _plain_path(path)))]
    return _written_and_meant(str(item.get("arguments") or ""))


def _plain_path(path: str) -> str:
    """A path of a workspace, in the one way in which it can be written without anything more than it takes."""
    for root in _ROOTS:
        if path.startswith(root):
            path = path[len(root) :]
            break
    return "/".join(name for name in path.split("/") if name not in ("", "."))


def _written_and_meant(text: str) -> list[tuple[str, ...]]:
    """Arguments as they came, and as a tool is given them: without escapes, spaces to taste and names twice."""
    try:
        meant = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return [(text,)]
    tight = msgspec.json.encode(meant).decode()
    return [(text,)] if text == tight else [(text,), (tight, json.dumps(meant, ensure_ascii=False))]
