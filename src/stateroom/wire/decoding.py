"""From a caller's bytes to a typed struct: JSON, UTF-8, nesting and types are checked here, once, for every surface.

Whatever is wrong becomes an `InvalidRequest` whose `param` is a path such as `input[2].content[0].text`. What the
values mean is not known here.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from types import UnionType
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from stateroom.errors import InvalidRequest

T = TypeVar("T")

_MARKS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_MARKS: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_AT: Final = re.compile(r"\A(.*) - at (?:`key` in )?`\$(.*)`\Z", re.DOTALL)
_STEP: Final = re.compile(r"\.\w+|\[(?=\d)")
_MISSING: Final = re.compile(r"\AObject missing required field `([^`]*)`\Z")
_WRONG_TYPE: Final = re.compile(r"\AExpected `([^`]*)`, got `([^`]*)`\Z")
_PATTERN: Final = re.compile(r"\AExpected `str` matching regex '(.*)'\Z", re.DOTALL)
_RANGE: Final = re.compile(r"\AExpected `([a-z]+)[^`]*` (<=|>=|<|>) (\S+)\Z")
_LENGTH: Final = re.compile(r"\AExpected `([a-z]+)[^`]*` of length (<=|>=) (\d+)\Z")
_WORDS: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


class Bounds(msgspec.Struct, frozen=True):
    """Bounds on the shape of a request body; its size in bytes is checked before it gets here."""

    items: int = 10_000
    """Items in one request."""
    depth: int = 64
    """Nesting of JSON."""
    tools: int = 1_024
    content_parts: int = 2_048
    """Content parts of one item."""
    item_bytes: int = 24 * 1024 * 1024
    """JSON of one item."""


def decode(decoder: msgspec.json.Decoder[T], body: bytes, depth: int) -> T:
    """Decode a body. Raises InvalidRequest for everything that can be wrong with it."""
    check_depth(body, depth)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        refuse_value(str(error), "", decoder.type)
    except UnicodeDecodeError:
        raise InvalidRequest("The request body is not valid UTF-8.", code="invalid_json") from None
    except msgspec.DecodeError as error:
        detail = str(error).removeprefix("JSON is malformed: ")
        if detail == "Input data was truncated":
            detail = "it ends too early"
        raise InvalidRequest(f"The request body is not valid JSON: {detail}.", code="invalid_json") from None
    except RecursionError:
        _refuse_depth(depth)


def validate(value: Any, shape: type[Any], path: str) -> None:
    """Check a decoded value against a struct. `path` is where the value stands in the request."""
    try:
        msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        refuse_value(str(error), path, shape)


def check_depth(body: bytes, limit: int) -> None:
    """Refuse JSON that nests deeper than `limit`, at the speed of a few scans and without recursion."""
    if body.count(b"{") + body.count(b"[") <= limit:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Quotes next to each other enclose no bracket, or join two strings into one: either way nothing changes sides.
    marks = body.translate(_MARKS, _NOT_MARKS).replace(b'""', b"")
    if b'"' in marks:
        marks = b"".join(marks.split(b'"')[::2])
    if max(accumulate(array("b", marks)), default=0) > limit:
        _refuse_depth(limit)


def _refuse_depth(limit: int) -> NoReturn:
    raise InvalidRequest(f"The JSON nests deeper than {limit} levels (`limits.depth`).", code="json_too_deep")


def refuse_value(message: str, base: str, shape: Any) -> NoReturn:
    """Turn msgspec's validation message into our error. `base` is the path of the value that was to fit `shape`."""
    at = _AT.match(message)
    problem, inner = (at.group(1), at.group(2)) if at else (message, "")
    path = join(base, inner.split("[...]")[0])
    missing = _MISSING.match(problem)
    if missing:
        path = join(path, "." + missing.group(1))
        raise InvalidRequest(
            f"Missing required parameter: '{path}'.", code="missing_required_parameter", param=path
        ) from None
    code, text = _explain(problem)
    if code == "invalid_value" and (choices := _choices(shape, _STEP.findall(inner))):
        text = f"it must be one of {', '.join(map(repr, sorted(choices)))}"
    where = f"'{path}'" if path else "the request body"
    wrong = "key in" if " - at `key` in `" in message else "value in" if "[...]" in inner else "value for"
    raise InvalidRequest(f"Invalid {wrong} {where}: {text}.", code=code, param=path or None) from None


def join(base: str, path: str) -> str:
    """`input[0]` and `.content[1]` give `input[0].content[1]`."""
    return base + path if base else path.removeprefix(".")


def _choices(kind: Any, steps: list[str]) -> set[str]:
    """The values that a field takes which is limited to some, at the end of a path through a struct."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return set().union(*(_choices(one, steps) for one in inner))
    if origin is Literal and not steps:
        return set(inner)
    if origin is Annotated or (origin is list and steps[:1] == ["["]):
        return _choices(inner[0], steps if origin is Annotated else steps[1:])
    if steps and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        config = kind.__struct_config__
        if steps == [f".{config.tag_field}"]:
            return {str(config.tag)}
        pairs = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        names = {f".{encoded}": name for name, encoded in pairs}
        if steps[0] in names:
            return _choices(get_type_hints(kind, include_extras=True)[names[steps[0]]], steps[1:])
    return set()


def _explain(problem: str) -> tuple[str, str]:
    """The stable code and the words for one of msgspec's complaints."""
    if match := _WRONG_TYPE.match(problem):
        wanted = " or ".join(_WORDS.get(word, word) for word in match.group(1).split(" | ") if word != "null")
        return "invalid_type", f"expected {wanted or 'null'}, got {_WORDS.get(match.group(2), match.group(2))}"
    if match := _RANGE.match(problem):
        kind = "integer" if match.group(1) == "int" else "decimal"
        low = match.group(2) in (">", ">=")
        code = f"{kind}_below_min_value" if low else f"{kind}_above_max_value"
        return code, f"it must be {'at least' if low else 'at most'} {match.group(3)}"
    if match := _LENGTH.match(problem):
        kind = {"str": "string", "array": "array"}.get(match.group(1), "object")
        low = match.group(2) == ">="
        code = {"object": "object_below_min_properties" if low else "object_above_max_properties"}.get(
            kind, f"{kind}_below_min_length" if low else f"{kind}_above_max_length"
        )
        bound = f"{'at least' if low else 'at most'} {match.group(3)}"
        return code, f"it must have {bound} entries" if kind == "object" else f"its length must be {bound}"
    if match := _PATTERN.match(problem):
        pattern = match.group(1).replace("\\\\A", "^").replace("\\\\Z", "$")
        return "invalid_value", f"it must match {pattern}"
    text = problem[:1].lower() + problem[1:]
    return "invalid_value", text if len(text) <= 300 else text[:300] + "…"
