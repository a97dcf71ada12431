"""Every backend passes the conformance suite. A new one adds its name and how it is opened to BACKENDS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import pytest

from stateroom.models.backend import Backend
from stateroom.models.chat import ChatBackend
from stateroom.models.dialects import server_backend
from stateroom.settings import BackendSettings
from stateroom.testing import backend_conformance
from stateroom.testing.script_dialect import Quirks
from stateroom.testing.scripted import ScriptedServer

Opened = AbstractAsyncContextManager[tuple[Backend, str]]


def scripted(quirks: Quirks, prefill: str = "none", counting: str = "") -> Callable[[], Opened]:
    """The chat dialect over a scripted server with these quirks."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Backend, str]]:
        async with ScriptedServer(quirks=quirks, counting=counting) as server:
            backend = ChatBackend(BackendSettings(server.url, prefill=prefill))
            yield backend, "scripted"
            await backend.close()

    return opened


def responses(
    quirks: Quirks, counting: str = "", dialect: Literal["responses", "auto"] = "responses"
) -> Callable[[], Opened]:
    """The Responses dialect over a scripted server with these quirks."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Backend, str]]:
        async with ScriptedServer(quirks=quirks, counting=counting) as server:
            backend = server_backend(BackendSettings(server.url, dialect=dialect), None)
            yield backend, "scripted"
            await backend.close()

    return opened


BACKENDS: dict[str, Callable[[], Opened]] = {
    "plain": scripted(Quirks(), counting="vllm"),
    "llama.cpp": scripted(Quirks(usage="asked"), prefill="assistant", counting="llama"),
    "vllm": scripted(Quirks(reasoning_field="reasoning"), prefill="continue_final_message"),
    "gateway": scripted(
        Quirks(crlf=True, comments=True, usage="every", whole_calls=True, ids=False, stop_after_calls=True)
    ),
    "old": scripted(Quirks(legacy_call=True, usage="none", done=False, dict_arguments=True)),
    "torn": scripted(Quirks(split=7, interleave=True)),
    "responses": responses(Quirks(hidden_reasoning=True), counting="responses"),
    "responses, torn": responses(Quirks(split=7, crlf=True, comments=True, done=False)),
    "responses, without deltas": responses(Quirks(whole_items=True, whole_calls=True)),
    "responses, found out": responses(Quirks(), dialect="auto"),
}


@pytest.mark.parametrize("case", backend_conformance.CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", BACKENDS)
async def test_a_backend_keeps_the_promises_of_the_seam(name: str, case: backend_conformance.Case) -> None:
    async with BACKENDS[name]() as (backend, model):
        await case(backend, model)
