"""What an operator sees of a real server: figures, lines, the journal of a response. And what nobody sees: secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stateroom.access.keys import FILE, open_keys
from stateroom.telemetry.exposition import METRICS
from stateroom.testing.process import ServerProcess
from tests.acceptance.collector import Collector
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.socket_wire import opened
from tests.acceptance.wire import Answer, get, post, send, stream

REQUEST = re.compile(r"^\d\d:\d\d:\d\d (\w+) +request (.*)$", re.MULTILINE)


class Figures:
    """What `/metrics` says."""

    def __init__(self, text: str) -> None:
        self.names: set[str] = set()
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            self.names.add(family.name)
            for sample in family.samples:
                self._samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def get(self, name: str, **labels: str) -> float:
        """0 for what has not happened yet."""
        return self._samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(scope="module")
def host() -> Iterator[ModelHost]:
    with ModelHost() as host:
        yield host


@pytest.fixture
def server(host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    file = tmp_path / "stateroom.toml"
    file.write_text(f'[[backends]]\nurl = "{host.url}"\nname = "gpu-1"\n')
    options = ("--config", str(file))
    with ServerProcess(tmp_path / "data", options=options).start() as process:
        yield process


def root(server: ServerProcess) -> str:
    return server.url.removesuffix("/v1")


def figures(server: ServerProcess, key: str = "") -> Figures:
    answer = send(root(server), "GET", "/metrics", headers={"authorization": f"Bearer {key}"} if key else None)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return Figures(answer.body.decode())


def lines(server: ServerProcess) -> list[dict[str, str]]:
    """The fields of each request's line, with its level."""
    found = REQUEST.findall(server.output)
    return [{"level": level, **dict(pair.split("=", 1) for pair in rest.split(" "))} for level, rest in found]


def make_key(data: Path, project: str, *scopes: str) -> tuple[str, str]:
    """The id of a new key, and the key."""
    with closing(open_keys(data / FILE)) as keys:
        key, secret = keys.create(project=project, name="", scopes=scopes)
        return key.id, secret


def test_what_happened_is_counted(server: ServerProcess) -> None:
    before = figures(server)
    assert before.names >= {metric.name for metric in METRICS}
    used = [post(server.url, "/responses", {"model": "scripted", "input": "hi"})["usage"] for _ in range(3)]
    events = stream(server.url, {"input": "chunks: 20"})
    used.append(events[-1]["response"]["usage"])
    assert send(server.url, "POST", "/responses", {"model": "scripted", "input": 5}).status == 400
    assert send(server.url, "POST", "/responses", {"model": "scripted", "input": "fail: 422"}).status == 422
    assert send(server.url, "GET", "/responses/resp_nobody").status == 404
    assert send(server.url, "GET", "/nowhere").status == 404
    shown = figures(server)
    place = {"method": "POST", "route": "/v1/responses"}
    assert shown.get("stateroom_http_requests_total", **place, status="200") == 4
    assert shown.get("stateroom_http_requests_total", **place, status="400") == 1
    assert shown.get("stateroom_http_requests_total", **place, status="422") == 1
    named = {"method": "GET", "route": "/v1/responses/{response_id}", "status": "404"}
    assert shown.get("stateroom_http_requests_total", **named) == 1
    assert shown.get("stateroom_http_requests_total", method="GET", route="unknown", status="404") == 1
    assert shown.get("stateroom_http_request_seconds_count", route="/v1/responses") == 6
    assert shown.get("stateroom_runs_total", surface="responses", status="completed") == 4
    assert shown.get("stateroom_runs_total", surface="responses", status="failed") == 1
    assert shown.get("stateroom_runs_started_total", surface="responses", mode="stream", taken_up="no") == 1
    assert shown.get("stateroom_run_seconds_count", surface="responses") == 5
    assert shown.get("stateroom_run_first_token_seconds_count", surface="responses") == 4
    assert shown.get("stateroom_run_wait_seconds_count") == 5
    assert shown.get("stateroom_events_total") == len(events)
    assert 0 < shown.get("stateroom_frames_total") <= len(events)
    call = {"backend": "gpu-1", "model": "scripted"}
    assert shown.get("stateroom_backend_calls_total", **call, outcome="ok") == 4
    assert shown.get("stateroom_backend_call_seconds_count", backend="gpu-1") == 5
    assert shown.get("stateroom_backend_first_token_seconds_count", backend="gpu-1") == 4
    assert shown.get("stateroom_backend_calls_active", backend="gpu-1") == 0
    assert shown.get("stateroom_tokens_total", **call, type="input") == sum(each["input_tokens"] for each in used)
    assert shown.get("stateroom_tokens_total", **call, type="output") == sum(each["output_tokens"] for each in used)
    assert shown.get("stateroom_errors_total", where="http", code="response_not_found") == 1
    assert shown.get("stateroom_errors_total", where="http", code="invalid_type") == 1
    assert shown.get("stateroom_errors_total", where="run", code="backend_rejected") == 1
    assert shown.get("stateroom_errors_total", where="backend", code="backend_rejected") == 1
    committed = shown.get("stateroom_journal_changes_total") - before.get("stateroom_journal_changes_total")
    assert committed >= 10
    commits = shown.get("stateroom_journal_commit_seconds_count")
    assert commits <= shown.get("stateroom_journal_changes_total")
    assert shown.get("stateroom_journal_wait_seconds_count") == commits
    assert shown.get("process_resident_memory_bytes") > 10_000_000


