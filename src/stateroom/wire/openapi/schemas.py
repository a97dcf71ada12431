"""From structs to the JSON Schemas of an OpenAPI document.

Bodies of requests are described by the very structs that decode them, with everything nested written where it is used.
Answers have shapes of their own (the modules beside this one), each of which is a named component.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec

Schema: TypeAlias = dict[str, Any]

_COMPONENTS: Final = "#/components/schemas/"
_NULL: Final[Schema] = {"type": "null"}

OutputItem = Annotated[Any, msgspec.Meta(extra_json_schema={"$ref": f"{_COMPONENTS}Item"})]
"""A field of a shape that holds an item of any type."""
ShownPart = Annotated[Any, msgspec.Meta(extra_json_schema={"$ref": f"{_COMPONENTS}Part"})]
"""A content part of any type."""
OWN: Final[Schema] = {"x-stateroom-extension": True}
"""Of a field that OpenAI's API does not have."""
Time = Annotated[int, msgspec.Meta(description="Seconds since 1970.")]


def ref(name: str) -> Schema:
    """A named component."""
    return {"$ref": _COMPONENTS + name}


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": [inner for each in schemas for inner in _alternatives(each)]}


def list_of(schema: Schema, **bounds: Any) -> Schema:
    return {"type": "array", "items": schema, **bounds}


def text(about: str = "", **bounds: Any) -> Schema:
    """A string."""
    return {"type": "string", **({"description": about} if about else {}), **bounds}


def one_of(*values: str) -> Schema:
    """A string that is one of these."""
    return {"type": "string", "enum": list(values)}


def nullable(schema: Schema) -> Schema:
    return any_of(schema, dict(_NULL))


def fields(properties: Mapping[str, Schema], required: Iterable[str] = (), about: str = "") -> Schema:
    """An object. Fields beyond these may be added later."""
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if about:
        schema["description"] = about
    if needed := [name for name in properties if name in set(required)]:
        schema["required"] = needed
    return schema


def whole(properties: Mapping[str, Schema], about: str = "") -> Schema:
    """An object that has all of these fields."""
    return fields(properties, properties, about)


def page_of(name: str) -> Schema:
    """A page of a list of these components."""
    return whole(
        {
            "object": {"const": "list"},
            "data": list_of(ref(name)),
            "first_id": nullable(text()),
            "last_id": nullable(text()),
            "has_more": {"type": "boolean", "description": "Whether `after` with `last_id` gives more."},
        }
    )


def deleted(kind: str) -> Schema:
    """What is answered to a deletion; `kind` is the `object`."""
    return whole({"id": text(), "object": {"const": kind}, "deleted": {"const": True}})


def shapes(types: Iterable[type[msgspec.Struct]]) -> dict[str, Schema]:
    """The shapes of answers, and those within them, as components by name."""
    _, found = msgspec.json.schema_components(tuple(types), ref_template=_COMPONENTS + "{name}")
    return {name: _tidy(schema, {}) for name, schema in found.items()}


def body_of(
    kind: type[msgspec.Struct],
    *,
    required: Collection[str] = (),
    never: Mapping[str, str] = {},
    replaced: Mapping[str, Schema] = {},
    about: Mapping[str, str] = {},
) -> Schema:
    """The schema of a request's body, from the struct that decodes it.

    `required`: fields that the struct leaves to later checks. `never`: fields that are refused whatever they hold, and
    why. `replaced`: what is checked more closely than the struct says. `about`: what fields are for.
    """
    _, found = msgspec.json.schema_components((kind,), ref_template=_COMPONENTS + "{name}")
    schema: Schema = _tidy(found[_name_of(kind, found)], found)
    held: dict[str, Schema] = schema["properties"]
    for name in {*never, *replaced, *about, *required} - held.keys():
        raise KeyError(f"{kind.__qualname__} has no field {name}")
    for name, reason in never.items():
        held[name] = {"type": "null", "description": f"Not supported. {reason}"}
    for name, other in replaced.items():
        held[name] = other
    for name in required:
        held[name] = without_null(held[name])
        if held[name] == {"type": "string"}:
            held[name] = text(minLength=1)
    for name, said in about.items():
        held[name] = {"description": said, **held[name]}
    needed = [name for name in held if name in {*schema.get("required", ()), *required}]
    if needed:
        schema["required"] = needed
    return schema


def without_null(schema: Schema) -> Schema:
    """The same, but for null."""
    choices = [each for each in schema.get("anyOf", ()) if each != _NULL]
    if not choices:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**choices[0], **rest} if len(choices) == 1 else {"anyOf": choices, **rest}


def _name_of(kind: type[msgspec.Struct], found: Mapping[str, Schema]) -> str:
    whole_name = f"{kind.__module__}.{kind.__qualname__}"
    return whole_name if whole_name in found else kind.__name__


def _tidy(schema: Any, inlined: Mapping[str, Schema]) -> Any:
    """msgspec's schema in fewer words. What `inlined` has takes the place of references to it."""
    if isinstance(schema, list):
        return [_tidy(each, inlined) for each in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).removeprefix(_COMPONENTS)
    if name in inlined:
        return _tidy({key: value for key, value in inlined[name].items() if key != "description"}, inlined)
    tidy: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            tidy[key] = {field: _tidy(each, inlined) for field, each in value.items()}
        elif key == "pattern":
            tidy[key] = value.replace(r"\A", "^").replace(r"\Z", "$")
        elif key == "enum" and len(value) == 1:
            tidy["const"] = value[0]
        elif not _is_noise(key, value, inlined):
            tidy[key] = _tidy(value, inlined)
    if "anyOf" in tidy:
        tidy["anyOf"] = [inner for each in tidy["anyOf"] for inner in _alternatives(each)]
    return tidy


def _is_noise(key: str, value: Any, inlined: Mapping[str, Schema]) -> bool:
    if key == "title" or (key == "required" and not value):
        return True
    if key == "default" and (value is None or not inlined):  # a shape's default only says that a field may be absent
        return True
    return key == "discriminator" and bool(inlined)


def _alternatives(schema: Schema) -> list[Schema]:
    return schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
