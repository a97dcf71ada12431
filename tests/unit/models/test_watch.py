"""What is counted of the calls of a model server: each try, how it ended, what it used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from stateroom.errors import BackendError
from stateroom.models.backend import ContextItem, Finished, ModelCall
from stateroom.models.chat import ChatBackend
from stateroom.models.embeddings import EmbedCall, OpenAIEmbedder
from stateroom.settings import BackendSettings
from stateroom.telemetry.instruments import Instruments
from stateroom.testing.script import Reply, Script
from stateroom.testing.scripted import ScriptedServer


class Watched:
    """A backend, what is counted of it, and the script of its server."""

    def __init__(self, server: ScriptedServer) -> None:
        self.instruments = Instruments()
        self.server = server
        settings = BackendSettings(server.url, name="b", retries=1)
        self.backend = ChatBackend(settings, instruments=self.instruments)

    @property
    def outcomes(self) -> dict[str, float]:
        values = self.instruments.backend_calls.values
        return {outcome: count for (_, _, outcome), count in values.items()}

    async def ask(self, *, whole: bool = True, until_finished: bool = False) -> None:
        call = ModelCall("scripted", [ContextItem("msg_1", {"role": "user", "content": "chunks: 5"})], {})
        async with aclosing(self.backend.generate(call)) as batches:
            async for batch in batches:
                if not whole or (until_finished and isinstance(batch[-1], Finished)):
                    return


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with ScriptedServer(Script()) as server:
        watched = Watched(server)
        yield watched
        await watched.backend.close()


async def test_an_answer_is_counted_with_its_tokens_and_its_time(watched: Watched) -> None:
    await watched.ask()
    assert watched.outcomes == {"ok": 1}
    tokens = watched.instruments.tokens.values
    assert tokens["b", "scripted", "input"] > 0
    assert tokens["b", "scripted", "output"] > 0
    for timed in (watched.instruments.backend_seconds, watched.instruments.backend_first_token_seconds):
        assert sum(timed.values[("b",)].counts) == 1
    assert watched.instruments.backend_active == {"b": 0}


async def test_an_answer_of_which_the_end_was_seen_is_whole_and_another_was_cut_off(watched: Watched) -> None:
    await watched.ask(until_finished=True)
    assert watched.outcomes == {"ok": 1}
    await watched.ask(whole=False)
    assert watched.outcomes == {"ok": 1, "cancelled": 1}
    assert watched.instruments.backend_active == {"b": 0}
    assert watched.instruments.errors.values == {}


async def test_each_try_counts(watched: Watched) -> None:
    watched.server.script.replies.append(Reply(status=503, error={"message": "not yet"}))
    await watched.ask()
    assert watched.outcomes == {"backend_unavailable": 1, "ok": 1}
    assert watched.instruments.errors.values == {("backend", "backend_unavailable"): 1}


async def test_a_code_that_a_server_made_up_is_no_label(watched: Watched) -> None:
    watched.server.script.replies.append(Reply(status=400, error={"message": "no", "code": "Made Up {x}"}))
    with pytest.raises(BackendError):
        await watched.ask()
    assert set(watched.outcomes) <= {"other", "backend_rejected"}


async def test_embeddings_are_calls_as_well(watched: Watched) -> None:
    embedder = OpenAIEmbedder(BackendSettings(watched.server.url, name="b"), instruments=watched.instruments)
    await embedder.embed(EmbedCall("scripted", ["one"]))
    await embedder.close()
    assert watched.instruments.backend_calls.values == {("b", "scripted", "ok"): 1}
