"""What an operator does to a data directory that has containers in it: look, back up, mend, move, and erase."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
from openai import OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.hosted import OUTPUTS, PYTHON, container_of, of_type, python, said, shell
from tests.acceptance.modelhost import ModelHost
from tests.acceptance.wire import send
from tests.bundles import FILES, zip_of

AUTO: Any = {"type": "shell", "environment": {"type": "container_auto"}}


def stateroom(*words: str, ok: bool = True) -> Any:
    """What a command answers, as JSON where it has any."""
    done = subprocess.run(
        [sys.executable, "-m", "stateroom.cli.main", *words], capture_output=True, timeout=120, check=False
    )
    assert (done.returncode == 0) is ok, (done.stdout, done.stderr)
    return json.loads(done.stdout) if "--json" in words else done.stdout


def holding(data: Path, word: bytes) -> list[str]:
    """The files of a data directory in which a word stands."""
    found = [path for path in data.rglob("*") if path.is_file() and word in path.read_bytes()]
    return sorted(str(path.relative_to(data)) for path in found)


def asked(client: OpenAI, text: str, tool: Any = AUTO, **more: Any) -> Any:
    response = client.responses.create(model="scripted", input=text, tools=[tool], **more)
    assert response.status == "completed"
    return response


def talking(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=60)


def test_a_chain_with_a_container_lives_through_everything_an_operator_does(
    model_host: ModelHost, tmp_path: Path
) -> None:
    data, copy, other = tmp_path / "data", tmp_path / "copy", tmp_path / "other"
    with ServerProcess(data, backends=(model_host.url,)) as own, talking(own) as client:
        first = asked(client, shell("echo one > kept", "head -c 300000 /dev/urandom > noise; md5sum noise > sum"))
        second = asked(client, python("value = 41"), PYTHON, previous_response_id=first.id)
        exported = send(own.url, "GET", f"/responses/{second.id}/export")
        assert exported.status == 200
        assert stateroom("backup", str(copy), "--data", str(data), "--json")["ok"]
        asked(client, shell("echo later >> kept"), previous_response_id=second.id)
        assert stateroom("verify", "--data", str(data), "--json")["ok"]
        own.terminate()
        stateroom("rebuild", "--data", str(data), "--json")
        stateroom("compact", "--data", str(data))
        assert stateroom("verify", "--data", str(data), "--json")["ok"]
        own.start()
        with talking(own) as again:
            # A fork of the first response: what came later is not in it.
            assert said(asked(again, shell("cat kept; md5sum -c sum"), previous_response_id=first.id)) == [
                ("one\nnoise: OK\n", "", 0)
            ]
    stateroom("restore", str(copy), "--data", str(other), "--json")
    with ServerProcess(other, backends=(model_host.url,)) as restored, talking(restored) as client:
        read = asked(client, shell("cat kept; md5sum -c sum"), previous_response_id=second.id)
        assert said(read) == [("one\nnoise: OK\n", "", 0)]
        assert container_of(read) == container_of(first)
        ran = asked(client, python("print(value + 1)"), PYTHON, previous_response_id=read.id, include=OUTPUTS)
        assert "42" in of_type(ran, "code_interpreter_call")[0].outputs[0].logs
    # An export has what was said, not the files: a chain that was brought elsewhere goes on in a container of its own.
    with ServerProcess(tmp_path / "third", backends=(model_host.url,)) as third, talking(third) as client:
        form = {"content-type": "application/octet-stream"}
        brought = send(third.url, "POST", "/conversations/import", raw=exported.body, headers=form)
        assert brought.status == 200, brought.body
        shown = client.responses.retrieve(first.id)
        assert said(shown) == said(first)
        assert said(asked(client, shell("ls"), previous_response_id=second.id)) == [("", "", 0)]


def test_a_damaged_piece_of_a_file_is_found_and_it_is_said_what_to_do(model_host: ModelHost, tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    with ServerProcess(data, backends=(model_host.url,)) as own, talking(own) as client:
        first = asked(client, shell("head -c 200000 /dev/urandom > noise; echo small > small"))
        assert stateroom("backup", str(copy), "--data", str(data), "--json")["ok"]
        own.terminate()
    with closing(apsw.Connection(str(data / "workspaces" / "content.db"))) as content:
        [(number, stored)] = content.execute(
            "SELECT id, data FROM chunks ORDER BY length(data) DESC LIMIT 1"
        ).fetchall()
        assert isinstance(stored, bytes)
        content.execute("UPDATE chunks SET data = ? WHERE id = ?", (stored[:-1] + bytes([stored[-1] ^ 1]), number))
    report = stateroom("verify", "--data", str(data), "--json", ok=False)
    assert {each["part"] for each in report["findings"]} == {"content"}
    assert all("backup" in each["advice"] for each in report["findings"])
    assert "backup" in stateroom("verify", "--data", str(data), ok=False).decode()
    # A server goes on beside it: what is whole can be read, what is not is an error with a name.
    (data / "workspaces" / "live" / container_of(first) / "state.json").unlink()
    with ServerProcess(data, backends=(model_host.url,)) as own:
        path = f"/containers/{container_of(first)}/files"
        files = {each["path"]: each["id"] for each in send(own.url, "GET", path).json["data"]}
        assert send(own.url, "GET", f"{path}/{files['/mnt/data/small']}/content").body == b"small\n"
        broken = send(own.url, "POST", f"/containers/{container_of(first)}/exec", {"command": "cat noise"})
        assert b"storage" in broken.body or b"damaged" in broken.body
        assert b"Traceback" not in broken.body


def test_erasing_a_project_leaves_no_byte_of_what_its_containers_held(model_host: ModelHost, tmp_path: Path) -> None:
    data = tmp_path / "data"
    word = os.urandom(24).hex()
    noise = os.urandom(200_000)
    with ServerProcess(data, backends=(model_host.url,)) as own, talking(own) as client:
        source = {
            "type": "base64",
            "media_type": "application/zip",
            "data": base64.b64encode(zip_of({**FILES, "noise.bin": noise[:4096]})).decode(),
        }
        skill = {"type": "inline", "name": "geometry", "description": "Areas of plane figures.", "source": source}
        made = send(own.url, "POST", "/containers", {"name": "to go", "skills": [skill]}).json["id"]
        client.containers.files.create(made, file=("noise", noise))
        tool: Any = {"type": "shell", "environment": {"type": "container_reference", "container_id": made}}
        first = asked(
            client, shell(f"echo {word} > {word}; cmp /skills/geometry/noise.bin <(head -c 4096 noise)"), tool
        )
        assert said(first) == [("", "", 0)]
        second = asked(client, python(f"kept = {word!r}"), {"type": "code_interpreter", "container": made})
        asked(client, shell("rm noise; echo changed > other"), tool, previous_response_id=second.id)
        own.terminate()
    planted = [noise[100:164], noise[150_000:150_064], word.encode()]
    for each in planted:
        assert holding(data, each), "it was there"
    assert any(place.startswith("skills") for place in holding(data, planted[0]))
    stateroom("projects", "erase", "default", "--yes", "--data", str(data))
    for each in planted:
        assert holding(data, each) == []
    assert list((data / "workspaces" / "live").iterdir()) == []
    assert stateroom("verify", "--data", str(data), "--json")["ok"]
    with ServerProcess(data, backends=(model_host.url,)) as own:
        assert send(own.url, "GET", "/containers").json["data"] == []
