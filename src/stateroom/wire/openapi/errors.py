"""The one shape of all errors, and what each status means."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.wire.openapi.codes import CODES
from stateroom.wire.openapi.schemas import Schema, ref, shapes


class ErrorBody(msgspec.Struct):
    """What is wrong, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct):
    """Every error has this shape, also as the last event of a stream of chat completions."""

    error: ErrorBody


MEANINGS: Final[dict[str, str]] = {
    "400": "Something of the request is wrong; `param` names it.",
    "401": "The server asks for a key, and there was none, or not one of its own.",
    "403": "The key may not do this, or the request comes from a web page of another place.",
    "404": "There is no such thing: missing, deleted and somebody else's look the same.",
    "405": "This cannot be done with such a thing.",
    "409": "Not now: something is still being made.",
    "413": "The body is larger than it may be.",
    "416": "The file has none of the bytes that were asked for.",
    "429": "A limit is reached; `retry-after` says for how long.",
    "4XX": "The model's server refuses the request; its own message is passed on.",
    "500": "The server could not do it; its log says why.",
    "502": "The model's server failed, or answered something else than what was asked for.",
    "503": "The server, or the model's server, is not available now.",
    "504": "The model's server went silent.",
}


def error_schemas() -> dict[str, Schema]:
    """The components of errors, with every code there is."""
    found = shapes((Error,))
    held = found["ErrorBody"]["properties"]
    held["message"]["description"] = "For people; it may change."
    held["param"]["description"] = "The parameter that is wrong, as a path such as `input[2].content`."
    told = "; ".join(f"{about.lower()}: {', '.join(f'`{code}`' for code in codes)}" for about, codes in CODES.items())
    held["code"] |= {
        "description": f"Stable. What a model's server refuses may have that server's own code. By subject: {told}.",
        "x-extensible-enum": [code for codes in CODES.values() for code in codes],
    }
    return found


def error_answer(status: str) -> dict[str, Any]:
    """The answer with this status; its name among the components is `Error` and the status."""
    answer: dict[str, Any] = {
        "description": MEANINGS[status],
        "headers": {"x-request-id": {"$ref": "#/components/headers/RequestId"}},
        "content": {"application/json": {"schema": ref("Error")}},
    }
    if status == "429":
        answer["headers"]["retry-after"] = {
            "description": "Seconds after which to try again.",
            "schema": {"type": "integer", "minimum": 1},
        }
    return answer
