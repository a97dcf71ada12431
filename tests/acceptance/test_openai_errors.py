"""Whatever is wrong is said in OpenAI's shape, with a stable code and a request id, whoever found it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import get, send


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("POST", "/nowhere", 404, "unknown_url"),
        ("POST", "/responses/resp_x/nowhere", 404, "unknown_url"),
        ("PUT", "/responses", 405, "method_not_allowed"),
        ("PATCH", "/conversations/conv_x", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
        ("GET", "/responses/resp_x", 404, "response_not_found"),
        ("GET", "/responses/..%2f..%2fetc", 404, None),
        ("GET", "/responses/%00", 404, "response_not_found"),
        ("GET", "/responses/" + "x" * 5000, 404, "response_not_found"),
        ("DELETE", "/responses/resp_x", 404, "response_not_found"),
        ("POST", "/responses/resp_x/cancel", 404, "response_not_found"),
        ("GET", "/responses/resp_x/input_items", 404, "response_not_found"),
        ("GET", "/conversations/conv_x", 404, "conversation_not_found"),
        ("GET", "/conversations/conv_x/items/msg_x", 404, "conversation_not_found"),
        ("GET", "/models/none", 404, "model_not_found"),
    ],
)
def test_a_wrong_address_is_answered_in_the_usual_shape(
    url: str, method: str, path: str, status: int, code: str | None
) -> None:
    answer = send(url, method, path)
    assert answer.status == status
    assert code is None or answer.error["code"] == code
    assert answer.error["type"] == "invalid_request_error"


def test_paths_outside_the_api_have_the_same_shape(url: str) -> None:
    root = url.removesuffix("/v1")
    assert send(root, "GET", "/").error["code"] == "unknown_url"
    assert "Base URLs end in /v1" in send(root, "POST", "/responses").error["message"]
    assert "/openapi.json" in send(url, "GET", "/nowhere").error["message"]
    assert send(root, "GET", "/health").json == {"status": "ok"}
    assert send(root, "GET", "/ready").json == {"status": "ready"}
    assert send(root, "GET", "/health").headers["x-request-id"].startswith("req_")


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "invalid_json"),
    "half of it": (b'{"model": "m", "input": "x"', "invalid_json"),
    "no JSON": (b"model=m&input=x", "invalid_json"),
    "NaN": (b'{"model": "m", "input": "x", "temperature": NaN}', "invalid_json"),
    "Infinity": (b'{"model": "m", "input": "x", "temperature": Infinity}', "invalid_json"),
    "huge number": (b'{"model": "m", "input": "x", "temperature": 1e999}', "invalid_value"),
    "not UTF-8": (b'{"model": "m", "input": "\xff\xfe"}', "invalid_json"),
    "an array": (b"[]", "invalid_type"),
    "a string": (b'"x"', "invalid_type"),
    "null": (b"null", "invalid_type"),
    "too deep": (b'{"model": "m", "input": ' + b"[" * 1000 + b"]" * 1000 + b"}", "json_too_deep"),
    "far too deep": (b"[" * 1_000_000, "json_too_deep"),
    "two documents": (b'{"model": "m", "input": "x"}{"model": "m"}', "invalid_json"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused(url: str, name: str) -> None:
    body, code = BODIES[name]
    answer = send(url, "POST", "/responses", raw=body)
    assert answer.status == 400
    assert answer.error["code"] == code


@pytest.mark.parametrize("name", ["half of it", "no JSON", "an array", "too deep", "far too deep"])
@pytest.mark.parametrize("path", ["/responses/input_tokens", "/conversations", "/conversations/conv_x/items"])
def test_other_calls_refuse_such_bodies_too(url: str, path: str, name: str) -> None:
    body, code = BODIES[name]
    answer = send(url, "POST", path, raw=body)
    assert answer.status == 400
    assert answer.error["code"] == code


def test_a_lone_surrogate_does_not_break_anything(url: str) -> None:
    answer = send(url, "POST", "/responses", raw=b'{"model": "m", "input": "say: a\\ud800b"}')
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert answer.error["code"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "model"),
        ({"model": "m"}, "missing_required_parameter", "input"),
        ({"model": "", "input": "x"}, "missing_required_parameter", "model"),
        ({"model": 5, "input": "x"}, "invalid_type", "model"),
        ({"model": "m", "input": 5}, "invalid_type", "input"),
        ({"model": "m", "input": [5]}, "invalid_type", "input[0]"),
        ({"model": "m", "input": [{}]}, "missing_required_parameter", "input[0].type"),
        ({"model": "m", "input": [{"type": "hologram"}]}, "unknown_item_type", "input[0].type"),
        ({"model": "m", "input": [{"role": "robot", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"model": "m", "input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
        ({"model": "m", "input": [{"role": "user", "content": [{}]}]}, None, "input[0].content[0].type"),
        ({"model": "m", "input": "x", "temperature": 3}, "decimal_above_max_value", "temperature"),
        ({"model": "m", "input": "x", "temperature": "hot"}, "invalid_type", "temperature"),
        ({"model": "m", "input": "x", "top_p": -1}, "decimal_below_min_value", "top_p"),
        ({"model": "m", "input": "x", "max_output_tokens": 1}, "integer_below_min_value", "max_output_tokens"),
        ({"model": "m", "input": "x", "top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"model": "m", "input": "x", "include": ["everything"]}, "invalid_value", "include[0]"),
        ({"model": "m", "input": "x", "truncation": "middle"}, "invalid_value", "truncation"),
        ({"model": "m", "input": "x", "reasoning": {"effort": "extreme"}}, "invalid_value", "reasoning.effort"),
        ({"model": "m", "input": "x", "service_tier": "golden"}, "invalid_value", "service_tier"),
        ({"model": "m", "input": "x", "stream": "yes"}, "invalid_type", "stream"),
        ({"model": "m", "input": "x", "conversation": 5}, "invalid_type", "conversation"),
        ({"model": "m", "input": "x", "conversation": {}}, "missing_required_parameter", "conversation.id"),
        ({"model": "m", "input": "x", "background": True, "store": False}, "invalid_value", "background"),
        ({"model": "m", "input": "x", "stream_options": {}}, "invalid_value", "stream_options"),
        ({"model": "m", "input": "x", "metadata": {"a": 1}}, "invalid_type", None),
        ({"model": "m", "input": "x", "tools": {}}, "invalid_type", "tools"),
        ({"model": "m", "input": "x", "tool_choice": 5}, None, "tool_choice"),
        ({"model": "m", "input": "x", "prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt"),
        ({"model": "m", "input": "x", "moderation": {"model": "x"}}, "unsupported_parameter", "moderation"),
        (
            {"model": "m", "input": "x", "context_management": [{"type": "compaction", "compact_threshold": 10}]},
            "integer_below_min_value",
            "context_management[0].compact_threshold",
        ),
        (
            {"model": "m", "input": "x", "background_options": {"completion_window": "2h"}},
            "unsupported_parameter",
            "background_options.completion_window",
        ),
        (
            {"model": "m", "input": "x", "image": {"context_compression": "enabled"}},
            "unsupported_parameter",
            "image.context_compression",
        ),
        ({"model": "m", "input": "x", "reasoning": {"mode": "pro"}}, "unsupported_parameter", "reasoning.mode"),
        (
            {"model": "m", "input": "x", "prompt_cache_options": {"prewarm": True}},
            "unsupported_parameter",
            "prompt_cache_options.prewarm",
        ),
        ({"model": "m", "input": "x", "previous_response_id": "resp_x"}, "previous_response_not_found", None),
        ({"model": "m", "input": "x", "conversation": "conv_x"}, "conversation_not_found", "conversation"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_wrong_parameter_is_named(url: str, body: dict[str, Any], code: str | None, param: str | None) -> None:
    answer = send(url, "POST", "/responses", body)
    assert answer.status in (400, 404)
    assert answer.error["type"] == "invalid_request_error"
    if code is not None:
        assert answer.error["code"] == code
    if param is not None:
        assert answer.error["param"] == param


def test_the_client_raises_its_usual_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(model="m", input="x", previous_response_id="resp_nothing")
    assert bad.value.code == "previous_response_not_found"
    assert "send the whole input instead" in bad.value.message
    assert bad.value.param == "previous_response_id"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve("conv_nothing")


@pytest.fixture(scope="module")
def small(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with little patience and narrow bounds."""
    folder = tmp_path_factory.mktemp("small")
    config = folder / "stateroom.toml"
    config.write_text(
        f"""
        unknown_models = "reject"
        [[backends]]
        url = "{model_host.url}"
        first_byte_timeout_seconds = 0.4
        idle_timeout_seconds = 0.4
        retries = 0
        [limits]
        body_bytes = 20000
        items = 50
        tools = 5
        content_parts = 4
        item_bytes = 10000
        context_items = 60
        runs = 2
        waiting_runs = 2
        depth = 20
        output_bytes = 1000
        """
    )
    with ServerProcess(folder / "data", options=("--config", str(config))) as process:
        yield process


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": "x" * 30_000}, 413, "request_too_large"),
        ({"input": [{"role": "user", "content": "x"}] * 51}, 400, "array_above_max_length"),
        ({"input": "x", "tools": [{"type": "web_search"}] * 6}, 400, "array_above_max_length"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 5}]},
            400,
            "array_above_max_length",
        ),
        ({"input": "x" * 15_000}, 400, "item_too_large"),
        ({"input": "x", "metadata": json.loads("[" * 21 + "]" * 21)}, 400, "json_too_deep"),
        ({"model": "unheard-of", "input": "x"}, 404, "model_not_found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_bound_has_a_clear_error(small: ServerProcess, body: dict[str, Any], status: int, code: str) -> None:
    answer = send(small.url, "POST", "/responses", {"model": "scripted", **body})
    assert answer.status == status
    assert answer.error["code"] == code


def test_a_context_with_too_many_items_is_refused(small: ServerProcess) -> None:
    first = send(
        small.url,
        "POST",
        "/responses",
        {"model": "scripted", "input": [{"role": "user", "content": "x"}] * 45},
    ).json
    body = {"model": "scripted", "input": [{"role": "user", "content": "x"}] * 20, "previous_response_id": first["id"]}
    assert send(small.url, "POST", "/responses", body).error["code"] == "too_many_items"


def test_a_body_without_a_length_is_bounded_too(small: ServerProcess) -> None:
    """Chunked, so that the size is not known beforehand; the refusal comes before the end of it."""
    parts = urlsplit(small.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        head = f"POST /v1/responses HTTP/1.1\r\nhost: {parts.netloc}\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        for _ in range(6):
            connection.sendall(chunk)
        answer = b""
        while b"}}" not in answer and (piece := connection.recv(65536)):
            answer += piece
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b'"code":"request_too_large"' in answer


def test_too_many_runs_are_told_to_come_back(small: ServerProcess, model_host: ModelHost, seen: Seen) -> None:
    body = {"model": "scripted", "input": "gate: crowd 1\nsay: x", "background": True}
    made = [send(small.url, "POST", "/responses", body) for _ in range(5)]
    assert [answer.status for answer in made] == [200, 200, 200, 200, 429]
    assert made[-1].error["code"] == "too_many_runs"
    assert made[-1].error["type"] == "rate_limit_error"
    assert int(made[-1].headers["retry-after"]) >= 1
    model_host.open_gate("crowd")
    assert {_ended(small.url, answer.json["id"])["status"] for answer in made[:4]} == {"completed"}


def test_an_answer_without_end_is_cut(small: ServerProcess) -> None:
    answer = send(small.url, "POST", "/responses", {"model": "scripted", "input": "chunks: 2000", "stream": True})
    assert answer.status == 200
    assert b'"reason":"max_output_tokens"' in answer.body


UPSTREAM = (
    # what the model server answers, status, code, type
    ("fail: 400 bad thing", 400, None, "invalid_request_error"),
    ("fail: 422 odd thing", 422, None, "invalid_request_error"),
    ("fail: 401 no", 502, "backend_auth_failed", "server_error"),
    ("fail: 403 no", 502, "backend_auth_failed", "server_error"),
    ("fail: 429 slow down", 429, "backend_busy", "rate_limit_error"),
    ("fail: 500 broke", 502, "backend_failed", "server_error"),
    ("fail: 503 loading", 503, "backend_unavailable", "server_error"),
    ("fail_after: 2\nchunks: 9", 502, "backend_failed", "server_error"),
    ("error_after: 2\nchunks: 9", 502, "backend_failed", "server_error"),
    ("hang", 504, "backend_timeout", "server_error"),
)


@pytest.mark.parametrize(("said", "status", "code", "kind"), UPSTREAM)
def test_a_failing_model_server_is_told_apart(
    small: ServerProcess, said: str, status: int, code: str | None, kind: str
) -> None:
    body = {"model": "scripted", "input": said}
    if "after" in said:
        body["background"] = True  # the scripted model breaks off streams only
        ended = _ended(small.url, send(small.url, "POST", "/responses", body).json["id"])
        assert ended["status"] == "failed"
        assert ended["error"]["code"] == "server_error"
        return
    answer = send(small.url, "POST", "/responses", body)
    assert answer.status == status, answer.body
    assert answer.error["type"] == kind
    if code is not None:
        assert answer.error["code"] == code
    if status in (400, 422):
        assert said.split(" ", 2)[2] in answer.error["message"]
    if status == 429:
        assert int(answer.headers["retry-after"]) >= 1
    if status == 503:
        assert answer.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(("said", "status", "code", "kind"), UPSTREAM)
def test_a_failing_model_server_ends_a_stream_as_failed(
    small: ServerProcess, said: str, status: int, code: str | None, kind: str
) -> None:
    answer = send(small.url, "POST", "/responses", {"model": "scripted", "input": said, "stream": True})
    assert answer.status == 200
    events = [json.loads(line[6:]) for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert code is None or events[-2]["code"] == code
    expected = {400: "invalid_prompt", 422: "invalid_prompt", 429: "rate_limit_exceeded"}.get(status, "server_error")
    assert events[-1]["response"]["error"]["code"] == expected


def test_a_model_server_that_goes_silent_in_an_answer_is_given_up(small: ServerProcess) -> None:
    answer = send(small.url, "POST", "/responses", {"model": "scripted", "input": "hang: 2\nchunks: 9", "stream": True})
    assert b'"code":"backend_timeout"' in answer.body
    assert b"response.failed" in answer.body


def test_the_client_retries_what_may_be_retried(model_host: ModelHost, url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key="unused", max_retries=1) as patient:
        with pytest.raises(openai.InternalServerError):
            patient.responses.create(model="scripted", input="fail: 500 always")
        tries = len(seen.requests)
        with pytest.raises(openai.BadRequestError):
            patient.responses.create(model="scripted", input="fail: 400 always")
    assert len(seen.requests) == tries + 1


def test_a_model_server_that_is_not_there_is_a_503(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ServerProcess(tmp_path / "data", backends=(f"http://127.0.0.1:{port}/v1",)) as process:
        answer = send(process.url, "POST", "/responses", {"model": "m", "input": "x"})
        assert answer.status == 503
        assert answer.error["code"] == "backend_unavailable"
        assert answer.headers["x-should-retry"] == "true"
        assert [model["id"] for model in get(process.url, "/models")["data"]] == ["all-minilm-l6-v2"]
        assert send(process.url.removesuffix("/v1"), "GET", "/health").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://[broken"},
        {"host": ""},
    ],
)
def test_a_request_that_a_web_page_made_behind_its_users_back_is_refused(url: str, headers: dict[str, str]) -> None:
    answer = send(url, "POST", "/responses", {"model": "m", "input": "x"}, headers=headers)
    assert answer.status in (400, 403)
    if answer.status == 403:
        assert answer.error["code"] == "foreign_origin"


def test_local_pages_may_ask(url: str) -> None:
    answer = send(url, "POST", "/responses", {"model": "m", "input": "x"}, headers={"origin": "http://localhost:3000"})
    assert answer.status == 200


def test_nothing_secret_and_no_trace_is_in_the_log(stateroom_server: ServerProcess, client: OpenAI) -> None:
    client.responses.create(model="m", input="say: the-word-nobody-may-log")
    log = stateroom_server.log.read_text()
    assert "the-word-nobody-may-log" not in log
    assert "Traceback" not in log


def _ended(url: str, response_id: str) -> Any:
    """The response, once it has ended."""

    def look() -> Any:
        held = get(url, f"/responses/{response_id}")
        return held if held["status"] not in ("queued", "in_progress") else None

    return until(look, "the run ends")
