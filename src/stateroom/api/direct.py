"""The short way to a handler: a request to exactly the address of a route needs no search through all routes.

What is asked for most, `POST /v1/responses` first of all, has an address without parameters. Whatever else comes takes
the framework's way: addresses with parameters, unknown ones, methods that a route does not have.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from stateroom.api.http import answer_error, answer_http_exception, answer_unexpected
from stateroom.errors import StateroomError

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Direct:
    """Wraps the framework's application, and answers as that would."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._handlers: dict[tuple[str, str], Handler] = {}
        for name, handler in _plain(app.routes):
            self._handlers.setdefault(name, handler)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        scope["app"], scope["endpoint"], scope["path_params"] = self._app, handler, {}
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except StateroomError as error:
            response = await answer_error(request, error)
        except HTTPException as error:
            response = await answer_http_exception(request, error)
        except Exception as error:  # it is logged with its trace, and the client told that something broke
            response = await answer_unexpected(request, error)
        await response(scope, receive, send)


def _plain(routes: Iterable[BaseRoute], above: str = "") -> Iterable[tuple[tuple[str, str], Handler]]:
    """Method, address and handler of each route without parameters, in the order in which the framework tries them."""
    for route in routes:
        if isinstance(route, Mount):
            yield from _plain(route.routes, above + route.path)
        elif isinstance(route, Route) and "{" not in above + route.path:
            for method in route.methods or ():
                yield (method, above + route.path), route.endpoint
