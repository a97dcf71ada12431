"""Access keys beside a running server: made, limited, expired and revoked, with real clients that use them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI, PermissionDeniedError, RateLimitError

from stateroom.testing.process import ProcessFailed, ServerProcess, quiet_port
from tests.acceptance.modelhost import ModelHost, Seen, until
from tests.acceptance.wire import Answer, send


def run(*arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stateroom.cli.main", "keys", *arguments, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "NO_COLOR": "1"})


def make(data: Path, *options: str) -> dict[str, Any]:
    """A new key: what is known of it, and `key`, its text."""
    ran = run("create", *options, "--json", data=data)
    assert ran.returncode == 0, ran.stderr
    made: dict[str, Any] = json.loads(ran.stdout)
    return made


def ask(server: ServerProcess, method: str, path: str, key: str = "", body: Any = None) -> Answer:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return send(server.url, method, path, body, headers=headers)


def client(server: ServerProcess, key: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=server.url, api_key=key, timeout=30, **{"max_retries": 0, **options})


@pytest.fixture
def server(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as process:
        yield process


def test_the_life_of_a_key_beside_a_running_server(server: ServerProcess) -> None:
    assert ask(server, "GET", "/responses").status == 200
    made = make(server.data, "--name", "till", "--expires", "90d")
    refused = ask(server, "GET", "/responses")
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    assert ask(server, "GET", "/responses", "sk-wrong").error["code"] == "invalid_api_key"
    with pytest.raises(AuthenticationError):
        client(server, "unused").responses.create(model="scripted", input="hello")
    response = client(server, made["key"]).responses.create(model="scripted", input="say: hello")
    assert response.output_text == "hello"
    assert run("revoke", made["id"], data=server.data).returncode == 0
    ended = ask(server, "GET", "/responses", made["key"])
    assert (ended.status, ended.error["code"]) == (401, "invalid_api_key")
    server.kill()
    server.start()
    assert ask(server, "GET", "/responses").status == 401


def test_a_key_is_shown_once_and_listed_without_itself(server: ServerProcess) -> None:
    created = run("create", "--name", "till", "--project", "shop", "--scopes", "read", data=server.data)
    secret = created.stdout.strip()
    assert secret.startswith("sk-stateroom-")
    assert secret not in created.stderr
    listed = run("list", data=server.data)
    assert listed.returncode == 0
    assert secret not in listed.stdout
    for shown in ("till", "shop", "read", f"…{secret[-4:]}", "active"):
        assert shown in listed.stdout
    [key] = json.loads(run("list", "--json", data=server.data).stdout)
    assert run("revoke", key["id"], data=server.data).returncode == 0
    assert json.loads(run("list", "--json", data=server.data).stdout) == []
    [gone] = json.loads(run("list", "--all", "--json", data=server.data).stdout)
    assert gone["status"] == "revoked"
    assert json.loads(run("list", "--all", "--project", "other", "--json", data=server.data).stdout) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "--scopes", "read,everything"], 2, "read, write, admin"),
        (["create", "--scopes", ""], 2, "--scopes"),
        (["create", "--expires", "soon"], 2, "90d"),
        (["create", "--expires", "0d"], 2, "90d"),
        (["create", "--project", "a b"], 2, "project"),
        (["create", "--runs", "-1"], 2, "--runs"),
        (["revoke", "key_missing"], 1, "keys list"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    make(tmp_path)
    ran = run(*arguments, data=tmp_path)
    assert ran.returncode == code
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_directory_that_is_not_there_has_no_keys_and_gets_none_by_looking(tmp_path: Path) -> None:
    ran = run("list", data=tmp_path / "missing")
    assert (ran.returncode, "--data" in ran.stderr) == (2, True)
    assert not (tmp_path / "missing").exists()


def test_scopes_bound_what_a_key_does(server: ServerProcess) -> None:
    reader = make(server.data, "--scopes", "read")["key"]
    writer = make(server.data, "--scopes", "write")["key"]
    made = client(server, writer).responses.create(model="scripted", input="say: hello")
    assert client(server, reader).responses.retrieve(made.id).output_text == "hello"
    with pytest.raises(PermissionDeniedError) as refused:
        client(server, reader).responses.create(model="scripted", input="hello")
    assert refused.value.code == "insufficient_scope"
    with pytest.raises(PermissionDeniedError):
        client(server, writer).responses.retrieve(made.id)
    counted = client(server, reader).responses.input_tokens.count(model="scripted", input="hello")
    assert counted.input_tokens > 0


def test_an_address_that_others_reach_needs_a_key_before_it_is_listened_on(
    model_host: ModelHost, tmp_path: Path
) -> None:
    with pytest.raises(ProcessFailed, match="stateroom keys create"):
        ServerProcess(tmp_path / "data", backends=(model_host.url,), options=("--host", "0.0.0.0")).start()
    ended = make(tmp_path / "data", "--name", "ended")
    run("revoke", ended["id"], data=tmp_path / "data")
    with pytest.raises(ProcessFailed, match="stateroom keys create"):
        ServerProcess(tmp_path / "data", backends=(model_host.url,), options=("--host", "0.0.0.0")).start()
    key = make(tmp_path / "data")["key"]
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), options=("--host", "0.0.0.0")) as server:
        local = server.url.replace("0.0.0.0", "127.0.0.1")
        assert send(local, "GET", "/responses").status == 401
        authorised = {"authorization": f"Bearer {key}", "host": "rooms.example"}
        assert send(local, "GET", "/responses", headers=authorised).status == 200
        assert send(local.removesuffix("/v1"), "GET", "/health").status == 200


def test_requests_are_limited_by_key_and_a_client_waits_as_long_as_it_is_told(server: ServerProcess) -> None:
    made = make(server.data, "--requests-per-minute", "60")
    patient = client(server, made["key"], max_retries=2)
    for left in range(59, -1, -1):
        answer = ask(server, "GET", "/models", made["key"])
        assert answer.headers["x-ratelimit-limit-requests"] == "60"
        assert left <= int(answer.headers["x-ratelimit-remaining-requests"]) <= left + 2
    refused = ask(server, "GET", "/models", made["key"])
    while refused.status == 200:  # what flowed in meanwhile
        refused = ask(server, "GET", "/models", made["key"])
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert [model.id for model in patient.models.list()] != []


def test_runs_and_tokens_are_limited_by_key(server: ServerProcess, model_host: ModelHost, seen: Seen) -> None:
    bound = client(server, make(server.data, "--runs", "1")["key"])
    with ThreadPoolExecutor() as pool:
        going = pool.submit(_streamed, bound, "gate: keys-runs\nsay: on")
        until(lambda: any("keys-runs" in str(asked) for asked in seen.requests), "the first one is under way")
        with pytest.raises(RateLimitError) as refused:
            bound.responses.create(model="scripted", input="hello")
        assert refused.value.code == "rate_limit_exceeded"
        model_host.open_gate("keys-runs")
        assert going.result(10) == "on"
    assert bound.responses.create(model="scripted", input="say: again").output_text == "again"
    poor = client(server, make(server.data, "--tokens-per-minute", "5")["key"])
    poor.responses.create(model="scripted", input="say: more than five tokens in and out of the model")
    with pytest.raises(RateLimitError) as empty:
        poor.responses.create(model="scripted", input="hello")
    assert "tokens" in str(empty.value)
    assert poor.models.list().data


def test_the_limits_of_a_project_hold_for_all_its_keys(model_host: ModelHost, tmp_path: Path) -> None:
    config = tmp_path / "stateroom.toml"
    config.write_text("[project]\nrequests_per_minute = 1000\n[projects.shop]\nrequests_per_minute = 2\n")
    options = ("--config", str(config))
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), options=options) as server:
        first, second = (make(server.data, "--project", "shop")["key"] for _ in range(2))
        other = make(server.data, "--project", "other")["key"]
        statuses = [ask(server, "GET", "/models", key).status for key in (first, second, first, second)]
        assert statuses == [200, 200, 429, 429]
        assert ask(server, "GET", "/models", other).headers["x-ratelimit-limit-requests"] == "1000"


def test_a_run_counts_for_its_key_after_a_crash_too(model_host: ModelHost, tmp_path: Path, seen: Seen) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), port=quiet_port()) as server:
        made = make(server.data, "--runs", "1")
        bound = client(server, made["key"])
        going = bound.responses.create(model="scripted", input="gate: keys-crash\nsay: on", background=True)
        seen.wait(1)
        server.kill()
        server.start()
        seen.wait(2)
        with pytest.raises(RateLimitError):
            bound.responses.create(model="scripted", input="hello")
        model_host.open_gate("keys-crash")
        until(lambda: bound.responses.retrieve(going.id).status == "completed", "it has ended")
        assert bound.responses.create(model="scripted", input="say: next").output_text == "next"


def test_a_connection_too_many_is_told_so_and_room_is_used_again(model_host: ModelHost, tmp_path: Path) -> None:
    environment = {"STATEROOM_LIMITS__CONNECTIONS": "3"}
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=environment) as server:
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        refused = until(lambda: _refused(server), "the three are there")
        assert refused.error["code"] == "too_many_connections"
        assert refused.error["type"] == "server_error"
        assert refused.headers["retry-after"] == "1"
        for connection in waiting:
            connection.close()
        until(lambda: send(server.url, "GET", "/models").status == 200, "there is room again")


def _refused(server: ServerProcess) -> Answer | None:
    answer = send(server.url, "GET", "/models")
    return answer if answer.status == 503 else None


def _streamed(client: OpenAI, said: str) -> str:
    """The text of an answer that is read as it comes."""
    with client.responses.stream(model="scripted", input=said) as stream:
        return stream.get_final_response().output_text
