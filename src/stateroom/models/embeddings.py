"""The seam to embedding models, and the dialect that every server of them speaks: POST /embeddings as OpenAI has it.

An embedder makes vectors of texts, in the form that was asked for: what comes over the wire in that form is passed on
as it is. Which embedder serves a model name is `models.embedding_models`'. Every embedder passes
`stateroom.testing.embedder_conformance`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from stateroom.errors import BackendFailed, BackendRejected, InvalidRequest
from stateroom.models.backend import Model
from stateroom.models.chat import ChatBackend
from stateroom.models.vectors import written
from stateroom.settings import BackendSettings
from stateroom.telemetry.instruments import Instruments

NOT_SUPPORTED: Final = "embeddings_not_supported"
"""The model that was named makes no embeddings."""

OFF_LOOP_BYTES: Final = 1024 * 1024
"""An answer from this size on is looked through in a thread: it would hold up every stream."""

Inputs: TypeAlias = Sequence[str] | Sequence[Sequence[int]]
"""Texts, or texts as the model's own tokens."""


class EmbedCall(msgspec.Struct, frozen=True):
    """One request to an embedding model."""

    model: str
    """The embedder's own name for it."""
    inputs: Inputs
    base64: bool = False
    """In which form the vectors are to be."""
    user: str | None = None


class Embeddings(msgspec.Struct, frozen=True):
    """The vectors, in the order of the inputs."""

    vectors: Sequence[msgspec.Raw]
    """Each as JSON: a list of numbers, or base64."""
    tokens: int
    """Of all inputs; estimated when the server did not say."""


class Embedder(Protocol):
    """A server or engine that makes embeddings."""

    name: str
    takes_tokens: bool
    """Whether it reads lists of its own tokens."""

    async def models(self) -> list[Model]:
        """What it serves now. Raises BackendError when it cannot be asked."""
        ...

    async def embed(self, call: EmbedCall) -> Embeddings:
        """Raises BackendError subclasses, InvalidRequest for what the model cannot take.

        Retries by itself, with backoff. Cancelling the task cancels the request upstream at once.
        """
        ...

    async def close(self) -> None: ...


class OpenAIEmbedder:
    """A server's POST /embeddings. It has connections of its own, made when it is first used."""

    takes_tokens = True

    def __init__(
        self, settings: BackendSettings, key: str | None = None, instruments: Instruments | None = None
    ) -> None:
        self._server = ChatBackend(settings, key, instruments=instruments)
        self.name = self._server.name
        self._base64 = True
        """Until it has refused to write it."""

    async def models(self) -> list[Model]:
        return await self._server.models()

    async def embed(self, call: EmbedCall) -> Embeddings:
        try:
            body = await self._ask(call)
        except BackendFailed as error:
            if error.code != "backend_misconfigured":
                raise
            text = f"{self._server.server} makes no embeddings with the model {call.model[:200]!r}: {error.message}"
            raise InvalidRequest(text, code=NOT_SUPPORTED, param="model") from error
        try:
            if len(body) >= OFF_LOOP_BYTES:
                return await asyncio.to_thread(_read, body, call)
            return _read(body, call)
        except ValueError as error:
            text = f"{self._server.server} answered something that is no list of embeddings: {error}."
            raise BackendFailed(text, code="backend_bad_answer") from error

    async def close(self) -> None:
        await self._server.close()

    async def _ask(self, call: EmbedCall) -> bytes:
        asked: dict[str, Any] = {"model": call.model, "input": call.inputs}
        if call.user is not None:
            asked["user"] = call.user
        if call.base64 and self._base64:
            try:
                wanted = _encoded({**asked, "encoding_format": "base64"})
                return await self._server.post("embeddings", wanted, model=call.model)
            except BackendRejected as error:
                if "encoding_format" not in error.message and "base64" not in error.message:
                    raise
                self._base64 = False
        return await self._server.post("embeddings", _encoded(asked), model=call.model)


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _Usage | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)


def _encoded(asked: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(asked)
    except UnicodeEncodeError:
        raise InvalidRequest("The input is not valid Unicode.", code="invalid_value", param="input") from None


def _read(body: bytes, call: EmbedCall) -> Embeddings:
    """Raises ValueError, which msgspec's errors are, too."""
    answer = _ANSWER.decode(body)
    data = answer.data
    count = len(call.inputs)
    if all(item.index is not None for item in data):
        data = sorted(data, key=lambda item: item.index or 0)
        if [item.index for item in data] != list(range(count)):
            raise ValueError(f"its indexes are not those of {count} inputs")
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} inputs")
    vectors = [written(item.embedding.copy(), as_base64=call.base64) for item in data]
    usage = answer.usage
    tokens = max(usage.prompt_tokens, 0) or max(usage.total_tokens, 0) if usage is not None else 0
    return Embeddings(vectors, tokens or estimate(call.inputs))


def estimate(inputs: Inputs) -> int:
    """Tokens of the inputs, when nobody says: four bytes of text each."""
    return sum(len(each.encode("utf-8", "replace")) // 4 + 1 if isinstance(each, str) else len(each) for each in inputs)
