"""A conversation moves from one real server to another, and goes on there as if it had always been there."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, Seen
from tests.acceptance.wire import get, post, respond, send

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()
TOOL = {"type": "function", "name": "look", "description": "d" * 600, "parameters": {}, "strict": False}


@pytest.fixture(scope="module")
def there(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another installation, with a key of its own."""
    with ServerProcess(tmp_path_factory.mktemp("there") / "data", backends=(model_host.url,)) as process:
        yield process.url


def talk(client: OpenAI) -> str:
    file = client.files.create(file=("notes.txt", b"the notes say seven"), purpose="user_data")
    thing = client.conversations.create(items=[{"role": "user", "content": "begin"}], metadata={"topic": "moving"}).id
    asked: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": PNG, "detail": "auto"},
                {"type": "input_file", "file_id": file.id},
                {"type": "input_text", "text": "say: I looked"},
            ],
        }
    ]
    client.responses.create(model="scripted", input=asked, conversation=thing, instructions="look well " * 90)
    client.responses.create(model="scripted", input="call: look {}", conversation=thing, tools=[TOOL])  # type: ignore[list-item]
    output: Any = {"type": "function_call_output", "call_id": calls(client, thing)[-1], "output": "a cat"}
    client.responses.create(model="scripted", input=[output], conversation=thing, tools=[TOOL])  # type: ignore[list-item]
    return thing


def calls(client: OpenAI, thing: str) -> list[str]:
    items = client.conversations.items.list(thing, order="asc", limit=100)
    return [item.call_id for item in items if item.type == "function_call"]


def export(url: str, path: str) -> bytes:
    answer = send(url, "GET", f"{path}/export")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-disposition"] == f'attachment; filename="{path.rsplit("/", 1)[-1]}.tar"'
    return answer.body


def bring(url: str, data: bytes, query: str = "", **headers: str) -> Any:
    return send(url, "POST", f"/conversations/import{query}", raw=data, headers=headers)


def shown(url: str, thing: str) -> list[Any]:
    items: list[Any] = get(url, f"/conversations/{thing}/items?order=asc&limit=100")["data"]
    return items


def test_a_conversation_goes_on_elsewhere_with_the_same_context(
    client: OpenAI, url: str, there: str, seen: Seen
) -> None:
    thing = talk(client)
    data = export(url, f"/conversations/{thing}")
    made = bring(there, data)
    assert made.status == 200, made.body
    assert made.json["conversation_id"] == thing
    assert made.json["files"] == 1
    assert shown(there, thing) == shown(url, thing)
    for response in get(url, "/responses?limit=3")["data"]:
        assert get(there, f"/responses/{response['id']}") == response
    assert export(there, f"/conversations/{thing}") == data
    asked = {"model": "scripted", "input": "say: on", "conversation": thing, "tools": [TOOL]}
    for server in (url, there):
        post(server, "/responses", asked)
    here, elsewhere = seen.requests[-2:]
    assert here == elsewhere
    assert "the notes say seven" in str(here)
    assert PNG in str(here)


def test_a_chain_goes_on_elsewhere_by_its_last_response(url: str, there: str, seen: Seen) -> None:
    first = respond(url, {"input": "say: one"})
    second = respond(url, {"input": "say: two", "previous_response_id": first["id"]})
    assert bring(there, export(url, f"/responses/{second['id']}")).json == {
        "object": "stateroom:import",
        "conversation_id": None,
        "response_id": second["id"],
        "items": 4,
        "responses": 2,
        "files": 0,
    }
    for server in (url, there):
        respond(server, {"input": "say: three", "previous_response_id": second["id"]})
    here, elsewhere = seen.requests[-2:]
    assert here["messages"] == elsewhere["messages"]
    assert len(here["messages"]) == 5


def test_ids_that_exist_are_refused_or_replaced(url: str, there: str) -> None:
    thing = post(url, "/conversations", {"items": [{"role": "user", "content": "hi"}]})["id"]
    data = export(url, f"/conversations/{thing}")
    refused = bring(url, data)
    assert (refused.status, refused.error["code"]) == (409, "id_exists")
    copy = bring(url, data, "?ids=new").json["conversation_id"]
    assert copy != thing
    assert [item["content"] for item in shown(url, copy)] == [item["content"] for item in shown(url, thing)]
    assert bring(url, data, "?ids=old").error["code"] == "invalid_value"


def test_an_import_that_is_sent_again_under_its_key_makes_nothing_again(url: str, there: str) -> None:
    thing = post(url, "/conversations", {"items": [{"role": "user", "content": "hi"}]})["id"]
    data = export(url, f"/conversations/{thing}")
    key = {"Idempotency-Key": f"move {thing}"}
    first, again = bring(there, data, **key), bring(there, data, **key)
    assert first.status == again.status == 200
    assert first.json == again.json
    other = export(url, f"/conversations/{post(url, '/conversations', {})['id']}")
    assert bring(there, other, **key).error["code"] == "idempotency_conflict"


def test_what_is_no_export_is_refused(url: str) -> None:
    for data in (b"", b"{}", b"\x1f\x8b" + bytes(5_000)):
        refused = bring(url, data)
        assert refused.status == 400
        assert refused.error["code"] in ("invalid_export", "export_damaged")
    assert send(url, "GET", "/conversations/conv_no/export").error["code"] == "conversation_not_found"
    assert send(url, "GET", "/responses/resp_no/export").error["code"] == "response_not_found"


def test_a_part_of_an_export_can_be_fetched_again(url: str) -> None:
    thing = post(url, "/conversations", {"items": [{"role": "user", "content": "hi"}]})["id"]
    whole = send(url, "GET", f"/conversations/{thing}/export")
    rest = send(
        url,
        "GET",
        f"/conversations/{thing}/export",
        headers={"Range": "bytes=700-", "If-Range": whole.headers["etag"]},
    )
    assert rest.status == 206
    assert rest.body == whole.body[700:]


def test_the_command_line_moves_a_conversation(client: OpenAI, url: str, there: str, tmp_path: Path) -> None:
    thing = client.conversations.create(items=[{"role": "user", "content": "by hand"}]).id
    file = tmp_path / "moved.tar"
    assert "bytes" in stateroom(url, "conversations", "export", thing, "-o", file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert thing in stateroom(there, "conversations", "import", file)
    assert shown(there, thing) == shown(url, thing)
    refused = run(there, "conversations", "import", file)
    assert refused.returncode == 1
    assert "id_exists" in refused.stderr
    assert '"conversation_id":"conv_' in stateroom(
        there, "conversations", "import", "--new-ids", "--json", file
    ).replace(" ", "")
    answer = respond(url, {"input": "say: chained"})
    stateroom(url, "responses", "export", answer["id"], "-o", tmp_path / "chain.tar")
    assert answer["id"] in stateroom(there, "conversations", "import", tmp_path / "chain.tar")
    missing = run(url, "conversations", "export", "conv_no", "-o", tmp_path / "none.tar")
    assert missing.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.tar", "moved.tar"]


def run(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stateroom.cli.main", *map(str, arguments)]
    environment = {**os.environ, "STATEROOM_URL": url, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def stateroom(url: str, *arguments: str | Path) -> str:
    ran = run(url, *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
