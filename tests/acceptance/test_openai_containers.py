"""Containers with the real SDK and real sandboxes: files in and out, commands, commits, forks, idle and restart."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import apsw
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from stateroom.testing.kill_points import KILL_AT
from stateroom.testing.process import ServerProcess, quiet_port
from tests.acceptance.contract import hold_answer
from tests.acceptance.modelhost import ModelHost, until
from tests.acceptance.wire import Answer, send

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests of this file: they stop their containers' processes by deleting them."""
    data = tmp_path_factory.mktemp("containers") / "data"
    with ServerProcess(data, backends=(model_host.url,)) as process:
        yield process
        process.terminate()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    from openai import DefaultHttpxClient  # lazy: as `client` of conftest, of another server

    checked = DefaultHttpxClient(base_url=server.url, event_hooks={"response": [hold_answer]})
    with OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=60, http_client=checked) as client:
        yield client


def strictly(shown: BaseModel) -> BaseModel:
    """The object, if it is of its type to the last field and has no others but our own."""
    assert set(shown.model_extra or ()) <= {"interpreter", "jobs"}
    return type(shown).model_validate(shown.model_dump(), strict=True)


def ran(server: ServerProcess, container_id: str, command: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """What a command said, and how it ended."""
    answer = send(server.url, "POST", f"/containers/{container_id}/exec", {"command": command, **more})
    assert answer.status == 200, answer.body
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    return "".join(each["text"] for each in events if each["type"] == "container.exec.output"), events[-1]


def content(client: OpenAI, container_id: str, file_id: str, **query: str) -> bytes:
    return client.containers.files.content.retrieve(
        file_id, container_id=container_id, extra_query=query or None
    ).read()


def paths(client: OpenAI, container_id: str) -> list[str]:
    return sorted(file.path for file in client.containers.files.list(container_id))


def commits(server: ServerProcess, container_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = send(server.url, "GET", f"/containers/{container_id}/commits").json["data"]
    return found


def test_the_life_of_a_container(client: OpenAI) -> None:
    made = client.containers.create(
        name="analysis", expires_after={"anchor": "last_active_at", "minutes": 7}, memory_limit="1g"
    )
    strictly(made)
    assert (made.name, made.object, made.status, made.memory_limit) == ("analysis", "container", "running", "1g")
    assert made.expires_after is not None
    assert made.expires_after.minutes == 7
    assert made.network_policy is not None
    assert made.network_policy.type == "disabled"
    assert client.containers.retrieve(made.id).id == made.id
    assert made.id in [each.id for each in client.containers.list(name="analysis")]
    assert [each.id for each in client.containers.list(name="nobody's")] == []
    client.containers.delete(made.id)
    for act in (client.containers.retrieve, client.containers.delete, client.containers.files.list):
        with pytest.raises(NotFoundError) as refused:
            act(made.id)
        assert refused.value.code == "container_not_found"


def test_the_life_of_a_file_in_a_container(client: OpenAI) -> None:
    container = client.containers.create(name="files")
    made = client.containers.files.create(container.id, file=("data.csv", b"a,b\n1,2\n"))
    strictly(made)
    assert (made.path, made.bytes, made.source) == ("/mnt/data/data.csv", 8, "user")
    found = client.containers.files.retrieve(made.id, container_id=container.id)
    assert strictly(found).model_dump() == made.model_dump()
    assert content(client, container.id, made.id) == b"a,b\n1,2\n"
    again = client.containers.files.create(container.id, file=("data.csv", b"other"))
    assert (again.id, again.bytes) == (made.id, 5)
    whole = client.files.create(file=("notes.md", b"# Notes"), purpose="user_data")
    copied = client.containers.files.create(container.id, file_id=whole.id)
    assert (copied.path, copied.bytes) == ("/mnt/data/notes.md", 7)
    client.files.delete(whole.id)
    assert content(client, container.id, copied.id) == b"# Notes"
    assert paths(client, container.id) == ["/mnt/data/data.csv", "/mnt/data/notes.md"]
    client.containers.files.delete(made.id, container_id=container.id)
    assert paths(client, container.id) == ["/mnt/data/notes.md"]
    with pytest.raises(NotFoundError) as refused:
        client.containers.files.retrieve(made.id, container_id=container.id)
    assert refused.value.code == "container_file_not_found"
    client.containers.delete(container.id)


def test_a_container_begins_with_the_files_that_it_is_given(client: OpenAI, server: ServerProcess) -> None:
    files = [client.files.create(file=(name, name.encode()), purpose="user_data").id for name in ("a.txt", "b.txt")]
    container = client.containers.create(name="given", file_ids=files)
    assert paths(client, container.id) == ["/mnt/data/a.txt", "/mnt/data/b.txt"]
    said, ended = ran(server, container.id, "cat a.txt /mnt/data/b.txt; echo made > c.txt; pwd")
    assert (said, ended["exit_code"]) == ("a.txtb.txt/workspace\n", 0)
    assert {file.path: file.source for file in client.containers.files.list(container.id)} == {
        "/mnt/data/a.txt": "user",
        "/mnt/data/b.txt": "user",
        "/mnt/data/c.txt": "assistant",
    }
    with pytest.raises(NotFoundError) as refused:
        client.containers.create(name="x", file_ids=[files[0], "file-nobody"])
    assert refused.value.param == "file_ids[1]"
    client.containers.delete(container.id)


def test_what_a_command_does_is_committed_and_can_be_compared(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="history")
    first = ran(server, container.id, "printf 'one\\ntwo\\n' > a.txt; mkdir d; ln -s a.txt link")[1]["commit_id"]
    second = ran(server, container.id, "printf 'one\\n2\\n' > a.txt; touch d/new; rm link")[1]["commit_id"]
    nothing = ran(server, container.id, "ls")[1]["commit_id"]
    assert nothing == second
    assert [each["id"] for each in commits(server, container.id)] == [second, first]
    diff = send(server.url, "GET", f"/containers/{container.id}/commits/{second}/diff?text=true").json
    assert (diff["from"], diff["to"]) == (first, second)
    assert [(each["path"], each["change"]) for each in diff["changes"]] == [
        ("/mnt/data/a.txt", "changed"),
        ("/mnt/data/d/new", "added"),
        ("/mnt/data/link", "removed"),
    ]
    assert "-two\n+2\n" in diff["changes"][0]["text"]
    [file] = [each for each in client.containers.files.list(container.id) if each.path.endswith("a.txt")]
    assert content(client, container.id, file.id) == b"one\n2\n"
    assert content(client, container.id, file.id, commit=first) == b"one\ntwo\n"
    missing = send(server.url, "GET", f"/containers/{container.id}/commits/wsc_nobody/diff")
    assert (missing.status, missing.error["code"]) == (404, "commit_not_found")
    client.containers.delete(container.id)


def test_a_container_goes_back_to_a_commit_and_forward_again(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="back")
    first = ran(server, container.id, "echo 1 > a")[1]["commit_id"]
    second = ran(server, container.id, "echo 2 > a; echo b > b")[1]["commit_id"]
    for commit, said in ((first, "1\n"), (second, "2\nb\n"), (first, "1\n")):
        answer = send(server.url, "POST", f"/containers/{container.id}/restore", {"commit": commit})
        assert (answer.status, answer.json["reason"]) == (200, "restore")
        assert ran(server, container.id, "cat a; cat b 2>/dev/null; true")[0] == said
    assert [each["reason"] for each in commits(server, container.id)] == ["restore"] * 3 + ["exec"] * 2
    client.containers.delete(container.id)


def test_forks_know_nothing_of_each_other(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="origin")
    commit = ran(server, container.id, "echo shared > a")[1]["commit_id"]
    ran(server, container.id, "echo later > a")
    path = f"/containers/{container.id}/fork"
    now = send(server.url, "POST", path, {"name": "now"}).json
    then = send(server.url, "POST", path, {"commit": commit}).json
    assert (now["name"], then["name"]) == ("now", "origin")
    assert ran(server, now["id"], "cat a; echo now > a; echo x > x")[0] == "later\n"
    assert ran(server, then["id"], "cat a; ls x 2>/dev/null; echo then > a; true")[0] == "shared\n"
    assert ran(server, container.id, "cat a; ls")[0] == "later\na\n"
    client.containers.delete(container.id)
    assert ran(server, then["id"], "cat a")[0] == "then\n"
    assert [each["id"] for each in commits(server, then["id"])][-1] == commit
    for each in (now, then):
        client.containers.delete(each["id"])


def test_everything_can_be_taken_away_as_an_archive(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="archive")
    long = "x" * 150
    ran(server, container.id, f"mkdir -p empty d; echo hello > d/a; ln -s d/a link; chmod 750 d; echo ü > 'ü {long}'")
    answer = send(server.url, "GET", f"/containers/{container.id}/archive")
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        names = {member.name: member for member in archive.getmembers()}
        assert set(names) == {"d", "d/a", "empty", "link", f"ü {long}"}
        held = archive.extractfile("d/a")
        assert held is not None
        assert held.read() == b"hello\n"
        assert (names["link"].issym(), names["link"].linkname) == (True, "d/a")
        assert names["d"].mode == 0o750
    client.containers.delete(container.id)


def test_a_command_that_takes_too_long_is_ended(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="slow")
    said, ended = ran(server, container.id, "echo begun; sleep 60", timeout_ms=500)
    assert (said, ended["timed_out"], ended["exit_code"]) == ("begun\n", True, None)
    client.containers.delete(container.id)


def test_files_stay_when_processes_end_and_the_next_command_finds_them(model_host: ModelHost, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as own:
        made = send(own.url, "POST", "/containers", {"name": "stays"}).json["id"]
        ran(own, made, "echo kept > a; nohup sleep 1000 >/dev/null 2>&1 & echo started")
        own.terminate()
        own.start()
        assert ran(own, made, "cat a; pgrep sleep || echo none")[0] == "kept\nnone\n"
        own.kill()
        own.start()
        assert ran(own, made, "cat a")[0] == "kept\n"


POINTS = [
    f"{side}_{mark}_container:{number}"
    for mark, numbers in (("put", range(1, 7)), ("note", range(1, 6)), ("drop", (1,)))
    for side in ("before", "after")
    for number in numbers
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_moment_a_container_is_what_was_answered_or_what_was_asked(
    model_host: ModelHost, tmp_path: Path, point: str
) -> None:
    """Each step is asked again until it is answered, under its key: what comes of it is what one server would give."""
    module = "stateroom.testing.probe_server"
    own = ServerProcess(tmp_path / "data", backends=(model_host.url,), port=quiet_port(), module=module)
    own.start(environment={KILL_AT: point})

    def ask(method: str, path: str, body: Any = None, **more: Any) -> Answer:
        for _ in range(3):
            try:
                return send(own.url, method, path, body, **more)
            except (OSError, HTTPException):
                own.wait()
                own.start()
        raise AssertionError("it was killed again and again")

    def looked(container_id: str, command: str) -> str:
        for _ in range(3):
            try:
                return ran(own, container_id, command)[0]
            except (OSError, HTTPException):
                own.wait()
                own.start()
        raise AssertionError("it was killed again and again")

    def once(path: str, body: Any, key: str) -> Any:
        answer = ask("POST", path, body, headers={"Idempotency-Key": key})
        assert answer.status == 200, answer.body
        return answer.json

    form = b'--cut\r\ncontent-disposition: form-data; name="file"; filename="up"\r\n\r\nwhole\r\n--cut--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=cut", "idempotency-key": "up"}
    with own:
        made = once("/containers", {"name": "mortal"}, "create")["id"]
        path = f"/containers/{made}"
        assert ask("POST", f"{path}/files", raw=form, headers=headers).json["bytes"] == 5
        before = ask("GET", f"{path}/commits").json["data"][0]["id"]
        try:
            ran(own, made, "echo more >> up; echo new > new")
        except (OSError, HTTPException):
            own.wait()
            own.start()
        assert looked(made, "cat up new 2>/dev/null || echo not yet") in ("wholemore\nnew\n", "wholenot yet\n")
        restored = once(f"{path}/restore", {"commit": before}, "restore")
        forked = once(f"{path}/fork", {"commit": before}, "fork")["id"]
        for each in (made, forked):
            assert [file["bytes"] for file in ask("GET", f"/containers/{each}/files").json["data"]] == [5]
            assert looked(each, "cat up; ls") == "wholeup\n"
        assert ask("GET", f"{path}/commits").json["data"][0]["id"] == restored["id"]
        assert len(ask("GET", "/containers").json["data"]) == 2
        assert ask("DELETE", path).status in (200, 404)
        assert ask("GET", path).status == 404
        assert [each["id"] for each in ask("GET", "/containers").json["data"]] == [forked]
        own.terminate()
    assert stateroom("verify", "--data", str(own.data))["ok"]
    live = own.data / "workspaces" / "live"
    assert sorted(each.name for each in live.iterdir()) == [forked]


def test_the_policy_for_shells_holds_for_commands_of_clients(model_host: ModelHost, tmp_path: Path) -> None:
    rule = 'decision = "deny"\ntool = "shell"\narguments = "rm .*-rf"\nreason = "ask an operator"'
    (tmp_path / "stateroom.toml").write_text(f"[[policy]]\n{rule}\n")
    options = ("--config", str(tmp_path / "stateroom.toml"))
    with ServerProcess(tmp_path / "data", backends=(model_host.url,), options=options) as own:
        made = send(own.url, "POST", "/containers", {"name": "ruled"}).json["id"]
        assert ran(own, made, "echo x > a; rm a")[1]["exit_code"] == 0
        refused = send(own.url, "POST", f"/containers/{made}/exec", {"command": "echo x; rm -rf ."})
        assert (refused.status, refused.error["code"]) == (403, "denied_by_policy")
        assert "ask an operator" in refused.error["message"]


def test_where_nothing_isolates_files_work_and_commands_are_refused(model_host: ModelHost, tmp_path: Path) -> None:
    options = {"STATEROOM_WORKSPACES__DRIVER": "none"}
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=options) as own,
        OpenAI(base_url=own.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        container = client.containers.create(name="no driver")
        file = client.containers.files.create(container.id, file=("a", b"x"))
        assert content(client, container.id, file.id) == b"x"
        refused = send(own.url, "POST", f"/containers/{container.id}/exec", {"command": "ls"})
        assert (refused.status, refused.error["code"]) == (503, "no_sandbox")


def test_many_workspaces_live_beside_each_other(client: OpenAI, server: ServerProcess) -> None:
    made = [client.containers.create(name="many").id for _ in range(32)]
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda each: ran(server, each, f"echo {each} > a; echo $$")[1]["exit_code"], made))
        again = list(pool.map(lambda each: ran(server, each, "cat a; ls | wc -l")[0], made))
    assert first == [0] * 32
    assert again == [f"{each}\n1\n" for each in made]
    for each in made:
        client.containers.delete(each)


def test_the_command_line_looks_into_a_container_and_works_in_it(server: ServerProcess, tmp_path: Path) -> None:
    made = send(server.url, "POST", "/containers", {"name": "by hand"}).json["id"]

    def workspace(*words: str, typed: str = "") -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "stateroom.cli.main", "workspace", *words, "--url", server.url],
            input=typed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    assert workspace("shell", made, "-c", "echo one > a; exit 3") == (3, "")
    typed = "mkdir d\ncd d\npwd\necho two > b\ncd nowhere\npwd\n"
    assert workspace("shell", made, typed=typed) == (0, "/workspace/d\n/workspace/d\n")
    typed = "cd d && cat b; pwd\ncd /tmp; false\npwd\nmkdir x\ncd x; rmdir ../x\npwd\ncd /workspace\npwd\nexit 7\npwd\n"
    said = "two\n/workspace/d\n/tmp\n/workspace\n"
    assert workspace("shell", made, typed=typed) == (7, said)
    assert [line.split("\t")[-1] for line in workspace("ls", made)[1].splitlines()] == ["a", "d/b"]
    for folder, held in (
        ("d", ["d/b"]),
        ("/mnt/data/d/b", ["d/b"]),
        ("/workspace/", ["a", "d/b"]),
        ("./d/", ["d/b"]),
        ("b", []),
    ):
        assert [line.split("\t")[-1] for line in workspace("ls", made, folder)[1].splitlines()] == held
    assert workspace("cat", made, "d/b") == (0, "two\n")
    assert workspace("cat", made, "d/c")[0] == 1
    assert "+two" in workspace("diff", made)[1]
    commits = [line.split("\t")[0] for line in workspace("log", made)[1].splitlines()]
    assert len(commits) == 3
    assert workspace("ls", made, "--commit", commits[-1])[1].count("\n") == 1
    assert workspace("export", made, "-o", str(tmp_path / "out.tar"))[0] == 0
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == ["a", "d", "d/b"]
    assert workspace("export", made, "-o", "-")[1].startswith("a\0")
    assert made in workspace("list", "--name", "by hand")[1]
    assert workspace("shell", made, "-c", "chmod 755 a; rm d/b") == (0, "")
    assert workspace("diff", made)[1].startswith("changed  a  4  mode 0644 → 0755\nremoved  d/b  4\n")
    latest = workspace("log", made)[1].split("\t")[0]
    diff = send(server.url, "GET", f"/containers/{made}/commits/{latest}/diff").json["changes"]
    assert [(each["mode_before"], each["mode_after"]) for each in diff] == [("0644", "0755"), ("0644", None)]
    send(server.url, "DELETE", f"/containers/{made}")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"name": "x", "memory_limit": "2g"}, "memory_limit"),
        ({"name": "x", "memory_limit": "64g"}, "memory_limit"),
        ({"name": "x", "expires_after": {"anchor": "created_at", "minutes": 5}}, "expires_after.anchor"),
        ({"name": "x", "expires_after": {"anchor": "last_active_at", "minutes": 0}}, "expires_after.minutes"),
        ({"name": "x", "network_policy": {"type": "open"}}, "network_policy.type"),
        ({"name": "x", "network_policy": {"type": "allowlist", "allowed_domains": []}}, None),
        ({"name": "x", "network_policy": {"type": "allowlist", "allowed_domains": ["https://a.b"]}}, None),
        ({"name": "x", "file_ids": ["file-nobody"]}, "file_ids[0]"),
        ({"name": "x", "file_ids": ["a"] * 51}, "file_ids"),
        ({"name": "x", "skills": [{"type": "skill_reference", "skill_id": "skill_nobody"}]}, None),
    ],
)
def test_what_no_container_can_be_is_refused(server: ServerProcess, body: dict[str, Any], param: str | None) -> None:
    answer = send(server.url, "POST", "/containers", body)
    assert answer.status in (400, 404), answer.body
    if param is not None:
        assert answer.error["param"] == param


