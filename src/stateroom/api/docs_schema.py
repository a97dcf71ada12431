"""Schemas of the OpenAPI document as HTML: what a field may hold in a few words, and objects as tables of fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any, Final, TypeAlias

Schema: TypeAlias = dict[str, Any]

_CODE: Final = re.compile(r"`([^`]+)`")
_BOUNDS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "maxProperties": "at most {} pairs",
    "default": "{} when absent",
}


def prose(text: str) -> str:
    """Plain text with `code` in it."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def name_of(schema: Schema) -> str:
    """The component that is referred to; '' when it is none."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


def link(name: str) -> str:
    return f'<a href="#schema-{escape(name)}">{escape(name)}</a>'


def kind(schema: Schema) -> str:
    """What a value may be, in a few words."""
    if name := name_of(schema):
        return link(name)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(each) for each in schema["anyOf"]))
    if "const" in schema:
        return f"<code>{_json(schema['const'])}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{_json(each)}</code>" for each in schema["enum"])
    plain = str(schema.get("type", "anything"))
    if plain == "array":
        inner = schema.get("items", {})
        listed = kind(inner)
        return f"array of ({listed})" if " or " in listed else f"array of {listed}"
    if schema.get("format") == "binary":
        return "file"
    if plain == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {kind(schema['additionalProperties'])}"
    return plain


def without_nulls(schema: Any) -> Any:
    """The same, in which nothing may be null."""
    if isinstance(schema, list):
        return [without_nulls(each) for each in schema if each != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    return {key: without_nulls(value) for key, value in schema.items()}


def body(schema: Schema) -> str:
    """All of a schema: its description, and its fields or what it may be."""
    parts = [f"<p>{prose(schema['description'])}</p>"] if "description" in schema else []
    if "properties" in schema:
        parts.append(table(schema))
    else:
        parts.append(f'<p class="kind">{kind(schema)}</p>')
        parts += [table(each) for each in schema.get("anyOf", ()) if "properties" in each]
    return "".join(parts)


def table(schema: Schema) -> str:
    """The fields of an object."""
    needed = set(schema.get("required", ()))
    rows = "".join(_row(name, held, name in needed) for name, held in schema["properties"].items())
    return f'<dl class="fields">{rows}</dl>'


def _row(name: str, schema: Schema, needed: bool) -> str:
    required = '<span class="required">required</span>' if needed else ""
    about = f"<p>{prose(schema['description'])}</p>" if "description" in schema else ""
    bounds = ", ".join(bounds_of(schema))
    held = f'<p class="bounds">{prose(bounds)}</p>' if bounds else ""
    nested = "".join(
        f"<details><summary>{_heading(each)}</summary>{table(each)}</details>" for each in _objects(schema)
    )
    head = f'<code class="name">{escape(name)}</code> <span class="kind">{kind(schema)}</span> {required}'
    return f"<dt>{head}</dt><dd>{about}{held}{nested}</dd>"


def bounds_of(schema: Schema) -> Iterator[str]:
    """What holds for the value beyond its type."""
    for each in [schema, *schema.get("anyOf", ())]:
        for word, said in _BOUNDS.items():
            if word in each and (word, each[word]) != ("minLength", 1):
                value = each[word]
                yield said.format(f"`{value}`" if isinstance(value, str) else f"{value:,}".replace(",", "\u202f"))


def _objects(schema: Schema) -> Iterator[Schema]:
    """The objects within, that are described where they are used."""
    if "properties" in schema:
        yield schema
    for each in schema.get("anyOf", ()):
        yield from _objects(each)
    if "items" in schema:
        yield from _objects(schema["items"])


def _heading(schema: Schema) -> str:
    kinds = schema["properties"].get("type", {})
    return f"fields of <code>{_json(kinds['const'])}</code>" if "const" in kinds else "fields"


def _json(value: object) -> str:
    return escape(value) if isinstance(value, str) else escape(str(value).lower())
