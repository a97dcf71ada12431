"""JSON schemas cut down to what grammar engines turn into a grammar, and shown to a model in a few words. Pure.

What comes out allows only what the original allows, except for the keywords that engines do not know (`not`, `if`,
`uniqueItems`, `multipleOf`, look-arounds in patterns, ...): those are left out, and the answer may break them.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest

Schema: TypeAlias = dict[str, Any]

NODES_LIMIT: Final = 4_000
"""Nodes of one schema once its references are put in their places."""
UNFOLDS: Final = 2
"""How often a definition may stand inside itself."""

FORMATS: Final = frozenset({"date", "time", "date-time", "duration", "email", "ipv4", "ipv6", "uuid", "uri"})

_SCALARS: Final = ("string", "number", "boolean", "null")
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_HINTS: Final = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "maxItems": "array",
    "pattern": "string",
    "format": "string",
    "minLength": "string",
    "maxLength": "string",
    **dict.fromkeys(_NUMBERS, "number"),
}
_FANCY: Final = re.compile(r"\(\?|\\[bBAZ1-9pPkK]")
"""Look-arounds, named groups, word boundaries, back references: no grammar has them."""
_QUANTIFIER: Final = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|([*+]|\{\d+,\})([?+]?)")

_encode = msgspec.json.Encoder().encode


class Bounds(msgspec.Struct, frozen=True):
    """How long strings and lists may get at most. A very small model otherwise goes on until it is cut off."""

    text: int | None = None
    items: int | None = None


def fit(schema: Any, bounds: Bounds | None = None) -> Schema:
    """The schema, cut down. Raises InvalidRequest when it is too large."""
    return _Fitting(schema, bounds or Bounds()).node(schema, {}) or _any(bounds or Bounds())


def fit_object(schema: Schema | None, bounds: Bounds | None = None) -> Schema:
    """The same for the arguments of a function, which are an object."""
    return fit({"type": "object", "properties": {}, **(schema or {})} if not schema else schema, bounds)


class _Fitting:
    """One schema at work."""

    def __init__(self, root: Any, bounds: Bounds) -> None:
        self.root = root
        self.bounds = bounds
        self.nodes = 0

    def node(self, schema: Any, inside: dict[str, int]) -> Schema | None:
        """The schema cut down; None when nothing can fulfil it or it stands inside itself too often."""
        self.nodes += 1
        if self.nodes > NODES_LIMIT:
            raise InvalidRequest(
                f"The JSON schema has more than {NODES_LIMIT} parts; make it smaller.", code="schema_too_large"
            )
        if schema is False:
            return None
        if not isinstance(schema, dict):
            return _any(self.bounds)
        if isinstance(reference := schema.get("$ref"), str):
            return self._resolved(schema, reference, inside)
        if isinstance(schema.get("allOf"), list):
            return self.node(_merged(_without(schema, "allOf"), *schema["allOf"], root=self.root), inside)
        for union in ("anyOf", "oneOf"):
            if isinstance(schema.get(union), list):
                base = _without(schema, union)
                return self._union(schema, [_merged(base, one, root=self.root) for one in schema[union]], inside)
        fitted = self._plain(schema, inside)
        if fitted is not None and isinstance(schema.get("description"), str):
            fitted["description"] = schema["description"]
        return fitted

    def _resolved(self, schema: Schema, reference: str, inside: dict[str, int]) -> Schema | None:
        if inside.get(reference, 0) >= UNFOLDS:
            return None
        found = _lookup(self.root, reference)
        deeper = {**inside, reference: inside.get(reference, 0) + 1}
        return self.node(_merged(_without(schema, "$ref"), found, root=self.root), deeper)

    def _union(self, schema: Schema, branches: list[Any], inside: dict[str, int]) -> Schema | None:
        fitted = [one for branch in branches if (one := self.node(branch, inside)) is not None]
        if len(fitted) < 2:
            return fitted[0] if fitted else None
        described = {"description": schema["description"]} if isinstance(schema.get("description"), str) else {}
        for one in fitted:
            if described and one.get("description") == described["description"]:
                del one["description"]
        return {"anyOf": fitted, **described}

    def _plain(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        if "const" in schema:
            return {"const": schema["const"]}
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return {"enum": schema["enum"]}
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._union(schema, [{**schema, "type": one} for one in kind], inside)
        kind = kind or next((hint for keyword, hint in _HINTS.items() if keyword in schema), None)
        match kind:
            case "object":
                return self._object(schema, inside)
            case "array":
                return self._array(schema, inside)
            case "string":
                return _string(schema, self.bounds)
            case "number" | "integer":
                return {"type": kind, **{name: schema[name] for name in _NUMBERS if _is_number(schema.get(name))}}
            case "boolean" | "null":
                return {"type": kind}
        return _any(self.bounds)

    def _object(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        given = schema.get("properties")
        given = given if isinstance(given, dict) else {}
        listed = schema.get("required")
        required = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        properties: dict[str, Schema] = {}
        for name in [*given, *(name for name in required if name not in given)]:
            fitted = self.node(given.get(name, True), inside)
            if fitted is not None:
                properties[name] = fitted
            elif name in required:
                return None
        if properties or schema.get("additionalProperties") is False or not self._is_open(schema):
            needed = list(dict.fromkeys(required))
            return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
        return {"type": "object", "additionalProperties": self.node(schema.get("additionalProperties", True), inside)}

    def _is_open(self, schema: Schema) -> bool:
        """Whether an object without properties may hold any: not one that says it has none."""
        return "properties" not in schema or "additionalProperties" in schema

    def _array(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        prefix = schema.get("prefixItems")
        if isinstance(prefix, list) and prefix:
            places = [self.node(one, inside) for one in prefix]
            return None if None in places else {"type": "array", "prefixItems": places}
        items = self.node(schema.get("items", True), inside)
        least, most = _count(schema.get("minItems")) or 0, _count(schema.get("maxItems"))
        if items is None:
            return {"type": "array", "items": _any(self.bounds), "maxItems": 0} if not least else None
        fitted: Schema = {"type": "array", "items": items}
        if least:
            fitted["minItems"] = least
        most = _least(most, self.bounds.items)
        return fitted if most is None else {**fitted, "maxItems": max(least, most)}


def _string(schema: Schema, bounds: Bounds) -> Schema:
    fitted: Schema = {"type": "string"}
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and not _FANCY.search(pattern):
        fitted["pattern"] = _whole(_bounded(pattern, bounds.text))
        return fitted
    if schema.get("format") in FORMATS:
        fitted["format"] = schema["format"]
        return fitted
    least, most = _count(schema.get("minLength")) or 0, _count(schema.get("maxLength"))
    most = _least(most, bounds.text)
    if least:
        fitted["minLength"] = least
    return fitted if most is None else {**fitted, "maxLength": max(least, most)}


def _whole(pattern: str) -> str:
    """A pattern that holds for the whole string: engines take no other, and what fits it fits the search too."""
    if "|" not in pattern:
        return "^" + pattern.removeprefix("^").removesuffix("$") + "$"
    return pattern if pattern.startswith("^(") and pattern.endswith(")$") else f"^({pattern.strip('^$')})$"


def _bounded(pattern: str, most: int | None) -> str:
    """The pattern with an end to every repetition."""
    if most is None:
        return pattern

    def bound(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        least = {"*": 0, "+": 1}.get(found[2])
        least = int(found[2][1:-2]) if least is None else least
        return f"{{{least},{max(least, most)}}}"

    return _QUANTIFIER.sub(bound, pattern)


def _any(bounds: Bounds) -> Schema:
    """Anything, as far as a model can be trusted with it: no nesting, which a small one never ends."""
    return {"anyOf": [_string({}, bounds) if kind == "string" else {"type": kind} for kind in _SCALARS]}


def _merged(*schemas: Any, root: Any) -> Any:
    """All of these at once, as far as that is one schema: properties and required add up, the later of the rest wins."""
    merged: Schema = {}
    for schema in schemas:
        if schema is False:
            return False
        if not isinstance(schema, dict):
            continue
        if isinstance(reference := schema.get("$ref"), str) and len(schemas) > 2:
            schema = {**_as_dict(_lookup(root, reference)), **_without(schema, "$ref")}  # several: they must be seen
        properties = {**merged.get("properties", {}), **_as_dict(schema.get("properties"))}
        required = [*merged.get("required", ()), *(schema.get("required") or ())]
        merged |= schema
        if properties:
            merged["properties"] = properties
        if required:
            merged["required"] = list(dict.fromkeys(required))
    return merged


def _lookup(root: Any, reference: str) -> Any:
    """What `#/a/b` points to; True (anything) when there is nothing."""
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return True
        found = found[key]
    return found if reference.startswith("#") else True


def _as_dict(value: Any) -> Schema:
    return value if isinstance(value, dict) else {}


def _without(schema: Schema, name: str) -> Schema:
    return {key: value for key, value in schema.items() if key != name}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> int | None:
    return int(value) if _is_number(value) and 0 <= value < 2**31 else None


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def describe(node: Schema) -> str:
    """A fitted schema in a few words, such as `{"city": string (a city), "days"?: integer}`."""
    if "const" in node:
        return _encode(node["const"]).decode()
    if "enum" in node:
        return " | ".join([_encode(value).decode() for value in node["enum"]])
    if "anyOf" in node:
        return " | ".join([describe(one) for one in node["anyOf"]])
    kind = str(node.get("type"))
    if kind == "object" and "properties" in node:
        return "{" + ", ".join([_property(name, node) for name in node["properties"]]) + "}"
    if kind == "object":
        return "{name: " + describe(node["additionalProperties"]) + "}"
    if kind == "array" and "prefixItems" in node:
        return "[" + ", ".join([describe(one) for one in node["prefixItems"]]) + "]"
    if kind == "array":
        return f"[{describe(node['items'])}, ...]"
    return node.get("format", kind) if kind == "string" else kind


def _property(name: str, node: Schema) -> str:
    held = node["properties"][name]
    mark = "" if name in node["required"] else "?"
    note = f" ({held['description']})" if held.get("description") else ""
    return f"{_encode(name).decode()}{mark}: {describe(held)}{note}"
