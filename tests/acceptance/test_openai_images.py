"""Images: by data URL, by http URL through the guard against private addresses, kept once, given back, deleted."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


class Pictures(BaseHTTPRequestHandler):
    """A site with a picture, and with everything that may be wrong with one."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name in ("picture.png", "text.png", "huge.png"):
            body = {"huge.png": b"\x89PNG" * 100_000}.get(name, PNG)
            self.send_response(200)
            self.send_header("content-type", "text/html" if name == "text.png" else "image/png")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif name.startswith("redirect"):
            target = "/picture.png" if name == "redirect" else f"/{name}"
            self.send_response(302)
            self.send_header("location", target)
            self.end_headers()
        elif name == "silent":
            self.server.released.wait(20)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()
    server.shutdown()


@pytest.fixture(scope="module")
def open_client(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a server whose operator lets it reach private addresses."""
    data = tmp_path_factory.mktemp("images") / "data"
    settings = {
        "STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true",
        "STATEROOM_LIMITS__IMAGE_BYTES": "100000",
        "STATEROOM_LIMITS__IMAGE_TIMEOUT_SECONDS": "0.5",
    }
    with (
        ServerProcess(data, backends=(model_host.url,), environment=settings) as process,
        OpenAI(base_url=process.url, api_key="unused", max_retries=0) as client,
    ):
        yield client


def show(client: OpenAI, image_url: str, **more: Any) -> Any:
    parts = [{"type": "input_image", "image_url": image_url, **more}, {"type": "input_text", "text": "say: I see"}]
    asked: Any = [{"role": "user", "content": parts}]
    return client.responses.create(model="scripted", input=asked)


def images_sent(seen: Seen) -> list[dict[str, Any]]:
    return [
        part["image_url"]
        for message in seen.messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]


def test_an_image_in_the_request_reaches_the_model_and_comes_back(client: OpenAI, seen: Seen) -> None:
    response = show(client, DATA_URL, detail="low")
    assert response.output_text == "I see"
    assert images_sent(seen) == [{"url": DATA_URL, "detail": "low"}]
    item: Any = next(iter(client.responses.input_items.list(response.id)))
    assert item.content[0].image_url == DATA_URL
    assert item.content[0].detail == "low"


def test_an_image_stays_in_the_chain(client: OpenAI, seen: Seen) -> None:
    first = show(client, DATA_URL)
    client.responses.create(model="scripted", input="say: and?", previous_response_id=first.id)
    assert images_sent(seen) == [{"url": DATA_URL}]


def test_an_image_in_a_conversation_is_kept_too(client: OpenAI, seen: Seen) -> None:
    parts: Any = [{"type": "input_image", "image_url": DATA_URL}]
    conversation = client.conversations.create(items=[{"role": "user", "content": parts}])
    item: Any = next(iter(client.conversations.items.list(conversation.id)))
    assert item.content[0].image_url == DATA_URL
    client.responses.create(model="scripted", input="say: ok", conversation=conversation.id)
    assert images_sent(seen) == [{"url": DATA_URL}]


def test_an_unstored_image_reaches_the_model(client: OpenAI, seen: Seen) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": DATA_URL}]}]
    client.responses.create(model="scripted", input=asked, store=False)
    assert images_sent(seen) == [{"url": DATA_URL}]


def test_an_image_is_kept_once_and_goes_with_its_last_user(
    client: OpenAI, stateroom_server: ServerProcess, seen: Seen
) -> None:
    unique = PNG + b"only-in-this-test"
    url = "data:image/png;base64," + base64.b64encode(unique).decode()
    first, second = show(client, url), show(client, url)
    assert len(files_with(stateroom_server.data, b"only-in-this-test")) == 1
    client.responses.delete(first.id)
    client.responses.create(model="scripted", input="say: still", previous_response_id=second.id)
    assert images_sent(seen) == [{"url": url}]
    chained = seen.messages
    client.responses.delete(second.id)
    assert chained
    assert files_with(stateroom_server.data, b"only-in-this-test") == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "0x7f000001"],
)
def test_a_private_address_is_refused(client: OpenAI, site: str, host: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        show(client, f"http://{host}:{site.rsplit(':', 1)[1]}/picture.png")
    assert caught.value.code == "private_address_refused"
    assert caught.value.param == "input[0].content[0].image_url"


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "localhost."])
def test_an_odd_way_of_writing_a_private_address_leads_nowhere(client: OpenAI, site: str, host: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        show(client, f"http://{host}:{site.rsplit(':', 1)[1]}/picture.png")
    assert caught.value.code in ("private_address_refused", "failed_to_download_image", "invalid_image_url")


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("file:///etc/passwd", "invalid_image_url"),
        ("ftp://example.com/x.png", "invalid_image_url"),
        ("http://user:secret@example.com/x.png", "invalid_image_url"),
        ("nonsense", "invalid_image_url"),
        ("http://", "invalid_image_url"),
        ("http://[broken/x.png", "invalid_image_url"),
        ("http://example.com:99999/x.png", "invalid_image_url"),
        ("data:image/png;base64,!!!", "invalid_base64_image"),
        ("data:image/png,raw", "invalid_image_url"),
        ("data:text/plain;base64,aGk=", "unsupported_image_media_type"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "unsupported_image_media_type"),
        ("data:image/png;base64,", "empty_image_file"),
        ("http://no-such-host.invalid/x.png", "failed_to_download_image"),
    ],
)
def test_an_image_that_cannot_be_had_is_refused(client: OpenAI, address: str, code: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        show(client, address)
    assert caught.value.code == code
    assert caught.value.param == "input[0].content[0].image_url"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("path", ["picture.png", "redirect"])
def test_an_operator_can_let_the_server_reach_private_addresses(
    open_client: OpenAI, site: str, seen: Seen, path: str
) -> None:
    response = show(open_client, f"{site}/{path}")
    assert images_sent(seen) == [{"url": DATA_URL}]
    item: Any = next(iter(open_client.responses.input_items.list(response.id)))
    assert item.content[0].image_url == f"{site}/{path}"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing.png", "failed_to_download_image"),
        ("text.png", "unsupported_image_media_type"),
        ("huge.png", "image_file_too_large"),
        ("redirect-for-ever", "failed_to_download_image"),
        ("silent", "failed_to_download_image"),
    ],
)
def test_what_a_site_answers_instead_of_an_image_is_refused(
    open_client: OpenAI, site: str, path: str, code: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        show(open_client, f"{site}/{path}")
    assert caught.value.code == code


def test_a_closed_port_is_a_failed_download(open_client: OpenAI) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BadRequestError) as caught:
        show(open_client, f"http://127.0.0.1:{port}/x.png")
    assert caught.value.code == "failed_to_download_image"


def files_with(directory: Path, text: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and text in path.read_bytes()]
