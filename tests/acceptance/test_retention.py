"""What is deleted, or older than a project keeps it, is in no byte of the data directory, nor of a later backup."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from stateroom.journal.frames import FramePacker
from stateroom.testing.process import ServerProcess
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import get, post, respond, send, stream

WORD = "ivory-lantern"
"""Planted in everything that is to go."""
STAYS = "granite-harbour"
PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + WORD.encode() * 50).decode()


def with_word(data: Path, word: str = WORD) -> list[str]:
    """The files of a directory that hold the word; packed streams are looked into."""
    found = [path for path in data.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
    return sorted(str(path.relative_to(data)) for path in found) + streams_with(data, word)


def streams_with(data: Path, word: str) -> list[str]:
    import apsw

    connection = apsw.Connection(str(data / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        packed = connection.execute("SELECT body FROM sealed WHERE last >= 0").fetchall()
    finally:
        connection.close()
    unpack = FramePacker().unpack
    return ["a stream" for (body,) in packed if isinstance(body, bytes) and word.encode() in unpack(body)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stateroom.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "NO_COLOR": "1"})


def done(*arguments: str | Path) -> str:
    ran = run(*arguments)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


def delete(url: str, path: str) -> None:
    answer = send(url, "DELETE", path)
    assert answer.status == 200, answer.body


def a_response(url: str, client: OpenAI) -> Callable[[], None]:
    asked: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]
    asked.append({"role": "user", "content": f"say: {WORD}"})
    made = stream(url, {"input": asked, "instructions": f"{WORD} " * 90})[-1]["response"]
    return lambda: delete(url, f"/responses/{made['id']}")


def an_item(url: str, client: OpenAI) -> Callable[[], None]:
    thing = post(url, "/conversations", {"items": [{"role": "user", "content": "hello"}]})["id"]
    made = stream(url, {"input": f"say: {WORD}", "conversation": thing})[-1]["response"]
    items = get(url, f"/conversations/{thing}/items?order=asc")["data"]
    assert made["output"][0]["id"] == items[2]["id"]

    def go() -> None:
        for item in items[1:]:
            delete(url, f"/conversations/{thing}/items/{item['id']}")

    return go


def a_conversation(url: str, client: OpenAI) -> Callable[[], None]:
    thing = post(
        url, "/conversations", {"items": [{"role": "user", "content": WORD}], "metadata": {"about": f"a {WORD}"}}
    )["id"]
    post(url, f"/conversations/{thing}", {"metadata": {"about": f"no {WORD}"}})
    stream(url, {"input": f"say: {WORD}", "conversation": thing})
    return lambda: delete(url, f"/conversations/{thing}")


def a_file(url: str, client: OpenAI) -> Callable[[], None]:
    file = client.files.create(file=(f"{WORD}.txt", f"{WORD} ".encode() * 900), purpose="user_data")
    return lambda: delete(url, f"/files/{file.id}")


def a_chat_completion(url: str, client: OpenAI) -> Callable[[], None]:
    made = client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": f"say: {WORD}"}], store=True, metadata={"a": WORD}
    )
    client.chat.completions.update(made.id, metadata={"b": WORD})
    return lambda: delete(url, f"/chat/completions/{made.id}")


def a_batch(url: str, client: OpenAI) -> Callable[[], None]:
    line = {
        "custom_id": WORD,
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": "scripted", "input": f"say: {WORD}", "store": True},
    }
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch is done", 30)
    output = client.batches.retrieve(batch.id).output_file_id
    assert output is not None
    answered = json.loads(client.files.content(output).content.splitlines()[0])

    def go() -> None:
        delete(url, f"/files/{file.id}")
        delete(url, f"/files/{output}")
        delete(url, f"/responses/{answered['response']['body']['id']}")

    return go


def an_import(url: str, client: OpenAI) -> Callable[[], None]:
    file = client.files.create(file=(f"{WORD}.txt", f"{WORD} ".encode() * 9), purpose="user_data")
    asked: Any = [{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
    chained = client.responses.create(model="scripted", input=asked)
    data = send(url, "GET", f"/responses/{chained.id}/export").body
    delete(url, f"/responses/{chained.id}")
    delete(url, f"/files/{file.id}")
    assert send(url, "POST", "/conversations/import", raw=data).status == 200

    def go() -> None:
        delete(url, f"/responses/{chained.id}")
        delete(url, f"/files/{file.id}")

    return go


@pytest.mark.parametrize(
    "plant",
    [a_response, an_item, a_conversation, a_file, a_chat_completion, a_batch, an_import],
    ids=lambda p: p.__name__,
)
def test_deleted_words_are_in_no_byte_of_the_data_nor_of_a_later_backup(
    plant: Callable[[str, OpenAI], Callable[[], None]], model_host: ModelHost, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with (
        ServerProcess(data, backends=(model_host.url,)) as server,
        OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client,
    ):
        respond(server.url, {"input": f"say: {STAYS}"})
        go = plant(server.url, client)
        until(lambda: with_word(data), "the word reaches a file")
        go()
        until(lambda: not with_word(data), "the word is in no file any more")
        done("backup", tmp_path / "backup", "--data", data)
        assert with_word(tmp_path / "backup") == []
        assert with_word(tmp_path / "backup", STAYS)
        done("verify", "--data", data)


def test_what_is_older_than_a_project_keeps_it_is_gone_at_the_next_start(model_host: ModelHost, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ServerProcess(data, backends=(model_host.url,)) as server:
        with OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
            for plant in (a_response, a_file, a_chat_completion):
                plant(server.url, client)
            thing = post(server.url, "/conversations", {})["id"]
            kept = stream(server.url, {"input": f"say: {STAYS}", "conversation": thing})[-1]["response"]
        until(lambda: with_word(data), "the words reach a file")
        server.terminate()
        old = {
            "STATEROOM_PROJECT__RETENTION__RESPONSES_DAYS": "0.0000001",
            "STATEROOM_PROJECT__RETENTION__FRAMES_HOURS": "0.0000001",
            "STATEROOM_PROJECT__RETENTION__FILES_DAYS": "0.0000001",
        }
        server.start(environment=old)
        until(lambda: not with_word(data), "the words are gone")
        until(lambda: not streams_with(data, STAYS), "the stream is gone")
        assert get(server.url, f"/responses/{kept['id']}")["output"][0]["content"][0]["text"] == STAYS
        replayed = send(server.url, "GET", f"/responses/{kept['id']}?stream=true")
        assert replayed.error["code"] == "stream_expired"
        assert len(get(server.url, f"/conversations/{thing}/items")["data"]) == 2
        assert get(server.url, "/files")["data"] == []
        until(lambda: "retention.swept responses=2 streams=" in server.output, "it is told")
        assert WORD not in server.output
        done("verify", "--data", data)


def test_a_sweep_that_is_killed_goes_on_at_the_next_start(model_host: ModelHost, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ServerProcess(data, backends=(model_host.url,)) as server:
        for number in range(120):
            respond(server.url, {"input": f"say: {WORD} {number}"})
        server.terminate()
        old = {"STATEROOM_PROJECT__RETENTION__RESPONSES_DAYS": "0.0000001"}

        def left() -> int:
            found: int = len(get(server.url, "/responses?limit=100")["data"])
            return found

        for _ in range(3):
            server.start(environment=old)
            before = left()
            until(lambda before=before: left() < before or not left(), "some are gone")  # type: ignore[misc]
            server.kill()
        server.start(environment=old)
        until(lambda: not left(), "all are gone")
        until(lambda: not with_word(data), "the words are gone")
        done("verify", "--data", data)


def test_an_erased_project_is_in_no_byte_and_the_others_stay(model_host: ModelHost, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    mine = done("keys", "create", "--project", "mine", "--name", f"key of {WORD}", "--data", data, "--json")
    other = done("keys", "create", "--project", "other", "--name", "stays", "--data", data, "--json")
    with ServerProcess(data, backends=(model_host.url,)) as server:
        for key, word in ((secret_of(mine), WORD), (secret_of(other), STAYS)):
            with OpenAI(base_url=server.url, api_key=key, max_retries=0) as client:
                fill(client, word)
        busy = run("projects", "erase", "mine", "--yes", "--data", data)
        assert busy.returncode == 3
        assert "Stop that server first." in busy.stderr
        server.terminate()
        assert with_word(data)
        assert run("projects", "erase", "mine", "--data", data).returncode == 2
        assert run("projects", "erase", "nobody", "--yes", "--data", data).returncode == 1
        assert done("projects", "list", "--data", data).split() == ["mine", "other"]
        told = json.loads(done("projects", "erase", "mine", "--yes", "--json", "--data", data))
        assert (told["project"], told["keys"]) == ("mine", 1)
        assert told["entries"] > 10
        assert with_word(data) == []
        done("verify", "--data", data)
        done("backup", tmp_path / "backup", "--data", data)
        assert with_word(tmp_path / "backup") == []
        server.start()
        with OpenAI(base_url=server.url, api_key=secret_of(other), max_retries=0) as client:
            assert client.chat.completions.list().data
            assert client.files.list().data[0].filename == f"{STAYS}.txt"
        refused = send(server.url, "GET", "/responses", headers={"Authorization": f"Bearer {secret_of(mine)}"})
        assert refused.status == 401


def secret_of(told: str) -> str:
    found: str = json.loads(told)["key"]
    return found


def fill(client: OpenAI, word: str) -> None:
    """Something of everything that a project may have."""
    thing = client.conversations.create(items=[{"role": "user", "content": word}], metadata={"a": word})
    for event in client.responses.create(
        model="scripted", input=f"say: {word}", conversation=thing.id, stream=True, instructions=f"{word} " * 90
    ):
        assert event
    client.responses.create(model="scripted", input=f"say: {word}")
    client.conversations.delete(client.conversations.create(items=[{"role": "user", "content": word}]).id)
    client.files.create(file=(f"{word}.txt", f"{word} ".encode() * 900), purpose="user_data")
    client.uploads.create(bytes=9, filename=f"{word}.bin", mime_type="text/plain", purpose="user_data")
    client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": f"say: {word}"}], store=True)
    hook = {"name": word, "url": f"https://hooks.invalid/{word}", "event_types": ["response.completed"]}
    client.post("/webhook_endpoints", body=hook, cast_to=object)


def test_compacting_gives_the_room_back(model_host: ModelHost, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ServerProcess(data, backends=(model_host.url,)) as server:
        for number in range(40):
            made = respond(server.url, {"input": f"{WORD} {number} " + "x" * 20_000})
            delete(server.url, f"/responses/{made['id']}")
        kept = respond(server.url, {"input": f"say: {STAYS}"})
        assert run("compact", "--data", data).returncode == 3
        server.terminate()
        before = (data / "journal.db").stat().st_size
        assert "MB now" in done("compact", "--data", data)
        assert (data / "journal.db").stat().st_size < before / 3
        done("verify", "--data", data)
        server.start()
        assert get(server.url, f"/responses/{kept['id']}")["status"] == "completed"