def test_what_goes_on_is_shown_while_it_goes_on(server: ServerProcess, host: ModelHost) -> None:
    def shows(name: str, value: float, **labels: str) -> None:
        until(lambda: figures(server).get(name, **labels) == value, f"{name} is {value:g}")

    ask = {"model": "scripted", "input": "gate: watched 1\nchunks: 3"}
    run_id = post(server.url, "/responses", {**ask, "background": True})["id"]
    shows("stateroom_runs_active", 1)
    shows("stateroom_backend_calls_active", 1, backend="gpu-1")
    assert figures(server).get("stateroom_http_requests_active") == 1  # this very one
    with opened(server.url) as socket:
        shows("stateroom_sockets_active", 1)
        socket.send({"type": "response.create", "model": "scripted", "input": 7})
        assert socket.next()["type"] == "error"
        assert figures(server).get("stateroom_errors_total", where="socket", code="invalid_type") == 1
    shows("stateroom_sockets_active", 0)
    host.open_gate("watched")
    until(lambda: get(server.url, f"/responses/{run_id}")["status"] == "completed", "the run has ended")
    shows("stateroom_runs_active", 0)
    shows("stateroom_backend_calls_active", 0, backend="gpu-1")
    assert figures(server).get("stateroom_runs_waiting") == 0


def test_figures_are_for_those_who_run_the_server(server: ServerProcess) -> None:
    assert send(root(server), "GET", "/metrics").status == 200
    (_, admin), (_, reader) = make_key(server.data, "ops", "admin"), make_key(server.data, "shop", "read", "write")
    until(lambda: send(root(server), "GET", "/metrics").status == 401, "the keys are known")
    refused = send(root(server), "GET", "/metrics", headers={"authorization": f"Bearer {reader}"})
    assert (refused.status, refused.error["code"]) == (403, "insufficient_scope")
    assert "stateroom_runs" in figures(server, admin).names


