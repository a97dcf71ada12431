"""From a request to the claim of its `Idempotency-Key`: what every handler that makes something begins with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from starlette.requests import Request

from stateroom import ids
from stateroom.access.principal import Principal
from stateroom.agent.hosted import tool_of
from stateroom.errors import BackendUnavailable, InvalidRequest, NotFound, StateroomError, TooMany
from stateroom.journal.entries import Fact, OutputItem, RunView
from stateroom.journal.hosted_items import SEARCH
from stateroom.runtime.conversations import Conversation, Conversations
from stateroom.runtime.idempotency import Claim, Idempotency
from stateroom.runtime.live import LiveRun
from stateroom.runtime.runs import Runs

HEADER: Final = "idempotency-key"
PATIENCE_SECONDS: Final = 30.0
"""How long a repeated request waits for a run that a crash cut off and that is not taken up again yet."""
_LOOK_SECONDS: Final = 0.1

Make: TypeAlias = Callable[[str, tuple[Fact, ...]], Awaitable[Conversation]]
"""Makes a conversation of this id, and commits these records with it."""


def claim(idempotency: Idempotency, request: Request, body: bytes) -> Claim:
    """To be entered around what the request makes. Raises InvalidRequest for a key that is none.

    Instead of a body that is too large to be held, give a hash of it.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return idempotency.claim("", "")
    principal: Principal = request.scope["stateroom.principal"]
    place = (request.method, request.scope["path"], request.scope["query_string"])
    # An empty header is a mistake of its sender, and not the wish to have no key.
    return idempotency.claim(principal.project, key or " ", *place, body)


async def conversation_once(
    idempotency: Idempotency, conversations: Conversations, request: Request, body: bytes, make: Make
) -> Conversation:
    """The conversation that the request's key made before, as it is now; else a new one."""
    principal: Principal = request.scope["stateroom.principal"]
    async with claim(idempotency, request, body) as claimed:
        if claimed.made:
            with suppress(NotFound):
                return await conversations.get(principal.project, claimed.made)
        conversation_id = ids.new_id("conv")
        return await make(conversation_id, claimed.also(conversation_id))


async def earlier_run(
    runs: Runs, project: str, claimed: Claim, *, waits: bool, background: bool
) -> LiveRun | RunView | None:
    """The run that the claim's key made before, if it can answer once more.

    It cannot when it is erased, and when its client waited for it (`waits`) and was answered with an error before the
    run had done anything: whoever asks again then wants it to be tried again.
    """
    kept = claimed.kept
    if isinstance(kept, LiveRun):
        ended = kept.state.ended
        is_lost = kept.cancelling or (ended is not None and ended.status in ("failed", "cancelled"))
        return None if is_lost and not has_called(kept.state.output) else kept
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while claimed.made:
        live = runs.find_live(project, claimed.made)
        if live is not None and live.state.ended is None:
            return live
        try:
            view = await runs.view(project, claimed.made)
        except NotFound:
            return None
        if view.ended_at or background:
            return None if waits and view.status == "failed" and not view.output else view
        if asyncio.get_running_loop().time() > deadline:
            message = "The response was cut off by a crash and goes on as soon as its model server is back. Try again."
            raise BackendUnavailable(message)
        await asyncio.sleep(_LOOK_SECONDS)
    return None


def has_called(outputs: Sequence[OutputItem]) -> bool:
    """Whether a run has called hosted tools: what was begun for it must not be done again as if nothing had been."""
    return any(tool_of(output.item) not in ("", SEARCH) for output in outputs)


def failure_of(view: RunView) -> StateroomError | None:
    """The error that a run's creation was answered with."""
    if view.status != "failed" or view.error is None:
        return None
    said = view.error
    status = int(said.get("status") or 500)
    message, code, param = str(said.get("message") or ""), str(said.get("code") or "server_error"), said.get("param")
    failure: StateroomError
    if status == 429:
        failure = TooMany(message, code=code, param=param)
    elif status < 500:
        failure = InvalidRequest(message, code=code, param=param)
    else:
        failure = StateroomError(message, code=code, param=param)
    failure.status = status
    return failure
