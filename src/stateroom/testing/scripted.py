"""The scripted model server: OpenAI's chat completions and responses over real HTTP, answering what it is told to.

For tests and benchmarks, in-process (`async with ScriptedServer(script) as server`) or as a process of its own:

    python -m stateroom.testing.scripted --port 0 [--delay-ms 20] [--chunks 50] [--log FILE] [--quirk crlf]

prints `listening on http://127.0.0.1:PORT` when it is ready. What it says is decided in script.py, how it is written in
script_dialect.py, script_responses.py and script_writing.py; here is only the transport.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import IO, Self

import httptools
import msgspec

from stateroom.testing import script_embeddings
from stateroom.testing.script import ChatRequest, Received, Reply, Script
from stateroom.testing.script_dialect import Answer, Quirks
from stateroom.testing.script_responses import Refused, ResponsesAnswer, read_request
from stateroom.testing.script_writing import Writer, head

_REQUEST = msgspec.json.Decoder(ChatRequest)


class ScriptedServer:
    """Serves a script on a socket of its own."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        quirks: Quirks | None = None,
        models: tuple[str, ...] = ("scripted",),
        strict_models: bool = False,
        delay: float = 0.0,
        key: str = "",
        counting: str = "",
        responses: bool = True,
        log: IO[bytes] | None = None,
    ) -> None:
        self.script = script or Script()
        self.quirks = quirks or Quirks()
        self.models = models
        self.strict_models = strict_models
        """Answer 404 to other model names."""
        self.delay = delay
        """Seconds between chunks."""
        self.key = key
        """Demand this bearer key."""
        self.counting = counting
        """How it counts tokens: "vllm" (/tokenize), "llama" (/v1/chat/completions/input_tokens), "template"
        (/apply-template, then /tokenize), "responses" (/v1/responses/input_tokens) or not at all."""
        self.responses = responses
        """Whether it has the route /v1/responses."""
        self.log = log
        self.url = ""
        """Base URL with version, once it is started."""
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, backlog=1024)
        bound = self._server.sockets[0].getsockname()
        self.url = f"http://{bound[0]}:{bound[1]}/v1"

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a server that is killed does."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self.connections):
            connection.abort()
        if server is not None:
            await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def write_log(self, event: str, path: str, body: bytes) -> None:
        if self.log is not None:
            head = {"at": time.time(), "event": event, "path": path}
            line = msgspec.json.encode(head)[:-1] + b',"body":' + (body.replace(b"\n", b" ") or b"null") + b"}\n"
            self.log.write(line)
            self.log.flush()


