"""The messages of the Responses API over a WebSocket: from a client's text frames to requests, from events to frames.

A text frame is one JSON object. Events go out as they are in a stream over HTTP, without its framing; those of a named
lane carry its `stream_id`, which is spliced in: nothing is parsed on the way out. Errors that end a request and not a
run, and what is said about steering, have shapes of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from stateroom.errors import InvalidRequest, StateroomError
from stateroom.journal.entries import Item, OutputItem
from stateroom.journal.hosted_items import HOSTED
from stateroom.wire import parameters
from stateroom.wire.decoding import Bounds, decode
from stateroom.wire.requests import CreateRequest, checked_create, pack_input
from stateroom.wire.sse import events_of

CREATE: Final = "response.create"
STEER: Final = "response.steer"

_STREAM_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_FLAT_ERROR: Final = b'{"type":"error",'
_MESSAGE_FIELDS: Final = frozenset({"type", "role", "content"})
_PARTS: Final = frozenset({"input_text", "input_image", "input_file"})
_ENCODE: Final = msgspec.json.Encoder().encode


class Envelope(msgspec.Struct):
    """What a message is, and which lane it belongs to."""

    type: Any = None
    stream_id: Any = None


class _Create(parameters.Create):
    generate: bool | None = None


class _Steer(msgspec.Struct):
    previous_response_id: Any = None
    input: msgspec.Raw = msgspec.Raw(b'""')


class SteerRequest(msgspec.Struct, frozen=True):
    """`response.steer`: what is to be said, to which response."""

    previous: str
    input: msgspec.Raw
    """As it came: it is given back when it cannot be used."""


_DECODE_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
_DECODE_CREATE: Final = msgspec.json.Decoder(_Create)
_DECODE_STEER: Final = msgspec.json.Decoder(_Steer)


def read_envelope(body: bytes, depth: int) -> Envelope:
    """Raises InvalidRequest."""
    return decode(_DECODE_ENVELOPE, body, depth)


def lane_of(envelope: Envelope) -> str:
    """The name of the lane; '' for the default one. Raises InvalidRequest `invalid_stream_id`."""
    name = envelope.stream_id
    if name is None:
        return ""
    if not isinstance(name, str) or not _STREAM_ID.fullmatch(name):
        message = "'stream_id' must be 1 to 256 letters, digits, dots, dashes or underscores, or be left out."
        raise InvalidRequest(message, code="invalid_stream_id", param="stream_id")
    return name


def decode_message(body: bytes, bounds: Bounds) -> CreateRequest:
    """A `response.create`: the parameters of `POST /v1/responses`, and `generate`. Raises InvalidRequest."""
    asked = decode(_DECODE_CREATE, body, bounds.depth)
    if asked.background:
        message = "'background' is not supported over a WebSocket. Use POST /v1/responses, or leave it out."
        raise InvalidRequest(message, code="unsupported_parameter", param="background")
    asked.stream = True  # a socket streams, whatever is said of it
    generate = asked.generate is not False
    if asked.prompt_cache_options is not None and asked.prompt_cache_options.prewarm:
        generate, asked.prompt_cache_options.prewarm = False, None
    return checked_create(asked, body, bounds, generate=generate)


def decode_steer(body: bytes, bounds: Bounds) -> SteerRequest:
    """A `response.steer`, its input unread. Raises InvalidRequest when it names no response."""
    asked = decode(_DECODE_STEER, body, bounds.depth)
    previous = asked.previous_response_id
    if not isinstance(previous, str) or not previous:
        message = "'previous_response_id' must name the response that is to be steered."
        raise InvalidRequest(message, code="missing_required_parameter", param="previous_response_id")
    return SteerRequest(previous[:256], asked.input.copy())


def steer_items(request: SteerRequest, bounds: Bounds) -> list[Item]:
    """What is said, packed: user messages of text, images and files. Raises InvalidRequest `invalid_input`."""
    try:
        given = msgspec.json.decode(request.input)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _invalid("'input' is not valid JSON.", "input") from None
    if not given or not isinstance(given, str | list):
        raise _invalid("'input' must be a text or a list of user messages, and not empty.", "input")
    for index, item in enumerate(given if isinstance(given, list) else ()):
        _check_message(item, f"input[{index}]")
    try:
        return pack_input(given, bytes(request.input), bounds)
    except InvalidRequest as error:
        raise _invalid(error.message, error.param) from None


def _check_message(item: Any, path: str) -> None:
    if not isinstance(item, dict) or item.get("type", "message") != "message" or item.get("role") != "user":
        raise _invalid(f"'{path}' must be a message of the user: nothing else can be said to a response.", path)
    if not item.keys() <= _MESSAGE_FIELDS:
        raise _invalid(f"'{path}' may have `type`, `role` and `content`, and nothing else.", path)
    content = item.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise _invalid(f"'{path}.content' must be a text or a list of parts.", f"{path}.content")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _PARTS:
            raise _invalid(f"'{path}.content' may hold {', '.join(sorted(_PARTS))}.", f"{path}.content")


def _invalid(message: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_input", param=param)


def socket_events(body: bytes, lane: str) -> list[bytes]:
    """The events of a committed frame as text frames of a lane.

    The event `error` of a run that fails is left out: over a socket it would end the request, and `response.failed`,
    which does so and says the same, comes next.
    """
    events = [event for event in events_of(body) if not event.startswith(_FLAT_ERROR)]
    if not lane:
        return events
    tail = b',"stream_id":"%b"}' % lane.encode()
    return [event[:-1] + tail for event in events]


def error_event(error: StateroomError, lane: str = "") -> bytes:
    """What ends a request that could not be carried out. The connection goes on."""
    shown = {**error.body()["error"]}
    if headers := error.headers():
        shown["headers"] = headers
    return _ENCODE({"type": "error", "status": error.status, "error": shown, **_named(lane)})


def steer_accepted(number: int, steer_id: str, previous: str, lane: str) -> bytes:
    """The input is the server's now, and will not get lost."""
    return _steer_event("accepted", number, lane, steer={"id": steer_id, "previous_response_id": previous})


