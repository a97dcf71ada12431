"""`GET /metrics`, for Prometheus and whoever reads its format. What is counted, and how, is telemetry's."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class MetricsApi:
    """The handler."""

    def __init__(self, render: Callable[[str], tuple[bytes, str]]) -> None:
        self._render = render
        """From an `Accept` header to the body and its content type."""

    def routes(self) -> list[Route]:
        """The paths at the root."""
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        body, content_type = self._render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})
