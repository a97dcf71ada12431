"""Batches as OpenAI's clients send and see them: the request, the lines of its files, the Batch object. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NoReturn, get_args

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.wire.decoding import decode
from stateroom.wire.files import EXPIRES_SECONDS
from stateroom.wire.parameters import Metadata

Endpoint = Literal["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
ENDPOINTS: Final = get_args(Endpoint)
"""What the lines of a batch may ask."""

WINDOW: Final = "24h"
WINDOW_SECONDS: Final = 24 * 3_600

_DEPTH: Final = 8
_BLANK: Final = b" \t\r\n\v\f"


class OutputExpiry(msgspec.Struct, frozen=True):
    """When output files go."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=EXPIRES_SECONDS[0], le=EXPIRES_SECONDS[1])]


class NewBatch(msgspec.Struct, frozen=True):
    """A request for a batch."""

    input_file_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


class BatchLine(msgspec.Struct, frozen=True):
    """One request of an input file."""

    custom_id: str
    body: bytes
    model: str
    """The one that it names; '' when it names none."""
    stored: bool = False
    """Whether what it makes is kept by the server, too."""
    acts: bool = False
    """Whether the server may do something for it that must not be done twice."""
    refusal: InvalidRequest | None = None
    """Why it cannot be answered in a batch, whatever the endpoint says."""


class LineUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The tokens of an answer, or of many."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def __add__(self, other: LineUsage) -> LineUsage:
        return LineUsage(
            self.input + other.input,
            self.cached + other.cached,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )


class LineError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with an input file."""

    code: str
    message: str
    line: int = 0
    """From 1; 0: the file as a whole."""
    param: str = ""


class _Line(msgspec.Struct):
    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None
    background: Any = None
    store: Any = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _Usage(msgspec.Struct):
    """Of all endpoints: each has its own words for the same."""

    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _Error(msgspec.Struct):
    code: Any = None


class _Refusal(msgspec.Struct):
    error: _Error | None = None


_ACTING: Final = (b'"shell"', b'"code_interpreter"', b'"apply_patch"', b'"mcp"', b'"stateroom:')
"""Words by which hosted tools are declared, wherever in a request."""
_NEW: Final = msgspec.json.Decoder(NewBatch)
_LINE: Final = msgspec.json.Decoder(_Line)
_BODY: Final = msgspec.json.Decoder(_Body)
_ANSWER: Final = msgspec.json.Decoder(_Answer)
_REFUSAL: Final = msgspec.json.Decoder(_Refusal)
_ENCODE: Final = msgspec.json.Encoder().encode


def decode_new_batch(body: bytes) -> NewBatch:
    """Raises InvalidRequest."""
    return decode(_NEW, body, _DEPTH)


def is_blank(line: bytes) -> bool:
    """Whether nothing stands on a line."""
    return not line.strip(_BLANK)


def read_line(line: bytes, endpoint: str, depth: int) -> BatchLine:
    """One request for this endpoint. Raises InvalidRequest, in whose words the batch's `errors` are."""
    try:
        line.decode()  # all of it: what is not looked at here goes on as it is
        read = decode(_LINE, line, depth + 1)
    except UnicodeDecodeError:
        raise InvalidRequest("This line is not valid UTF-8.", code="invalid_json_line") from None
    except InvalidRequest as error:
        _refuse_line(error)
    if read.method != "POST":
        raise InvalidRequest("The method must be POST.", code="invalid_method", param="method")
    if read.url != endpoint:
        message = f"The URL of this request is not the endpoint of the batch, {endpoint}."
        raise InvalidRequest(message, code="invalid_url", param="url")
    body = bytes(read.body)
    if body[:1] != b"{":
        message = "Invalid value for 'body': expected an object."
        raise InvalidRequest(message, code="invalid_type", param="body")
    try:
        asked = decode(_BODY, body, depth)
    except InvalidRequest as error:  # a number that is none, say: what is skipped over is read only now
        _refuse_line(error)
    return BatchLine(
        read.custom_id,
        body,
        asked.model if isinstance(asked.model, str) else "",
        _is_stored(asked, endpoint),
        endpoint == "/v1/responses" and any(name in body for name in _ACTING),
        _refusal_of(asked),
    )


