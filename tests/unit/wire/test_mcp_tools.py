"""What servers say of their tools, however odd, and the shapes of errors."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.wire.mcp_tools import (
    SCHEMA_BYTES,
    error_text,
    execution_error,
    http_error,
    list_item,
    listed_tools,
    protocol_error,
    read_tool,
    sane_schema,
)

ANYTHING = {"type": "object", "properties": {}, "additionalProperties": True}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
WORDS = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "items",
        "anyOf",
        "allOf",
        "not",
        "$ref",
        "$defs",
        "enum",
        "const",
        "default",
        "description",
        "additionalProperties",
        "patternProperties",
        "minimum",
        "uniqueItems",
        "pattern",
        "examples",
        "$schema",
        "title",
    ]
)
SCHEMAS = st.dictionaries(
    WORDS, st.recursive(JSON, lambda inner: st.dictionaries(WORDS, inner, max_size=4)), max_size=5
)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_an_honest_schema_stays_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where", "minLength": 1},
            "days": {"type": ["integer", "null"], "minimum": 1, "default": 3},
            "unit": {"enum": ["c", "f"]},
            "where": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "array", "items": {"type": "number"}}]},
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"place": {"type": "object", "properties": {}}},
    }
    assert sane_schema(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        None,
        "object",
        [],
        nested(200),
        {"type": "object", "properties": {"a": {"description": "x" * 100, "enum": ["y" * SCHEMA_BYTES]}}},
        {"type": "object", "properties": {str(number): {"type": "string"} for number in range(5000)}},
    ],
)
def test_a_schema_that_cannot_be_handed_on_allows_any_object(schema: Any) -> None:
    assert sane_schema(schema) == ANYTHING


def test_what_is_no_schema_is_left_out_where_it_stands() -> None:
    schema = {
        "type": "string",
        "$schema": "https://json-schema.example/odd",
        "$id": "https://elsewhere.example/",
        "properties": {
            "a": "string",
            "b": {"type": "text", "minimum": "3", "uniqueItems": 1},
            "c": {"$ref": "https://elsewhere.example/schema.json"},
            "d": {"type": ["string", 7]},
            "e": {"pattern": "(a+)+" * 200},
        },
        "required": ["a", 7],
    }
    assert sane_schema(schema) == {
        "type": "object",
        "properties": {"a": {}, "b": {}, "c": {}, "d": {"type": ["string"]}, "e": {}},
        "required": ["a"],
    }


@given(SCHEMAS)
def test_whatever_a_server_says_becomes_a_bounded_object_schema(schema: Any) -> None:
    sane = sane_schema(schema)
    assert sane["type"] == "object"
    assert len(msgspec.json.encode(sane)) <= SCHEMA_BYTES + 100
    assert sane_schema(sane) == sane


def test_a_sane_schema_is_one() -> None:
    schema = sane_schema({"properties": {"a": {"type": "integer", "minimum": 2}}, "required": ["a"]})
    assert jsonschema_rs.validator_for(schema).is_valid({"a": 2})
    assert not jsonschema_rs.validator_for(schema).is_valid({"a": 1})


@pytest.mark.parametrize("name", [None, 7, "", "x" * 129, "a\nb", "a\x00"])
def test_a_tool_without_a_usable_name_is_passed_over(name: Any) -> None:
    assert read_tool(name, "does things", {}, None) is None


def test_a_tool_keeps_of_its_annotations_what_is_plain() -> None:
    tool = read_tool("a", None, {}, {"readOnlyHint": True, "title": "A", "odd": {"deep": []}, "long": "x" * 9999})
    assert tool is not None
    assert tool.annotations == {"readOnlyHint": True, "title": "A"}
    assert tool.description == ""


def test_a_list_of_tools_is_an_item_and_can_be_read_back() -> None:
    tools = [read_tool("a", "A tool.", {"type": "object"}, {"readOnlyHint": True}), read_tool("b", "", {}, None)]
    item = list_item("deploy", [tool for tool in tools if tool])
    assert item == {
        "type": "mcp_list_tools",
        "server_label": "deploy",
        "tools": [
            {
                "name": "a",
                "description": "A tool.",
                "input_schema": {"type": "object", "properties": {}},
                "annotations": {"readOnlyHint": True},
            },
            {"name": "b", "input_schema": {"type": "object", "properties": {}}},
        ],
    }
    assert listed_tools(item) == item["tools"]
    assert list_item("deploy", [], "no answer")["error"] == "no answer"


@given(JSON)
def test_whatever_a_client_replays_as_a_list_of_tools_is_read(tools: Any) -> None:
    for tool in listed_tools({"tools": tools if isinstance(tools, list) else [tools]}):
        assert tool["name"]


def test_of_two_tools_of_one_name_the_first_counts() -> None:
    tools = [{"name": "a", "description": "one"}, {"name": "a", "description": "two"}]
    assert [tool["description"] for tool in listed_tools({"tools": tools})] == ["one"]


def test_errors_are_told_in_words() -> None:
    assert error_text(protocol_error(-32000, "it broke")) == "MCP error -32000: it broke"
    assert error_text(http_error(401, "who are you")) == "HTTP error 401: who are you"
    assert error_text(execution_error([{"type": "text", "text": "no such city"}])) == "no such city"
    assert error_text(execution_error([])) == "The tool failed."
    assert error_text("as it was") == "as it was"
    assert error_text({"type": "mcp_tool_execution_error", "content": 7}) == "The tool failed."
    assert error_text(None) == "The tool failed."