def steer_pending(number: int, steer_id: str, previous: str, lane: str, output: Sequence[OutputItem]) -> bytes:
    """The input waits for what the client has to bring first."""
    steer = {"id": steer_id, "previous_response_id": previous}
    return _steer_event(
        "pending",
        number,
        lane,
        reason="waiting_for_required_input",
        required_input=required_input(output),
        steer=steer,
    )


def steer_failed(number: int, request: SteerRequest, error: StateroomError, lane: str, steer_id: str = "") -> bytes:
    """The input is given back: it is part of no response."""
    steer: dict[str, Any] = {"previous_response_id": request.previous, "input": request.input}
    if steer_id:
        steer["id"] = steer_id
    said = {"code": error.code, "message": error.message, "type": "invalid_request_error"}
    return _steer_event("failed", number, lane, error=said, steer=steer)


def required_input(output: Sequence[OutputItem]) -> list[dict[str, Any]]:
    """Stubs of the results that the client owes to these calls."""
    stubs = []
    for held in output:
        item, kind = held.item, held.item.get("type")
        if kind == "function_call":
            stubs.append({"type": "function_call_output", "call_id": item["call_id"], "name": item["name"]})
        elif kind == "custom_tool_call":
            stubs.append({"type": "custom_tool_call_output", "call_id": item["call_id"]})
        elif item.get(HOSTED):
            continue
        elif kind == "shell_call":
            stubs.append({"type": "shell_call_output", "call_id": item["call_id"]})
        elif kind == "apply_patch_call":
            stubs.append({"type": "apply_patch_call_output", "call_id": item["call_id"]})
        elif kind == "mcp_approval_request":
            stubs.append({"type": "mcp_approval_response", "approval_request_id": held.id})
        elif kind == "tool_search_call":
            stubs.append({"type": "tool_search_output", "call_id": item["call_id"], "execution": "client"})
    return stubs


def _steer_event(kind: str, number: int, lane: str, **fields: Any) -> bytes:
    return _ENCODE({"type": f"response.steer.{kind}", **fields, "sequence_number": number, **_named(lane)})


def _named(lane: str) -> dict[str, str]:
    return {"stream_id": lane} if lane else {}
