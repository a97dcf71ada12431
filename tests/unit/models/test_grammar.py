"""Schemas for grammar engines: what comes out fits what went in, and nothing comes out that an engine chokes on."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest
from stateroom.models.grammar_pattern import simple_pattern
from stateroom.models.grammar_schema import Bounds, describe, fit, fit_arguments

TIGHT = Bounds(text=20, items=3, nodes=200)

TREE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "parent": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name", "children"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "x" * 20], ["x" * 21, 1]),
        ({"type": "string", "maxLength": 5}, ["12345"], ["123456"]),
        ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2, 3]], [[1, 2, 3, 4], ["a"]]),
        ({"type": "array", "items": False}, [[]], [[1]]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, [[1, "a"]], [["a", 1]]),
        ({"type": ["string", "null"], "maxLength": 2}, ["ab", None], ["abc", 1]),
        ({"type": "integer", "minimum": 1.5, "exclusiveMaximum": 4}, [2, 3], [1, 4]),
        ({"type": "integer", "exclusiveMinimum": 1, "maximum": 3.5}, [2, 3], [1, 4]),
        ({"enum": ["a", 1, None]}, ["a", 1, None], ["b"]),
        ({"const": {"a": 1}}, [{"a": 1}], [{}]),
        ({"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}, [{"a": 1, "b": "x"}], [{"a": 1}]),
        ({"type": "object", "properties": {"a": {}}}, [{}, {"a": True}], [{"c": 1}]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "a"}]),
        ({"type": "object"}, [{}, {"x": "a"}], [{"x": {}}]),
        ({"properties": {"a": {"type": "null"}}}, [{"a": None}], [[], {"a": 1}]),
        ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, [1, True], ["a"]),
        ({"allOf": [{"type": "string"}, {"maxLength": 2}]}, ["ab"], ["abc"]),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
            [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
            [{}],
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
                "$defs": {
                    "a": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    "b": {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
                },
            },
            [{"a": 1, "b": None}],
            [{"a": 1}, {"b": None}],
        ),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, [None], [1]),
        (True, ["x", 1.5, None, False], [{}, []]),
        ({"type": "string", "pattern": "^[A-Z]+-\\d{2}$"}, ["AB-12"], ["ab-12", "AB-1"]),
        ({"type": "string", "pattern": "b+"}, ["bb"], ["", "abba"]),
        (TREE, [{"name": "a", "children": []}, {"name": "a", "children": [], "parent": None}], [{"name": "a"}]),
    ],
)
def test_what_comes_out_allows_less_and_not_more(schema: Any, good: list[Any], bad: list[Any]) -> None:
    fitted = fit(schema, TIGHT)
    for value in good:
        jsonschema_rs.validate(fitted, value)
        jsonschema_rs.validate(schema, value)
    for value in bad:
        assert not jsonschema_rs.is_valid(fitted, value), value


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"enum": []},
        {"type": "string", "minLength": 5, "maxLength": 3},
        {"type": "array", "minItems": 3, "maxItems": 1},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "number", "minimum": 3, "maximum": 2},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"anyOf": []},
        {"$ref": "#"},
        {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]},
        {"type": "string", "minLength": 21},
        {"type": "array", "minItems": 1_000_000},
    ],
)
def test_what_nothing_fulfils_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fit(schema, TIGHT)
    assert refused.value.code == "schema_unsupported"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(count: int) -> dict[str, Any]:
    """Definitions each of which uses the next one twice."""
    pairs = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**pairs, f"d{count}": {"type": "integer"}}}


@pytest.mark.parametrize(
    "schema",
    [
        nested(100),
        doubling(30),
        {"enum": list(range(1000))},
        {"type": "object", "properties": {f"p{at}": {"type": "integer"} for at in range(500)}},
    ],
)
def test_what_is_too_large_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fit(schema, TIGHT)
    assert refused.value.code == "schema_too_large"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
OBJECTS = ["type", "object", "properties", "required", "additionalProperties", "enum", "const", "$ref", "description"]
OTHERS = ["anyOf", "allOf", "oneOf", "items", "prefixItems", "minItems", "maxItems", "minimum", "maximum"]
STRINGS = ["minLength", "maxLength", "pattern", "format"]
KEYWORDS = st.sampled_from([*OBJECTS, *OTHERS, *STRINGS])
ANYTHING = st.recursive(
    LEAVES | st.sampled_from(["object", "array", "string", "integer", "#", "#/properties", "^a+$"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=20,
)


@given(ANYTHING)
def test_nonsense_is_cut_down_or_refused(schema: Any) -> None:
    for fitting in (fit, fit_arguments):
        try:
            fitted = fitting(schema if fitting is fit or isinstance(schema, dict) else None, TIGHT)
        except InvalidRequest:
            continue
        assert describe(fitted)
        jsonschema_rs.validator_for(fitted)


def test_a_function_without_parameters_takes_none() -> None:
    for parameters in (None, {}, {"type": "object"}, {"type": "object", "properties": {}}):
        fitted = fit_arguments(parameters)
        assert jsonschema_rs.is_valid(fitted, {})
        assert not jsonschema_rs.is_valid(fitted, {"a": 1})


def test_without_bounds_lengths_stay_open() -> None:
    assert fit({"type": "object", "properties": {"a": {"type": "string"}}})["properties"]["a"] == {"type": "string"}


@pytest.mark.parametrize(
    ("pattern", "simple"),
    [
        ("^a$", "^a$"),
        ("a", "^a$"),
        (r"^\d{3}$", "^[0-9]{3,3}$"),
        (r"^[\w-]+$", "^[A-Za-z0-9_-]{1,9}$"),
        (r"^\S*?$", r"^[^ \t\n\r]{0,9}$"),
        ("^a|b$", "^(a|b)$"),
        ("^(?:ab|cd)?$", "^((ab|cd){0,1})$"),
        (r"^\/\$$", r"^/\$$"),
        (r"a\$", r"^a\$$"),
        ("^(a{1,2}){3}$", "^(a{1,2}){3,3}$"),
    ],
)
def test_a_pattern_is_spelt_out(pattern: str, simple: str) -> None:
    assert simple_pattern(pattern, 9) == simple


BROKEN = ["", "^$", "a{2,1}", "(ab", "ab)", "*a", "a**", "a||b", "()", "(|a)", "[z", "a{0}", "a^b", "a$b"]
FANCY = ["x(?=y)", "(?<n>a)", "(?i)a", r"\bword\b", r"(a)\1", r"\p{L}", "[[:alpha:]]"]
ENDLESS = ["((a{1,100}){1,100}){1,100}", "a{5000}"]


@pytest.mark.parametrize("pattern", [*BROKEN, *FANCY, *ENDLESS])
def test_a_pattern_that_is_not_understood_is_left_out(pattern: str) -> None:
    assert simple_pattern(pattern) is None


@given(st.from_regex(r"\^?([a-c]|\\d|\[a-c\]|[.]|\(a\|b\)){1,4}([*+?]|\{1,3\})?\$?", fullmatch=True), st.data())
def test_what_fits_a_simple_pattern_fits_the_original(pattern: str, data: st.DataObject) -> None:
    simple = simple_pattern(pattern, 5)
    assert simple is not None
    value = data.draw(st.from_regex(simple, fullmatch=True))
    assert re.search(pattern, value)
