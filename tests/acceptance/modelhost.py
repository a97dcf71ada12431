"""The scripted model server in a thread of the test process: a real socket, with its script within the tests' reach."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from stateroom.agent.compaction import PROMPT
from stateroom.testing.script import Call, ChatRequest, Reply, Script, obey
from stateroom.testing.scripted import ScriptedServer

SECONDS = 10.0
_GATE = re.compile(r"^gate: (\S+)(?: (\d+))?$", re.MULTILINE)
_OVERFLOW = re.compile(r"^overflow: (\d+)$", re.MULTILINE)
_SUMMARY = re.compile(r"^summary: (.+)$", re.MULTILINE)
_FORBIDDEN = re.compile(r"^stubborn: (\S+)$", re.MULTILINE)


class ModelHost:
    """A scripted model that knows four control words more than `stateroom.testing.script` does:

    gate: NAME [N]      wait after N chunks until the test opens the gate
    overflow: N         refuse, as a server does whose context is full, when there are more than N messages
    stubborn: FUNCTION  call this function whether or not it may, until it is no longer declared
    summary: TEXT       said earlier: what a request for a summary is answered with; without it, with nothing
    """

    def __init__(self, **options: Any) -> None:
        self.script = Script(respond=self._respond)
        self._options = options
        self._server: ScriptedServer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted model", daemon=True)
        self._gates: dict[str, asyncio.Event] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = ScriptedServer(self.script, **self._options)
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    def open_gate(self, name: str) -> None:
        """Let the answers that wait at this gate go on. It stays open for all tests: give it a name of its own."""
        assert not name.startswith("never"), "others count on it to stay closed"
        self._loop.call_soon_threadsafe(self._gate(name).set)

    def asked_since(self, count: int) -> list[dict[str, Any]]:
        """The chat requests that came after the first `count` requests, whole."""
        new = self.script.received - count
        requests = list(self.script.requests)[-new:] if new > 0 else []
        return [request.json() for request in requests if request.path.endswith("/chat/completions")]

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def _respond(self, request: ChatRequest) -> Reply:
        asked = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
        if asked.startswith(PROMPT[:80]):
            texts = [found for message in request.messages for found in _SUMMARY.findall(message.text)]
            return Reply(text=texts[-1] if texts else "")
        if (found := _OVERFLOW.search(asked)) and len(request.messages) > int(found.group(1)):
            message = f"This model's maximum context length is {found.group(1)} messages."
            error = {"message": message, "type": "invalid_request_error", "code": "context_length_exceeded"}
            return Reply(status=400, error=error)
        if found := _FORBIDDEN.search(asked):
            declared = {tool["function"]["name"] for tool in request.tools or ()}
            if found.group(1) in declared and request.response_format is None:
                return Reply(calls=(Call(found.group(1), "{}"),))
        reply = obey(request)
        if found := _GATE.search(asked):
            reply.gate, reply.gate_after = self._gate(found.group(1)), int(found.group(2) or 0)
        return reply


class Seen:
    """What the model was asked since the test began."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._start = host.script.received

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self._host.asked_since(self._start)

    @property
    def last(self) -> dict[str, Any]:
        return self.requests[-1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the last request."""
        messages: list[dict[str, Any]] = self.last["messages"]
        return messages

    def wait(self, count: int) -> list[dict[str, Any]]:
        """The requests, once there are at least so many."""
        until(lambda: len(self.requests) >= count, f"the model was asked {count} times")
        return self.requests


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Poll until the condition holds and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.005)
    return found
