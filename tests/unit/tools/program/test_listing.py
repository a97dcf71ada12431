"""The description that a model reads."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stateroom.tools.program.contract import ProgramTool
from stateroom.tools.program.listing import LISTING_CHARACTERS, program_function

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where */\nexactly"},
        "days": {"type": ["integer", "null"]},
        "unit": {"enum": ["C", "F"]},
        "tag-s": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
        "more": {"type": "object", "additionalProperties": {"type": "number"}},
        "kind": {"anyOf": [{"const": "x"}, {"type": "boolean"}]},
    },
    "required": ["city"],
    "$defs": {"tag": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
}


def test_tools_are_listed_as_types() -> None:
    text = program_function(
        [
            ProgramTool("weather", "Says */ what\nit is like.", SCHEMA, {"type": "object", "properties": {"t": {}}}),
            ProgramTool("label__do-it", parameters={"type": "object", "properties": {}}),
            ProgramTool("free"),
        ]
    ).description
    assert (
        "  /** Says * / what it is like. */\n"
        "  weather: (args: { city: string /* Where * / exactly */; days?: number | null; "
        'unit?: "C" | "F"; "tag-s"?: Array<{ name: string }>; more?: { [key: string]: number }; '
        'kind?: "x" | boolean }) => Promise<{ t?: any }>;\n'
    ) in text
    assert '  "label__do-it": (args: {}) => Promise<any>;\n' in text
    assert "  free: (text: string) => Promise<any>;\n" in text


def test_the_function_takes_code() -> None:
    function = program_function([])
    assert function.name == "program"
    assert function.parameters["required"] == ["code"]
    assert "There are no tools" in function.description


def test_the_order_of_tools_does_not_matter() -> None:
    tools = [ProgramTool(f"t{at}", f"Number {at}", SCHEMA) for at in range(20)]
    mixed = random.Random(1).sample(tools, len(tools))
    assert program_function(tools) == program_function(mixed)


def test_the_listing_is_bounded_and_names_every_tool() -> None:
    tools = [ProgramTool(f"t{at}", "x" * 10_000, SCHEMA) for at in range(128)]
    text = program_function(tools).description
    assert len(text) < LISTING_CHARACTERS + 128 * 80
    assert all(f"  t{at}: (" in text for at in range(128))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.sampled_from(["object", "array", "#", "#/a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "enum", "$ref", "anyOf", "const", "required", "a", "description"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "enum", "$ref", "anyOf", "a"]), json_like))
def test_no_schema_breaks_it(schema: dict[str, Any]) -> None:
    assert program_function([ProgramTool("t", "d", schema, schema)]).description


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    node: dict[str, Any] = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert len(program_function([ProgramTool("t", parameters=node)]).description) < 40_000
    wide = {"anyOf": [{"$ref": "#"}] * 60}
    assert len(program_function([ProgramTool("t", parameters=wide)]).description) < 40_000
