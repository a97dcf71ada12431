"""JSON schemas cut down to what grammar engines turn into a grammar, and shown to a model in a few words. Pure.

What comes out allows only what the original allows, except for the keywords that engines do not know (`not`, `if`,
`uniqueItems`, `multipleOf`, look-arounds in patterns, ...): those are left out, and the answer may break them.
What no value can fulfil is refused here: an engine may never return from it.
"""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.models.grammar_pattern import REPEATS_LIMIT, simple_pattern

Schema: TypeAlias = dict[str, Any]

NESTING_LIMIT: Final = 48
UNFOLDS: Final = 2
"""How often a definition may stand inside itself."""

FORMATS: Final = frozenset({"date", "time", "date-time", "duration", "email", "ipv4", "ipv6", "uuid", "uri"})

_SCALARS: Final = ("string", "number", "boolean", "null")
_INTEGER_LIMIT: Final = 2**53
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_HINTS: Final = {
    **dict.fromkeys(("properties", "required", "additionalProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("pattern", "format", "minLength", "maxLength"), "string"),
    **dict.fromkeys(_NUMBERS, "number"),
}
"""What a schema without a type is about."""

_encode = msgspec.json.Encoder().encode


class Bounds(msgspec.Struct, frozen=True):
    """How much of what a schema leaves open is too much."""

    text: int | None = None
    """Longest string. A very small model otherwise goes on until it is cut off."""
    items: int | None = None
    """Longest list."""
    nodes: int = 5_000
    """Parts of a schema, values of enums included: engines need time for each."""


UNBOUNDED: Final = Bounds()


def fit(schema: Any, bounds: Bounds = UNBOUNDED) -> Schema:
    """The schema, cut down. Raises InvalidRequest when it is too large or nothing fulfils it."""
    fitted = _Fitting(schema, bounds).node(schema, {})
    if fitted is None:
        raise InvalidRequest("No value fulfils this JSON schema.", code="schema_unsupported")
    return fitted


def fit_arguments(schema: Schema | None, bounds: Bounds = UNBOUNDED) -> Schema:
    """The same for the arguments of a function: always an object, and one without properties when none are named."""
    schema = schema or {}
    if not any(keyword in schema for keyword in ("$ref", "allOf", "anyOf", "oneOf", "additionalProperties")):
        schema = {"properties": {}, **schema, "type": "object"}
    return fit(schema, bounds)


class _Fitting:
    """One schema at work. `inside` counts the definitions that a node stands in."""

    def __init__(self, root: Any, bounds: Bounds) -> None:
        self.root = root
        self.bounds = bounds
        self.nodes = 0
        self.nesting = 0

    def node(self, schema: Any, inside: dict[str, int]) -> Schema | None:
        """The schema cut down; None when nothing can fulfil it, or a definition stands inside itself too often."""
        self._count(1)
        self.nesting += 1
        if self.nesting > NESTING_LIMIT:
            raise _too_large(f"is nested more than {NESTING_LIMIT} deep")
        try:
            if schema is False:
                return None
            if not isinstance(schema, dict):
                return self._any()
            return self._node(schema, inside)
        finally:
            self.nesting -= 1

    def _count(self, more: int) -> None:
        self.nodes += more
        if self.nodes > self.bounds.nodes:
            raise _too_large(f"has more than {self.bounds.nodes} parts")

    def _node(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        if isinstance(reference := schema.get("$ref"), str):
            if inside.get(reference, 0) >= UNFOLDS:
                return None
            found = self._merged(_lookup(self.root, reference), _without(schema, "$ref"))
            return self.node(found, {**inside, reference: inside.get(reference, 0) + 1})
        if isinstance(parts := schema.get("allOf"), list):
            return self.node(self._merged(_without(schema, "allOf"), *parts), inside)
        for union in ("anyOf", "oneOf"):
            if isinstance(parts := schema.get(union), list):
                base = _without(_without(schema, union), "description")
                return self._union(schema, [self._merged(base, part) for part in parts], inside)
        if isinstance(kinds := schema.get("type"), list):
            return self._union(schema, [{**_without(schema, "description"), "type": kind} for kind in kinds], inside)
        fitted = self._plain(schema, inside)
        return fitted if fitted is None else _described(fitted, schema)

    def _union(self, schema: Schema, branches: list[Any], inside: dict[str, int]) -> Schema | None:
        fitted = [one for branch in branches if (one := self.node(branch, inside)) is not None]
        if len(fitted) < 2:
            return _described(fitted[0], schema) if fitted else None
        return _described({"anyOf": fitted}, schema)

    def _plain(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        if "const" in schema:
            return {"const": schema["const"]}
        if isinstance(values := schema.get("enum"), list):
            self._count(len(values))
            return {"enum": values} if values else None
        kind = schema.get("type") or next((kind for keyword, kind in _HINTS.items() if keyword in schema), None)
        match kind:
            case "object":
                return self._object(schema, inside)
            case "array":
                return self._array(schema, inside)
            case "string":
                return self._string(schema)
            case "integer":
                return _integer(schema)
            case "number":
                return _number(schema)
            case "boolean" | "null":
                return {"type": kind}
        return self._any()

    def _object(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        given = _as_dict(schema.get("properties"))
        required = _names(schema.get("required"))
        properties: dict[str, Schema] = {}
        for name in [*given, *(name for name in required if name not in given)]:
            fitted = self.node(given.get(name, True), inside)
            if fitted is not None:
                properties[name] = fitted
            elif name in required:
                return None
        open_to = schema.get("additionalProperties", "properties" not in schema)
        if properties or open_to is False:
            closed = {"properties": properties, "required": required, "additionalProperties": False}
            return {"type": "object", **closed}
        held = self.node(open_to, inside)
        return {"type": "object", "additionalProperties": held or False}

    def _array(self, schema: Schema, inside: dict[str, int]) -> Schema | None:
        prefix = schema.get("prefixItems")
        if isinstance(prefix, list) and prefix:
            places = [self.node(one, inside) for one in prefix]
            return None if None in places else {"type": "array", "prefixItems": places}
        span = _span(schema, "minItems", "maxItems", self.bounds.items)
        items = self.node(schema.get("items", True), inside)
        if span is None or (items is None and span.get("minItems")):
            return None
        return {"type": "array", "items": self._any(), "maxItems": 0} if items is None else _array_of(items, span)

    def _string(self, schema: Schema) -> Schema | None:
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and (simple := simple_pattern(pattern, self.bounds.text or REPEATS_LIMIT)):
            return {"type": "string", "pattern": simple}
        span = _span(schema, "minLength", "maxLength", self.bounds.text)
        if span is None:
            return None
        fitted: Schema = {"type": "string", **span}
        if isinstance(format := schema.get("format"), str) and format in FORMATS:
            fitted["format"] = format
        return fitted

    def _any(self) -> Schema:
        """Anything, as far as a model can be trusted with it: no nesting, which a small one never ends."""
        text = {"type": "string"} if self.bounds.text is None else {"type": "string", "maxLength": self.bounds.text}
        return {"anyOf": [text if kind == "string" else {"type": kind} for kind in _SCALARS]}

    def _merged(self, *schemas: Any) -> Any:
        """All of these at once, as far as that is one schema: properties and required add up, else the later wins."""
        merged: Schema = {}
        for schema in schemas:
            if schema is False:
                return False
            if not isinstance(schema, dict):
                continue
            if "$ref" in merged and isinstance(second := schema.get("$ref"), str):
                schema = {**_as_dict(_lookup(self.root, second)), **_without(schema, "$ref")}
            properties = {**_as_dict(merged.get("properties")), **_as_dict(schema.get("properties"))}
            required = [*_names(merged.get("required")), *_names(schema.get("required"))]
            merged = {**merged, **schema}
            if properties:
                merged["properties"] = properties
            if required:
                merged["required"] = required
        return merged


def _described(fitted: Schema, schema: Schema) -> Schema:
    text = schema.get("description")
    return {**fitted, "description": text} if isinstance(text, str) and text else fitted


def _array_of(items: Schema, span: Schema) -> Schema:
    return {"type": "array", "items": items, **span}


def _span(schema: Schema, least_name: str, most_name: str, bound: int | None) -> Schema | None:
    """Least and most of a length, with the bound for what is left open; None when they contradict each other."""
    least, most = _length(schema.get(least_name)) or 0, _length(schema.get(most_name))
    if bound is not None and least > bound:
        raise InvalidRequest(
            f"The JSON schema asks for a {least_name} of {least}; this model can be held to {bound} at most.",
            code="schema_unsupported",
        )
    if most is not None and least > most:
        return None
    if bound is not None:
        most = bound if most is None else min(bound, most)
    span = {least_name: least} if least else {}
    return span if most is None else {**span, most_name: most}


def _integer(schema: Schema) -> Schema | None:
    lowest = [math.ceil(schema["minimum"])] if _is_finite(schema.get("minimum")) else []
    highest = [math.floor(schema["maximum"])] if _is_finite(schema.get("maximum")) else []
    lowest += [math.floor(schema["exclusiveMinimum"]) + 1] if _is_finite(schema.get("exclusiveMinimum")) else []
    highest += [math.ceil(schema["exclusiveMaximum"]) - 1] if _is_finite(schema.get("exclusiveMaximum")) else []
    if lowest and highest and max(lowest) > min(highest):
        return None
    fitted: Schema = {"type": "integer"}
    if lowest:
        fitted["minimum"] = max(lowest)
    if highest:
        fitted["maximum"] = min(highest)
    return fitted


def _number(schema: Schema) -> Schema | None:
    held = {name: schema[name] for name in _NUMBERS if _is_finite(schema.get(name))}
    lowest = [held[name] for name in ("minimum", "exclusiveMinimum") if name in held]
    highest = [held[name] for name in ("maximum", "exclusiveMaximum") if name in held]
    return None if lowest and highest and max(lowest) > min(highest) else {"type": "number", **held}


def _lookup(root: Any, reference: str) -> Any:
    """What `#/a/b` points to; True (anything) when there is nothing."""
    found = root if reference.startswith("#") else True
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return True
        found = found[key]
    return found


def _as_dict(value: Any) -> Schema:
    return value if isinstance(value, dict) else {}


def _names(value: Any) -> list[str]:
    return list(dict.fromkeys([name for name in value if isinstance(name, str)])) if isinstance(value, list) else []


def _without(schema: Schema, name: str) -> Schema:
    return {key: value for key, value in schema.items() if key != name}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _INTEGER_LIMIT


def _length(value: Any) -> int | None:
    return int(value) if _is_finite(value) and value >= 0 else None


def _too_large(why: str) -> InvalidRequest:
    return InvalidRequest(f"The JSON schema {why}; make it smaller.", code="schema_too_large")


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
        return "{name: " + describe(_as_dict(node["additionalProperties"])) + "}"
    if kind == "array" and "prefixItems" in node:
        return "[" + ", ".join([describe(one) for one in node["prefixItems"]]) + "]"
    if kind == "array":
        return f"[{describe(node['items'])}, ...]"
    return str(node.get("format", kind))


def _property(name: str, node: Schema) -> str:
    held = node["properties"][name]
    mark = "" if name in node["required"] else "?"
    note = f" ({held['description']})" if held.get("description") else ""
    return f"{_encode(name).decode()}{mark}: {describe(held)}{note}"