def test_a_scraper_gets_the_format_that_it_prefers(server: ServerProcess) -> None:
    answer = send(root(server), "GET", "/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_each_request_has_one_line_that_says_how_it_went(server: ServerProcess) -> None:
    made = send(server.url, "POST", "/responses", {"model": "scripted", "input": "say: hello"})
    refused = send(server.url, "POST", "/responses", {"model": "scripted"})
    send(server.url, "GET", f"/responses/{made.json['id']}?include[]=reasoning.encrypted_content")
    send(server.url, "GET", "/responses/made-up%20status=200")
    send(root(server), "GET", "/health")
    with opened(server.url) as socket:
        socket.create("say: hi")
        socket.until_end()
    told = until(lambda: held if len(held := lines(server)) == 5 else None, "five lines")
    assert [(line["level"], line["method"], line["route"], line["status"]) for line in told] == [
        ("info", "POST", "/v1/responses", "200"),
        ("warning", "POST", "/v1/responses", "400"),
        ("info", "GET", "/v1/responses/{response_id}", "200"),
        ("warning", "GET", "/v1/responses/{response_id}", "404"),
        ("info", "WS", "/v1/responses", "101"),
    ]
    assert [line["request_id"] for line in told[:2]] == [answer.headers["x-request-id"] for answer in (made, refused)]
    assert told[0]["run_id"] == told[2]["run_id"] == made.json["id"]
    assert "run_id" not in told[3]
    assert told[1]["code"] == refused.error["code"]
    assert all(line["project"] == "default" and float(line["ms"]) >= 0 for line in told)


@pytest.mark.parametrize(("which", "statuses"), [("errors", [404]), ("none", [])])
def test_lines_can_be_had_for_what_went_wrong_only_or_not_at_all(
    host: ModelHost, tmp_path: Path, which: str, statuses: list[int]
) -> None:
    environment = {"STATEROOM_ACCESS_LOG": which, "STATEROOM_LOG_FORMAT": "json"}
    with ServerProcess(tmp_path / "data", backends=(host.url,), environment=environment).start() as server:
        get(server.url, "/responses")
        send(server.url, "GET", "/responses/resp_nobody")
        assert server.terminate() == 0
        told = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
        assert [line["status"] for line in told if line["event"] == "request"] == statuses


# The journal of a response.


def test_the_journal_of_a_response_says_who_what_when_how_long_and_which_backend(server: ServerProcess) -> None:
    key_id, secret = make_key(server.data, "shop", "read", "write")
    _, foreign = make_key(server.data, "other", "read", "write")

    def ask(method: str, path: str, body: Any = None, key: str = secret) -> Answer:
        return send(server.url, method, path, body, headers={"authorization": f"Bearer {key}"})

    until(lambda: ask("GET", "/responses").status == 200, "the key is known")
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    made = ask("POST", "/responses", {"model": "unheard-of", "input": "call: look {}", "tools": [tool]}).json
    path = f"/responses/{made['id']}/events"
    begin, call, end = ask("GET", path).json["data"]
    assert (begin["kind"], begin["key_id"], begin["model"], begin["served_model"], begin["tools"]) == (
        "run.started",
        key_id,
        "unheard-of",
        "scripted",
        1,
    )
    assert (call["kind"], call["item_id"], call["name"]) == ("item.finished", made["output"][0]["id"], "look")
    assert (call["backend"], call["model"], call["finish"]) == ("gpu-1", "scripted", "stop")
    assert 0 <= call["first_token_ms"] <= call["duration_ms"] <= end["duration_ms"] + 1
    assert call["usage"]["input_tokens"] == made["usage"]["input_tokens"]
    assert (end["kind"], end["status"], end["elapsed_ms"]) == ("run.ended", "completed", end["duration_ms"])
    assert [begin["seq"], call["seq"], end["seq"]] == [0, 1, 2]
    assert begin["at"] <= call["at"] <= end["at"]

    first = ask("GET", f"{path}?limit=2").json
    assert ([each["seq"] for each in first["data"]], first["has_more"]) == ([0, 1], True)
    assert [each["seq"] for each in ask("GET", f"{path}?after={first['last_id']}").json["data"]] == [2]
    assert [each["seq"] for each in ask("GET", f"{path}?order=desc").json["data"]] == [2, 1, 0]
    assert ask("GET", f"{path}?after=77").error["code"] == "invalid_value"

    strange = ask("GET", path, key=foreign)
    assert (strange.status, strange.error["code"]) == (404, "response_not_found")
    assert ask("DELETE", f"/responses/{made['id']}").status == 200
    assert ask("GET", path).status == 404


def test_the_journal_can_be_read_while_a_response_is_made_and_says_why_one_failed(
    server: ServerProcess, host: ModelHost
) -> None:
    ask = {"model": "scripted", "input": "gate: read 1\nchunks: 3", "background": True}
    run_id = post(server.url, "/responses", ask)["id"]
    (begin,) = get(server.url, f"/responses/{run_id}/events")["data"]
    assert (begin["kind"], begin["background"]) == ("run.started", True)
    assert "key_id" not in begin
    host.open_gate("read")
    until(lambda: get(server.url, f"/responses/{run_id}")["status"] == "completed", "the run has ended")
    kinds = [each["kind"] for each in get(server.url, f"/responses/{run_id}/events")["data"]]
    assert kinds == ["run.started", "item.finished", "run.ended"]

    failed = post(server.url, "/responses", {"model": "scripted", "input": "fail: 422 PRIVATE", "background": True})
    path = f"/responses/{failed['id']}"
    until(lambda: get(server.url, path)["status"] == "failed", "the run has failed")
    told = get(server.url, f"{path}/events")["data"]
    assert (told[-1]["status"], told[-1]["error_code"], told[-1]["error_status"]) == ("failed", "backend_rejected", 422)
    assert "PRIVATE" not in json.dumps(told)


def test_a_response_that_was_not_stored_has_no_journal(server: ServerProcess) -> None:
    made = post(server.url, "/responses", {"model": "scripted", "input": "hi", "store": False})
    assert send(server.url, "GET", f"/responses/{made['id']}/events").status == 404


# What nobody sees.

PROMPT, ANSWER, ARGUMENT, INSTRUCTIONS = (
    "PLANTED-prompt",
    "PLANTED-answer",
    "PLANTED-argument",
    "PLANTED-instructions",
)
QUERY, HEADER, CLAIM, META, FORGED = (
    "PLANTED-query",
    "PLANTED-header",
    "PLANTED-claim",
    "PLANTED-meta",
    "PLANTED-forged",
)


def busy_session(ask: Callable[..., Answer], url: str, key: str) -> tuple[list[Answer], list[Any], set[str]]:
    """Requests of every kind with secrets in every place: the errors, the journals, and the secrets that were made."""
    errors: list[Answer] = []
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    runs: list[dict[str, Any]] = [
        {"input": PROMPT, "instructions": INSTRUCTIONS, "metadata": {"x": META}, "safety_identifier": META},
        {"input": f"say: {ANSWER}", "user": META},
        {"input": f'call: look {{"q": "{ARGUMENT}"}}', "tools": [tool]},
        {"input": f"fail: 422 {PROMPT}", "background": True},
        {"input": f"say: {ANSWER}", "background": True},
    ]
    made = [ask("POST", "/responses", {"model": "scripted", **run}, {"Idempotency-Key": CLAIM + str(at)}).json
            for at, run in enumerate(runs)]  # fmt: skip
    chat = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}
    assert ask("POST", "/chat/completions", {**chat, "store": True}).status == 200
    hook = {"name": "hook", "url": "http://127.0.0.1:9/hook", "event_types": ["response.completed"]}
    webhook = ask("POST", "/webhook_endpoints", hook).json
    secrets = {key, webhook["signing_secret"]} if "signing_secret" in webhook else {key}
    ask("POST", "/responses", {"model": "scripted", "input": f"say: {ANSWER}", "background": True})
    wrong = {"authorization": f"Bearer {FORGED}"}
    errors += [
        ask("GET", f"/responses?after={QUERY}&key={key}"),
        ask("GET", "/responses", None, wrong),
        ask("GET", f"/responses/{made[0]['id']}", None, {**wrong, "x-api-key": HEADER}),
        ask("POST", "/responses", {"model": "scripted", "input": [{"type": HEADER}], "instructions": INSTRUCTIONS}),
        ask("POST", "/responses", {"model": "scripted", "input": PROMPT, "temperature": META}),
        ask("GET", f"/nowhere?{QUERY}", None, {"cookie": HEADER, "traceparent": HEADER, "x-request-id": f"{HEADER} x"}),
    ]
    assert all(answer.status >= 400 for answer in errors)
    with opened(url, additional_headers={"authorization": f"Bearer {key}"}) as socket:
        socket.create(f"say: {ANSWER}")
        socket.until_end()
    for run in made:
        path = f"/responses/{run['id']}/events"
        until(partial(_has_ended, ask, path), "it has ended")
    return errors, [ask("GET", f"/responses/{run['id']}/events").json for run in made], secrets


