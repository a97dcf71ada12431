"""A WebSocket by hand for what no SDK sends, read as strictly as a stream over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from openai.types.responses.response_steer_accepted_event import ResponseSteerAcceptedEvent
from openai.types.responses.response_steer_failed_event import ResponseSteerFailedEvent
from openai.types.responses.response_steer_pending_event import ResponseSteerPendingEvent
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.acceptance.wire import TERMINAL, assert_fits, check_stream

SECONDS = 20.0
STEER_EVENTS: dict[str, TypeAdapter[Any]] = {
    "response.steer.accepted": TypeAdapter(ResponseSteerAcceptedEvent),
    "response.steer.pending": TypeAdapter(ResponseSteerPendingEvent),
    "response.steer.failed": TypeAdapter(ResponseSteerFailedEvent),
}
ENDS = (*TERMINAL, "error")


class Socket:
    """A connection; events are given out one by one, as dictionaries."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, message: Any) -> None:
        self.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def create(self, said: Any = "hi", **fields: Any) -> None:
        self.send({"type": "response.create", "model": "scripted", "input": said, **fields})

    def steer(self, response_id: str, said: Any) -> None:
        self.send({"type": "response.steer", "previous_response_id": response_id, "input": said})

    def next(self, seconds: float = SECONDS) -> dict[str, Any]:
        text = self.connection.recv(seconds)
        assert isinstance(text, str), "events are text"
        event: dict[str, Any] = json.loads(text)
        if event["type"] == "error":
            check_error(event)
        elif event["type"] in STEER_EVENTS:
            assert_fits(STEER_EVENTS[event["type"]], event)
        return event

    def until(self, *types: str) -> list[dict[str, Any]]:
        """Events up to the first of one of these types."""
        events = [self.next()]
        while events[-1]["type"] not in types:
            events.append(self.next())
        return events

    def until_end(self) -> list[dict[str, Any]]:
        return self.until(*ENDS)

    def respond(self, said: Any = "hi", **fields: Any) -> dict[str, Any]:
        """A response on the default lane or another, its stream checked."""
        self.create(said, **fields)
        return final_of(self.until_end(), fields.get("stream_id"))

    def rest(self) -> list[dict[str, Any]]:
        """Everything that still comes before the connection ends."""
        events = []
        with suppress(ConnectionClosed):
            while True:
                events.append(self.next())
        return events

    def close_code(self) -> int:
        """Read to the end of the connection, and how the server closed it."""
        self.rest()
        closed = self.connection.protocol.close_rcvd
        assert closed is not None
        return int(closed.code)

    def error(self) -> dict[str, Any]:
        """The error that must come next."""
        event = self.next()
        assert event["type"] == "error", event
        return event


def final_of(events: list[dict[str, Any]], lane: str | None = None) -> dict[str, Any]:
    """The response that these events, all of one lane, tell of; the stream is held to the rules."""
    bare = []
    for event in events:
        assert event.get("stream_id") == lane
        assert (lane is not None) == ("stream_id" in event)
        bare.append({name: value for name, value in event.items() if name != "stream_id"})
    response: dict[str, Any] = check_stream(bare)[-1]["response"]
    return response


def check_error(event: dict[str, Any]) -> None:
    """A request's error has this shape and no other."""
    assert set(event) - {"stream_id"} == {"type", "status", "error"}, event
    assert isinstance(event["status"], int)
    assert set(event["error"]) - {"headers"} == {"message", "type", "param", "code"}, event
    assert event["error"]["message"]
    assert "Traceback" not in event["error"]["message"]


@contextmanager
def opened(url: str, path: str = "/responses", **options: Any) -> Iterator[Socket]:
    """A connection to a server whose base URL is `url`."""
    address = url.replace("http://", "ws://") + path
    with connect(address, max_size=None, open_timeout=SECONDS, close_timeout=5, **options) as connection:
        yield Socket(connection)
