"""Deferred tools are found by what they do."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from stateroom.agent.tool_search import found_tools


class Function(NamedTuple):
    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class Held(NamedTuple):
    function: Function
    declaration: dict[str, Any]


def tool(name: str, description: str = "", **parameters: Any) -> Held:
    schema = {"type": "object", "properties": parameters}
    return Held(Function(name, description, schema), {"type": "function", "name": name})


TOOLS = (
    tool("get_weather", "The weather of a city.", city={}),
    tool("sendEmail", "Sends a message to somebody.", recipient={}),
    tool("list_files", "Names the files of a folder.", path={}),
    tool("create_invoice", "Makes an invoice for a customer.", customer={}),
)


def names(query: str, limit: int | None = None) -> list[str]:
    return [each["name"] for each in found_tools(TOOLS, query, limit)]


def test_the_tool_that_fits_best_comes_first() -> None:
    assert names("what is the weather like")[0] == "get_weather"
    assert names("send an email to Ann")[0] == "sendEmail"
    assert names("file")[0] == "list_files"
    assert names("invoices of a customer")[0] == "create_invoice"


def test_what_shares_no_word_is_not_found() -> None:
    assert names("quantum chromodynamics") == []
    assert names("") == []
    assert found_tools((), "weather") == []


def test_as_many_are_found_as_are_asked_for() -> None:
    assert len(names("a of the", 1)) <= 1
    assert len(names("a", -3)) <= 1


def test_tools_of_one_server_or_namespace_come_together() -> None:
    mine = (
        Held(Function("git__push", "Pushes."), {"type": "mcp", "server_label": "git", "allowed_tools": ["push"]}),
        Held(
            Function("git__pull", "Pulls; no push."), {"type": "mcp", "server_label": "git", "allowed_tools": ["pull"]}
        ),
        Held(Function("n__push"), {"type": "namespace", "name": "n", "description": "", "tools": [{"name": "push"}]}),
    )
    found = found_tools(mine, "push")
    assert {"type": "mcp", "server_label": "git", "allowed_tools": ["push", "pull"]} in found
    assert {"type": "namespace", "name": "n", "description": "", "tools": [{"name": "push"}]} in found


@given(st.text(max_size=50), st.lists(st.text(max_size=20), max_size=8))
def test_the_same_query_finds_the_same_tools(query: str, told: list[str]) -> None:
    tools = [tool(f"t{number}", text) for number, text in enumerate(told)]
    assert found_tools(tools, query) == found_tools(tools, query)
