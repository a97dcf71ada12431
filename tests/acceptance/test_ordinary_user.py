"""A server that an ordinary user runs: hosted tools work, in real sandboxes, and everything is that user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.hosted import OUTPUTS, PYTHON, SHELL, container_of, of_type, patch, python, said, shell
from tests.acceptance.modelhost import ModelHost
from tests.acceptance.wire import send

USER = 41_234
PATHS = os.pathsep.join(path for path in sys.path if "packages" in path or path.endswith("src"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """That user may reach it: where pytest has its own, nobody else may."""
    made = Path(tempfile.mkdtemp(prefix="stateroom-user-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def python_for(user: int | None) -> str:
    """A Python with our packages that this user may run; whose own home this one is in, others may not."""
    if user is None:
        return sys.executable
    for found in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError):
            tried = subprocess.run(
                [found, "-c", "import stateroom.app"],
                user=user,
                group=user,
                extra_groups=[],
                env={**os.environ, "PYTHONPATH": PATHS},
                capture_output=True,
                check=False,
            )
            if tried.returncode == 0:
                return found
    pytest.skip("no other user may read a Python with our packages")


@pytest.fixture(params=["bubblewrap", "landlock"])
def own(request: pytest.FixtureRequest, model_host: ModelHost, folder: Path) -> Iterator[ServerProcess]:
    user = USER if os.geteuid() == 0 else None
    data = folder / "data"
    data.mkdir(mode=0o700)
    if user is not None:
        os.chown(data, user, user)
    environment = {"STATEROOM_WORKSPACES__DRIVER": request.param, "HOME": str(folder), "PYTHONPATH": PATHS}
    process = ServerProcess(
        data, backends=(model_host.url,), environment=environment, user=user, python=python_for(user)
    )
    with process.start():
        yield process
        process.terminate()


def test_hosted_tools_work_and_what_they_write_is_the_users(own: ServerProcess) -> None:
    user = own.data.stat().st_uid
    assert Path(f"/proc/{own.pid}").stat().st_uid == user
    with OpenAI(base_url=own.url, api_key="unused", max_retries=0, timeout=60) as client:

        def ask(text: str, tool: Any, **more: Any) -> Any:
            return client.responses.create(model="scripted", input=text, tools=[tool], include=OUTPUTS, **more)

        first = ask(shell("mkdir d; echo one > d/a; chmod 600 d/a; cat d/a; cat /etc/shadow"), SHELL)
        [(stdout, stderr, _)] = said(first)
        assert stdout == "one\n"
        assert "shadow" in stderr
        ran = ask(python("x = 6 * 7; open('b', 'w').write(str(x)); print(x)"), PYTHON, previous_response_id=first.id)
        assert "42" in of_type(ran, "code_interpreter_call")[0].outputs[0].logs
        container = container_of(first)
        assert container_of(ran) == container
        client.containers.files.create(container, file=("uploaded", b"from outside\n"))
        reference = {"type": "container_reference", "container_id": container}
        patching: Any = [{"type": "shell", "environment": reference}, {"type": "apply_patch"}]
        patched = client.responses.create(
            model="scripted",
            input=patch("update_file", "uploaded", "@@\n-from outside\n+patched\n"),
            tools=patching,
            previous_response_id=ran.id,
        )
        looked = ask(
            shell("cat b d/a uploaded; echo more >> uploaded; tail -1 uploaded"),
            {"type": "shell", "environment": reference},
            previous_response_id=patched.id,
        )
        assert said(looked) == [("42one\npatched\nmore\n", "", 0)]
        place = own.data / "workspaces" / "live" / container / "files"
        owners = {path.lstat().st_uid for path in (place, *place.rglob("*"))}
        assert owners == {user}
        listed = send(own.url, "GET", f"/containers/{container}/files").json["data"]
        assert sorted(each["path"] for each in listed) == ["/mnt/data/b", "/mnt/data/d/a", "/mnt/data/uploaded"]
    assert "Traceback" not in own.output
