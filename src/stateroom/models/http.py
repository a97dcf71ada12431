"""A model server over HTTP, whatever its dialect: requests, time-outs, retries, cancellation, the list of its models.

What goes into a request, what an answer means and what is learnt from a refusal is the dialect's: chat.py and
responses.py each say that of theirs. What a failure means is in chat_errors, which both share.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import aiohttp
import msgspec
from yarl import URL

from stateroom import ids
from stateroom.clock import Clock, SystemClock
from stateroom.errors import BackendBusy, BackendError, BackendFailed, BackendRejected, BackendTimeout
from stateroom.models.backend import Delta, Model, ModelCall
from stateroom.models.chat_errors import from_status, from_transport, read_error
from stateroom.models.incoming import Incoming
from stateroom.models.listing import read_models
from stateroom.models.watch import CANCELLED, CallWatch
from stateroom.settings import BackendSettings
from stateroom.telemetry.instruments import Instruments

ANSWER_LIMIT: Final = 64 * 1024 * 1024
ERROR_LIMIT: Final = 64 * 1024
LIST_LIMIT: Final = 4 * 1024 * 1024

MODELS_SECONDS: Final = 5.0
"""How long an answer of GET /models is believed."""

GRACE_SECONDS: Final = 5.0
"""How long the usage may take after the finish reason has come."""

QUICK_SECONDS: Final = 10.0
"""How long a server may take for what needs no model."""

BACKOFF_SECONDS: Final = 0.25
BACKOFF_LIMIT: Final = 8.0
WAIT_LIMIT: Final = 30.0
"""Longest `Retry-After` that is waited for; beyond it the caller is told."""

_RETRIED: Final = frozenset({"backend_unavailable", "backend_connect_timeout", "backend_failed"})

_SEND: Final = {"content-type": "application/json", "accept-encoding": "identity"}
_CLOSE: Final = {"connection": "close"}
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Decoder(Protocol):
    """Makes deltas of one answer."""

    @property
    def done(self) -> bool:
        """Nothing more is to come."""
        ...

    @property
    def finish(self) -> str:
        """Why the answer ended, once that has come: what comes behind it may be missed."""
        ...

    @property
    def thinking(self) -> bool:
        """The model reasons in silence now, which may take as long as the first byte."""
        ...

    @property
    def failure(self) -> BackendError | None:
        """An error that came inside the stream, behind the deltas that were given out."""
        ...

    def feed(self, data: bytes) -> list[Delta]:
        """The deltas of all events that these bytes complete. Raises BackendError."""
        ...

    def whole(self, body: bytes) -> list[Delta]:
        """The deltas of a whole answer. Raises BackendError."""
        ...

    def end(self) -> list[Delta]:
        """The last deltas, when the server has ended the stream. Raises BackendError when it broke off."""
        ...


D = TypeVar("D", bound=Decoder)


class HttpBackend(ABC, Generic[D]):
    """One server. Its session is made in the loop that uses it first."""

    dialect: ClassVar[str]
    path: ClassVar[str]
    """Below the base URL: where an answer is asked for."""

    def __init__(
        self,
        settings: BackendSettings,
        key: str | None = None,
        *,
        clock: Clock | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        base = URL(settings.url)
        if base.scheme not in ("http", "https") or not base.host:
            raise BackendFailed(f"{settings.url!r} is not the URL of a model server.", code="backend_misconfigured")
        bare = base.with_user(None).with_query(None).with_fragment(None)
        self.settings = settings
        self.name = settings.name or bare.authority
        self.can_prefill = False
        self.server = f"The model server {settings.name} at {bare}" if settings.name else f"The model server at {bare}"
        self._key = key
        self._base = bare if key else base
        self._answers = self._url(self.path)
        self._clock: Clock = clock or SystemClock()
        self._instruments = instruments or Instruments()
        self._models: tuple[float, list[Model]] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._lessons = 0
        """How often it was learnt that the server wants something else than it was sent."""
        self._closes = False
        """Its server ends a connection after each stream and does not say so (llama.cpp): none is used again."""

    # What a dialect says.

    @abstractmethod
    def _encode(self, call: ModelCall) -> bytes:
        """The body of a request."""

    @abstractmethod
    def _decoder(self, call: ModelCall) -> D:
        """For the answer to one request."""

    @abstractmethod
    def _learns(self, error: BackendError, call: ModelCall) -> bool:
        """Whether the server refused an option for which there is another way, to be used from now on."""

    def _note(self, decoder: D) -> None:
        """Learn from an answer that is complete."""

    # The seam.

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        attempt = 0
        while True:
            given, lessons = False, self._lessons
            watch = self._watch(call.model, stream=call.stream)
            answer = self._answer(call, watch.headers)
            outcome = ""
            try:
                async for batch in answer:
                    if not given:
                        given, watch.first_at = True, self._clock.monotonic()
                    watch.last = batch
                    yield batch
                return
            except BackendError as error:
                outcome = error.code
                if given:
                    raise
                if self._learns(error, call):
                    self._lessons += 1
                learnt = isinstance(error, BackendRejected) and self._lessons > lessons  # perhaps by another call
                pause = 0.0 if learnt else self._pause(error, attempt)
                if pause is None:
                    raise
            finally:
                watch.end(outcome)
                await answer.aclose()
            await self._clock.sleep(pause)
            attempt += 1

    async def models(self) -> list[Model]:
        now = self._clock.monotonic()
        if self._models is not None and now - self._models[0] < MODELS_SECONDS:
            return self._models[1]
        try:
            found = read_models(await self._ask("GET", self._url("models"), None))
        except BackendError:
            if not self.settings.models:
                raise
            found = []
        if self.settings.models:
            known = {model.id: model for model in found}
            found = [known.get(name) or Model(name, owned_by=self.name) for name in self.settings.models]
        self._models = (now, found)
        return found

    async def post(self, path: str, body: bytes, *, model: str = "") -> bytes:
        """The whole answer to a call that makes no deltas, such as embeddings. Retries like `generate`.

        Raises BackendError.
        """
        attempt = 0
        while True:
            watch, outcome = self._watch(model, operation=path), CANCELLED
            try:
                answer = await self._post(self._url(path), body, watch.headers)
                outcome = ""
                return answer
            except BackendError as error:
                outcome = error.code
                pause = self._pause(error, attempt)
                if pause is None:
                    raise
            finally:
                watch.through(outcome)
            await self._clock.sleep(pause)
            attempt += 1

    async def serves(self) -> bool | None:
        """Whether its server has this dialect's route, and well; None when it cannot be told now. No model is asked.

        The empty request names no model, so that a server which has the route can only refuse it.
        """
        try:
            incoming = await self._open("POST", self._answers, b"{}", QUICK_SECONDS)
        except BackendError:
            return None
        try:
            status = incoming.response.status
            missing = status == 404 and (await self._refusal(incoming)).code == "backend_misconfigured"
        finally:
            incoming.close()
        if missing or status in (405, 501) or self._closes:
            return False  # llama.cpp has the route, and passes over `text.format` there: structured output is lost
        return None if status in (401, 403, 429, 502, 503, 504) else True

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # One try.

    def _watch(self, model: str, *, operation: str = "chat", stream: bool = False) -> CallWatch:
        return CallWatch(
            self._instruments,
            self._clock,
            backend=self.name,
            model=model,
            server=self._base,
            operation=operation,
            stream=stream,
        )

    async def _answer(self, call: ModelCall, headers: Mapping[str, str]) -> AsyncGenerator[Sequence[Delta], None]:
        """The answer to one request. Closing it drops the connection at once."""
        body = self._encode(call)
        decoder = self._decoder(call)
        patience = self.settings.first_byte_timeout_seconds
        deadline = self._clock.monotonic() + patience
        incoming = await self._open("POST", self._answers, body, patience, headers)
        try:
            if incoming.response.status != 200:
                raise await self._refusal(incoming)
            if _is_whole(incoming.response, call.stream):
                total = deadline - self._clock.monotonic()
                idle = self.settings.idle_timeout_seconds
                last = decoder.whole(await incoming.whole(ANSWER_LIMIT, idle, total=total))
            else:
                while (batch := await self._batch(incoming, decoder, deadline)) is not None:
                    if batch:
                        yield batch
                        deadline = 0.0
                    if decoder.failure is not None:
                        raise decoder.failure
                last = decoder.end()
            self._note(decoder)
            yield last
            await self._drain(incoming)
        finally:
            incoming.close()

    async def _batch(self, incoming: Incoming, decoder: D, deadline: float) -> Sequence[Delta] | None:
        """What the next read gives; None when the stream is at its end, properly or after the finish reason.

        `deadline` is when the first delta has to be there; 0 once it is.
        """
        if decoder.done:
            return None
        try:
            data = await incoming.chunk(deadline - self._clock.monotonic() if deadline else self._idle(decoder))
        except BackendError as error:
            if decoder.finish:
                return None
            if deadline and isinstance(error, BackendTimeout):
                raise self._late() from None
            raise
        return decoder.feed(data) if data else None

    def _late(self) -> BackendTimeout:
        patience = self.settings.first_byte_timeout_seconds
        return BackendTimeout(f"{self.server} did not begin to answer within {patience:g} s.")

    def _idle(self, decoder: D) -> float:
        idle = self.settings.idle_timeout_seconds
        if decoder.thinking:
            return max(idle, self.settings.first_byte_timeout_seconds)
        return min(GRACE_SECONDS, idle) if decoder.finish else idle

    async def _drain(self, incoming: Incoming) -> None:
        """Read the little that stands behind the answer, so that the connection can be used again."""
        if not incoming.response.content.at_eof():
            try:
                await incoming.whole(ERROR_LIMIT, 0.1, total=0.2)
            except BackendError:
                return

    async def _refusal(self, incoming: Incoming) -> BackendError:
        """The error that a response with an error status stands for."""
        body = b""
        end = self._clock.monotonic() + QUICK_SECONDS
        try:
            while len(body) < ERROR_LIMIT and (piece := await incoming.chunk(end - self._clock.monotonic())):
                body += piece
        except BackendError:
            body = body or b""
        error = read_error(body[:ERROR_LIMIT], self._key)
        now = self._clock.now()
        head = incoming.response
        return from_status(head.status, error, server=self.server, key=self._key, headers=head.headers, now=now)

    async def _open(
        self, method: str, url: URL, body: bytes | None, patience: float, more: Mapping[str, str] | None = None
    ) -> Incoming:
        """Send a request and wait for the head of its answer."""
        session = self._session or self._connect()
        connect = self.settings.connect_timeout_seconds
        try:
            async with asyncio.timeout(patience):
                headers = {**_CLOSE, **(more or {})} if self._closes else more or None
                response = await session.request(
                    method, url, data=body, headers=headers, allow_redirects=False, proxy=self._proxy
                )
                self._closes = response.headers.get("server") == "llama.cpp"
                return Incoming(response, self.server)
        except (aiohttp.ClientError, ssl.SSLError) as error:
            raise from_transport(error, server=self.server, connect_seconds=connect) from error
        except TimeoutError as error:
            raise BackendTimeout(f"{self.server} did not begin to answer within {patience:g} s.") from error
        except OSError as error:
            raise from_transport(error, server=self.server, connect_seconds=connect) from error

    async def _post(self, url: URL, body: bytes, headers: Mapping[str, str]) -> bytes:
        patience = self.settings.first_byte_timeout_seconds
        deadline = self._clock.monotonic() + patience
        incoming = await self._open("POST", url, body, patience, headers)
        try:
            if incoming.response.status != 200:
                raise await self._refusal(incoming)
            total = deadline - self._clock.monotonic()
            return await incoming.whole(ANSWER_LIMIT, self.settings.idle_timeout_seconds, total=total)
        finally:
            incoming.close()

    async def _ask(self, method: str, url: URL, body: bytes | None) -> Any:
        """A small JSON answer that needs no model."""
        return (await self._ask_with_headers(method, url, body))[0]

    async def _ask_with_headers(self, method: str, url: URL, body: bytes | None) -> tuple[Any, Mapping[str, str]]:
        """The same, with the headers of the answer; their names may be asked for in any case."""
        incoming = await self._open(method, url, body, QUICK_SECONDS)
        try:
            if incoming.response.status != 200:
                raise await self._refusal(incoming)
            held = await incoming.whole(LIST_LIMIT, QUICK_SECONDS, total=QUICK_SECONDS)
        finally:
            incoming.close()
        try:
            return msgspec.json.decode(held), incoming.response.headers
        except (ValueError, RecursionError) as error:
            text = f"{self.server} answered {method} {url.path} with something that is not JSON."
            raise BackendFailed(text, code="backend_bad_answer") from error

    def _connect(self) -> aiohttp.ClientSession:
        settings = self.settings
        headers = {**_SEND, "authorization": f"Bearer {self._key}"} if self._key else _SEND
        self._session = aiohttp.ClientSession(
            # Shorter than the five seconds after which uvicorn, under most servers, closes an idle connection.
            connector=aiohttp.TCPConnector(limit=settings.concurrency, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_seconds),
            headers=headers,
            skip_auto_headers=("user-agent", "accept"),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 18,
        )
        self._proxy = _proxy_for(self._base)
        return self._session

    # What to do next.

    def _pause(self, error: BackendError, attempt: int) -> float | None:
        """Seconds until the next try; None when there is to be none."""
        if attempt >= self.settings.retries:
            return None
        asked = error.retry_after if isinstance(error, BackendBusy) else 0.0
        if asked > WAIT_LIMIT or not (isinstance(error, BackendBusy) or error.code in _RETRIED):
            return None
        jitter = int(ids.random_padding(4), 16) / 0xFFFF
        backoff: float = min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2**attempt) * (0.5 + 0.5 * jitter)
        return max(asked, backoff)

    def _url(self, path: str) -> URL:
        return self._base / path


def _is_whole(response: aiohttp.ClientResponse, streamed: bool) -> bool:
    """Whether the answer is one object: servers do not always do as they are asked."""
    kind = response.content_type
    return kind == "application/json" or (not streamed and kind != "text/event-stream")


def _proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this URL, looked up once rather than for every request."""
    if url.host in _LOOPBACK or url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)
