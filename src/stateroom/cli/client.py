"""A small HTTP client of a running server, for the commands: JSON calls, pages, and event streams that break off.

It speaks OpenAI's API and Stateroom's extensions and knows no other part of the package.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Annotated, Any, BinaryIO, Final, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import typer

from stateroom.cli.failure import USAGE, CommandFailed
from stateroom.reasons import reason

DEFAULT_URL = "http://127.0.0.1:8000/v1"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 600.0
"""A model on a slow machine may think for minutes."""

_PIECE_BYTES: Final = 256 * 1024

Url: TypeAlias = Annotated[
    str,
    typer.Option("--url", envvar="STATEROOM_URL", help="The server's base URL.", show_default=True),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]


class ServerDown(CommandFailed):
    """Nothing answers there, or the connection broke."""


class Refused(CommandFailed):
    """The server answered with an error."""

    def __init__(self, status: int, message: str, code: str, request_id: str, *, remedy: str = "") -> None:
        details = ", ".join(part for part in (code, f"HTTP {status}", request_id) if part)
        super().__init__(f"{message} ({details})", remedy=remedy)
        self.status = status
        self.code = code


class Client:
    """Calls of one server. Every call has a connection of its own: a command makes a handful of them."""

    def __init__(self, url: str, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandFailed(f"{url!r} is not a base URL such as {DEFAULT_URL}.", exit_code=USAGE)
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._parts = parts
        self._key = os.environ.get("STATEROOM_API_KEY", "")
        self._answer_seconds = answer_seconds

    def go_on(self, option: str) -> str:
        """How to go on in a chat; names the server, unless it is the one that commands ask by themselves."""
        usual = (os.environ.get("STATEROOM_URL") or DEFAULT_URL).rstrip("/")
        return f"Go on with:  stateroom chat {option}" + ("" if self.url == usual else f" --url {self.url}")

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Mapping[str, Any] | None = None
    ) -> Any:
        """The decoded JSON answer. Raises Refused and ServerDown."""
        with closing(self._connect()) as connection:
            try:
                answer = self._send(connection, method, path, body, query)
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from None
            return _decoded(answer, content, self.url)

    def pages(
        self,
        path: str,
        *,
        order: str = "asc",
        limit: int = 0,
        after: str = "",
        query: Mapping[str, Any] | None = None,
    ) -> Iterator[Any]:
        """The entries of a list behind `after`, page by page; `limit` 0: all of them."""
        left = limit
        while True:
            size = min(left, 100) if limit else 100
            page = self.call("GET", path, query={**(query or {}), "order": order, "limit": size, "after": after})
            yield from page["data"]
            left -= len(page["data"])
            after = page.get("last_id") or ""
            if not page.get("has_more") or not page["data"] or (limit and left <= 0):
                return

    def stream(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """The events of a stream until the server ends it. Raises ServerDown when the connection breaks."""
        with closing(self._connect()) as connection:
            try:
                answer = self._send(connection, method, path, body, query)
                if answer.status >= 400 or "event-stream" not in answer.headers.get("content-type", ""):
                    yield _decoded(answer, answer.read(), self.url)
                    return
                yield from _events(answer)
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from None

    def download(self, path: str, target: BinaryIO, *, query: Mapping[str, Any] | None = None) -> int:
        """Write the bytes of an answer, and say how many there are. Raises Refused and ServerDown."""
        with closing(self._connect()) as connection:
            try:
                answer = self._send(connection, "GET", path, None, query)
                if answer.status >= 400:
                    _decoded(answer, answer.read(), self.url)
                declared, size = int(answer.headers.get("content-length") or -1), 0
                while piece := answer.read(_PIECE_BYTES):
                    size += target.write(piece)
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from None
            if size != declared >= 0:
                raise self._broken(OSError("the answer ended too early"))
            return size

    def upload(self, path: str, source: BinaryIO, size: int, media: str, *, query: Mapping[str, Any]) -> Any:
        """The decoded answer to a body that is sent as it is read. Raises Refused and ServerDown."""
        with closing(self._connect()) as connection:
            headers = {**self._headers(), "content-type": media, "content-length": str(size)}
            try:
                connection.putrequest("POST", self._target(path, query), skip_accept_encoding=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.endheaders()
                with suppress(BrokenPipeError, ConnectionResetError):  # the server says why in its answer
                    while piece := source.read(_PIECE_BYTES):
                        connection.send(piece)
                answer = connection.getresponse()
                return _decoded(answer, answer.read(), self.url)
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from None

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        try:
            connection = kind(self._parts.hostname or "", self._parts.port, timeout=CONNECT_SECONDS)
            connection.connect()
        except (OSError, ValueError) as error:
            raise self._down(error) from None
        connection.sock.settimeout(self._answer_seconds)
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, Any] | None,
    ) -> http.client.HTTPResponse:
        headers = self._headers()
        if body is not None:
            headers["content-type"] = "application/json"
        encoded = None if body is None else msgspec.json.encode(body)
        connection.request(method, self._target(path, query), encoded, headers)
        return connection.getresponse()

    def _headers(self) -> dict[str, str]:
        headers = {"accept": "application/json, text/event-stream", "user-agent": "stateroom-cli"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        return headers

    def _target(self, path: str, query: Mapping[str, Any] | None) -> str:
        given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
        return f"{self._parts.path.rstrip('/')}{path}" + (f"?{urlencode(given)}" if given else "")

    def _down(self, error: Exception) -> ServerDown:
        return ServerDown(
            f"No server answers at {self.url}: {reason(error)}.",
            remedy="Start one with `stateroom serve`, or name another with --url or STATEROOM_URL.",
        )

    def _broken(self, error: Exception) -> ServerDown:
        why = "it sent nothing for too long" if isinstance(error, socket.timeout) else reason(error)
        return ServerDown(
            f"The connection to {self.url} broke: {why}.",
            remedy="What the server had acknowledged is kept: try again.",
        )


def segment(identifier: str) -> str:
    """An id as a part of a path."""
    if not identifier:
        raise CommandFailed("An id is missing.", exit_code=USAGE)
    return quote(identifier, safe="")


def _decoded(answer: http.client.HTTPResponse, content: bytes, url: str) -> Any:
    try:
        value = msgspec.json.decode(content) if content else None
    except msgspec.DecodeError:
        value = None
    if answer.status < 400 and (value is not None or not content):
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        message = str(error.get("message") or answer.reason)
        code, request_id = str(error.get("code") or ""), answer.headers.get("x-request-id", "")
        lacks_version = code == "unknown_url" and not url.endswith("/v1")
        remedy = f"Base URLs end in /v1: try --url {url}/v1." if lacks_version else ""
        raise Refused(answer.status, message, code, request_id, remedy=remedy)
    raise Refused(answer.status, f"{url} does not answer like Stateroom; is it the right base URL?", "", "")


def _events(answer: http.client.HTTPResponse) -> Iterator[Any]:
    """Decoded `data:` fields; a stream that ends in mid-event ends without it."""
    data: list[bytes] = []
    while line := answer.readline():
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].lstrip(b" "))
        elif not line and data:
            content = b"\n".join(data)
            data = []
            if content == b"[DONE]":
                return
            yield _event(content)


def _event(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        raise CommandFailed("The server's stream holds an event that is not JSON; is a proxy in between?") from None
