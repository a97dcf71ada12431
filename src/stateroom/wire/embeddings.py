"""The Embeddings API: its request, from bytes to a record, and its answer, which holds each vector as it came.

Parameters: `model`, `input`, `encoding_format`, `dimensions` and `user` are honoured, there are no others. Null means
absent, and parameters that the API does not know are ignored, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.wire.decoding import decode

Token: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

TOKEN_BYTES: Final = 4
"""What a token counts for where a size is bounded."""


class EmbeddingBounds(msgspec.Struct, frozen=True):
    """Bounds on a request; the size of its body is checked before it gets here."""

    inputs: int = 2_048
    input_bytes: int = 256 * 1024
    depth: int = 64


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """`POST /v1/embeddings`, checked."""

    model: str
    inputs: list[str] | list[list[int]]
    base64: bool
    dimensions: int | None
    user: str | None


class Create(msgspec.Struct):
    model: str | None = None
    input: str | list[str | Token | list[Token]] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None


_DECODE: Final = msgspec.json.Decoder(Create)


def decode_embedding(body: bytes, bounds: EmbeddingBounds) -> EmbeddingRequest:
    """The body of a request. Raises InvalidRequest."""
    asked = decode(_DECODE, body, bounds.depth)
    for name in ("model", "input"):
        if getattr(asked, name) is None or (name == "model" and not asked.model):
            text = f"Missing required parameter: '{name}'."
            raise InvalidRequest(text, code="missing_required_parameter", param=name)
    assert asked.model is not None
    assert asked.input is not None
    inputs = _inputs(asked.input, bounds)
    return EmbeddingRequest(asked.model, inputs, asked.encoding_format == "base64", asked.dimensions, asked.user)


def render_embeddings(vectors: Sequence[msgspec.Raw], model: str, tokens: int) -> bytes:
    """The answer; vectors are JSON already and stay what they are."""
    parts = [b'{"object":"list","data":[']
    for index, vector in enumerate(vectors):
        parts += (b'%b{"object":"embedding","index":%d,"embedding":' % (b"," if index else b"", index), vector, b"}")
    parts.append(b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (_text(model), tokens, tokens))
    return b"".join(parts)


def _text(text: str) -> bytes:
    return msgspec.json.encode(text)


def _inputs(given: str | list[str | int | list[int]], bounds: EmbeddingBounds) -> list[str] | list[list[int]]:
    """One kind of inputs: texts, or lists of tokens. A list of numbers is one input."""
    if isinstance(given, str):
        return _texts([given], bounds, single=True)
    if not given:
        raise InvalidRequest("'input' is empty.", code="array_below_min_length", param="input")
    texts = [each for each in given if isinstance(each, str)]
    numbers = [each for each in given if isinstance(each, int)]
    lists = [each for each in given if isinstance(each, list)]
    if len(numbers) == len(given):
        return _tokens([numbers], bounds, single=True)
    if len(texts) != len(given) and len(lists) != len(given):
        text = "'input' must be a string, or a list of strings, of tokens or of lists of tokens; this one is mixed."
        raise InvalidRequest(text, code="invalid_type", param="input")
    if len(given) > bounds.inputs:
        raise InvalidRequest(
            f"'input' holds {len(given)} inputs; at most {bounds.inputs} are allowed (`limits.embedding_inputs`).",
            code="array_above_max_length",
            param="input",
        )
    return _texts(texts, bounds) if texts else _tokens(lists, bounds)


def _texts(texts: list[str], bounds: EmbeddingBounds, *, single: bool = False) -> list[str]:
    for index, text in enumerate(texts):
        param = "input" if single else f"input[{index}]"
        if not text:
            raise InvalidRequest(f"'{param}' is an empty string.", code="string_below_min_length", param=param)
        if len(text) > bounds.input_bytes or len(text.encode()) > bounds.input_bytes:
            raise _too_long(param, "string_above_max_length", bounds)
    return texts


def _tokens(lists: list[list[int]], bounds: EmbeddingBounds, *, single: bool = False) -> list[list[int]]:
    for index, tokens in enumerate(lists):
        param = "input" if single else f"input[{index}]"
        if not tokens:
            raise InvalidRequest(f"'{param}' is an empty list.", code="array_below_min_length", param=param)
        if len(tokens) * TOKEN_BYTES > bounds.input_bytes:
            raise _too_long(param, "array_above_max_length", bounds)
    return lists


def _too_long(param: str, code: str, bounds: EmbeddingBounds) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is longer than {bounds.input_bytes} bytes (`limits.embedding_input_bytes`).",
        code=code,
        param=param,
    )
