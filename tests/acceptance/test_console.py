"""The console command against a real server over a real socket, with the scripted model behind it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from stateroom.journal.layout import JOURNAL
from stateroom.testing.process import ModelProcess, ServerProcess

SECONDS = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelProcess]:
    log = tmp_path_factory.mktemp("model") / "model.log"
    with ModelProcess("--port", "0", "--delay-ms", "20", log=log) as process:
        yield process


@pytest.fixture
def server(model: ModelProcess, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", backends=(model.url,)) as process:
        yield process


def start(*arguments: str, stdin: int | IO[str] = subprocess.DEVNULL) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STATEROOM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "stateroom.cli.main", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**kept, "PYTHONUNBUFFERED": "1"},
        text=True,
        bufsize=1,
    )


def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    process = start(*arguments, stdin=subprocess.PIPE)
    out, err = process.communicate(typed, timeout=SECONDS)
    return process.returncode, out, err


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Standard output up to and including `text`."""
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        character = process.stdout.read(1)
        assert character, f"ended before {text!r}: {seen!r}"
        seen += character
    return seen


def responses(server: ServerProcess) -> list[dict[str, Any]]:
    code, out, err = run("responses", "list", "--json", "--url", server.url)
    assert code == 0, err
    listed: list[dict[str, Any]] = json.loads(out)
    return listed


def test_a_chat_remembers_and_can_be_taken_up_by_its_last_response(server: ServerProcess) -> None:
    code, out, err = run("chat", "--url", server.url, typed="my dog is Biscuit\nwhat is my dog?\n")
    assert code == 0, err
    assert out.splitlines()[-1] == "Your dog is Biscuit."
    last, _, more = err.rsplit("--resume ", 1)[1].strip().partition(" ")
    code, out, err = run("chat", "--resume", last, *more.split(), typed="what is my dog?\n")
    assert code == 0, err
    assert out.splitlines()[-1] == "Your dog is Biscuit."


def test_a_chat_lives_through_kill_9_of_its_server_in_the_middle_of_an_answer(server: ServerProcess) -> None:
    chat = start("chat", "--url", server.url, stdin=subprocess.PIPE)
    assert chat.stdin is not None
    chat.stdin.write("chunks: 80\n")
    chat.stdin.close()
    chat.stdin = None
    before = read_until(chat, "w20")
    server.kill()
    server.start()
    rest, err = chat.communicate(timeout=SECONDS)
    assert chat.returncode == 0, err
    whole = " ".join(f"w{number}" for number in range(80))
    assert (before + rest).splitlines()[-1] == whole
    assert "resumed after" in err
    assert [response["status"] for response in responses(server)] == ["completed"]


def test_ctrl_c_in_a_chat_cancels_the_answer_on_the_server(server: ServerProcess) -> None:
    chat = start("chat", "--url", server.url, stdin=subprocess.PIPE)
    assert chat.stdin is not None
    chat.stdin.write("chunks: 2000\n")
    chat.stdin.flush()
    read_until(chat, "w5")
    chat.send_signal(signal.SIGINT)
    _, err = chat.communicate("", timeout=SECONDS)
    assert chat.returncode == 0, err
    assert "[stopped]" in err
    assert [response["status"] for response in responses(server)] == ["cancelled"]


def test_a_fork_in_a_chat_leaves_what_it_was_forked_from(server: ServerProcess) -> None:
    code, out, err = run(
        "chat", "--url", server.url, typed="my dog is Biscuit\n/fork\nmy cat is Tom\nwhat is my dog?\n/id\n"
    )
    assert code == 0, err
    assert "Your dog is Biscuit." in out
    conversation = next(line.split()[1] for line in out.splitlines() if line.startswith("conversation"))
    code, out, _ = run("conversations", "show", conversation, "--json", "--url", server.url)
    assert len(json.loads(out)["items"]) == 6
    code, out, _ = run("conversations", "list", "--url", server.url)
    assert [line.split("\t")[0] for line in out.splitlines()] == [conversation]