def _has_ended(ask: Callable[..., Answer], path: str) -> bool:
    return bool(ask("GET", path).json["data"][-1]["kind"] == "run.ended")


def test_no_secret_and_no_content_is_in_what_is_observed(tmp_path: Path) -> None:
    backend_key, data = "sk-backend-PLANTED", tmp_path / "data"
    with ModelHost(key=backend_key) as host, Collector() as collector:
        environment = {
            "MODEL_KEY": backend_key,
            "STATEROOM_LOG_LEVEL": "debug",
            "STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=PLANTED-collector",
        }
        options = ("--backend-key-env", "MODEL_KEY")
        process = ServerProcess(data, backends=(host.url,), options=options, environment=environment)
        with process.start() as server:
            _, key = make_key(data, "shop", "read", "write", "admin")

            def ask(method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
                return send(
                    server.url, method, path, body, headers={"authorization": f"Bearer {key}", **(headers or {})}
                )

            until(lambda: ask("GET", "/responses").status == 200, "the key is known")
            errors, journals, secrets = busy_session(ask, server.url, key)
            shown = send(root(server), "GET", "/metrics", headers={"authorization": f"Bearer {key}"}).body.decode()
            until(lambda: "webhook.not_delivered" in server.output, "a webhook was tried")
            log_ = server.output
            assert server.terminate() == 0
        spans = b"".join(collector.bodies).decode("utf-8", "replace")
    observed = {"log": log_, "metrics": shown, "journals": json.dumps(journals), "spans": spans}
    secrets |= {backend_key, "PLANTED"}
    assert "request method=" in log_
    assert "run.ended" in log_
    assert "gen_ai.request.model" in spans
    assert "stateroom_runs_total" in shown
    for where, text in observed.items():
        for secret in secrets:
            assert secret not in text, f"{secret} is in the {where}"
    for answer in errors:
        for secret in secrets - {"PLANTED"} | {FORGED, INSTRUCTIONS, PROMPT}:
            assert secret not in answer.body.decode(), f"{secret} is in an error: {answer.body!r}"
