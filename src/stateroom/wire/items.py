"""Items between OpenAI's shape and the packed one that the journal keeps.

`pack` refuses what is malformed, then leaves out what `unpack` can put back: `type: message`, `status: completed`,
empty lists, nulls, and the list around a single plain text (`content` becomes a string). Everything else, unknown
fields and unknown content parts included, passes through both untouched. An id that the client chose stays in the
packed item; ids that we derive are never in it.

An image or file part may hold bytes by reference: `blob`, `text_blob` and `data_blob`, content hashes of an image, of
what models read of a file and of the file as it was sent, and `media_type`. Only the runtime puts them there; callers
may not send them, and they never leave the server. The same holds for `upstream`: what another server has to get back
of an item that came from there; for `compacted`: what a compaction item stands for; and for `HOSTED_FIELDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, TypeAlias

import msgspec

from stateroom import ids
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item
from stateroom.journal.hosted_items import caller_of
from stateroom.wire.decoding import Bounds, validate
from stateroom.wire.item_types import REFUSED, TYPES

Resolver: TypeAlias = Callable[[str, str], str | None]
"""From a content hash and a media type to a data URL; None when the bytes are gone."""

_ROLES: Final = ("user", "assistant", "system", "developer")
_TEXT_PARTS: Final = frozenset(("input_text", "output_text", "text", "summary_text", "reasoning_text"))
_RESERVED: Final = ("blob", "text_blob", "data_blob", "media_type")
HOSTED_FIELDS: Final = ("hosted", "malformed", "called", "effect", "in_container")
"""What the runtime notes in the items of calls that it carries out."""
_PRIVATE: Final = ("upstream", "compacted", *HOSTED_FIELDS)
OUTPUTS: Final = "code_interpreter_call.outputs"
"""The value of `include` that asks for them."""
_SOURCES: Final = {
    "input_image": ("image_url", "file_id"),
    "input_file": ("file_data", "file_url", "file_id"),
}
_SHOWN_AS: Final = {"input_file": "file_data", "image": "url"}
_NO_BOUNDS: Final = Bounds()


class _Image(msgspec.Struct):
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None


class _File(msgspec.Struct):
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None


class _OutputText(msgspec.Struct):
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class _Refusal(msgspec.Struct):
    refusal: str


PART_SHAPES: Final[dict[str, type[Any]]] = {
    "input_image": _Image,
    "input_file": _File,
    "output_text": _OutputText,
    "refusal": _Refusal,
}


def type_of(item: Mapping[str, Any]) -> str:
    """The type of a packed item."""
    kind: str = item.get("type", "message")
    return kind


def prefix(kind: str) -> str:
    """What the ids of items of this type begin with."""
    known = TYPES.get(kind)
    return known.prefix if known is not None else "item"


def item_id(item: Item, key: str, ordinal: int) -> str:
    """The id a packed item goes by: the one its client chose, or the one derived from its place."""
    own: str | None = item.get("id")
    return own or ids.item_id(prefix(item.get("type", "message")), key, ordinal)


def pack(item: Mapping[str, Any], path: str = "item", bounds: Bounds = _NO_BOUNDS) -> Item:
    """Check an item from a caller and make it ours. Raises InvalidRequest; `path` is where it stands in the request."""
    kind = item.get("type")
    if kind is None:
        kind = _guess_type(item, path)
    elif type(kind) is not str:
        raise InvalidRequest(f"'{path}.type' must be a string.", code="invalid_type", param=f"{path}.type")
    if kind == "message":
        content = item.get("content")
        if type(content) is str and len(item) - ("type" in item) == 2 and item.get("role") in _ROLES:
            return {"role": item["role"], "content": content}
    known = TYPES.get(kind)
    if known is None:
        _refuse_type(kind, path)
    validate(item, known.shape, path)
    packed: Item = {} if kind == "message" else {"type": kind}
    derived = known.derived
    for name, value in item.items():
        if value is None or name in ("type", *_PRIVATE) or (name in derived and derived[name] == value):
            continue
        packed[name] = value
    if not packed.get("id", True):
        del packed["id"]
    return _pack_content(packed, kind, known.parts, path, bounds)


def _guess_type(item: Mapping[str, Any], path: str) -> str:
    """Messages and references may come without a type."""
    if "role" in item:
        return "message"
    if "id" in item:
        return "item_reference"
    raise InvalidRequest(
        f"Missing required parameter: '{path}.type'.", code="missing_required_parameter", param=f"{path}.type"
    )


def _refuse_type(kind: str, path: str) -> NoReturn:
    if kind in REFUSED:
        raise InvalidRequest(REFUSED[kind], code="unsupported_item_type", param=f"{path}.type")
    shown = kind if len(kind) <= 64 else kind[:64] + "…"
    raise InvalidRequest(
        f"Unknown item type '{shown}' at '{path}.type'.", code="unknown_item_type", param=f"{path}.type"
    )


def _pack_content(packed: Item, kind: str, field: str, path: str, bounds: Bounds) -> Item:
    """The part of packing that depends on the type: content parts, and nulls one level down."""
    if field:
        value = packed[field]
        if type(value) is list:
            parts = _pack_parts(value, f"{path}.{field}", bounds)
            packed[field] = _plain(parts, packed["role"]) if kind == "message" else parts
        elif type(value) is dict:
            packed[field] = _pack_part(value, f"{path}.{field}")
    elif kind == "reasoning":
        for name, part_type in (("summary", "summary_text"), ("content", "reasoning_text")):
            if name in packed:
                packed[name] = [part if part.get("type") else {**part, "type": part_type} for part in packed[name]]
        if packed.get("content") == []:
            del packed["content"]
    elif kind == "mcp_list_tools":
        packed["tools"] = [_without_nulls(tool) for tool in packed["tools"]]
    return packed


def _plain(parts: list[Any], role: str) -> str | list[Any]:
    """A single text of the usual type needs no list around it."""
    if len(parts) == 1 and len(parts[0]) == 2:
        part = parts[0]
        if part.get("type") == ("output_text" if role == "assistant" else "input_text"):
            text: str = part["text"]
            return text
    return parts


def _pack_parts(parts: list[Any], path: str, bounds: Bounds) -> list[Any]:
    if len(parts) > bounds.content_parts:
        raise InvalidRequest(
            f"'{path}' holds {len(parts)} content parts; at most {bounds.content_parts} are allowed "
            "(`limits.content_parts`).",
            code="array_above_max_length",
            param=path,
        )
    return [_pack_part(part, f"{path}[{index}]") for index, part in enumerate(parts)]


def _pack_part(part: Any, path: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise InvalidRequest(f"Invalid value for '{path}': expected an object.", code="invalid_type", param=path)
    kind = part.get("type")
    if type(kind) is not str:
        code = "missing_required_parameter" if kind is None else "invalid_type"
        raise InvalidRequest(f"'{path}.type' must be a string.", code=code, param=f"{path}.type")
    if len(part) == 2 and kind in _TEXT_PARTS and type(part.get("text")) is str:
        return {"type": kind, "text": part["text"]}
    for name in _RESERVED:
        if name in part:
            raise InvalidRequest(
                f"'{path}.{name}' is not a field that callers may set.", code="invalid_value", param=f"{path}.{name}"
            )
    shape = PART_SHAPES.get(kind)
    if shape is not None:
        validate(part, shape, path)
    elif kind in _TEXT_PARTS:
        validate(part, _Text, path)
    packed = _without_nulls(part)
    if kind == "output_text":
        return {name: value for name, value in packed.items() if value or name not in ("annotations", "logprobs")}
    if kind in _SOURCES:
        _check_source(packed, _SOURCES[kind], path)
        if packed.get("detail") == "auto":
            del packed["detail"]
    return packed


class _Text(msgspec.Struct):
    text: str


def _check_source(part: dict[str, Any], names: tuple[str, ...], path: str) -> None:
    if not any(part.get(name) for name in names):
        wanted = ", ".join(f"'{name}'" for name in names)
        raise InvalidRequest(
            f"'{path}' needs one of {wanted}.", code="missing_required_parameter", param=f"{path}.{names[0]}"
        )


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None}


def unpack(item: Item, item_id: str, resolve: Resolver | None = None) -> dict[str, Any]:
    """The full OpenAI shape of a packed item. Without `resolve`, bytes held by reference are left out."""
    kind = item.get("type", "message")
    if kind == "message":
        return _unpack_message(item, item_id, resolve)
    shown: dict[str, Any] = {"id": item_id, "type": kind}
    known = TYPES.get(kind)
    if known is not None:
        for name, value in known.derived.items():
            shown[name] = [] if value == [] else value
    shown.update(item)
    shown["id"] = item_id
    for name in _PRIVATE:
        shown.pop(name, None)
    if known is not None and (known.parts or kind == "code_interpreter_call"):
        field = known.parts or "outputs"
        value = shown.get(field)
        if type(value) is list:
            shown[field] = [_show_part(part, resolve) for part in value]
        elif type(value) is dict:
            shown[field] = _show_part(value, resolve)
    return shown


def withheld(shown: dict[str, Any], include: Sequence[str]) -> dict[str, Any]:
    """The item without what is only shown to who asks for it by `include`.

    What a program was answered is always shown: its replay needs it, wherever the history is kept.
    """
    if shown["type"] == "code_interpreter_call" and OUTPUTS not in include and not caller_of(shown):
        shown["outputs"] = None
    return shown


def _unpack_message(item: Item, item_id: str, resolve: Resolver | None) -> dict[str, Any]:
    content = item["content"]
    shown: dict[str, Any] = {"id": item_id, "type": "message", "status": "completed"}
    shown.update(item)
    shown["id"] = item_id
    if type(content) is not str:
        shown["content"] = [_show_part(part, resolve) for part in content]
    elif item["role"] == "assistant":
        shown["content"] = [{"type": "output_text", "text": content, "annotations": [], "logprobs": []}]
    else:
        shown["content"] = [{"type": "input_text", "text": content}]
    return shown


def _show_part(part: dict[str, Any], resolve: Resolver | None) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "output_text":
        return {"type": kind, "text": "", "annotations": [], "logprobs": [], **part}
    if "blob" in part:
        part = dict(part)
        digest, media_type = part.pop("blob"), part.pop("media_type", "")
        url = resolve(digest, media_type) if resolve is not None else None
        if url is not None:
            part[_SHOWN_AS.get(kind or "", "image_url")] = url
    elif "text_blob" in part:
        part = {name: value for name, value in part.items() if name not in _RESERVED}
    if kind == "input_image" and "detail" not in part:
        return {**part, "detail": "auto"}
    return part
