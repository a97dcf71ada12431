"""Items, their content and tools, as requests bring them and as answers show them.

Both are derived from the tables that requests are checked with: what an answer shows of an item is what its client or
the model put into it, with its id and with what was left out as derivable.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from stateroom.wire.item_types import TYPES, ItemType
from stateroom.wire.items import PART_SHAPES
from stateroom.wire.openapi.schemas import (
    Schema,
    any_of,
    body_of,
    fields,
    list_of,
    one_of,
    ref,
    shapes,
    text,
    without_null,
)
from stateroom.wire.tools import SHAPES as TOOL_SHAPES

_TEXTS: Final = ("input_text", "text", "summary_text", "reasoning_text")
_PASSED_ON: Final = "Of a type that is not known here: it is kept and given back as it came."
_SOURCES: Final = {"input_image": ("image_url", "file_id"), "input_file": ("file_data", "file_url", "file_id")}


class ShownText(msgspec.Struct):
    """A text that was sent, or that tells of reasoning."""

    type: Literal["input_text", "text", "summary_text", "reasoning_text"]
    text: str


class ShownOutputText(msgspec.Struct):
    """What the model said."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[dict[str, Any]]


class ShownRefusal(msgspec.Struct):
    """What the model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class ShownImage(msgspec.Struct, omit_defaults=True):
    type: Literal["input_image"]
    detail: str
    image_url: str = ""
    file_id: str = ""


class ShownFile(msgspec.Struct, omit_defaults=True):
    type: Literal["input_file"]
    file_data: str = ""
    file_url: str = ""
    file_id: str = ""
    filename: str = ""


PARTS: Final = (ShownText, ShownOutputText, ShownRefusal, ShownImage, ShownFile)


class FunctionFormat(msgspec.Struct, omit_defaults=True):
    """A function as an answer repeats it."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: Annotated[dict[str, Any] | None, msgspec.Meta(description="JSON Schema.")]
    strict: bool
    defer_loading: bool | None = None
    is_async: bool | None = msgspec.field(name="async", default=None)
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    output_schema: Annotated[dict[str, Any] | None, msgspec.Meta(description="JSON Schema.")] = None


def item_schemas() -> dict[str, Schema]:
    """The components of items, of content parts and of tools."""
    found = shapes((*PARTS, FunctionFormat))
    found["Part"] = any_of(*(ref(kind.__name__) for kind in PARTS), _other_part())
    found["InputPart"] = any_of(*(_input_part(kind) for kind in (*_TEXTS, *PART_SHAPES)), _other_part())
    for kind, known in TYPES.items():
        found[f"{_name(kind)}Input"] = _input_item(kind, known)
        if kind != "item_reference":
            found[_name(kind)] = _shown_item(kind, known)
    found["InputItem"] = any_of(*(ref(f"{_name(kind)}Input") for kind in TYPES))
    found["Item"] = any_of(*(ref(_name(kind)) for kind in TYPES if kind != "item_reference"))
    found["Tool"] = any_of(*(_tool(kind) for kind in TOOL_SHAPES), _other_tool())
    found["ShownTool"] = any_of(ref("FunctionFormat"), _other("type", ("function",), "As it was declared."))
    found["ToolChoice"] = any_of(
        one_of("none", "auto", "required"),
        fields({"type": one_of("function", "custom"), "name": text()}, ("type", "name"), "This tool and no other."),
        fields(
            {
                "type": {"const": "allowed_tools"},
                "mode": one_of("auto", "required"),
                "tools": list_of({"type": "object"}, minItems=1),
            },
            ("type", "mode", "tools"),
            "One of these tools.",
        ),
        _other("type", ("function", "custom", "allowed_tools"), "A hosted tool or a namespace."),
    )
    return found


def _name(kind: str) -> str:
    """`function_call` is FunctionCallItem."""
    return "".join(word.capitalize() for word in kind.split("_")) + "Item"


def _input_item(kind: str, known: ItemType) -> Schema:
    replaced: dict[str, Schema] = {}
    if known.parts:
        parts = list_of(ref("InputPart"))
        replaced[known.parts] = any_of(text(), parts) if kind != "computer_call_output" else {"type": "object"}
    schema = body_of(known.shape, replaced=replaced)
    schema["properties"] = {"type": {"const": kind}, **schema["properties"]}
    if kind == "message":
        schema["description"] = "`type` may be left out."
    elif kind == "item_reference":
        schema["description"] = "An item of the context, or one that is stored. `type` may be left out."
    else:
        schema["required"] = ["type", *schema.get("required", ())]
    return schema


def _shown_item(kind: str, known: ItemType) -> Schema:
    schema = body_of(known.shape)
    held: dict[str, Schema] = {"id": text(), "type": {"const": kind}}
    for name, value in schema["properties"].items():
        if name != "id":
            nulls = name in known.derived and known.derived[name] is None
            held[name] = value if nulls else without_null(value)
    if known.parts:
        parts = list_of(ref("Part"))
        held[known.parts] = parts if kind == "message" else any_of(text(), parts, {"type": "object"})
    if kind == "compaction":
        held["created_by"] = text("The model that wrote the summary; `stateroom:fallback` when none did.")
    if kind == "reasoning":
        held["summary"] = held["content"] = list_of(ref("Part"))
    return {
        "type": "object",
        "properties": held,
        "required": [name for name in held if name in {"id", "type", *schema.get("required", ()), *known.derived}],
    }


def _input_part(kind: str) -> Schema:
    shape = PART_SHAPES.get(kind)
    schema = body_of(shape) if shape is not None else fields({"text": text()}, ("text",))
    schema["properties"] = {"type": {"const": kind}, **schema["properties"]}
    schema["required"] = ["type", *schema.get("required", ())]
    if sources := _SOURCES.get(kind):
        schema["anyOf"] = [fields({name: text(minLength=1)}, (name,)) for name in sources]
    return schema


def _tool(kind: str) -> Schema:
    schema = body_of(TOOL_SHAPES[kind])
    schema["properties"] = {"type": {"const": kind}, **schema["properties"]}
    schema["required"] = ["type", *schema.get("required", ())]
    return schema


def _other(field: str, known: tuple[str, ...], about: str) -> Schema:
    return fields({field: {"type": "string", "not": {"enum": list(known)}}}, (field,), about)


def _other_part() -> Schema:
    return _other("type", (*_TEXTS, *PART_SHAPES), _PASSED_ON)


def _other_tool() -> Schema:
    about = "A hosted tool. Some are tolerated although this server has none; most are refused, with a reason."
    return _other("type", tuple(TOOL_SHAPES), about)
