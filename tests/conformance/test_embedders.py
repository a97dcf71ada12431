"""Every embedder passes the conformance suite. A new one adds its name and how it is opened to EMBEDDERS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from stateroom.models.embedded_minilm import MODEL, EmbeddedEmbedder
from stateroom.models.embeddings import Embedder, OpenAIEmbedder
from stateroom.settings import BackendSettings, EmbeddedSettings
from stateroom.testing import embedder_conformance
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.script_embeddings import Ways
from stateroom.testing.scripted import ScriptedServer

Opened = AbstractAsyncContextManager[tuple[Embedder, str]]


def scripted(ways: Ways) -> Callable[[], Opened]:
    """The dialect over a scripted server that takes base64 in one of the ways that servers do."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Embedder, str]]:
        async with ScriptedServer(quirks=Quirks(embeddings=ways)) as server:
            embedder = OpenAIEmbedder(BackendSettings(server.url))
            yield embedder, "scripted"
            await embedder.close()

    return opened


@asynccontextmanager
async def embedded() -> AsyncIterator[tuple[Embedder, str]]:
    embedder = EmbeddedEmbedder(EmbeddedSettings())
    yield embedder, MODEL
    await embedder.close()


EMBEDDERS: dict[str, Callable[[], Opened]] = {
    "plain": scripted("both"),
    "floats only": scripted("floats"),
    "refuses base64": scripted("refuses"),
}


@pytest.mark.parametrize("case", embedder_conformance.CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", EMBEDDERS)
async def test_an_embedder_keeps_the_promises_of_the_seam(name: str, case: embedder_conformance.Case) -> None:
    async with EMBEDDERS[name]() as (embedder, model):
        await case(embedder, model)


@pytest.mark.embedded
@pytest.mark.xdist_group("embedded")
async def test_the_embedded_model_keeps_the_promises_of_the_seam() -> None:
    """All in one test: the child is started once."""
    async with embedded() as (embedder, model):
        for case in embedder_conformance.CASES:
            await case(embedder, model)