def test_secrets_are_never_shown_nor_kept_in_clear(client: OpenAI, server: ServerProcess) -> None:
    secret = "s3cr3t-in-the-clear-9f8e7d"
    made = client.containers.create(
        name="secret",
        network_policy={
            "type": "allowlist",
            "allowed_domains": ["api.example.com"],
            "domain_secrets": [{"domain": "api.example.com", "name": "API_KEY", "value": secret}],
        },
    )
    strictly(made)
    assert made.network_policy is not None
    assert made.network_policy.allowed_domains == ["api.example.com"]
    said, _ = ran(server, made.id, 'echo "key: $API_KEY"')
    assert said.startswith("key: placeholder_")
    assert secret not in said
    for path in server.data.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    client.containers.delete(made.id)


def test_what_a_container_may_reach_it_reaches_and_a_secret_only_outside(model_host: ModelHost, tmp_path: Path) -> None:
    heard: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("x-key", ""))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello from outside")

        def log_message(self, *given: Any) -> None:
            return None

    with (
        ThreadingHTTPServer(("127.0.0.2", 0), Answering) as outside,
        ServerProcess(
            tmp_path / "data",
            backends=(model_host.url,),
            environment={"STATEROOM_ALLOW_PRIVATE_ADDRESSES": "true"},
        ) as own,
    ):
        Thread(target=outside.serve_forever, daemon=True).start()
        place = f"127.0.0.2:{outside.server_port}"  # programs inside reach 127.0.0.1 without the proxy
        secret = {"domain": place, "name": "KEY", "value": "the-real-value"}
        policy = {"type": "allowlist", "allowed_domains": [place], "domain_secrets": [secret]}
        made = send(own.url, "POST", "/containers", {"name": "out", "network_policy": policy}).json["id"]
        fetch = f"""python3 -c "
import os, urllib.request
ask = urllib.request.Request('http://{place}/', headers={{'x-key': os.environ.get('KEY', 'none')}})
proxy = urllib.request.ProxyHandler({{'http': os.environ.get('http_proxy', 'http://127.0.0.1:3128')}})
print(urllib.request.build_opener(proxy).open(ask, timeout=10).read().decode())" 2>&1 | tail -1"""
        assert ran(own, made, fetch)[0] == "hello from outside\n"
        assert heard == ["the-real-value"]
        alone = send(own.url, "POST", "/containers", {"name": "alone"}).json["id"]
        assert "hello" not in ran(own, alone, fetch)[0]
        assert len(heard) == 1
        outside.shutdown()