class _Connection(asyncio.Protocol):
    """One client connection; answers one request after the other."""

    def __init__(self, server: ScriptedServer) -> None:
        self._owner = server
        self._script = server.script
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: list[Received] = []
        self._path = ""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._answer: Writer | None = None
        self._busy = ""
        """Path of the request that is being answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connections.discard(self)
        if self._answer is not None:
            self._answer.cancel()
        if self._busy:
            self._owner.write_log("dropped", self._busy, b"")
            self._script.note(dropped=1)

    def abort(self) -> None:
        self._busy = ""
        if self._transport is not None:
            self._transport.abort()

    def cut(self) -> None:
        """Hang up in the middle of an answer; what was written still arrives."""
        self._busy = ""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def on_message_begin(self) -> None:
        self._path, self._headers, self._body = "", {}, []

    def on_url(self, url: bytes) -> None:
        self._path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self._waiting.append(Received(method, self._path, self._headers, b"".join(self._body)))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        if self._waiting:
            request = self._waiting.pop(0)
            self._busy = request.path
            self._owner.write_log("request", request.path, request.body)
            self._script.note(received=request)
            self._handle(request)

    def _handle(self, request: Received) -> None:
        owner = self._owner
        path = request.path.partition("?")[0]
        counts = {
            "vllm": "/tokenize",
            "llama": "/v1/chat/completions/input_tokens",
            "responses": "/v1/responses/input_tokens",
        }
        if owner.counting == "template" and path in ("/apply-template", "/tokenize"):
            self._count_by_template(path, request)
            return
        if owner.key and request.headers.get("authorization") != f"Bearer {owner.key}":
            self._error(401, f"Incorrect API key provided: {request.headers.get('authorization', '')}")
        elif path == "/v1/models":
            self.send_json(200, _models(owner.models))
        elif path == "/health":
            self.send_json(200, b'{"status":"ok"}')
        elif path == counts.get(owner.counting):
            self._count(request)
        elif path == "/v1/embeddings" and owner.quirks.embeddings != "none":
            if (made := script_embeddings.answer(request.body, owner.quirks.embeddings)) is not None:
                self.send_json(*made)
        elif path == "/v1/chat/completions" and request.method == "POST":
            self._chat(request)
        elif path == "/v1/responses" and request.method == "POST" and owner.responses:
            self._responses(request)
        else:
            self._error(404, f"no such route: {path}")

    def _chat(self, request: Received) -> None:
        try:
            chat = _REQUEST.decode(request.body)
        except ValueError as error:
            self._error(400, f"bad request: {error}")
            return
        chat.size = len(request.body)
        reply = self._scripted(chat)
        if reply is not None:
            self._reply(reply, Answer(reply, chat, self._owner.quirks, self._script.received))

    def _responses(self, request: Received) -> None:
        try:
            asked = read_request(request.body)
        except Refused as refused:
            self.send_json(refused.status, refused.body)
            return
        reply = self._scripted(asked.chat)
        if reply is not None:
            self._reply(reply, ResponsesAnswer(reply, asked, self._owner.quirks, self._script.received))

    def _count(self, request: Received) -> None:
        size = len(request.body)
        if self._owner.counting == "responses":
            try:
                size = read_request(request.body).chat.size
            except Refused as refused:
                self.send_json(refused.status, refused.body)
                return
        field = b"count" if self._owner.counting == "vllm" else b"input_tokens"
        self.send_json(200, b'{"%b":%d}' % (field, size // 4 + 1))

    def _count_by_template(self, path: str, request: Received) -> None:
        """As a llama.cpp that can only apply its template, and tokenize a text."""
        asked = request.json()
        if path == "/apply-template":
            said = "".join(f"<|{each['role']}|>{each.get('content')}" for each in asked["messages"])
            self.send_json(200, b'{"prompt":%b}' % msgspec.json.encode(said))
        else:
            self.send_json(200, b'{"tokens":%b}' % msgspec.json.encode(list(range(len(asked.get("content", "")) // 4))))

    def _scripted(self, chat: ChatRequest) -> Reply | None:
        """The reply; None when the request was refused."""
        if self._owner.strict_models and chat.model not in self._owner.models:
            self._error(404, f"The model `{chat.model}` does not exist.", "model_not_found")
            return None
        try:
            return self._script.reply(chat)
        except (ValueError, LookupError, TypeError) as error:
            self._error(400, f"a control word that cannot be read: {error!r}")
            return None

    def _reply(self, reply: Reply, answer: Answer) -> None:
        if reply.hang_after == 0:
            return
        if reply.status >= 400 or reply.raw is not None:
            body = reply.raw if reply.raw is not None else msgspec.json.encode({"error": reply.error})
            self.send_json(reply.status, body, reply.headers, reply.content_type or "application/json")
        else:
            self._answer = Writer(self, answer, self._owner.delay)
            self._answer.start()

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
        self.send_json(status, msgspec.json.encode(body))

    def send_json(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.write(head(status, kind, {"content-length": str(len(body)), **(headers or {})}) + body)
        self.finished()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finished(self) -> None:
        """The request at hand is answered."""
        self._busy, self._answer = "", None
        self._script.note(answered=1)
        self._next()


def _models(names: tuple[str, ...]) -> bytes:
    data = [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "scripted", "max_model_len": 32_768}
        for name in names
    ]
    return msgspec.json.encode({"object": "list", "data": data})


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stateroom.testing.scripted", description="A scripted model server."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="pause between chunks")
    parser.add_argument("--chunks", type=int, default=0, help="length of an answer to a message without control word")
    parser.add_argument("--model", action="append", help="a model name it serves (default: scripted)")
    parser.add_argument("--log", type=Path, help="append a JSON line for every request and every dropped connection")
    parser.add_argument("--quirk", action="append", default=[], help="NAME or NAME=VALUE, see script_dialect.Quirks")
    return parser.parse_args(argv)


def _quirks(given: list[str]) -> Quirks:
    pairs = [one.partition("=") for one in given]
    return msgspec.convert({name: value or "true" for name, _, value in pairs}, Quirks, strict=False)


async def _serve(options: argparse.Namespace, log: IO[bytes] | None) -> None:
    server = ScriptedServer(
        Script(default_chunks=options.chunks, keep=0),
        quirks=_quirks(options.quirk),
        models=tuple(options.model or ["scripted"]),
        delay=options.delay_ms / 1000,
        log=log,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await server.start(options.host, options.port)
    sys.stdout.write(f"listening on {server.url.removesuffix('/v1')}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()


def main(argv: list[str] | None = None) -> None:
    options = _arguments(argv)
    if options.log is None:
        asyncio.run(_serve(options, None))
        return
    with options.log.open("ab") as log:
        asyncio.run(_serve(options, log))


if __name__ == "__main__":
    main()