def test_conversations_are_shown_forked_and_deleted(server: ServerProcess) -> None:
    run("chat", "--url", server.url, typed="my dog is Biscuit\n")
    response = responses(server)[0]["id"]
    code, out, err = run("responses", "fork", response, "--url", server.url)
    assert code == 0, err
    first = out.strip()
    code, out, err = run("chat", "--url", server.url, "--conversation", first, typed="what is my dog?\n")
    assert out.splitlines()[-1] == "Your dog is Biscuit.", err
    items = json.loads(run("conversations", "show", first, "--json", "--url", server.url)[1])["items"]
    code, out, err = run("conversations", "fork", first, "--after", items[0]["id"], "--url", server.url)
    assert code == 0, err
    shown = json.loads(run("conversations", "show", out.strip(), "--json", "--url", server.url)[1])
    assert [item["id"] for item in shown["items"]] == [items[0]["id"]]
    for group, identifier in (("conversations", first), ("responses", response)):
        assert run(group, "delete", identifier, "--url", server.url)[0] == 0
        code, _, err = run(group, "show", identifier, "--url", server.url)
        assert code == 1
        assert "HTTP 404" in err


def test_a_response_is_shown_with_what_was_asked_and_answered(server: ServerProcess) -> None:
    run("chat", "--url", server.url, typed="say: the sea\n")
    identifier = responses(server)[0]["id"]
    code, out, err = run("responses", "show", identifier, "--url", server.url)
    assert code == 0, err
    assert out.index("user") < out.index("say: the sea") < out.index("assistant")
    assert "  the sea" in out


def test_a_second_server_on_the_same_directory_is_refused_with_exit_code_3(server: ServerProcess) -> None:
    for port in ("0", str(server.port)):
        code, _, err = run("serve", "--data", str(server.data), "--port", port)
        assert code == 3
        assert str(server.data) in err
        assert "Traceback" not in err


def test_a_port_in_use_is_named_with_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--data", str(tmp_path / "data"), "--port", str(port))
    assert code == 1
    assert f"Port {port}" in err
    assert "--port" in err


def test_a_data_directory_that_is_a_file_is_named_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    code, _, err = run("serve", "--data", str(tmp_path / "data"), "--port", "0")
    assert code == 1
    assert str(tmp_path / "data") in err
    assert "--data" in err


def test_sigterm_ends_the_server_with_exit_code_0(server: ServerProcess) -> None:
    began = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - began < SECONDS


def examine(*arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, err = run("doctor", "--json", *arguments)
    assert "Traceback" not in err
    report = json.loads(out)
    return code, {finding["part"]: finding for finding in report["findings"]}


def test_the_doctor_finds_a_running_server_healthy(server: ServerProcess, model: ModelProcess) -> None:
    run("chat", "--url", server.url, typed="hello\n")
    code, found = examine("--data", str(server.data), "--port", str(server.port), "--backend", model.url)
    assert code == 0, found
    assert {finding["state"] for finding in found.values()} <= {"ok", "warning"}
    assert "every page and branch checked" in found["journal"]["detail"]
    assert "running server" in found["data directory"]["detail"]
    assert server.url in found["running server"]["detail"]


def test_the_doctor_says_what_does_not_work_and_how_to_mend_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / JOURNAL).write_bytes(b"not a journal" * 100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, found = examine("--data", str(data), "--port", port, "--backend", "http://127.0.0.1:9/v1")
    assert code == 1
    broken = {part for part, finding in found.items() if finding["state"] == "failed"}
    assert broken == {"address", "journal", "backend 1"}
    assert "--port" in found["address"]["remedy"]
    assert "Start it" in found["backend 1"]["remedy"]
    assert found["running server"]["state"] == "skipped"


def test_the_doctor_reports_a_bad_setting_as_a_finding(tmp_path: Path) -> None:
    config = tmp_path / "stateroom.toml"
    config.write_text("prot = 1")
    code, found = examine("--config", str(config))
    assert code == 1
    assert "Did you mean port?" in found["settings"]["detail"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_doctor_minds_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    _, found = examine("--data", str(tmp_path), "--backend", "http://127.0.0.1:9/v1")
    assert found["data directory"]["state"] == "failed"