def test_a_form_that_is_cut_off_or_wrong_leaves_nothing(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="forms")
    begun = b'--cut\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
    kind = {"content-type": "multipart/form-data; boundary=cut"}
    path = f"/containers/{container.id}/files"
    no_file = b'--cut\r\ncontent-disposition: form-data; name="other"\r\n\r\nx\r\n--cut--\r\n'
    for raw, headers, code in (
        (begun, kind, "invalid_form"),
        (no_file, kind, "missing_required_parameter"),
        (b"{}", {"content-type": "application/json"}, "missing_required_parameter"),
        (b'{"file_id": "file-nobody"}', {"content-type": "application/json"}, "file_not_found"),
        (b"\x00\xff", {"content-type": "application/json"}, "invalid_json"),
        (b"hello", {"content-type": "text/plain"}, "invalid_json"),
    ):
        answer = send(server.url, "POST", path, raw=raw, headers=headers)
        assert (answer.status in (400, 404), answer.error["code"]) == (True, code), raw
    long = begun.replace(b'"a"', b'"%s"' % (b"n" * 300)) + b"\r\n--cut--\r\n"
    assert send(server.url, "POST", path, raw=long, headers=kind).status == 400
    wide = begun.replace(b'"a"', '"{}"'.format("ü" * 200).encode()) + b"\r\n--cut--\r\n"
    assert send(server.url, "POST", path, raw=wide, headers=kind).error["code"] == "invalid_path"
    assert paths(client, container.id) == []
    assert commits(server, container.id) == []
    client.containers.delete(container.id)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "/mnt/data/passwd"),
        ("..", "/mnt/data/file"),
        ("a\\..\\b", "/mnt/data/b"),
        ("ev\u202eil.txt", "/mnt/data/evil.txt"),
        ("-rf", "/mnt/data/-rf"),
        (".bashrc", "/mnt/data/.bashrc"),
    ],
)
def test_a_name_leads_nowhere_else(client: OpenAI, name: str, kept: str) -> None:
    container = client.containers.create(name="names")
    assert client.containers.files.create(container.id, file=(name, b"x")).path == kept
    client.containers.delete(container.id)


