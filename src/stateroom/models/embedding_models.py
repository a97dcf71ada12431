"""Which embedder serves a model name.

In this order: names of embedding models, as settings and servers give them; names of models that a backend lists, whose
server is asked and may refuse; for a name that nobody knows the default, unless unknown names are to be refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from stateroom.errors import BackendError, InvalidRequest, NotFound
from stateroom.models.backend import Model
from stateroom.models.embeddings import NOT_SUPPORTED, EmbedCall, Embedder, Embeddings, Inputs
from stateroom.models.router import Router
from stateroom.models.vectors import TooShort, written

_log = logging.getLogger(__name__)

OFF_LOOP_VECTORS: Final = 64
"""From so many vectors on they are shortened in a thread."""


class Source(NamedTuple):
    """An embedder, and which of its models make embeddings."""

    embedder: Embedder
    models: Sequence[str] = ()
    """Empty: all that it lists."""


class Embedded(NamedTuple):
    """Vectors, and the model that made them."""

    model: str
    vectors: Sequence[msgspec.Raw]
    tokens: int


class EmbeddingModels:
    """All embedders, in the order of the settings."""

    def __init__(
        self,
        sources: Sequence[Source],
        router: Router,
        backends: Mapping[str, Embedder],
        *,
        default_model: str = "",
        unknown_models: Literal["default", "reject"] = "default",
    ) -> None:
        self._sources = list(sources)
        self._router = router
        self._backends = dict(backends)
        """By the name of the backend: for models that it lists without saying what they are for."""
        self.default_model = default_model
        self.unknown_models = unknown_models

    async def models(self) -> list[Model]:
        """Every embedding model that is known, once. A server that cannot be asked is left out."""
        found: dict[str, Model] = {}
        for source, listed in zip(self._sources, await self._listed(), strict=True):
            if isinstance(listed, BackendError):
                _log.warning("embeddings.not_listed server=%s %s", source.embedder.name, listed.message)
                continue
            for model in listed:
                found.setdefault(model.id, model)
        return list(found.values())

    async def embed(
        self, model: str, inputs: Inputs, *, base64: bool, dimensions: int | None = None, user: str | None = None
    ) -> Embedded:
        """Make vectors. Raises BackendError, NotFound, InvalidRequest."""
        embedder, found = await self._find(model)
        if found.dimensions is not None and dimensions is not None and dimensions > found.dimensions:
            raise _too_many(dimensions, found.id, found.dimensions)
        if inputs and not isinstance(inputs[0], str) and embedder.takes_tokens and found.id != model:
            raise InvalidRequest(
                f"{found.id} stands in for the unknown model {model[:200]!r}, whose tokens are others: send strings "
                "(LangChain: `check_embedding_ctx_length=False`), or name a model that GET /v1/models lists.",
                code="tokens_not_supported",
                param="input",
            )
        # What is to be shortened is read anyway, and base64 is read faster.
        made = await embedder.embed(EmbedCall(found.id, inputs, base64 or dimensions is not None, user))
        if dimensions is None:
            return Embedded(found.id, made.vectors, made.tokens)
        try:
            if len(made.vectors) >= OFF_LOOP_VECTORS:
                vectors = await asyncio.to_thread(_shortened, made, dimensions, base64)
            else:
                vectors = _shortened(made, dimensions, base64)
        except TooShort as error:
            raise _too_many(dimensions, found.id, error.size) from None
        return Embedded(found.id, vectors, made.tokens)

    async def close(self) -> None:
        """Close the embedders."""
        embedders = {id(each): each for each in [source.embedder for source in self._sources]}
        embedders |= {id(each): each for each in self._backends.values()}
        await asyncio.gather(*(each.close() for each in embedders.values()))

    async def _listed(self) -> list[list[Model] | BackendError]:
        return list(await asyncio.gather(*(_models(source) for source in self._sources)))

    async def _find(self, name: str) -> tuple[Embedder, Model]:
        for source in self._sources:  # names from the settings need no server to be asked
            if name in source.models:
                return source.embedder, Model(name)
        table: dict[str, tuple[Embedder, Model]] = {}
        failure: BackendError | None = None
        for source, listed in zip(self._sources, await self._listed(), strict=True):
            if isinstance(listed, BackendError):
                failure = failure or listed
                continue
            for model in listed:
                table.setdefault(model.id, (source.embedder, model))
        if found := table.get(name):
            return found
        if backend := await self._router.serving(name):
            if embedder := self._backends.get(backend.name):
                return embedder, Model(name)
            text = f"The model {name[:200]!r} makes no embeddings. GET /v1/models lists those that do."
            raise InvalidRequest(text, code=NOT_SUPPORTED, param="model")
        if failure is not None:  # it may be that server's: vectors of another model would fit nothing that is stored
            raise failure
        return self._stand_in(name, table)

    def _stand_in(self, name: str, table: Mapping[str, tuple[Embedder, Model]]) -> tuple[Embedder, Model]:
        wanted = self.default_model or next(iter(table), "")
        if self.unknown_models == "reject" or wanted not in table:
            missing = name if self.unknown_models == "reject" or not wanted else wanted
            text = f"The embedding model {missing[:200]!r} does not exist here. GET /v1/models lists those that do."
            raise NotFound(text, code="model_not_found", param="model")
        return table[wanted]


async def _models(source: Source) -> list[Model] | BackendError:
    if source.models:
        return [Model(name, owned_by=source.embedder.name, description="embedding model") for name in source.models]
    try:
        return await source.embedder.models()
    except BackendError as error:
        return error


def _shortened(made: Embeddings, dimensions: int, base64: bool) -> list[msgspec.Raw]:
    return [written(vector, as_base64=base64, size=dimensions) for vector in made.vectors]


def _too_many(dimensions: int, model: str, size: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for 'dimensions': {dimensions} is more than the {size} that vectors of {model} have.",
        code="integer_above_max_value",
        param="dimensions",
    )