def _refuse_line(error: InvalidRequest) -> NoReturn:
    """Say it of a line instead of a request body."""
    if error.code in ("invalid_json", "json_too_deep"):
        words = "This line is not parseable as valid JSON."
        if error.code == "json_too_deep":
            words = error.message
        raise InvalidRequest(words, code="invalid_json_line") from None
    if error.param is None:
        raise InvalidRequest("This line is not a JSON object.", code="invalid_json_line") from None
    raise error


def _is_stored(asked: _Body, endpoint: str) -> bool:
    if endpoint == "/v1/responses":
        return asked.store is not False
    return endpoint == "/v1/chat/completions" and asked.store is True


def _refusal_of(asked: _Body) -> InvalidRequest | None:
    """Who reads the answer of a line reads it in a file, when it is whole."""
    for name in ("stream", "background"):
        if getattr(asked, name):
            message = f"'{name}' cannot be used in a batch: the answer is written to a file when it is whole."
            return InvalidRequest(message, code="unsupported_parameter", param=name)
    return None


def usage_of(body: bytes) -> LineUsage:
    """The tokens of an answer; nothing when it does not say."""
    try:
        usage = _ANSWER.decode(body).usage
    except msgspec.DecodeError:
        return LineUsage()
    if usage is None:
        return LineUsage()
    read = usage.input_tokens_details or usage.prompt_tokens_details or _Details()
    wrote = usage.output_tokens_details or usage.completion_tokens_details or _Details()
    return LineUsage(
        usage.input_tokens or usage.prompt_tokens,
        read.cached_tokens or 0,
        usage.output_tokens or usage.completion_tokens,
        wrote.reasoning_tokens or 0,
    )


def error_code(body: bytes) -> str:
    """The code of an error that was answered; '' when it has none."""
    try:
        error = _REFUSAL.decode(body).error
    except msgspec.DecodeError:
        return ""
    return error.code if error is not None and isinstance(error.code, str) else ""


def answered_line(request: str, custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """A line of the output or the error file, without its end: what was answered, as it was."""
    # A line ends at a line break, which in JSON stands between values only.
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    return b'{"id":%b,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}' % (
        _ENCODE(request),
        _ENCODE(custom_id),
        status,
        _ENCODE(request_id),
        body,
    )


def unanswered_line(request: str, custom_id: str, code: str, message: str) -> bytes:
    """A line of the error file for a request that was never answered."""
    error = {"code": code, "message": message}
    return _ENCODE({"id": request, "custom_id": custom_id, "response": None, "error": error})


def batch_object(
    *,
    id: str,
    endpoint: str,
    model: str,
    errors: Sequence[LineError],
    input_file_id: str,
    status: str,
    output_file_id: str,
    error_file_id: str,
    times: dict[str, int],
    total: int,
    completed: int,
    failed: int,
    usage: LineUsage,
    metadata: dict[str, str] | None,
) -> dict[str, Any]:
    """A batch; `times` are in milliseconds, 0 for never."""
    return {
        "id": id,
        "object": "batch",
        "endpoint": endpoint,
        "model": model or None,
        "errors": {"object": "list", "data": [_error_object(error) for error in errors]} if errors else None,
        "input_file_id": input_file_id,
        "completion_window": WINDOW,
        "status": status,
        "output_file_id": output_file_id or None,
        "error_file_id": error_file_id or None,
        **{name: at // 1000 or None for name, at in times.items()},
        "request_counts": {"total": total, "completed": completed, "failed": failed},
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.input + usage.output,
        },
        "metadata": metadata,
    }


def _error_object(error: LineError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "param": error.param or None, "line": error.line or None}
