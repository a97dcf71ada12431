"""Answers the requests of batches as if they had come over a connection: the same handlers, the same answers.

They come in by no socket, so the gate does not count them; what their runs use is charged to the batch's key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from stateroom import ids
from stateroom.access.principal import Principal
from stateroom.api.claims import HEADER
from stateroom.api.http import error_response
from stateroom.errors import NotFound, StateroomError, StorageFull
from stateroom.runtime.batches.state import Answer, Asked
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.runs import Runs
from stateroom.telemetry.context import Asked as Noted
from stateroom.telemetry.context import current_request, note_request
from stateroom.wire.batches import error_code

log = logging.getLogger("stateroom.api")

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class LineAnswers:
    """Implements `runtime.batches.state.Answering` by the handlers of the endpoints that batches may name."""

    def __init__(self, handlers: Mapping[str, Handler], runs: Runs, idempotency: Idempotency) -> None:
        self._handlers = handlers
        self._runs = runs
        self._idempotency = idempotency

    async def answer(self, asked: Asked, gone: asyncio.Event) -> Answer:
        """Whatever it is: what is wrong with a request is an answer, too."""
        request_id = ids.new_id("req")
        current_request.set(Noted())
        note_request(request_id)
        bodies = [asked.body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        try:
            response = await self._handlers[asked.endpoint](Request(_scope(asked, request_id), receive))
        except StateroomError as error:
            response = error_response(error)
        except Exception:  # one request must not end its batch; the trace is logged
            log.exception("batch.request_broke request_id=%s name=%s", request_id, asked.name)
            response = error_response(StateroomError("The server met an unexpected condition; see its log."))
        retry_after = response.headers.get("retry-after", "")
        body = bytes(response.body)
        return Answer(
            response.status_code,
            request_id,
            body,
            float(retry_after) if retry_after.isdigit() else 0.0,
            # A disk that is full says the same of itself: there it is worth another try.
            response.headers.get("x-should-retry") == "false" and error_code(body) != StorageFull.code,
        )

    async def forget(self, asked: Asked) -> None:
        """Erase the failed response of a try, if there is one: it is going to be made again."""
        if not asked.name or asked.endpoint != "/v1/responses":
            return  # failed completions are never kept
        place = ("POST", asked.endpoint, b"", asked.body)
        async with self._idempotency.claim(asked.project, asked.name, *place) as claimed:
            made = claimed.made
        if made:
            with suppress(NotFound):
                view = await self._runs.view(asked.project, made)
                if view.status == "failed":
                    await self._runs.delete(asked.project, made)


def _scope(asked: Asked, request_id: str) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": asked.endpoint,
        "query_string": b"",
        "headers": [(HEADER.encode(), asked.name.encode())] if asked.name else [],
        "stateroom.principal": Principal(asked.project, asked.key),
        "stateroom.request_id": request_id,
    }
