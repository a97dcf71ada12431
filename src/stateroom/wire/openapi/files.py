"""Files and uploads: their operations, and the shapes of their answers."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from stateroom.wire import files
from stateroom.wire.files import EXPIRES_SECONDS, PURPOSES, Purpose
from stateroom.wire.openapi.operations import AFTER, ORDER, Body, Operation, Parameter, Surface
from stateroom.wire.openapi.schemas import Schema, Time, body_of, deleted, fields, nullable, one_of, page_of, ref, text

_FORM: Final = "multipart/form-data"
_BYTES: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
_RANGE: Final = Parameter("Range", text(), "A range of bytes, such as `bytes=0-1023`.", "header")
_PIECE: Final[Schema] = dict(_BYTES)


class File(msgspec.Struct):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: Time
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class Upload(msgspec.Struct):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: Time
    expires_at: Time
    filename: str
    purpose: Purpose
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None


class UploadPart(msgspec.Struct):
    id: str
    object: Literal["upload.part"]
    created_at: Time
    upload_id: str


def surface() -> Surface:
    """All of it."""
    low, high = EXPIRES_SECONDS
    return Surface(
        name="Files",
        about="Bytes that requests refer to: whole, or in parts that become a file.",
        operations=(*_files(), *_uploads()),
        shapes=(File, Upload, UploadPart),
        schemas={
            "CreateFile": fields(
                {
                    "file": _BYTES,
                    "purpose": one_of(*PURPOSES),
                    "expires_after[anchor]": {"const": "created_at"},
                    "expires_after[seconds]": {"type": "integer", "minimum": low, "maximum": high},
                },
                ("file", "purpose"),
            ),
            "CreateUpload": body_of(
                files.NewUpload, about={"bytes": "How many bytes the whole file has.", "mime_type": "Kept as a hint."}
            ),
            "AddPart": fields({"data": _BYTES}, ("data",)),
            "CompleteUpload": body_of(
                files.Completion,
                replaced={"md5": nullable(text(pattern="^[0-9a-fA-F]{32}$"))},
                about={"part_ids": "In the order of the file.", "md5": "Of the whole file, as hexadecimals."},
            ),
            "FileList": page_of("File"),
            "DeletedFile": deleted("file"),
        },
    )


def _files() -> tuple[Operation, ...]:
    return (
        Operation(
            place="POST /v1/files",
            name="createFile",
            summary="Upload a file",
            body=Body(ref("CreateFile"), media=_FORM),
            answer=ref("File"),
            scope="write",
            makes=True,
            python='file = client.files.create(file=open("notes.txt", "rb"), purpose="user_data")',
        ),
        Operation(
            place="GET /v1/files",
            name="listFiles",
            summary="List files",
            query=(
                Parameter("purpose", text(), "Only those for this."),
                AFTER,
                Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 10_000}),
                ORDER,
            ),
            answer=ref("FileList"),
            errors=(400, 404),
            scope="read",
            python="client.files.list()",
        ),
        Operation(
            place="GET /v1/files/{file_id}",
            name="getFile",
            summary="Retrieve what is known of a file",
            answer=ref("File"),
            errors=(404,),
            scope="read",
            python="client.files.retrieve(file.id)",
        ),
        Operation(
            place="DELETE /v1/files/{file_id}",
            name="deleteFile",
            summary="Delete a file",
            answer=ref("DeletedFile"),
            errors=(404,),
            scope="write",
            python="client.files.delete(file.id)",
        ),
        Operation(
            place="GET /v1/files/{file_id}/content",
            name="getFileContent",
            summary="Download a file, or a range of it",
            query=(_RANGE,),
            media={"application/octet-stream": _PIECE},
            errors=(404, 416),
            scope="read",
            python="client.files.content(file.id).read()",
        ),
    )


def _uploads() -> tuple[Operation, ...]:
    new = {"bytes": 11, "filename": "notes.txt", "mime_type": "text/plain", "purpose": "user_data"}
    return (
        Operation(
            place="POST /v1/uploads",
            name="createUpload",
            summary="Begin a file that comes in parts",
            body=Body(ref("CreateUpload"), examples={"a text": new}),
            answer=ref("Upload"),
            scope="write",
            makes=True,
            python="upload = client.uploads.create(\n"
            '    bytes=11, filename="notes.txt", mime_type="text/plain", purpose="user_data"\n)',
        ),
        Operation(
            place="POST /v1/uploads/{upload_id}/parts",
            name="addUploadPart",
            summary="Add a part",
            body=Body(ref("AddPart"), media=_FORM),
            answer=ref("UploadPart"),
            errors=(404,),
            scope="write",
            makes=True,
            python='part = client.uploads.parts.create(upload.id, data=b"hello there")',
        ),
        Operation(
            place="POST /v1/uploads/{upload_id}/complete",
            name="completeUpload",
            summary="Make a file of the parts",
            body=Body(ref("CompleteUpload")),
            answer=ref("Upload"),
            errors=(404,),
            scope="write",
            python="client.uploads.complete(upload.id, part_ids=[part.id])",
        ),
        Operation(
            place="POST /v1/uploads/{upload_id}/cancel",
            name="cancelUpload",
            summary="Cancel an upload",
            answer=ref("Upload"),
            errors=(400, 404),
            scope="write",
            python="client.uploads.cancel(upload.id)",
        ),
    )
