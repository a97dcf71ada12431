"""The outermost layer: whom it lets in, and the headers of every answer. What is behind it knows the principal only.

A browser lets any page send requests to any server that it can reach, a loopback port among them. While a server asks
for no keys, requests whose Host or Origin is not this machine are refused, which also defeats DNS rebinding. Where
keys are asked for, the key protects; a page may use it from where the server itself is, or from a place that the
setting `cors_origins` names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Iterable
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateroom import ids
from stateroom.access.principal import Principal
from stateroom.api.gate import Gate
from stateroom.api.http import error_response
from stateroom.errors import Forbidden, StateroomError
from stateroom.telemetry.context import note_request

Headers: TypeAlias = list[tuple[bytes, bytes]]

LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})

_READ: Final = frozenset({b"host", b"origin", b"authorization", b"x-request-id"})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}")
"""What is taken for the id of a request when the client gives one."""
_HEADER_NAMES: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}(\s*,\s*[A-Za-z0-9_-]{1,64}){0,63}")
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_NO_FRAMES: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE: Final = (b"cache-control", b"no-store")
_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_EXPOSED: Final = (
    b"x-request-id, retry-after, x-should-retry, x-stateroom-token-count, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_PREFLIGHT_SECONDS: Final = b"600"


class Edge:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, gate: Gate, *, cors_origins: Iterable[str] = ()) -> None:
        self._app = app
        self._gate = gate
        named = frozenset(origin.rstrip("/").lower() for origin in cors_origins)
        self._anywhere = "*" in named
        self._origins = named - {"*"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        seen = [header for header in scope["headers"] if header[0] in _READ]
        found = dict(seen)
        given = found.get(b"x-request-id", b"")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else ids.new_id("req").encode()
        scope["stateroom.request_id"] = request_id.decode()
        note_request(scope["stateroom.request_id"])
        own: Headers = [(b"x-request-id", request_id), _NO_SNIFFING]

        def send_with_headers(message: Message) -> Awaitable[None]:
            if message["type"] in _STARTS:
                said = list(message.get("headers", ()))
                names = [name for name, _ in said]
                if b"cache-control" not in names:
                    said.append(_NO_STORE)
                if b"content-security-policy" not in names:
                    said.append(_NO_FRAMES)
                message["headers"] = said + own
            return send(message)

        try:
            preflight = self._admit(scope, seen, found, own)
        except StateroomError as refusal:
            await _refuse(refusal, scope, receive, send_with_headers)
            return
        await (preflight or self._app)(scope, receive, send_with_headers)

    def _admit(self, scope: Scope, seen: Headers, found: dict[bytes, bytes], own: Headers) -> Response | None:
        """Put the principal into the scope, and into `own` what the answer is to say. Raises StateroomError.

        A question of a browser whether it may ask is answered at once.
        """
        self._gate.refresh()
        origin = found.get(b"origin")
        shared = origin is not None and [name for name, _ in seen].count(b"origin") == 1 and self._is_named(origin)
        if shared and origin is not None:
            own += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
            own.append((b"access-control-expose-headers", _EXPOSED))
            if scope.get("method") == "OPTIONS" and b"access-control-request-method" in dict(scope["headers"]):
                self._check_place(seen, shared)
                return _preflight(scope)
        # What a socket will do is up to its messages.
        method: str = scope["method"] if scope["type"] == "http" else "POST"
        principal: Principal = self._gate.admit(method, scope["path"], found.get(b"authorization", b""))
        if self._gate.is_open or origin is not None:
            self._check_place(seen, shared)
        scope["stateroom.principal"] = principal
        headers, refusal = self._gate.count(principal)
        if headers:
            own += [(name.encode(), value.encode()) for name, value in headers.items()]
        if refusal is not None:
            raise refusal
        return None

    def _check_place(self, seen: Headers, shared: bool) -> None:
        """Refuse what a page of somewhere else sent, and without keys what was sent to a name of somewhere else."""
        if not self._gate.is_open:
            if not shared and not _is_own(seen):
                raise Forbidden(
                    "This request comes from a web page of another place, which this server was not told to trust "
                    "(`cors_origins`).",
                    code="foreign_origin",
                )
        elif not all(_is_local(name, value, shared) for name, value in seen):
            raise Forbidden(
                "This server answers requests to this machine only: the Host or Origin header names another one.",
                code="foreign_origin",
            )

    def _is_named(self, origin: bytes) -> bool:
        if self._anywhere and not self._gate.is_open:
            return True
        return bool(self._origins) and origin.decode("latin-1").lower() in self._origins


async def _refuse(refusal: StateroomError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
        return
    await error_response(refusal)(scope, receive, send)


def _preflight(scope: Scope) -> Response:
    asked = dict(scope["headers"]).get(b"access-control-request-headers", b"")
    answer = Response(status_code=204)
    answer.raw_headers.append((b"access-control-allow-methods", b"GET, POST, DELETE"))
    if _HEADER_NAMES.fullmatch(asked):
        answer.raw_headers.append((b"access-control-allow-headers", asked))
    answer.raw_headers.append((b"access-control-max-age", _PREFLIGHT_SECONDS))
    return answer


def _is_own(seen: Headers) -> bool:
    """Whether a page that the server itself sent out sends this."""
    hosts = [value.lower() for name, value in seen if name == b"host"]
    origins = [value.lower().partition(b"://")[2] for name, value in seen if name == b"origin"]
    return not origins or (len(hosts) == 1 and bool(hosts[0]) and set(origins) == set(hosts))


def _is_local(name: bytes, value: bytes, shared: bool) -> bool:
    if name == b"host":
        return _is_this_machine(_host(value.decode("latin-1")))
    if name == b"origin":
        return shared or _is_this_machine(_origin(value.decode("latin-1")))
    return True


def _origin(value: str) -> str:
    """The host of an origin; '' when it has none or cannot be read."""
    try:
        return urlsplit(value).hostname or ""
    except ValueError:
        return ""


def _host(value: str) -> str:
    return value if value.endswith("]") else value.rsplit(":", 1)[0]


def _is_this_machine(host: str) -> bool:
    host = host.lower()
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
