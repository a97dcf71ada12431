"""A client that keeps every byte of a stream and never tries twice by itself: what it was told, it can swear to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec

_NUMBER = re.compile(rb'"sequence_number":(\d+)\}\n\n\Z')
_TYPE = re.compile(rb"\Aevent: ([a-z_.]+)\n")
TERMINAL = (b"response.completed", b"response.incomplete", b"response.failed")
DONE = b"data: [DONE]\n\n"


class Gone(Exception):
    """The server went away: nobody knows what became of the request."""


class Sent(NamedTuple):
    """A file in a form."""

    name: str
    data: bytes


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body[:500].decode('utf-8', 'replace')}")
        self.status = status
        self.body = body

    @property
    def code(self) -> str:
        held = msgspec.json.decode(self.body)
        return str(held["error"]["code"])


@dataclass(frozen=True)
class Event:
    """One event as it came over the wire."""

    number: int
    kind: bytes
    raw: bytes

    @property
    def data(self) -> Any:
        return msgspec.json.decode(self.raw[self.raw.index(b"\ndata: ") + 7 :])

    @property
    def is_terminal(self) -> bool:
        return self.kind in TERMINAL


def _form(fields: Mapping[str, str | Sent]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, value in fields.items():
        if isinstance(value, Sent):
            form.add_field(name, value.data, filename=value.name, content_type="application/octet-stream")
        else:
            form.add_field(name, value)
    return form


def parse_event(raw: bytes) -> Event:
    """Raises ValueError on anything but a numbered event."""
    number, kind = _NUMBER.search(raw), _TYPE.search(raw)
    if number is None or kind is None:
        raise ValueError(f"not an event: {raw!r}")
    return Event(int(number.group(1)), kind.group(1), raw)


class Client:
    """Talks to one server, through all its lives."""

    def __init__(self, url: str, *, seconds: float = 60.0) -> None:
        self.url = url.rstrip("/")
        # A connection for each request, so that nothing is sent again behind our back on one that broke.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=seconds),
            read_bufsize=1 << 20,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def call(
        self, method: str, path: str, body: Any = None, *, form: Mapping[str, str | Sent] | None = None, key: str = ""
    ) -> Any:
        """The decoded answer. `form`: the fields of a form, instead of a body; `key`: an idempotency key.

        Raises Refused, Gone.
        """
        return msgspec.json.decode(await self.raw(method, path, body, form=form, key=key))

    async def find(self, path: str) -> Any:
        """The object, or None when there is none. Raises Refused for every other error, Gone."""
        try:
            return await self.call("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    async def raw(
        self, method: str, path: str, body: Any = None, *, form: Mapping[str, str | Sent] | None = None, key: str = ""
    ) -> bytes:
        """The answer's body. Raises Refused, Gone."""
        headers = {"Idempotency-Key": key} if key else {}
        data = _form(form) if form is not None else None
        try:
            async with self._session.request(method, self.url + path, json=body, data=data, headers=headers) as answer:
                held = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Gone(f"{method} {path}: {error!r}") from error
        if answer.status != 200:
            raise Refused(answer.status, held)
        return held

    async def stream(self, method: str, path: str, body: Any = None) -> AsyncIterator[Event]:
        """The events of a stream, up to its closing line. Raises Refused, Gone (also when it has no closing line)."""
        try:
            async with self._session.request(method, self.url + path, json=body) as answer:
                if answer.status != 200:
                    raise Refused(answer.status, await answer.read())
                rest = b""
                async for chunk in answer.content.iter_any():
                    *blocks, rest = (rest + chunk).split(b"\n\n")
                    for block in blocks:
                        if block + b"\n\n" == DONE:
                            return
                        if not block.startswith(b":"):
                            yield parse_event(block + b"\n\n")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Gone(f"{method} {path}: {error!r}") from error
        raise Gone(f"{method} {path}: the stream has no closing line")

    async def chunks(self, path: str, body: Any) -> AsyncIterator[Any]:
        """The decoded chunks of a chat stream, up to its closing line. Raises Refused, Gone."""
        try:
            async with self._session.post(self.url + path, json=body) as answer:
                if answer.status != 200:
                    raise Refused(answer.status, await answer.read())
                async for line in answer.content:
                    if line.startswith(b"data: [DONE]"):
                        return
                    if line.startswith(b"data: "):
                        yield msgspec.json.decode(line[6:])
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Gone(f"POST {path}: {error!r}") from error
        raise Gone(f"POST {path}: the stream has no closing line")

    async def replay(self, response_id: str, after: int = -1) -> list[Event]:
        """The events of a response beyond a number, to the end. Raises Refused, Gone."""
        query = f"?stream=true&starting_after={after}" if after >= 0 else "?stream=true"
        return [event async for event in self.stream("GET", f"/responses/{response_id}{query}")]

    async def pages(self, path: str) -> list[Any]:
        """All objects of a list, oldest first. Raises Refused, Gone."""
        found: list[Any] = []
        while True:
            after = f"&after={found[-1]['id']}" if found else ""
            page = await self.call("GET", f"{path}?order=asc&limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    @asynccontextmanager
    async def socket(self, path: str = "/responses") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket. Raises Gone."""
        try:
            async with self._session.ws_connect(self.url + path, max_msg_size=0) as socket:
                yield socket
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Gone(f"socket {path}: {error!r}") from error

    async def until_up(self, seconds: float = 20.0) -> None:
        """Wait until the server answers. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await self.raw("GET", "/models")
                    return
                except (Gone, Refused):
                    await asyncio.sleep(0.01)
