"""The gate: which rule decides, and what it looks at."""

from __future__ import annotations

from typing import Any

import pytest

from stateroom.access.policy import Decision, Policy, named, parts_of
from stateroom.settings import PolicyRule

SHELL: dict[str, Any] = {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls", "rm -rf /"]}}
PATCH: dict[str, Any] = {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a/b"}}
MCP: dict[str, Any] = {"type": "mcp_call", "server_label": "git", "name": "push", "arguments": '{"force":true}'}
CODE: dict[str, Any] = {"type": "code_interpreter_call", "code": "1 + 1"}


def test_without_rules_every_call_is_allowed() -> None:
    assert Policy(()).decide("p", "shell", [("ls",)]) == Decision("allow", "default")


def test_the_first_rule_that_matches_decides() -> None:
    policy = Policy(
        (
            PolicyRule("deny", tool="shell", arguments=r"\brm\b", reason="nothing is deleted here"),
            PolicyRule("ask", tool="mcp.git.*"),
            PolicyRule("ask", tool="shell", project="team-*"),
            PolicyRule("allow", tool="*"),
        )
    )
    assert policy.decide("p", "shell", parts_of(SHELL)) == Decision("deny", "rule 1", "nothing is deleted here")
    assert policy.decide("p", named(MCP, "mcp"), parts_of(MCP)).decision == "ask"
    assert policy.decide("team-a", "shell", [("ls",)]).by == "rule 3"
    assert policy.decide("p", "shell", [("ls",)]).by == "rule 4"


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        (SHELL, [("ls",), ("rm -rf /",)]),
        (PATCH, [("a/b", "")]),
        (MCP, [('{"force":true}',)]),
        (CODE, [("1 + 1",)]),
        ({"type": "stateroom:tool_call"}, [("",)]),
    ],
)
def test_rules_look_at_the_parts_of_a_call(item: dict[str, Any], parts: list[tuple[str, ...]]) -> None:
    assert parts_of(item) == parts


def test_what_allows_has_to_fit_every_part_and_what_denies_any() -> None:
    policy = Policy((PolicyRule("allow", arguments="^ls"), PolicyRule("deny")))
    assert policy.decide("p", "shell", [("ls",)]).decision == "allow"
    assert policy.decide("p", "shell", [("ls",), ("echo no",)]).decision == "deny"
    assert policy.decide("p", "shell", []).decision == "deny"
    inside = Policy((PolicyRule("allow", arguments="^src/"), PolicyRule("deny")))
    assert inside.decide("p", "apply_patch", [("src/a.py", "+x")]).decision == "allow"
    assert inside.decide("p", "apply_patch", [("a.py", "+x")]).decision == "deny"


def test_an_expression_that_is_none_is_named_with_its_rule() -> None:
    with pytest.raises(ValueError, match="rule 2 of `policy`"):
        Policy((PolicyRule("allow"), PolicyRule("deny", arguments="(")))


@pytest.mark.parametrize(
    "arguments",
    [
        '{"repo":"production"}',
        '{"repo": "production"}',
        '{"repo" :\n"production"}',
        '{"repo":"\\u0070roduction"}',
        '{"r\\u0065po":"production"}',
        '{"repo":"test","repo":"production"}',
    ],
)
def test_however_json_is_written_what_it_means_is_looked_at(arguments: str) -> None:
    asks = Policy((PolicyRule("ask", tool="mcp.git.*", arguments='"repo": ?"production"'),))
    allows = Policy((PolicyRule("allow", arguments='"repo": ?"test"'), PolicyRule("deny")))
    parts = parts_of({**MCP, "arguments": arguments})
    assert asks.decide("p", "mcp.git.push", parts).decision == "ask"
    assert allows.decide("p", "mcp.git.push", parts).decision == "deny"
    assert allows.decide("p", "mcp.git.push", parts_of({**MCP, "arguments": '{"repo": "test"}'})).decision == "allow"


@pytest.mark.parametrize("path", ["keys/a", "./keys/a", "/workspace/keys/a", "/mnt/data//keys/./a", ".//keys/a"])
def test_however_a_path_is_written_what_it_leads_to_is_looked_at(path: str) -> None:
    policy = Policy((PolicyRule("deny", arguments="^keys/"),))
    assert policy.decide("p", "apply_patch", parts_of({**PATCH, "operation": {"path": path}})).decision == "deny"


def test_what_a_deletion_has_no_use_for_does_not_allow_it() -> None:
    policy = Policy((PolicyRule("allow", arguments="^src/"), PolicyRule("deny")))
    operation = {"type": "delete_file", "path": "deploy.sh", "diff": "src/"}
    assert policy.decide("p", "apply_patch", parts_of({**PATCH, "operation": operation})).decision == "deny"
