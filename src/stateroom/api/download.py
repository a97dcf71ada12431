"""Bytes on their way out: whole or a range of them, in pieces, under headers that no browser takes for a page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stateroom.api.http import STALL_SECONDS
from stateroom.errors import RequestError

_RANGE: Final = re.compile(r"bytes=\s*(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))\s*")


class RangeNotSatisfiable(RequestError):
    """The file has none of the bytes that were asked for."""

    status = 416
    code = "range_not_satisfiable"

    size = 0

    @classmethod
    def of(cls, size: int) -> RangeNotSatisfiable:
        """For a file of so many bytes."""
        error = cls(f"The file has {size} bytes, and none of those that `Range` asks for.", param="Range")
        error.size = size
        return error

    def headers(self) -> dict[str, str]:
        return {"content-range": f"bytes */{self.size}"}


class Download(Response):
    """The content of a file, or the part of it that the request's `Range` names."""

    def __init__(
        self,
        request: Request,
        read: Callable[[int, int | None], AsyncGenerator[bytes, None]],
        *,
        size: int,
        etag: str,
        disposition: str,
    ) -> None:
        """`read` gives the bytes from a first to a last one. Raises RangeNotSatisfiable."""
        given = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
        asked = None if given is None else range_of(given, size)
        self._first, self._last = asked or (0, size - 1)
        super().__init__(status_code=200 if asked is None else 206, media_type="application/octet-stream")
        self.headers["content-length"] = str(self._last - self._first + 1)
        self.headers["content-disposition"] = disposition
        self.headers["accept-ranges"] = "bytes"
        self.headers["etag"] = etag
        if asked is not None:
            self.headers["content-range"] = f"bytes {self._first}-{self._last}/{size}"
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        writing = loop.create_task(self._write(scope, send))
        watching = loop.create_task(_wait_disconnect(receive))
        try:
            await asyncio.wait((writing, watching), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, watching):
                task.cancel()
            await asyncio.gather(writing, watching, return_exceptions=True)

    async def _write(self, scope: Scope, send: Send) -> None:
        started = False
        if scope["method"] != "HEAD" and self._first <= self._last:
            async with aclosing(self._read(self._first, self._last)) as pieces:
                async for piece in pieces:
                    if not started:  # only now: until something was read, a failure can be answered as such
                        await self._start(send)
                        started = True
                    async with asyncio.timeout(STALL_SECONDS):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not started:
            await self._start(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


def range_of(given: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a `Range` header; None for what may be ignored: several ranges, and what is none.

    Raises RangeNotSatisfiable.
    """
    match = _RANGE.fullmatch(given)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        if not int(suffix) or not size:
            raise RangeNotSatisfiable.of(size)
        return max(0, size - int(suffix)), size - 1
    if last is not None and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeNotSatisfiable.of(size)
    return int(first), min(int(last), size - 1) if last is not None else size - 1


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
