"""The end of connections and of servers: limits, restarts, kills, and clients that connect again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from openai import OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.socket_wire import final_of, opened
from tests.acceptance.wire import check_stream, get, output_text, read_stream


def test_a_connection_is_closed_at_its_limit_when_nothing_goes_on(model_host: ModelHost, tmp_path: Path) -> None:
    limit = {"STATEROOM_LIMITS__SOCKET_SECONDS": "1"}
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=limit) as server:
        with opened(server.url) as idle:
            refusal = idle.error()
            assert (refusal["status"], refusal["error"]["code"]) == (400, "websocket_connection_limit_reached")
            assert idle.close_code() == 1001
        with opened(server.url) as busy:
            seen = Seen(model_host)
            busy.create("gate: limit 2\nsay: one two three", stream_id="a")
            events = busy.until("response.output_text.delta")
            with opened(server.url) as witness:
                assert witness.close_code() == 1001  # so the time of the other one is over, too
            busy.create("say: too late", stream_id="b")
            refusal = busy.next()
            while refusal["type"] != "error":
                events.append(refusal)
                refusal = busy.next()
            assert refusal["error"]["code"] == "websocket_connection_limit_reached"
            assert refusal["stream_id"] == "b"
            seen._host.open_gate("limit")
            assert output_text(final_of(events + busy.until_end(), "a")) == "one two three"
            assert busy.error()["error"]["code"] == "websocket_connection_limit_reached"
            assert busy.close_code() == 1001


def test_a_server_that_stops_lets_responses_end_and_closes(model_host: ModelHost, tmp_path: Path) -> None:
    seen = Seen(model_host)
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server,
        opened(server.url) as busy,
        opened(server.url) as idle,
    ):
        busy.create("gate: stops 2\nsay: one two three")
        events = busy.until("response.output_text.delta")
        assert server.process is not None
        server.process.terminate()
        assert idle.close_code() == 1012
        busy.create("say: too late", stream_id="b")
        while (event := busy.next())["type"] != "error":
            events.append(event)
        assert (event["status"], event["error"]["code"]) == (503, "server_stopping")
        seen._host.open_gate("stops")
        assert output_text(final_of(events + busy.until_end())) == "one two three"
        assert busy.close_code() == 1012
        assert server.wait() == 0


def test_a_response_that_outlasts_its_server_goes_on_in_the_next(model_host: ModelHost, tmp_path: Path) -> None:
    seen = Seen(model_host)
    options = {"STATEROOM_SHUTDOWN_SECONDS": "0.2"}
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=options) as server:
        with opened(server.url) as socket:
            socket.create("gate: outlasts 2\nsay: one two three")
            events = socket.until("response.output_text.delta")
            identifier = events[0]["response"]["id"]
            server.terminate()
            told = socket.until("error")[-1]
            assert (told["status"], told["error"]["code"]) == (503, "server_stopping")
            assert socket.close_code() == 1012
        seen._host.open_gate("outlasts")
        server.start()
        held = until(
            lambda: (h := get(server.url, f"/responses/{identifier}"))["status"] == "completed" and h, "the run ends"
        )
        assert output_text(held) == "one two three"


def test_a_kill_in_mid_stream_loses_nothing_that_the_socket_has_shown(model_host: ModelHost, tmp_path: Path) -> None:
    seen = Seen(model_host)
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server:
        with opened(server.url) as socket:
            socket.create("gate: killed 5\nchunks: 30", stream_id="a")
            shown = [socket.next()]
            while sum(event["type"] == "response.output_text.delta" for event in shown) < 4:
                shown.append(socket.next())
            server.kill()
            shown += socket.rest()
        seen._host.open_gate("killed")
        server.start()
        identifier = shown[0]["response"]["id"]
        until(lambda: get(server.url, f"/responses/{identifier}")["status"] == "completed", "the run ends")
        events = check_stream(read_stream(server.url, "GET", f"/responses/{identifier}?stream=true"))
        for event in shown:
            assert event.pop("stream_id") == "a"
        assert events[: len(shown)] == shown
        assert len(output_text(events[-1]["response"]).split()) == 30
        with opened(server.url) as again:
            assert again.respond("say: on", previous_response_id=identifier)["status"] == "completed"


def test_the_sdk_connects_again_to_a_server_that_was_restarted(model_host: ModelHost, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server:
        client = OpenAI(base_url=server.url, api_key="unused")
        attempts: list[int] = []

        def on_reconnecting(event: Any) -> None:
            attempts.append(event.close_code)

        with client.responses.connect(on_reconnecting=on_reconnecting, max_retries=20) as connection:
            connection.response.create(model="scripted", input="my name is Ada")
            first = next(event for event in connection if event.type == "response.completed")

            def restart() -> None:
                server.terminate()
                server.start()
                connection.response.create(
                    model="scripted", input="what is my name?", previous_response_id=first.response.id
                )

            restarting = threading.Thread(target=restart)
            restarting.start()
            second = next(event for event in connection if event.type == "response.completed")
            restarting.join()
        assert second.response.output_text == "Your name is Ada."
        assert attempts[0] == 1012


def test_nothing_of_a_socket_is_in_the_log(model_host: ModelHost, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as server:
        with opened(server.url) as socket:
            socket.respond("say: the-word-nobody-may-log")
            socket.send("the-word-nobody-may-log")
            socket.error()
            socket.send(json.dumps({"type": "response.create", "input": "the-word-nobody-may-log"}))
            socket.error()
        server.terminate()
        assert "nobody-may-log" not in server.output
        assert "Traceback" not in server.output
        assert "Exception" not in server.output
