"""`GET /v1/responses/{id}/events`: the journal of a response without its content, an extension of the Responses API."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.http import Json, page_of, slice_page
from stateroom.api.responses import principal
from stateroom.runtime.reading import RunReader
from stateroom.wire.responses import render_list
from stateroom.wire.run_events import run_events


class RunEventsApi:
    """The handler."""

    def __init__(self, runs: RunReader) -> None:
        self._runs = runs

    def routes(self) -> list[Route]:
        """The paths below /v1."""
        return [Route("/responses/{response_id}/events", self.page, methods=["GET"])]

    async def page(self, request: Request) -> Response:
        """The entries in their order; `after` and `before` name one by its `seq`."""
        page = page_of(request.query_params, order="asc")
        entries = await self._runs.entries(principal(request).project, request.path_params["response_id"])
        part, more = slice_page(run_events(entries), page)
        return Json(render_list([{"id": event.id, **event.facts} for event in part], more))
