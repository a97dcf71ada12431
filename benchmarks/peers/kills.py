"""What is left of a server's work after kill -9 in the middle of it, as a client sees it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import model
from benchmarks.dialogues import LoadFailed
from benchmarks.peers.contenders import Contender
from benchmarks.peers.servers import Running
from benchmarks.table import number

DELTAS_BEFORE_THE_KILL: Final = 20
NEVER_KEPT: Final = "never kept: not found before the kill either"
_TIMEOUT: Final = 30.0
_PATIENCE: Final = 12.0
"""Longer than any of the killed runs would have taken from its beginning."""
_POLL_SECONDS: Final = 0.1
_OVER: Final = ("completed", "failed", "incomplete", "cancelled")


class Left(msgspec.Struct, frozen=True):
    """In words, for the table; and in seconds."""

    earlier: str
    going_on: str
    stream: str
    streamed: str
    background: str
    up: float
    """From the kill until the new process answers."""


class _Killed(msgspec.Struct, frozen=True):
    """What the server had promised before it was killed."""

    earlier: str
    """The id of a finished turn."""
    earlier_tokens: int
    keeps: bool
    """It could be asked for before the kill; a server without state has nothing to lose."""
    stream: str
    """The id of the response whose stream was being read."""
    last: int | None
    """The number of its last event that was read; None: it numbers none."""
    in_background: bool
    background: str
    """The id of a response that ran without anybody listening; empty: the server takes none."""


def left_after_kill(contender: Contender, data: Path, paced: str) -> Left:
    """Raises LoadFailed when the server does not even get so far, or does not come up again."""
    with contender.start(data) as server:
        killed = _work(server, contender.prefix, paced)
        at = time.perf_counter()
        server.kill()
    with contender.start(data) as server:
        status, earlier = _ask(server, "GET", f"/v1/responses/{killed.earlier}")
        up = time.perf_counter() - at
        return Left(
            earlier=_kept(status, earlier) if killed.keeps else NEVER_KEPT,
            going_on=_gone_on(server, contender.prefix, killed),
            stream=_resumed(server, killed),
            streamed=_outcome(server, killed.stream) if killed.keeps else NEVER_KEPT,
            background=_outcome(server, killed.background) if killed.background else "it takes no background runs",
            up=up,
        )


def _work(server: Running, prefix: str, paced: str) -> _Killed:
    """One turn that is finished, one that runs in the background, and one whose stream is being read."""
    turn = {"model": prefix + model.SHORT, "input": "Remember the number seven."}
    status, earlier = _ask(server, "POST", "/v1/responses", turn)
    if status != 200 or earlier.get("status") != "completed":
        raise LoadFailed(f"the first turn: {status} {earlier}")
    keeps = _ask(server, "GET", f"/v1/responses/{earlier['id']}")[0] == 200
    _, background = _ask(
        server, "POST", "/v1/responses", {"model": prefix + paced, "input": "Go on.", "background": True}
    )
    running = background.get("status") in ("queued", "in_progress")
    request = {"model": prefix + paced, "input": "Tell me more.", "stream": True}
    answer = _send(server, "POST", "/v1/responses", {**request, "background": True})
    in_background = answer.status == 200
    if not in_background:
        answer = _send(server, "POST", "/v1/responses", request)
    deltas = 0
    stream = ""
    for event in _events(answer):
        stream = stream or event.get("response", {}).get("id", "")
        deltas += event["type"] == "response.output_text.delta"
        if deltas == DELTAS_BEFORE_THE_KILL:
            return _Killed(
                earlier["id"],
                earlier["usage"]["input_tokens"],
                keeps,
                stream,
                event.get("sequence_number"),
                in_background,
                background["id"] if running else "",
            )
    raise LoadFailed(f"a stream ended before it was to be killed: {answer.status}")


def _kept(status: int, response: dict[str, Any]) -> str:
    if status != 200:
        return f"lost ({status})"
    return "kept" if response.get("status") == "completed" else f"there, but {response.get('status')}"


def _gone_on(server: Running, prefix: str, killed: _Killed) -> str:
    """Whether the next turn knows of the earlier one; the model server counts the bytes of the prompt."""
    request = {"model": prefix + model.SHORT, "input": "Which number?", "previous_response_id": killed.earlier}
    status, response = _ask(server, "POST", "/v1/responses", request)
    if status != 200:
        return f"refused ({status})"
    known = response["usage"]["input_tokens"] > killed.earlier_tokens
    return "goes on with its history" if known else "accepted, but without its history"


def _resumed(server: Running, killed: _Killed) -> str:
    """Ask for the stream beyond the last event that was read."""
    if killed.last is None:
        return "no: its events have no numbers"
    began = time.perf_counter()
    answer = _send(server, "GET", f"/v1/responses/{killed.stream}?stream=true&starting_after={killed.last}", None)
    try:
        if answer.status != 200:
            return f"no ({answer.status})"
        first = next(_events(answer), None)
        took = time.perf_counter() - began
    except OSError:
        return "no: it sends nothing"
    finally:
        answer.close()
    if first is None:
        return "no: it answers without a stream"
    if first.get("sequence_number") != killed.last + 1:
        return f"no: event {first.get('sequence_number')} after event {killed.last}"
    return f"yes, at the next event, in {number(took)} s{'' if killed.in_background else '; not in the background'}"


def _outcome(server: Running, response: str) -> str:
    """What becomes of a response that was running."""
    began = time.perf_counter()
    while True:
        status, told = _ask(server, "GET", f"/v1/responses/{response}")
        if status != 200:
            return f"lost ({status})"
        if told.get("status") in _OVER:
            return f"{told['status']}, {_characters(told)} characters"
        if time.perf_counter() - began > _PATIENCE:
            return f"still {told.get('status')} after {_PATIENCE:.0f} s, {_characters(told)} characters"
        time.sleep(_POLL_SECONDS)


def _characters(response: dict[str, Any]) -> int:
    return sum(len(part.get("text", "")) for item in response["output"] for part in item.get("content") or [])


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.startswith(b"data: {"):
            yield msgspec.json.decode(line[len(b"data: ") :])


def _ask(
    server: Running, method: str, path: str, body: Mapping[str, object] | None = None
) -> tuple[int, dict[str, Any]]:
    answer = _send(server, method, path, body)
    content = answer.read()
    try:
        told = msgspec.json.decode(content)
    except msgspec.MsgspecError:
        told = {}
    return answer.status, told if isinstance(told, dict) else {}


def _send(server: Running, method: str, path: str, body: Mapping[str, object] | None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
    content = None if body is None else msgspec.json.encode(body)
    connection.request(method, path, content, {"content-type": "application/json"})
    return connection.getresponse()
