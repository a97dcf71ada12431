"""A real server dies at each point of a response that is streamed over a WebSocket and steered there."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.socket_wire import Socket, opened
from tests.acceptance.wire import check_stream, get, output_text, read_stream

POINTS = [
    "before_start:1",
    "after_start:1",
    "before_steer:1",
    "after_steer:1",
    "before_end:1",
    "after_end:1",
    "before_start:2",
    "after_start:2",
    "before_end:2",
    "after_end:2",
    *(f"before_commit:{number}" for number in (3, 5, 7, 9, 11)),
    *(f"sent:{number}" for number in (1, 3, 6, 9, 12)),
]
SAID = "say: as you wish"


class Shown:
    """What a client saw before its server died."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        """By response, in the order they came."""
        self.accepted = False

    def take(self, socket: Socket) -> None:
        """Steer the response when it has begun to speak, and read to the end of the successor or of the server."""
        socket.create("slow: 10\nchunks: 30", stream_id="a")
        steered, ends, current = False, 0, ""
        while ends < 2:
            event = socket.next()
            kind = event["type"]
            if kind == "response.created":
                current = event["response"]["id"]
            if kind.startswith("response.steer."):
                assert kind == "response.steer.accepted"
                self.accepted = True
                continue
            assert event.pop("stream_id") == "a"
            self.events.setdefault(current, []).append(event)
            ends += kind in ("response.completed", "response.incomplete")
            if kind == "response.output_text.delta" and not steered:
                steered = True
                socket.steer(current, SAID)


@pytest.mark.parametrize("point", POINTS)
def test_what_a_socket_has_shown_and_what_it_has_accepted_survive(
    model_host: ModelHost, tmp_path: Path, point: str
) -> None:
    shown = Shown()
    module = "stateroom.testing.probe_server"
    server = ServerProcess(tmp_path / "data", backends=(model_host.url,), module=module)
    with server.start(environment={KILL_AT: point}):
        try:
            with opened(server.url) as socket:
                shown.take(socket)
        except ConnectionClosed:
            assert server.wait(5) == -9
        else:  # the point is not reached, or only when all was seen
            with suppress(subprocess.TimeoutExpired):
                assert server.wait(0.2) == -9
            server.kill()
        server.start()

        def ended() -> Any:
            held = get(server.url, "/responses?order=asc")["data"]
            return [held] if all(each["status"] not in ("queued", "in_progress") for each in held) else None

        (responses,) = until(ended, "all runs end")
        assert [each["id"] for each in responses][: len(shown.events)] == list(shown.events)
        for response in responses:
            events = check_stream(read_stream(server.url, "GET", f"/responses/{response['id']}?stream=true"))
            seen = shown.events.get(response["id"], [])
            assert events[: len(seen)] == seen
            assert events[-1]["response"] == response
        texts = [output_text(response) for response in responses]
        if shown.accepted:
            assert len(responses) == 2
        if len(responses) == 2:
            first, second = responses
            assert first["incomplete_details"] == {"reason": "steered"}
            assert second["previous_response_id"] == first["id"]
            assert texts[1] == "as you wish"
        elif responses:
            assert len(texts[0].split()) == 30, "it went on as if nothing had been said"
