"""A model server that speaks Chat Completions: requests, time-outs, retries and cancellation over HTTP.

What goes into a request is chat_request's, what an answer means is chat_decode's, what a failure means is
chat_errors'. A server's peculiarities are learnt once from its answers and kept for as long as this backend lives.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

from stateroom import ids
from stateroom.clock import Clock, SystemClock
from stateroom.errors import BackendBusy, BackendError, BackendFailed, BackendRejected, BackendTimeout
from stateroom.models.backend import Delta, Model, ModelCall
from stateroom.models.chat_decode import ChatDecoder
from stateroom.models.chat_errors import from_status, from_transport, read_error
from stateroom.models.chat_request import OUTPUT_LIMIT_NEW, Dialect, encode_request, estimate_tokens
from stateroom.models.incoming import Incoming
from stateroom.settings import BackendSettings

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


class ChatBackend:
    """One server. Its session is made in the loop that uses it first."""

    def __init__(self, settings: BackendSettings, key: str | None = None, *, clock: Clock | None = None) -> None:
        base = URL(settings.url)
        if base.scheme not in ("http", "https") or not base.host:
            raise BackendFailed(f"{settings.url!r} is not the URL of a model server.", code="backend_misconfigured")
        bare = base.with_user(None).with_query(None).with_fragment(None)
        self.settings = settings
        self.name = settings.name or bare.authority
        self.can_prefill = settings.prefill != "none"
        self.server = f"The model server {settings.name} at {bare}" if settings.name else f"The model server at {bare}"
        self._key = key
        self._base = bare if key else base
        self._chat = self._url("chat/completions")
        self._clock: Clock = clock or SystemClock()
        fixed = "" if settings.reasoning_field in ("auto", "none") else settings.reasoning_field
        self._dialect = Dialect(prefill=settings.prefill, reasoning_field=fixed)
        self._models: tuple[float, list[Model]] | None = None
        self._counter: str | None = None
        """How it counts tokens: a URL, "" when it cannot, None when that is not known."""
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._closes = False
        """Its server ends a connection after each stream and does not say so (llama.cpp): none is used again."""

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        attempt = 0
        while True:
            given = False
            answer = self._answer(call)
            try:
                async for batch in answer:
                    given = True
                    yield batch
                return
            except BackendError as error:
                if given:
                    raise
                pause = 0.0 if self._learns(error) else self._pause(error, attempt)
                if pause is None:
                    raise
            finally:
                await answer.aclose()
            await self._clock.sleep(pause)
            attempt += 1

    async def models(self) -> list[Model]:
        now = self._clock.monotonic()
        if self._models is not None and now - self._models[0] < MODELS_SECONDS:
            return self._models[1]
        try:
            found = _read_models(await self._ask("GET", self._url("models"), None))
        except BackendError:
            if not self.settings.models:
                raise
            found = []
        if self.settings.models:
            known = {model.id: model for model in found}
            found = [known.get(name) or Model(name, owned_by=self.name) for name in self.settings.models]
        self._models = (now, found)
        return found

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        body = encode_request(msgspec.structs.replace(call, stream=False), self._dialect)
        candidates = [self._counter] if self._counter is not None else self._counters()
        for url in candidates:
            if not url:
                break
            try:
                held = await self._ask("POST", URL(url), body)
            except BackendRejected:
                continue
            except BackendError as error:
                if error.code == "backend_misconfigured":
                    continue
                return estimate_tokens(body), False
            count = held.get("input_tokens", held.get("count")) if isinstance(held, dict) else None
            if isinstance(count, int) and count > 0:
                self._counter = url
                return count, True
        if self._counter is None:
            self._counter = ""
        return estimate_tokens(body), False

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # One try.

    async def _answer(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        """The answer to one request. Closing it drops the connection at once."""
        body = encode_request(call, self._dialect)
        decoder = ChatDecoder(server=self.server, key=self._key)
        patience = self.settings.first_byte_timeout_seconds
        deadline = self._clock.monotonic() + patience
        incoming = await self._open("POST", self._chat, body, patience)
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
            self._note_reasoning(decoder.reasoning_field)
            yield last
            await self._drain(incoming)
        finally:
            incoming.close()

    async def _batch(self, incoming: Incoming, decoder: ChatDecoder, deadline: float) -> Sequence[Delta] | None:
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

    def _idle(self, decoder: ChatDecoder) -> float:
        idle = self.settings.idle_timeout_seconds
        return min(GRACE_SECONDS, idle) if decoder.finish else idle

    def _note_reasoning(self, field: str) -> None:
        if field and self.settings.reasoning_field == "auto":
            self._dialect.reasoning_field = field

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

    async def _open(self, method: str, url: URL, body: bytes | None, patience: float) -> Incoming:
        """Send a request and wait for the head of its answer."""
        session = self._session or self._connect()
        connect = self.settings.connect_timeout_seconds
        try:
            async with asyncio.timeout(patience):
                headers = _CLOSE if self._closes else None
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

    async def _ask(self, method: str, url: URL, body: bytes | None) -> Any:
        """A small JSON answer that needs no model."""
        incoming = await self._open(method, url, body, QUICK_SECONDS)
        try:
            if incoming.response.status != 200:
                raise await self._refusal(incoming)
            held = await incoming.whole(LIST_LIMIT, QUICK_SECONDS, total=QUICK_SECONDS)
        finally:
            incoming.close()
        try:
            return msgspec.json.decode(held)
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

    def _learns(self, error: BackendError) -> bool:
        """Whether the server refused an option for which there is another way, to be used from now on."""
        message = error.message.lower()
        dialect = self._dialect
        if not isinstance(error, BackendRejected) or error.code == "context_length_exceeded":
            return False
        if OUTPUT_LIMIT_NEW in message and "support" in message and dialect.output_limit != OUTPUT_LIMIT_NEW:
            dialect.output_limit = OUTPUT_LIMIT_NEW
            return True
        if "stream_options" in message and dialect.stream_options:
            dialect.stream_options = False
            return True
        return False

    def _url(self, path: str) -> URL:
        return self._base / path

    def _counters(self) -> list[str]:
        """Where servers count the tokens of a chat request: llama.cpp, then vLLM."""
        base = str(self._base).rstrip("/")
        return [f"{base}/chat/completions/input_tokens", f"{base.removesuffix('/v1')}/tokenize"]


def _is_whole(response: aiohttp.ClientResponse, streamed: bool) -> bool:
    """Whether the answer is one object: servers do not always do as they are asked."""
    kind = response.content_type
    return kind == "application/json" or (not streamed and kind != "text/event-stream")


def _proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this URL, looked up once rather than for every request."""
    if url.host in _LOOPBACK or url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _read_models(held: Any) -> list[Model]:
    """The models in an answer of GET /models, with their context length where the server tells it."""
    listed = held.get("data", held.get("models")) if isinstance(held, dict) else held
    models: list[Model] = []
    for one in listed if isinstance(listed, list) else ():
        name = (one.get("id") or one.get("name")) if isinstance(one, dict) else None
        if isinstance(name, str) and name:
            created = one.get("created")
            owner = one.get("owned_by")
            models.append(
                Model(
                    id=name,
                    owned_by=owner if isinstance(owner, str) and owner else "stateroom",
                    created=created if isinstance(created, int) else 0,
                    context_tokens=_context_tokens(one),
                )
            )
    return models


def _context_tokens(one: dict[str, Any]) -> int | None:
    meta = one.get("meta")
    places = [one, meta] if isinstance(meta, dict) else [one]
    for name in ("max_model_len", "context_length", "context_window", "n_ctx", "n_ctx_train"):
        for place in places:
            value = place.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None
