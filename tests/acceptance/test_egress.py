"""The way out of containers, from inside real sandboxes: what gets out, what does not, and what is seen of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import send

VALUE = "real-value-5f1c77e0b2"

FETCH = """python3 - {url} <<'END'
import os, sys, urllib.error, urllib.request
ask = urllib.request.Request(sys.argv[1], headers={{"x-key": os.environ.get("API_KEY", "none")}})
try:
    print(urllib.request.urlopen(ask, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print("no network:", error)
END"""


class Outside:
    """An HTTP server beside ours, which says back what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        told = self.heard

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.append(self.headers.get("x-key", ""))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f"you said {told[-1]}".encode())

            def log_message(self, *given: Any) -> None:
                return None

        # Programs inside reach 127.0.0.1 without the proxy.
        self.server = ThreadingHTTPServer(("127.0.0.2", 0), Answering)
        self.place = f"127.0.0.2:{self.server.server_port}"


@pytest.fixture
def outside() -> Iterator[Outside]:
    made = Outside()
    with made.server:
        Thread(target=made.server.serve_forever, daemon=True).start()
        yield made
        made.server.shutdown()


@pytest.fixture
def own(model_host: ModelHost, tmp_path: Path) -> Iterator[ServerProcess]:
    environment = {"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=environment) as process:
        yield process


def made(own: ServerProcess, policy: dict[str, Any] | None = None) -> str:
    body = {"name": "out"} | ({} if policy is None else {"network_policy": policy})
    identifier: str = send(own.url, "POST", "/containers", body).json["id"]
    return identifier


def ran(own: ServerProcess, container_id: str, command: str) -> str:
    answer = send(own.url, "POST", f"/containers/{container_id}/exec", {"command": command})
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    assert events[-1]["type"] == "container.exec.done", events
    return "".join(each["text"] for each in events if each["type"] == "container.exec.output")


def metric(own: ServerProcess, name: str) -> float:
    lines = send(own.url.removesuffix("/v1"), "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_secret_is_put_in_on_the_way_and_is_nowhere_else(own: ServerProcess, outside: Outside) -> None:
    secret = {"domain": outside.place, "name": "API_KEY", "value": VALUE}
    policy = {"type": "allowlist", "allowed_domains": [outside.place], "domain_secrets": [secret]}
    container = made(own, policy)
    said = ran(own, container, 'echo "$API_KEY" | tee key; env > env; ' + FETCH.format(url=f"http://{outside.place}/"))
    placeholder, answer = said.split("\n", 1)
    assert placeholder.startswith("placeholder_")
    assert outside.heard == [VALUE]
    assert answer == f"you said {placeholder}\n\n"[: len(answer)], "what the server says back is masked"
    assert VALUE not in ran(own, container, "cat /proc/*/environ 2>/dev/null; cat env key")
    assert metric(own, 'stateroom_egress_decisions_total{reason="listed",verdict="allowed"}') == 1
    assert metric(own, "stateroom_egress_sent_bytes_total") > 0
    assert metric(own, "stateroom_egress_received_bytes_total") > 0
    assert f"host=127.0.0.2 port={outside.server.server_port} method=GET allowed=True reason=listed" in own.output
    own.terminate()
    searched = [own.log, *(path for path in own.data.rglob("*") if path.is_file())]
    assert len(searched) > 5
    for path in searched:
        assert VALUE.encode() not in path.read_bytes(), path


def test_what_is_not_listed_is_refused_in_words_that_help(own: ServerProcess, outside: Outside) -> None:
    container = made(own, {"type": "allowlist", "allowed_domains": ["other.example"]})
    said = ran(own, container, FETCH.format(url=f"http://{outside.place}/"))
    assert said.startswith("403 Refused by the sandbox's egress proxy: ")
    assert "not in the allowed_domains of this container's network_policy" in said
    assert "other.example" in said
    assert outside.heard == []
    assert metric(own, 'stateroom_egress_decisions_total{reason="not_listed",verdict="refused"}') == 1
    assert "allowed=False reason=not_listed" in own.output


def decisions(own: ServerProcess, container_id: str, query: str = "") -> list[dict[str, Any]]:
    answer = send(own.url, "GET", f"/containers/{container_id}/egress{query}")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["data"]
    return found


def told(decision: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(decision[name] for name in ("domain", "port", "verdict", "reason", "count"))


def test_the_decisions_about_a_container_can_be_asked_for_and_outlive_the_server(
    own: ServerProcess, outside: Outside
) -> None:
    port = outside.server.server_port
    secret = {"domain": outside.place, "name": "API_KEY", "value": VALUE}
    policy = {"type": "allowlist", "allowed_domains": [outside.place], "domain_secrets": [secret]}
    container, other = made(own, policy), made(own, {"type": "allowlist", "allowed_domains": ["other.example"]})
    assert decisions(own, container) == []
    allowed = FETCH.format(url=f"http://{outside.place}/path-7731?query-7731")
    ran(own, container, f"{allowed}; {allowed}".replace("END; ", "END\n"))
    ran(own, container, FETCH.format(url="http://elsewhere.example/path-7731"))
    ran(own, other, FETCH.format(url=f"http://{outside.place}/"))
    expected = [
        ("elsewhere.example", 80, "refused", "not_listed", 1),
        ("127.0.0.2", port, "allowed", "listed", 2),
    ]
    shown = decisions(own, container)
    assert [told(each) for each in shown] == expected
    assert [told(each) for each in decisions(own, container, "?order=asc")] == expected[::-1]
    assert decisions(own, container, f"?limit=1&after={shown[0]['id']}") == shown[1:]
    assert [told(each) for each in decisions(own, other)] == [("127.0.0.2", port, "refused", "not_listed", 1)]
    for each in shown:
        assert set(each) == {
            "id", "object", "container_id", "domain", "port", "verdict", "reason", "count", "first_at", "last_at"
        }  # fmt: skip
        assert each["container_id"] == container
        assert 0 < each["first_at"] <= each["last_at"]
    assert "7731" not in json.dumps(shown)
    assert VALUE not in json.dumps(shown)
    own.kill()
    own.start()
    assert decisions(own, container) == shown, "they were noted with the commands' commits"
    fork = send(own.url, "POST", f"/containers/{container}/fork", {}).json["id"]
    assert decisions(own, fork) == []
    assert send(own.url, "DELETE", f"/containers/{container}").status == 200
    gone = send(own.url, "GET", f"/containers/{container}/egress")
    assert (gone.status, gone.error["code"]) == (404, "container_not_found")


def test_what_goes_on_is_seen_before_its_command_has_ended(own: ServerProcess, outside: Outside) -> None:
    container = made(own, {"type": "allowlist", "allowed_domains": [outside.place]})
    job = FETCH.format(url=f"http://{outside.place}/")
    ran(own, container, f"(while [ ! -e go ]; do sleep 0.05; done\n{job}\n) > out 2>&1 &")
    assert decisions(own, container) == []
    send(own.url, "POST", f"/containers/{container}/exec", {"command": "touch go"})
    until(lambda: [told(each)[2:] for each in decisions(own, container)] == [("allowed", "listed", 1)], "it is shown")


def test_without_a_policy_there_is_no_network_at_all(own: ServerProcess, outside: Outside) -> None:
    container = made(own)
    assert ran(own, container, FETCH.format(url=f"http://{outside.place}/")).startswith("no network:")
    looked = ran(own, container, "env | grep -i proxy; ls /sys/class/net 2>/dev/null; cat /proc/net/dev | tail -n +3")
    assert [line.split(":")[0].strip() for line in looked.splitlines()] in (["lo"], []), looked
    assert outside.heard == []
    assert metric(own, "stateroom_egress_decisions_total") == 0


def test_an_operator_sees_what_workspaces_do_and_nothing_of_what_is_in_them(own: ServerProcess) -> None:
    container = made(own)
    ran(own, container, "echo heron-4711 > heron-4711; echo done")
    assert metric(own, "stateroom_workspaces_live") == 1
    assert metric(own, 'stateroom_workspace_starts_total{driver="bubblewrap",outcome="ok"}') == 1
    assert metric(own, "stateroom_workspace_start_seconds_count") == 1
    assert metric(own, "stateroom_workspace_commits_total") == 1
    assert metric(own, "stateroom_workspace_commit_bytes_total") >= 11
    assert metric(own, "stateroom_content_bytes") > 0
    assert send(own.url, "DELETE", f"/containers/{container}").status == 200
    assert metric(own, "stateroom_workspaces_live") == 0
    assert "heron-4711" not in own.output
