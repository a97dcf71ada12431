"""What reads bytes that others wrote: each target takes any bytes and may refuse them, but only in our own words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Final

import msgspec

from stateroom.errors import StateroomError
from stateroom.journal.frames_fold import fold, unfold
from stateroom.models.chat_decode import ChatDecoder
from stateroom.models.emulated_reply import ReplyReader
from stateroom.models.responses_decode import ResponsesDecoder
from stateroom.runtime.skills.bundle import members_of_zip, pack
from stateroom.runtime.skills.manifest import read_manifest
from stateroom.runtime.skills.zip_reader import Bounds as SkillBounds
from stateroom.wire.chat_completions_requests import decode_chat, decode_update
from stateroom.wire.compaction import decode_compact
from stateroom.wire.completions import decode_completion
from stateroom.wire.decoding import Bounds
from stateroom.wire.embeddings import EmbeddingBounds, decode_embedding
from stateroom.wire.items import unpack
from stateroom.wire.requests import (
    decode_conversation,
    decode_count,
    decode_create,
    decode_fork,
    decode_items,
    decode_metadata,
)
from stateroom.wire.sockets import decode_message, decode_steer, lane_of, read_envelope, steer_items
from stateroom.wire.webhooks import decode_endpoint_change, decode_new_endpoint, decode_rotation, decode_trial

Target = Callable[[bytes], None]

SKILL_BOUNDS: Final = SkillBounds(files=8, file_bytes=4_096, bytes=16_384, ratio=10)
BOUNDS: Final = Bounds(items=200, depth=16, tools=32, content_parts=32, item_bytes=64 * 1024)


def responses(data: bytes) -> None:
    for decode in (decode_create, decode_count):
        with contextlib.suppress(StateroomError):
            for item in decode(data, BOUNDS).input:
                msgspec.json.encode(unpack(item, "msg_1"))


def conversations(data: bytes) -> None:
    for decode in (decode_conversation, decode_items, decode_metadata, decode_fork):
        with contextlib.suppress(StateroomError):
            decode(data, BOUNDS)


def chat(data: bytes) -> None:
    with contextlib.suppress(StateroomError):
        decode_chat(data, BOUNDS)
    with contextlib.suppress(StateroomError):
        decode_update(data, BOUNDS)


def others(data: bytes) -> None:
    with contextlib.suppress(StateroomError):
        decode_compact(data, BOUNDS)
    with contextlib.suppress(StateroomError):
        decode_embedding(data, EmbeddingBounds())
    with contextlib.suppress(StateroomError):
        decode_completion(data, choices_max=16, depth=16)
    for decode in (decode_new_endpoint, decode_endpoint_change, decode_rotation, decode_trial):
        with contextlib.suppress(StateroomError):
            decode(data)


def socket(data: bytes) -> None:
    with contextlib.suppress(StateroomError):
        lane_of(read_envelope(data, BOUNDS.depth))
    with contextlib.suppress(StateroomError):
        decode_message(data, BOUNDS)
    with contextlib.suppress(StateroomError):
        steer_items(decode_steer(data, BOUNDS), BOUNDS)


def chat_stream(data: bytes) -> None:
    decoder = ChatDecoder(server="it", key="secret-key")
    with contextlib.suppress(StateroomError):
        for piece in _pieces(data):
            decoder.feed(piece)
        decoder.end()
    with contextlib.suppress(StateroomError):
        ChatDecoder(server="it").whole(data)


def responses_stream(data: bytes) -> None:
    decoder = ResponsesDecoder(server="it", origin="it", key="secret-key")
    with contextlib.suppress(StateroomError):
        for piece in _pieces(data):
            decoder.feed(piece)
        decoder.end()
    with contextlib.suppress(StateroomError):
        ResponsesDecoder(server="it", origin="it").whole(data)


def emulated_reply(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for answer in ("text", "json", "none"):
        reader = ReplyReader({"f"}, answer)
        with contextlib.suppress(StateroomError):
            for start in range(0, len(text), 3):
                reader.feed(text[start : start + 3])
            reader.end()


def skills(data: bytes) -> None:
    """A zip, or a SKILL.md. What is kept of a zip is as small as it says, and is kept the same once more."""
    with contextlib.suppress(StateroomError):
        read_manifest(data)
    with contextlib.suppress(StateroomError):
        kept, again = io.BytesIO(), io.BytesIO()
        pack(members_of_zip(io.BytesIO(data), SKILL_BOUNDS), kept)
        pack(members_of_zip(kept, SKILL_BOUNDS), again)
        assert kept.getvalue() == again.getvalue()


def frames(data: bytes) -> None:
    """What is folded comes out as it was."""
    folded = fold(data)
    assert folded is None or unfold(folded) == data


TARGETS: Final[dict[str, Target]] = {
    "responses": responses,
    "conversations": conversations,
    "chat": chat,
    "others": others,
    "socket": socket,
    "chat_stream": chat_stream,
    "responses_stream": responses_stream,
    "emulated_reply": emulated_reply,
    "skills": skills,
    "frames": frames,
}


def _pieces(data: bytes) -> list[bytes]:
    """The data in three pieces, at places that it names itself."""
    if len(data) < 4:
        return [data]
    first, second = sorted((data[0] * len(data) // 256, data[1] * len(data) // 256))
    return [data[:first], data[first:second], data[second:]]
