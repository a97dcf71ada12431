"""The model server of the benchmarks: the scripted one of `stateroom.testing`, with answers made before it listens.

    python -m benchmarks.model

prints `listening on http://127.0.0.1:PORT`. What it answers is decided by the model's name alone, see MODELS; the
prompt tokens it reports are the bytes of the request, so that a client can read how long the prompt was. TOLD does
what the control words of the last user message say.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from typing import Any, Final

import msgspec

from benchmarks.texts import ANSWER_CHARACTERS, pieces, texts
from stateroom.testing.script import ChatRequest, Reply, Script, obey
from stateroom.testing.scripted import ScriptedServer

BURST_CHUNKS: Final = 500
PACE_MS: Final = 20
POOL: Final = 512


class Model(msgspec.Struct, frozen=True):
    """How a model answers."""

    characters: int
    chunk: int = 4
    """Characters of one chunk."""
    delay_ms: int = 0

    @property
    def chunks(self) -> int:
        return -(-self.characters // self.chunk)


TYPICAL: Final = "typical"
SHORT: Final = "short"
BURST: Final = "burst"
PACED: Final = "paced"
PACED_BRIEFLY: Final = "paced-briefly"
TOLD: Final = "told"
MODELS: Final = {
    TYPICAL: Model(ANSWER_CHARACTERS),
    SHORT: Model(16),
    BURST: Model(BURST_CHUNKS * 4),
    PACED: Model(200 * 4, delay_ms=PACE_MS),
    PACED_BRIEFLY: Model(40 * 4, delay_ms=PACE_MS),
}


class Answers:
    """Gives the next answer of the model that is asked; by turns, so that neighbours differ."""

    def __init__(self) -> None:
        self._pools = {
            name: itertools.cycle([pieces(text, model.chunk) for text in texts(POOL, model.characters, seed=2)])
            for name, model in MODELS.items()
        }

    def reply(self, request: ChatRequest) -> Reply:
        if request.model == TOLD:
            return obey(request)
        model = MODELS[request.model]
        chunks = next(self._pools[request.model])
        # A whole answer comes at once: its pause would only make the load idle.
        delay = model.delay_ms / 1000 if request.stream else 0.0
        return Reply(pieces=chunks, delay=delay, usage=_usage(request.size, len(chunks)))


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _serve() -> None:
    server = ScriptedServer(
        Script(respond=Answers().reply, keep=0), models=(*MODELS, TOLD), strict_models=True, delay=0.0
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await server.start()
    sys.stdout.write(f"listening on {server.url.removesuffix('/v1')}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()


def main() -> None:
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
