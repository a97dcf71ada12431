"""Files and uploads in OpenAI's shapes: what their forms and bodies say, and how they are shown. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import quote

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.wire.decoding import decode

NAME_MAX: Final = 255
"""Characters of a filename."""
PARTS_MAX: Final = 100_000
"""Parts of one upload."""
EXPIRES_SECONDS: Final = (3_600, 2_592_000)
"""The shortest and the longest life that a file may be given."""

_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_MD5: Final = re.compile(r"[0-9a-fA-F]{32}")
_PLAIN: Final = re.compile(r"[^A-Za-z0-9 !#$&+,.=@^_`{}~()\[\]-]")

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: Final = get_args(Purpose)
"""What clients may upload files for."""


class NewFile(msgspec.Struct, frozen=True):
    """What a form says of its file."""

    purpose: str
    expires_after: int | None


class _ExpiresAfter(msgspec.Struct):
    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=EXPIRES_SECONDS[0], le=EXPIRES_SECONDS[1])]


class NewUpload(msgspec.Struct):
    """A request for an upload."""

    bytes: Annotated[int, msgspec.Meta(ge=1)]
    filename: Annotated[str, msgspec.Meta(min_length=1)]
    mime_type: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    purpose: Purpose
    expires_after: _ExpiresAfter | None = None


class Completion(msgspec.Struct):
    """A request to make a file of parts."""

    part_ids: Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(min_length=1)]
    md5: str | None = None


_NEW_UPLOAD: Final = msgspec.json.Decoder(NewUpload)
_COMPLETION: Final = msgspec.json.Decoder(Completion)


def read_new_file(fields: Mapping[str, str]) -> NewFile:
    """Raises InvalidRequest."""
    purpose = fields.get("purpose")
    if purpose is None:
        raise InvalidRequest(
            "Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose"
        )
    if purpose not in PURPOSES:
        choices = ", ".join(map(repr, PURPOSES))
        message = f"Invalid value for 'purpose': it must be one of {choices}."
        raise InvalidRequest(message, code="invalid_value", param="purpose")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return NewFile(purpose, None)
    if anchor != "created_at":
        message = "'expires_after[anchor]' must be 'created_at'."
        raise InvalidRequest(message, code="invalid_value", param="expires_after[anchor]")
    if seconds is None or not _NUMBER.fullmatch(seconds):
        message = "'expires_after[seconds]' must be a number."
        raise InvalidRequest(message, code="invalid_value", param="expires_after[seconds]")
    low, high = EXPIRES_SECONDS
    if not low <= int(seconds) <= high:
        below = int(seconds) < low
        raise InvalidRequest(
            f"'expires_after[seconds]' must be from {low} to {high}.",
            code="integer_below_min_value" if below else "integer_above_max_value",
            param="expires_after[seconds]",
        )
    return NewFile(purpose, int(seconds))


def decode_new_upload(body: bytes, depth: int, bytes_max: int) -> NewUpload:
    """Raises InvalidRequest."""
    asked = decode(_NEW_UPLOAD, body, depth)
    if asked.bytes > bytes_max:
        message = f"'bytes' must be at most {bytes_max} (`limits.upload_bytes`)."
        raise InvalidRequest(message, code="integer_above_max_value", param="bytes")
    return asked


def decode_completion(body: bytes, depth: int) -> Completion:
    """Raises InvalidRequest."""
    asked = decode(_COMPLETION, body, depth)
    if len(asked.part_ids) > PARTS_MAX:
        message = f"'part_ids' must have at most {PARTS_MAX} parts."
        raise InvalidRequest(message, code="array_above_max_length", param="part_ids")
    if asked.md5 and not _MD5.fullmatch(asked.md5):
        raise InvalidRequest("'md5' must be 32 hexadecimal digits.", code="invalid_value", param="md5")
    return asked


def clean_filename(given: str, param: str) -> str:
    """The name without folders and without characters that cannot be seen. Raises InvalidRequest."""
    name = re.split(r"[/\\]", given)[-1]
    name = "".join(each for each in name if unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Zl", "Zp")).strip()
    if len(name) > NAME_MAX:
        message = f"'{param}': the filename has more than {NAME_MAX} characters."
        raise InvalidRequest(message, code="string_above_max_length", param=param)
    return name if name.strip(".") else "file"


def content_disposition(filename: str) -> str:
    """The header that has browsers save what comes under this name, and never show it."""
    plain = _PLAIN.sub("_", filename)
    whole = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{whole}'


def file_object(
    *, id: str, filename: str, purpose: str, bytes: int, created_at: int, expires_at: int
) -> dict[str, Any]:
    """A file; times are in milliseconds, 0 for never."""
    return {
        "id": id,
        "object": "file",
        "bytes": bytes,
        "created_at": created_at // 1000,
        "expires_at": expires_at // 1000 or None,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }


def upload_object(
    *,
    id: str,
    filename: str,
    purpose: str,
    bytes: int,
    status: str,
    created_at: int,
    expires_at: int,
    file: dict[str, Any] | None,
) -> dict[str, Any]:
    """An upload; times are in milliseconds."""
    return {
        "id": id,
        "object": "upload",
        "bytes": bytes,
        "created_at": created_at // 1000,
        "expires_at": expires_at // 1000,
        "filename": filename,
        "purpose": purpose,
        "status": status,
        "file": file,
    }


def part_object(*, id: str, upload_id: str, created_at: int) -> dict[str, Any]:
    """A part of an upload; the time is in milliseconds."""
    return {"id": id, "object": "upload.part", "created_at": created_at // 1000, "upload_id": upload_id}


def deleted_file(file_id: str) -> dict[str, Any]:
    return {"id": file_id, "object": "file", "deleted": True}
