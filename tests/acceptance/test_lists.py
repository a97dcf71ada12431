"""All lists turn their pages alike: behind `after`, in front of `before`, and no cursor that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost
from tests.acceptance.wire import get, post, respond, send


@pytest.fixture(scope="module")
def own_url(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server whose lists nobody else adds to."""
    with ServerProcess(tmp_path_factory.mktemp("lists") / "data", backends=(model_host.url,)) as process:
        yield process.url


def a_response(url: str) -> str:
    return str(respond(url, {"input": "say: one"})["id"])


def a_conversation(url: str) -> str:
    return str(post(url, "/conversations", {})["id"])


def a_completion(url: str) -> str:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "say: one"}], "store": True}
    return str(post(url, "/chat/completions", body)["id"])


def a_file(url: str, purpose: str = "vision") -> str:
    answer = httpx.post(f"{url}/files", data={"purpose": purpose}, files={"file": ("x.jsonl", b"{}\n")})
    return str(answer.json()["id"])


def a_batch(url: str) -> str:
    # Of chat completions that are not stored: other lists stay as they are.
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "say: one"}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    files = {"file": ("x.jsonl", json.dumps(line).encode())}
    file = httpx.post(f"{url}/files", data={"purpose": "batch"}, files=files).json()["id"]
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str(post(url, "/batches", body)["id"])


def an_endpoint(url: str) -> str:
    body = {"name": "x", "url": "https://example.com/x", "event_types": ["batch.completed"]}
    return str(post(url, "/webhook_endpoints", body)["id"])


LISTS: list[tuple[str, Callable[[str], str]]] = [
    ("/responses?", a_response),
    ("/conversations?", a_conversation),
    ("/chat/completions?", a_completion),
    ("/files?purpose=vision&", a_file),
    ("/batches?", a_batch),
    ("/webhook_endpoints?", an_endpoint),
]


@pytest.mark.parametrize(("path", "make"), LISTS, ids=[path.split("?")[0] for path, _ in LISTS])
def test_a_list_begins_behind_after_and_ends_in_front_of_before(
    own_url: str, path: str, make: Callable[[str], str]
) -> None:
    made = [make(own_url) for _ in range(5)]

    def listed(query: str) -> tuple[list[str], bool]:
        page: dict[str, Any] = get(own_url, path + query)
        found = [one["id"] for one in page["data"]]
        assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
        return found, page["has_more"]

    for order, sign in (("asc", 1), ("desc", -1)):
        ordered = made[::sign]
        assert listed(f"order={order}") == (ordered, False)
        assert listed(f"order={order}&limit=2") == (ordered[:2], True)
        assert listed(f"order={order}&after={ordered[1]}") == (ordered[2:], False)
        assert listed(f"order={order}&before={ordered[2]}") == (ordered[:2], False)
        assert listed(f"order={order}&before={ordered[2]}&limit=1") == (ordered[:1], True)
        assert listed(f"order={order}&after={ordered[0]}&before={ordered[3]}") == (ordered[1:3], False)
        assert listed(f"order={order}&after={ordered[3]}&before={ordered[0]}") == ([], False)


@pytest.mark.parametrize("param", ["after", "before"])
@pytest.mark.parametrize("path", [*[path for path, _ in LISTS], "/webhook_deliveries?"])
def test_a_list_does_not_end_at_a_cursor_that_is_not_there(own_url: str, path: str, param: str) -> None:
    answer = send(own_url, "GET", f"{path}{param}=resp_nobody")
    assert answer.status == 400, answer.body
    assert (answer.error["code"], answer.error["param"]) == ("invalid_value", param)
    assert "resp_nobody" in answer.error["message"]
