"""The interpreter where it is meant to run: in a sandbox, over the sandbox's agent, with the system's Python."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.channels.interpreter import Interpreter, KernelTimes
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.layout import kernel_files
from stateroom.workspaces.workspace import SandboxSpec
from tests.sandboxes import reason_against

MIB = 1024 * 1024


@asynccontextmanager
async def sandboxed(directory: Path) -> AsyncIterator[Interpreter]:
    files = directory / "files"
    files.mkdir(exist_ok=True)
    spec = SandboxSpec(
        id="cntr_interpreter",
        files=str(files),
        memory_bytes=512 * MIB,
        processes=64,
        disk_bytes=64 * MIB,
        mounts=kernel_files(),
    )
    sandbox = await BubblewrapDriver(directory).start(spec)
    try:
        agent = await Agent.connect(sandbox)
        python = Interpreter(agent, times=KernelTimes(interrupted=1.0))
        try:
            yield python
        finally:
            await python.close()
            await agent.close()
    finally:
        await sandbox.stop()


@functools.cache
def why_not() -> str:
    return reason_against(sandboxed)


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"bubblewrap cannot be used on this machine: {why_not()}")


async def logs(python: Interpreter, code: str, *, timeout: float = 20) -> str:
    result = await python.run(code, timeout=timeout, output_bytes=100_000)
    assert result.error is None, result.error
    return result.logs


async def test_cells_run_inside_and_see_the_workspace_only(tmp_path: Path) -> None:
    async with sandboxed(tmp_path) as python:
        assert await logs(python, "import os\nopen('made', 'w').write('x')\nos.getcwd()") == "'/workspace'\n"
        assert (tmp_path / "files" / "made").read_text() == "x"
        assert await logs(python, "print(os.path.exists('/etc/shadow'))\n!echo child") == "False\nchild\n"
        assert await logs(python, "import sys\n[p for p in sys.path if 'stateroom' in p]") == "[]\n"


async def test_variables_move_from_one_sandbox_to_the_next(tmp_path: Path) -> None:
    async with sandboxed(tmp_path) as python:
        code = "import threading\na = [1]\nb = [a]\nlock = threading.Lock()\ndef f(): return a\nbig = bytes(5_000_000)"
        await logs(python, code)
        state = await python.save(bytes_max=64 * MIB, seconds_max=5)
        assert python.unsaved == {"lock": "_thread.lock"}
    assert state is not None
    async with sandboxed(tmp_path) as python:
        await python.restore(state)
        assert (python.state, python.lost) == ("partial", {"lock": "_thread.lock"})
        assert (await logs(python, "f() is a is b[0], len(big)")).endswith("(True, 5000000)\n")


async def test_a_cell_is_interrupted_and_an_interpreter_that_dies_is_replaced(tmp_path: Path) -> None:
    async with sandboxed(tmp_path) as python:
        result = await python.run("n = 1\nimport time\ntime.sleep(60)", timeout=0.5, output_bytes=1000)
        assert (result.timed_out, result.died) == (True, False)
        assert await logs(python, "n") == "1\n"
        stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: 1"
        assert (await python.run(stubborn, timeout=0.5, output_bytes=1000)).died
        assert await logs(python, "'n' in globals()") == "False\n"
        ended = await python.run("import os\nos._exit(4)", timeout=10, output_bytes=1000)
        assert ended.error is not None
        assert "ended itself with status 4" in ended.error
        assert await logs(python, "print('x' * 1000)") == "x" * 1000 + "\n"


async def test_gigabytes_are_bounded_before_they_leave_the_sandbox(tmp_path: Path) -> None:
    async with sandboxed(tmp_path) as python:
        code = "import os\nb = b'x' * 65536\nfor _ in range(16_384): os.write(1, b)\nprint('done')"
        result = await python.run(code, timeout=60, output_bytes=10_000)
        assert result.error is None
        assert len(result.logs) < 11_000
        assert result.logs.endswith("done\n")
