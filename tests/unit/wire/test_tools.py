"""Tools: what a model is offered, what a choice means, and the way back from a call to the tool."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest, StateroomError
from stateroom.wire.call_items import build_call_item, custom_input
from stateroom.wire.items import pack
from stateroom.wire.tool_types import Function, ToolRef, ToolSet
from stateroom.wire.tools import flat_name, tool_set

WEATHER = {"type": "function", "name": "get_weather", "description": "Weather.", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "patch", "description": "Patches."}
FILES = {
    "type": "namespace",
    "name": "files",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read"}, {"type": "custom", "name": "write", "async": True}],
}
CLOCK = Function("clock", "Tells the time.", {"type": "object"})


def names(tools: ToolSet) -> list[str]:
    return [function.name for function in tools.functions]


def refusal(tools: list[Any], choice: Any = "auto", **options: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        tool_set(tools, choice, **options)
    return refused.value.code, refused.value.param


def test_functions_are_offered_as_they_are() -> None:
    tools = tool_set([{**WEATHER, "strict": True, "defer_loading": True}])
    assert tools.functions == (Function("get_weather", "Weather.", {"type": "object"}, True),)
    assert tools.lookup == {"get_weather": ToolRef("function", "get_weather")}
    assert (tools.choice, tools.allowed) == ("auto", None)
    bare = tool_set([{"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}])
    assert bare.functions == (Function("f"),)


def test_a_custom_tool_becomes_a_function_of_one_string() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    plain, constrained = tool_set([PATCH, {**PATCH, "name": "strict_patch", "format": grammar}]).functions
    assert plain.parameters is not None
    assert plain.parameters["required"] == ["input"]
    assert plain.parameters["properties"]["input"]["type"] == "string"
    assert constrained.parameters is not None
    assert 'start: "x"' in constrained.parameters["properties"]["input"]["description"]


def test_namespaces_are_flattened_and_lead_back() -> None:
    tools = tool_set([FILES, {"type": "function", "name": "read"}])
    assert names(tools) == ["files__read", "files__write", "read"]
    assert tools.lookup["files__read"] == ToolRef("function", "read", "files")
    assert tools.lookup["files__write"] == ToolRef("custom", "write", "files", True)


def test_names_that_collide_when_flattened_stay_apart() -> None:
    tools = tool_set([{"type": "function", "name": "files__read"}, FILES])
    assert len(set(names(tools))) == 3
    assert tools.lookup["files__read"] == ToolRef("function", "files__read")
    other = next(flat for flat, ref in tools.lookup.items() if ref == ToolRef("function", "read", "files"))
    assert other != "files__read"
    assert names(tool_set([{"type": "function", "name": "files__read"}, FILES])) == names(tools)


@given(st.text(min_size=1, max_size=100), st.text(max_size=100))
def test_flat_names_are_safe_and_stable(name: str, namespace: str) -> None:
    flat = flat_name(name, namespace)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", flat)
    assert flat == flat_name(name, namespace)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        assert flat_name(name) == name


def test_long_and_odd_names_stay_apart() -> None:
    flat = {flat_name(f"{'x' * 80}{n}", "mcp__server") for n in range(20)} | {flat_name("a.b"), flat_name("a:b")}
    assert len(flat) == 22


def test_hosted_tools_are_offered_when_they_exist() -> None:
    tools = tool_set([{"type": "stateroom:clock"}, WEATHER], hosted={"stateroom:clock": CLOCK})
    assert names(tools) == ["clock", "get_weather"]
    assert tools.lookup["clock"] == ToolRef("hosted", "stateroom:clock")
    chosen = tool_set([{"type": "stateroom:clock"}], {"type": "stateroom:clock"}, hosted={"stateroom:clock": CLOCK})
    assert chosen.choice == ("clock",)


@pytest.mark.parametrize(
    "kind", ["web_search", "web_search_2025_08_26", "web_search_preview", "image_generation", "tool_search"]
)
def test_what_clients_declare_by_default_is_tolerated_and_not_offered(kind: str) -> None:
    assert names(tool_set([{"type": kind}, WEATHER])) == ["get_weather"]


@pytest.mark.parametrize(
    "kind",
    [
        "file_search",
        "mcp",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "programmatic_tool_calling",
        "stateroom:unheard_of",
        "telepathy",
    ],
)
def test_hosted_tools_that_do_not_exist_are_refused(kind: str) -> None:
    assert refusal([WEATHER, {"type": kind}]) == ("unsupported_tool", "tools[1].type")


@pytest.mark.parametrize("kind", ["shell", "apply_patch"])
def test_what_is_to_work_in_a_container_is_refused_where_there_are_none(kind: str) -> None:
    tool = {"type": kind, "environment": {"type": "container_auto"}}
    assert refusal([WEATHER, tool]) == ("unsupported_tool", "tools[1].type")
    assert refusal([{"type": kind, "environment": {"type": "moon"}}])[1] == "tools[0].environment.type"


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ({"type": "shell"}, "shell"),
        ({"type": "shell", "environment": {"type": "local"}}, "shell"),
        ({"type": "local_shell"}, "local_shell"),
        ({"type": "apply_patch"}, "apply_patch"),
        ({"type": "tool_search", "execution": "client"}, "tool_search"),
    ],
)
def test_clients_carry_out_what_names_no_container(tool: dict[str, Any], name: str) -> None:
    tools = tool_set([tool])
    assert tools.lookup == {name: ToolRef("typed", tool["type"])}
    assert tools.environments == {}


@pytest.mark.parametrize(
    ("tool", "code", "param"),
    [
        ({}, "missing_required_parameter", "tools[0].type"),
        ({"type": 3}, "invalid_type", "tools[0].type"),
        ({"type": "function"}, "missing_required_parameter", "tools[0].name"),
        ({"type": "function", "name": ""}, "invalid_value", "tools[0].name"),
        ({"type": "function", "name": "f", "parameters": []}, "invalid_type", "tools[0].parameters"),
        ({"type": "function", "function": {"name": "f"}}, "missing_required_parameter", "tools[0].name"),
        ({"type": "custom", "name": "c", "format": {"type": "xml"}}, "invalid_value", "tools[0].format.type"),
        ({"type": "namespace", "name": "n"}, "missing_required_parameter", "tools[0].tools"),
        ({"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}, "invalid_value", "tools[0].tools[0].type"),
        ({"type": "namespace", "name": "", "tools": []}, "invalid_value", "tools[0].name"),
    ],
)
def test_a_malformed_declaration_is_refused_with_its_place(tool: dict[str, Any], code: str, param: str) -> None:
    assert refusal([tool]) == (code, param)


def test_a_name_is_declared_once() -> None:
    assert refusal([WEATHER, {"type": "custom", "name": "get_weather"}]) == ("duplicate_tool_name", "tools[1].name")
    assert refusal([FILES, FILES]) == ("duplicate_tool_name", "tools[1].tools[0].name")


def test_the_name_of_this_server_stands_for_tools_that_have_none() -> None:
    own = {"type": "mcp", "server_label": "stateroom", "require_approval": "always"}
    assert tool_set([own, WEATHER], hosted={"mcp": CLOCK}) == tool_set([WEATHER], hosted={"mcp": CLOCK})
    away = {**own, "server_url": "https://example.com/mcp"}
    assert refusal([away], hosted={"mcp": CLOCK}) == ("duplicate_server_label", "tools[0].server_label")


def test_items_add_tools_and_replace_earlier_ones_in_place() -> None:
    added = {"type": "additional_tools", "tools": [{**WEATHER, "description": "Better."}, FILES]}
    found = {"type": "tool_search_output", "tools": [{"type": "function", "name": "late"}]}
    tools = tool_set([WEATHER, PATCH], items=[{"role": "user", "content": "hi"}, added, found, added])
    assert names(tools) == ["get_weather", "patch", "files__read", "files__write", "late"]
    assert tools.functions[0].description == "Better."
    assert refusal([], items=[{"type": "additional_tools", "tools": [{"type": "mcp"}]}])[0] == "unsupported_tool"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "get_weather"}, ("get_weather",)),
        ({"type": "custom", "name": "patch"}, ("patch",)),
        ({"type": "function", "name": "read", "namespace": "files"}, ("files__read",)),
        ({"type": "function", "name": "files__read"}, ("files__read",)),
        ({"type": "function", "name": "files.read"}, ("files__read",)),
        ({"type": "function", "name": "read"}, ("files__read",)),
        ({"type": "namespace", "name": "files"}, ("files__read", "files__write")),
    ],
)
def test_a_choice_is_told_in_flat_names(choice: Any, expected: Any) -> None:
    tools = tool_set([WEATHER, PATCH, FILES], choice)
    assert tools.choice == expected
    assert tools.allowed is None
    assert len(tools.functions) == 4, "every tool stays in the prompt"


def test_allowed_tools_are_a_hard_limit() -> None:
    reference = [{"type": "function", "name": "get_weather"}, {"type": "namespace", "name": "files"}]
    tools = tool_set([WEATHER, PATCH, FILES], {"type": "allowed_tools", "mode": "required", "tools": reference})
    assert tools.choice == "required"
    assert tools.allowed == {"get_weather", "files__read", "files__write"}
    assert len(tools.functions) == 4
    nothing = tool_set(
        [WEATHER, {"type": "web_search"}], {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
    )
    assert nothing.allowed == frozenset()


@pytest.mark.parametrize(
    ("choice", "code", "param"),
    [
        ("sometimes", "invalid_value", "tool_choice"),
        ({}, "invalid_value", "tool_choice"),
        ({"type": []}, "invalid_value", "tool_choice"),
        ({"type": "function"}, "invalid_type", "tool_choice.name"),
        ({"type": "function", "name": "unheard_of"}, "invalid_value", "tool_choice"),
        ({"type": "function", "name": "patch"}, "invalid_value", "tool_choice"),
        ({"type": "function", "name": "get_weather", "namespace": "files"}, "invalid_value", "tool_choice"),
        ({"type": "namespace", "name": "unheard_of"}, "invalid_value", "tool_choice"),
        ({"type": "namespace"}, "invalid_value", "tool_choice"),
        ({"type": "shell"}, "invalid_value", "tool_choice"),
        ({"type": "mcp", "server_label": "s"}, "invalid_value", "tool_choice"),
        ({"type": "web_search"}, "unsupported_tool", "tool_choice"),
        ({"type": "image_generation"}, "invalid_value", "tool_choice"),
        ({"type": "allowed_tools", "mode": "none", "tools": []}, "invalid_value", "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto"}, "invalid_type", "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [3]}, "invalid_type", "tool_choice.tools[0]"),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, "unsupported_tool", "tool_choice"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]},
            "invalid_value",
            "tool_choice.tools[0]",
        ),
    ],
)
def test_a_choice_that_cannot_be_kept_is_refused(choice: Any, code: str, param: str) -> None:
    assert refusal([WEATHER, PATCH, FILES, {"type": "web_search"}], choice) == (code, param)


def test_requiring_a_call_needs_something_to_call() -> None:
    assert refusal([], "required") == ("unsupported_tool", "tool_choice")
    assert refusal([{"type": "web_search"}], "required") == ("unsupported_tool", "tool_choice")
    assert tool_set([], "none").choice == "none"


def test_a_call_leads_back_to_an_item_of_the_tool() -> None:
    lookup = tool_set([WEATHER, FILES, {**PATCH, "name": "p"}]).lookup
    assert build_call_item(lookup["get_weather"], "c", "{}") == {
        "type": "function_call",
        "call_id": "c",
        "name": "get_weather",
        "arguments": "{}",
    }
    write = build_call_item(lookup["files__write"], "c", '{"input": "text"}')
    assert write == {
        "type": "custom_tool_call",
        "call_id": "c",
        "name": "write",
        "input": "text",
        "namespace": "files",
        "async": True,
    }
    assert pack(write) == write
    with pytest.raises(ValueError, match="hosted"):
        build_call_item(ToolRef("hosted", "x"), "c", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\nb"}', "a\nb"),
        ('"a"', "a"),
        ("*** Begin Patch", "*** Begin Patch"),
        ('{"input": 3}', '{"input": 3}'),
        ('{"other": "a"}', '{"other": "a"}'),
        ("[1]", "[1]"),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_custom_tool_gets_its_text_however_the_model_wrapped_it(arguments: str, text: str) -> None:
    assert custom_input(arguments) == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["function", "custom", "namespace", "f", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "name", "tools", "mode", "format", "parameters"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["type", "name", "tools", "format"]), json_values), max_size=3),
    json_values,
)
def test_nothing_but_our_errors_comes_out_of_odd_tools(tools: list[dict[str, Any]], choice: Any) -> None:
    try:
        made = tool_set(tools, choice)
    except StateroomError:
        return
    assert set(made.lookup) == set(names(made))


def test_a_tool_is_offered_to_those_who_may_call_it() -> None:
    hosted = {"programmatic_tool_calling": Function("program"), "stateroom:clock": CLOCK}
    both, programs = ["direct", "programmatic"], ["programmatic"]
    tools = tool_set(
        [
            {"type": "programmatic_tool_calling"},
            {**WEATHER, "allowed_callers": programs, "output_schema": {"type": "string"}},
            {"type": "stateroom:clock", "allowed_callers": both},
            {"type": "namespace", "name": "n", "tools": [{**PATCH, "name": "p", "allowed_callers": programs}]},
            {"type": "shell", "environment": {"type": "local"}, "allowed_callers": both},
        ],
        hosted=hosted,
    )
    assert names(tools) == ["program", "clock", "shell"]
    assert [each.name for each in tools.programmatic] == ["get_weather", "clock", "n__p", "shell"]
    assert tools.programmatic[0].output_schema == {"type": "string"}
    chosen = tool_set([{"type": "programmatic_tool_calling"}], {"type": "programmatic_tool_calling"}, hosted=hosted)
    assert chosen.choice == ("program",)


def test_a_choice_of_what_the_model_may_not_call_is_refused() -> None:
    tool = {**WEATHER, "allowed_callers": ["programmatic"]}
    assert refusal([tool], {"type": "function", "name": "get_weather"}) == ("invalid_value", "tool_choice")
    wrong = refusal([{**WEATHER, "allowed_callers": ["anybody"]}])
    assert wrong == ("invalid_value", "tools[0].allowed_callers[0]")
