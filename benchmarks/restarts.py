"""The life of a server process: from its start to its first answer, and from kill -9 to the first resumed event."""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from benchmarks import model
from benchmarks.dialogues import LoadFailed
from benchmarks.processes import Server

DELTAS_BEFORE_THE_KILL: Final = 20
_TIMEOUT: Final = 30.0


class Listening(Protocol):
    """A server, ours or another."""

    port: int
    began: float


class Resume(msgspec.Struct, frozen=True):
    """When things happened."""

    killed: float
    up: float
    """The new process listens."""
    first_event: float
    first_text: float


class Event(msgspec.Struct, frozen=True):
    """An event of a stream, as far as it is read here."""

    type: str
    sequence_number: int
    at: float = 0.0


def first_answer_seconds(server: Listening, prefix: str = "") -> float:
    """From the start of the process until a response is there, asked for as soon as the server listens."""
    answer = _ask(server, "POST", "/v1/responses", {"model": prefix + model.SHORT, "input": "Are you there?"})
    body = answer.read()
    if b'"completed"' not in body:
        raise LoadFailed(f"the first answer is none: {body[:500]!r}")
    return time.perf_counter() - server.began


def killed_and_resumed(start: Callable[[Path], Server], data: Path, paced: str) -> Resume:
    """Read a part of a background stream, kill the server, start it anew and go on where reading had stopped."""
    with start(data) as server:
        request = {"model": paced, "input": "Tell me more.", "stream": True, "background": True}
        response, last = _read_some(_ask(server, "POST", "/v1/responses", request))
        killed = time.perf_counter()
        server.kill()
    with start(data) as server:
        up = time.perf_counter()
        answer = _ask(server, "GET", f"/v1/responses/{response}?stream=true&starting_after={last}", None)
        events = _events(answer)
        first = next(events)
        if first.sequence_number != last + 1:
            raise LoadFailed(f"event {first.sequence_number} came after event {last}")
        text = next(event for event in itertools.chain((first,), events) if event.type == "response.output_text.delta")
        server.kill()
    return Resume(killed, up, first.at, text.at)


def _read_some(answer: http.client.HTTPResponse) -> tuple[str, int]:
    """The id of the response and the number of the last event read."""
    deltas = 0
    response = ""
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event: dict[str, Any] = msgspec.json.decode(line[len(b"data: ") :])
        response = response or event["response"]["id"]
        deltas += event["type"] == "response.output_text.delta"
        if deltas == DELTAS_BEFORE_THE_KILL:
            return response, int(event["sequence_number"])
    raise LoadFailed("a background stream ended before it was to be killed")


def _events(answer: http.client.HTTPResponse) -> Iterator[Event]:
    for line in answer:
        if line.startswith(b"data: {"):
            event = msgspec.json.decode(line[len(b"data: ") :], type=Event)
            yield msgspec.structs.replace(event, at=time.perf_counter())
    raise LoadFailed("a resumed stream ended too early")


def _ask(server: Listening, method: str, path: str, body: dict[str, object] | None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
    content = None if body is None else msgspec.json.encode(body)
    connection.request(method, path, content, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise LoadFailed(f"{method} {path}: {answer.status} {answer.read()[:500]!r}")
    return answer
