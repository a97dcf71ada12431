"""The embeddings of the scripted model server: vectors of words, so that texts with common words are near each other.

Pure: from the body of a request to a status and the body of an answer. Control words in the first input, as a text:
`fail: STATUS` answers with that status, `hang` never answers (None), `long` refuses as a server does whose model cannot
read so much.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from array import array
from typing import Any, Final, Literal, TypeAlias

import msgspec

SIZE: Final = 16
"""Numbers of a vector."""

Ways: TypeAlias = Literal["both", "floats", "refuses", "none"]
"""How a server takes `encoding_format: base64`: does as asked, ignores it, refuses it; none: it has no embeddings."""

_FAIL: Final = re.compile(r"fail: (\d{3})\Z")


class _Request(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None


def answer(body: bytes, ways: Ways) -> tuple[int, bytes] | None:
    """Status and body for a request; None: the server goes silent."""
    try:
        asked = msgspec.json.decode(body, type=_Request)
    except ValueError as error:
        return _error(400, f"bad request: {error}")
    wants_base64 = asked.encoding_format == "base64"
    if wants_base64 and ways == "refuses":
        return _error(400, "Unknown parameter: encoding_format")
    given = asked.input
    inputs: list[Any] = [given] if isinstance(given, str) or not given or isinstance(given[0], int) else list(given)
    first = inputs[0] if inputs and isinstance(inputs[0], str) else ""
    if found := _FAIL.match(first):
        return _error(int(found.group(1)), "it was asked to fail")
    if first == "long":
        return _error(400, "This model's maximum context length is 8 tokens, however you requested 9 tokens.")
    if first == "hang":
        return None
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector(each), wants_base64 and ways == "both")}
        for index, each in enumerate(inputs)
    ]
    tokens = sum(len(_words(each)) for each in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    # Out of order: what counts is the index.
    shown = {"object": "list", "data": data[::-1], "model": asked.model, "usage": usage}
    return 200, msgspec.json.encode(shown)


def vector(given: str | list[int]) -> array[float]:
    """The vector of a text, or of a list of tokens, of length 1."""
    numbers = [0.0] * SIZE
    for word in _words(given):
        digest = zlib.crc32(word.encode())
        numbers[digest % SIZE] += 1.0 if digest & 0x10000 else -1.0
        numbers[(digest >> 8) % SIZE] += 0.25
    length = math.hypot(*numbers) or 1.0
    return array("f", [number / length for number in numbers])


def _words(given: str | list[int]) -> list[str]:
    return re.findall(r"\w+", given.lower()) if isinstance(given, str) else [str(token) for token in given]


def _written(numbers: array[float], as_base64: bool) -> Any:
    return base64.b64encode(numbers.tobytes()).decode() if as_base64 else numbers.tolist()


def _error(status: int, message: str) -> tuple[int, bytes]:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return status, msgspec.json.encode({"error": error})