def test_a_link_in_a_container_leads_nowhere_outside(client: OpenAI, server: ServerProcess) -> None:
    container = client.containers.create(name="links")
    ran(server, container.id, "ln -s /etc/passwd passwd; ln -s / root; mkfifo pipe; echo in > plain")
    assert commits(server, container.id)[0]["left_out"] == 1, "the pipe"
    assert paths(client, container.id) == ["/mnt/data/plain"]
    client.containers.files.create(container.id, file=("passwd", b"mine"))
    assert b"mine" not in Path("/etc/passwd").read_bytes()
    assert ran(server, container.id, "cat passwd; test -L passwd || echo plain")[0] == "mineplain\n"
    client.containers.delete(container.id)


def test_what_does_not_fit_is_refused_and_leaves_nothing(model_host: ModelHost, tmp_path: Path) -> None:
    options = {"STATEROOM_WORKSPACES__DISK_BYTES": str(MIB), "STATEROOM_WORKSPACES__FILES": "3"}
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=options) as own,
        OpenAI(base_url=own.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        container = client.containers.create(name="small")
        with pytest.raises(APIStatusError) as refused:
            client.containers.files.create(container.id, file=("big", bytes(MIB + 1)))
        assert refused.value.code == "file_too_large"
        client.containers.files.create(container.id, file=("half", bytes(MIB // 2)))
        with pytest.raises(BadRequestError) as full:
            client.containers.files.create(container.id, file=("other", bytes(MIB // 2 + 1)))
        assert full.value.code == "container_full"
        for number in range(2):
            client.containers.files.create(container.id, file=(f"f{number}", b"x"))
        with pytest.raises(BadRequestError) as many:
            client.containers.files.create(container.id, file=("one more", b"x"))
        assert many.value.code == "container_full"
        assert len(paths(client, container.id)) == 3


def test_the_same_request_under_its_key_makes_nothing_again(client: OpenAI, server: ServerProcess) -> None:
    key = {"Idempotency-Key": "container once"}
    first = client.containers.create(name="once", extra_headers=key)
    assert client.containers.create(name="once", extra_headers=key).id == first.id
    file_key = {"Idempotency-Key": "file once"}
    made = [client.containers.files.create(first.id, file=("a", b"x"), extra_headers=file_key) for _ in range(2)]
    assert made[0] == made[1]
    assert len(commits(server, first.id)) == 1
    forks = [
        send(server.url, "POST", f"/containers/{first.id}/fork", {}, headers={"Idempotency-Key": "fork"}).json["id"]
        for _ in range(2)
    ]
    assert forks[0] == forks[1]
    for each in (first.id, forks[0]):
        client.containers.delete(each)


def test_lists_are_paged_and_ordered(client: OpenAI) -> None:
    made = [client.containers.create(name="paged").id for _ in range(5)]
    assert [each.id for each in client.containers.list(name="paged", limit=2)] == made[::-1]
    assert [each.id for each in client.containers.list(name="paged", limit=2, order="asc")] == made
    files = [client.containers.files.create(made[0], file=(f"{n}.txt", b"x")).id for n in range(5)]
    found = [each.id for each in client.containers.files.list(made[0], limit=2, order="asc")]
    assert sorted(found) == sorted(files)
    assert [each.id for each in client.containers.files.list(made[0], limit=2, order="desc")] == found[::-1]
    with pytest.raises(BadRequestError):
        client.containers.files.list(made[0], after="cfile_nobody")
    for each in made:
        client.containers.delete(each)


def stateroom(*words: str) -> Any:
    """What a command answers, as JSON."""
    done = subprocess.run(  # our own command
        [sys.executable, "-m", "stateroom.cli.main", *words, "--json"], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def test_a_backup_has_the_files_of_containers_and_a_restore_brings_them_back(
    model_host: ModelHost, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as own:
        made = send(own.url, "POST", "/containers", {"name": "kept"}).json["id"]
        commit = ran(own, made, "head -c 3000000 /dev/urandom > big; md5sum big > sum; echo x > x")[1]["commit_id"]
        ran(own, made, "rm x")
        report = stateroom("backup", str(tmp_path / "backup"), "--data", str(own.data))
        assert (report["ok"], report["counts"]["commits"]) == (True, 2)
        ran(own, made, "rm *")
    stateroom("restore", str(tmp_path / "backup"), "--data", str(tmp_path / "other"))
    with ServerProcess(tmp_path / "other", backends=(model_host.url,)) as other:
        assert ran(other, made, "md5sum -c sum; ls")[0] == "big: OK\nbig\nsum\n"
        assert send(other.url, "POST", f"/containers/{made}/restore", {"commit": commit}).status == 200
        assert ran(other, made, "cat x")[0] == "x\n"
    with closing(apsw.Connection(str(tmp_path / "other" / "workspaces" / "content.db"))) as content:
        content.execute("DELETE FROM trees WHERE id = (SELECT max(id) FROM trees)").fetchall()
    found = subprocess.run(  # our own command
        [sys.executable, "-m", "stateroom.cli.main", "verify", "--data", str(tmp_path / "other"), "--json"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1
    assert {each["part"] for each in json.loads(found.stdout)["findings"]} == {"content"}


def test_erasing_a_project_erases_the_files_of_its_containers(model_host: ModelHost, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", backends=(model_host.url,)) as own:
        made = send(own.url, "POST", "/containers", {"name": "gone"}).json["id"]
        ran(own, made, "echo the word is heron-4711 | rev | rev > a")
        own.terminate()
        assert (own.data / "workspaces" / "live" / made).exists()
        stateroom("projects", "erase", "default", "--yes", "--data", str(own.data))
        assert not (own.data / "workspaces" / "live" / made).exists()
        for path in (own.data / "workspaces").rglob("*"):
            assert not path.is_file() or b"heron-4711" not in path.read_bytes()
        with closing(apsw.Connection(str(own.data / "workspaces" / "content.db"))) as content:
            assert content.execute("SELECT count(*) FROM chunks").fetchall() == [(0,)]


def test_idle_processes_end_and_what_they_wrote_is_committed(model_host: ModelHost, tmp_path: Path) -> None:
    options = {"STATEROOM_WORKSPACES__IDLE_MINUTES": "0.01"}
    with (
        ServerProcess(tmp_path / "data", backends=(model_host.url,), environment=options) as own,
        OpenAI(base_url=own.url, api_key="unused", max_retries=0, timeout=60) as client,
    ):
        container = client.containers.create(name="idle")
        ran(own, container.id, "(sleep 0.2; echo late > late) > /dev/null 2>&1 &")
        until(lambda: any(each["reason"] == "idle" for each in commits(own, container.id)), "an idle stop", seconds=30)
        assert paths(client, container.id) == ["/mnt/data/late"]
        assert ran(own, container.id, "cat late; pgrep -x sleep || echo none")[0] == "late\nnone\n"
