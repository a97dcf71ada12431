"""Being told of what happened: the real client makes endpoints and checks signatures; a real receiver listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, InvalidWebhookSignatureError, NotFoundError, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost

SECONDS = 20.0


class Receiver:
    """A server that takes down what it is told, and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.heard: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.heard.append(({key.lower(): value for key, value in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        until(lambda: len(self.heard) >= count)
        return self.heard


def until(true: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def host() -> Iterator[ModelHost]:
    with ModelHost() as host:
        yield host


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(host: ModelHost, data: Path) -> Iterator[ServerProcess]:
    with ServerProcess(data, backends=(host.url,), environment={"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}) as server:
        yield server


def client_of(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="-", max_retries=0, timeout=SECONDS)


def test_a_background_response_is_told_of_with_a_signature_that_the_client_accepts(
    server: ServerProcess, receiver: Receiver
) -> None:
    client = client_of(server)
    made = client.webhooks.create(name="mine", url=receiver.url, event_types=["response.completed"])
    assert made.signing_secret.startswith("whsec_")
    response = client.responses.create(model="scripted", input="Hello", background=True)
    ((headers, body),) = receiver.wait(1)
    event = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert (event.type, event.data.id) == ("response.completed", response.id)  # type: ignore[union-attr]
    assert headers["webhook-id"] == event.id
    client.responses.create(model="scripted", input="Hello")  # in the foreground: nobody is told
    other = client.responses.create(model="scripted", input="Again", background=True)
    receiver.wait(2)
    assert other.id.encode() in receiver.heard[1][1]
    listed = httpx.get(f"{server.url}/webhook_deliveries").json()["data"]
    assert [(each["status"], each["tries"]) for each in listed] == [("delivered", 1), ("delivered", 1)]


def test_an_endpoint_is_made_looked_up_changed_and_deleted(server: ServerProcess) -> None:
    client = client_of(server)
    made = client.webhooks.create(name="a", url="https://example.com/a", event_types=["batch.completed"])
    found = client.webhooks.retrieve(made.id)
    assert (found.name, found.url, found.event_types) == ("a", "https://example.com/a", ["batch.completed"])
    assert made.signing_secret not in found.to_json()
    changed = client.webhooks.update(made.id, name="b", event_types=["response.failed", "response.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("b", "https://example.com/a", ["response.failed"])
    second = client.webhooks.create(name="c", url="https://example.com/c", event_types=["batch.failed"])
    assert [each.id for each in client.webhooks.list(limit=1)] == [second.id, made.id]
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        client.webhooks.retrieve(made.id)
    assert "response.completed" in client.webhooks.event_types.list().data


def test_secrets_rotate_and_the_old_one_may_sign_for_another_day(server: ServerProcess, receiver: Receiver) -> None:
    client = client_of(server)
    made = client.webhooks.create(name="a", url=receiver.url, event_types=["response.completed"])
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert client.webhooks.test(made.id, event_type="response.completed").status_code == 200
    ((headers, body),) = receiver.wait(1)
    for secret in (made.signing_secret, rotated.signing_secret):
        client.webhooks.verify_signature(body, headers, secret=secret)
    client.webhooks.rotate_secret(made.id)
    client.webhooks.test(made.id, event_type="response.completed")
    headers, body = receiver.wait(2)[1]
    for secret in (made.signing_secret, rotated.signing_secret):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body, headers, secret=secret)


@pytest.mark.parametrize(
    ("url", "event_types"),
    [
        ("ftp://example.com", ["batch.failed"]),
        ("https://user:pass@example.com", ["batch.failed"]),
        ("https://example.com", ["video.completed"]),
        ("https://example.com", []),
        ("", ["batch.failed"]),
    ],
)
def test_what_can_never_be_delivered_is_refused(server: ServerProcess, url: str, event_types: list[Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        client_of(server).webhooks.create(name="a", url=url, event_types=event_types)
    assert refused.value.code


def test_private_addresses_are_not_called(host: ModelHost, data: Path, receiver: Receiver) -> None:
    with ServerProcess(data, backends=(host.url,)) as server:
        client = client_of(server)
        for url in (receiver.url, receiver.url.replace("http:", "https:"), "http://example.com"):
            with pytest.raises(BadRequestError):
                client.webhooks.create(name="a", url=url, event_types=["batch.failed"])
        by_name = client.webhooks.create(name="a", url="https://localhost:1/", event_types=["response.completed"])
        with pytest.raises(BadRequestError) as refused:
            client.webhooks.test(by_name.id, event_type="response.completed")
        assert refused.value.code == "webhook_not_delivered"
    assert receiver.heard == []


def test_who_refuses_is_asked_again_after_the_server_was_killed(
    host: ModelHost, data: Path, receiver: Receiver
) -> None:
    receiver.status = 503
    environment = {"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"}
    with ServerProcess(data, backends=(host.url,), environment=environment) as server:
        client = client_of(server)
        made = client.webhooks.create(name="a", url=receiver.url, event_types=["response.completed"])
        client.responses.create(model="scripted", input="Hello", background=True)
        first = receiver.wait(1)[0]
        until(lambda: httpx.get(f"{server.url}/webhook_deliveries").json()["data"][0]["tries"] == 1)
        server.kill()
        receiver.status = 200
        server.start()
        headers, body = receiver.wait(2)[1]
        assert (headers["webhook-id"], body) == (first[0]["webhook-id"], first[1])
        client_of(server).webhooks.verify_signature(body, headers, secret=made.signing_secret)
        until(lambda: httpx.get(f"{server.url}/webhook_deliveries").json()["data"][0]["status"] == "delivered")
    assert made.signing_secret.encode() not in b"".join(path.read_bytes() for path in data.iterdir() if path.is_file())
