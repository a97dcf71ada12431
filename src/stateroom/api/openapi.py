"""`/openapi.json` and `/docs`: the document of every route, and the page that shows it. Nothing is built at start."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stateroom.api.http import Json

PUBLIC = frozenset({"/openapi.json", "/docs"})
"""Paths that need no key: they tell of no data."""


class OpenApi:
    """Handlers that build what they show when it is first asked for."""

    def __init__(self) -> None:
        self._document: asyncio.Future[bytes] | None = None
        self._page: asyncio.Future[tuple[bytes, str]] | None = None

    def routes(self) -> list[Route]:
        """Paths at the root."""
        return [
            Route("/openapi.json", self.document, methods=["GET"]),
            Route("/docs", self.page, methods=["GET"]),
        ]

    async def document(self, request: Request) -> Response:
        if self._document is None:
            self._document = asyncio.ensure_future(asyncio.to_thread(_document))
        return Json(await asyncio.shield(self._document))

    async def page(self, request: Request) -> Response:
        if self._page is None:
            self._page = asyncio.ensure_future(asyncio.to_thread(_page))
        body, policy = await asyncio.shield(self._page)
        return Response(body, media_type="text/html", headers={"content-security-policy": policy})


def _document() -> bytes:
    from stateroom.wire.openapi.document import document  # lazy: most servers are never asked for it

    return msgspec.json.encode(document(version("stateroom")))


def _page() -> tuple[bytes, str]:
    from stateroom.api.docs_page import policy, render  # lazy: the same
    from stateroom.wire.openapi.document import document  # lazy: the same

    return render(document(version("stateroom"))), policy()
