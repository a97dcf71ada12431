"""Moving conversations and chains of responses between installations: operations, and the shape of their answer."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from stateroom.wire.export import MEDIA_TYPE
from stateroom.wire.openapi.operations import Body, Operation, Parameter, Surface
from stateroom.wire.openapi.schemas import Schema, one_of, ref, text

_ARCHIVE: Final[dict[str, Schema]] = {MEDIA_TYPE: {"type": "string", "format": "binary"}}
_RANGE: Final = Parameter("Range", text(), "A range of bytes, such as `bytes=0-1023`.", "header")
_IDS: Final = Parameter(
    "ids", {**one_of("keep", "new"), "default": "keep"}, "Whether things keep their ids or get new ones."
)


class Imported(msgspec.Struct):
    """What came of it."""

    object: Literal["stateroom:import"]
    conversation_id: str | None
    response_id: str | None
    items: int
    responses: int
    files: int


def _operations() -> tuple[Operation, ...]:
    return (
        Operation(
            place="GET /v1/conversations/{conversation_id}/export",
            name="exportConversation",
            summary="Download a conversation as one file",
            about="Its items, responses, settings and files; no keys.",
            query=(_RANGE,),
            media=_ARCHIVE,
            errors=(400, 404, 413, 416),
            scope="read",
            extension=True,
        ),
        Operation(
            place="GET /v1/responses/{response_id}/export",
            name="exportResponse",
            summary="Download a chain of responses as one file",
            query=(_RANGE,),
            media=_ARCHIVE,
            errors=(400, 404, 413, 416),
            scope="read",
            extension=True,
        ),
        Operation(
            place="POST /v1/conversations/import",
            name="importConversation",
            summary="Take in what was downloaded from another installation",
            query=(_IDS,),
            body=Body(_ARCHIVE[MEDIA_TYPE], media=MEDIA_TYPE),
            answer=ref("Imported"),
            errors=(404, 409),
            scope="write",
            makes=True,
            extension=True,
        ),
    )


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Export and import",
        about="A conversation, or a chain of responses, as one file that another installation takes in.",
        operations=_operations(),
        shapes=(Imported,),
    )
