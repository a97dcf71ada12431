"""The file that a conversation or a chain of responses is moved by: a tar archive of three kinds of members. Pure.

    manifest.json     what it is, and what else is in it
    history.jsonl     what was said and done, a line for each entry of the journal, oldest first
    blobs/SHA256      images, files, and texts that are kept by their hash

A line is `{"kind", "at", "body"}`, the body a record of `stateroom.journal.entries`. It differs from the journal in
this: nothing says which access key asked, what was erased is left out, and what an installation sealed for its clients
(`encrypted_content`) is opened: `{"opened": text}`. Whoever imports it seals it anew. Two exports of the same are the
same to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec

from stateroom.errors import InvalidRequest, RequestError
from stateroom.journal.entries import Item, Kind
from stateroom.wire.decoding import check_depth

FORMAT: Final = "stateroom.export"
VERSION: Final = 1
MEDIA_TYPE: Final = "application/x-tar"
MANIFEST: Final = "manifest.json"
HISTORY: Final = "history.jsonl"
BLOBS: Final = "blobs/"
MANIFEST_BYTES: Final = 16 * 1024 * 1024

KEY: Final = "[0-9a-hjkmnp-tv-z]{26}"
"""What ids end in, as a pattern."""
KINDS: Final = frozenset(
    {
        Kind.RUN_STARTED,
        Kind.RUN_STEERED,
        Kind.ITEM_FINISHED,
        Kind.ITEM_ABANDONED,
        Kind.TOOL_INTENT,
        Kind.TOOL_OUTCOME,
        Kind.RUN_ENDED,
        Kind.ITEMS_ADDED,
    }
)
"""What lines may be."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Time = Annotated[int, msgspec.Meta(ge=0, le=2**46)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ExportedConversation(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(pattern=rf"\Aconv_{KEY}\Z")]
    created_at: Time
    """Milliseconds since the epoch."""
    metadata: Annotated[
        dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
        msgspec.Meta(max_length=16),
    ] = {}


class ExportedBlob(msgspec.Struct, frozen=True):
    """Bytes that lines or files refer to."""

    sha256: Digest
    bytes: Count


class ExportedFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that items name by its id, as far as it is still there."""

    id: Annotated[str, msgspec.Meta(pattern=rf"\Afile-{KEY}\Z")]
    filename: Annotated[str, msgspec.Meta(max_length=255)]
    purpose: Annotated[str, msgspec.Meta(max_length=64)]
    bytes: Count
    sha256: Digest
    expires_at: Time = 0
    """Milliseconds since the epoch; 0: never."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the file."""

    format: Literal["stateroom.export"] = "stateroom.export"
    version: int = VERSION
    object: Literal["conversation", "responses"]
    history: ExportedBlob
    items: Count
    responses: Count
    conversation: ExportedConversation | None = None
    last_response: str = ""
    """The response that a chain was exported up to."""
    blobs: list[ExportedBlob] = []
    files: list[ExportedFile] = []


class Line(msgspec.Struct, frozen=True):
    """One entry."""

    kind: str
    at: Time
    """Milliseconds since the epoch."""
    body: msgspec.Raw


class _Opened(msgspec.Struct, forbid_unknown_fields=True):
    opened: str


class _Head(msgspec.Struct):
    """What every version says."""

    format: str = ""
    version: int = 0


class ExportDamaged(RequestError):
    """Bytes are missing or others than they were when it was written."""

    code = "export_damaged"


_ENCODE: Final = msgspec.json.Encoder().encode
_HEAD: Final = msgspec.json.Decoder(_Head)
_MANIFEST: Final = msgspec.json.Decoder(Manifest)
_LINE: Final = msgspec.json.Decoder(Line)


def encode_manifest(manifest: Manifest) -> bytes:
    """For people, too."""
    return msgspec.json.format(_ENCODE(manifest), indent=2) + b"\n"


def encode_line(kind: str, at: int, body: bytes) -> bytes:
    return _ENCODE(Line(kind, at, msgspec.Raw(body))) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Raises InvalidRequest."""
    try:
        check_depth(data, 16)
        head = _HEAD.decode(data)
        if head.format != FORMAT:
            raise invalid("its manifest is of another format")
        if head.version != VERSION:
            raise InvalidRequest(
                f"The file is of version {head.version}, and this server reads version {VERSION}. "
                "Export it with a version of Stateroom that writes that one.",
                code="export_version_unsupported",
            )
        return _MANIFEST.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid(f"its manifest cannot be read ({str(error)[:200]})") from None


def decode_lines(data: bytes, *, depth: int, line_bytes: int) -> Iterator[Line]:
    """The lines of a history, of which at most `line_bytes` may be in one. Raises InvalidRequest."""
    if data and not data.endswith(b"\n"):
        raise invalid("its history ends in the middle of a line")
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        if len(raw) > line_bytes:
            raise invalid(f"line {number} of its history has more than {line_bytes} bytes")
        try:
            check_depth(raw, depth)
            line = _LINE.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, InvalidRequest, RecursionError) as error:
            raise invalid(f"line {number} of its history cannot be read ({str(error)[:200]})") from None
        if line.kind not in KINDS:
            raise invalid(f"line {number} of its history is of kind {line.kind[:64]!r}")
        yield line


def with_opened(item: Item, text: str) -> Item:
    """The item as it is exported, its sealed text opened."""
    return {**item, "encrypted_content": {"opened": text}}


def opened_of(item: Any) -> str | None:
    """The opened text of an exported item; None when it has none. Raises InvalidRequest."""
    given = item.get("encrypted_content")
    if given is None or isinstance(given, str):
        return None
    try:
        return msgspec.convert(given, _Opened).opened
    except msgspec.ValidationError:
        raise invalid("an item has an `encrypted_content` that is none") from None


def result_object(*, conversation: str, response: str, items: int, responses: int, files: int) -> dict[str, Any]:
    """What an import is answered with."""
    return {
        "object": "stateroom:import",
        "conversation_id": conversation or None,
        "response_id": response or None,
        "items": items,
        "responses": responses,
        "files": files,
    }


def invalid(why: str) -> InvalidRequest:
    """The file is not one that was exported."""
    return InvalidRequest(f"The file cannot be imported: {why}.", code="invalid_export")


def damaged(why: str) -> ExportDamaged:
    return ExportDamaged(f"The file is damaged: {why}. Export or copy it again.")


def is_key(value: str, prefix: str = "") -> bool:
    """Whether an id of ours ends in a whole key behind this prefix."""
    return re.fullmatch(prefix + KEY, value) is not None
