"""Cells of the Python interpreter: what they print, show, keep and raise. The kernel is a process of this machine."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from stateroom.errors import SandboxFailed
from stateroom.workspaces.channels.interpreter import CellResult, Interpreter, KernelTimes, told
from tests.unit.workspaces.kernels import interpreter


@pytest.fixture
async def python(tmp_path: Path) -> AsyncIterator[Interpreter]:
    made = interpreter(tmp_path)
    yield made
    await made.close()


async def cell(python: Interpreter, code: str, *, timeout: float = 20, output_bytes: int = 100_000) -> CellResult:
    return await python.run(code, timeout=timeout, output_bytes=output_bytes)


async def logs(python: Interpreter, code: str) -> str:
    result = await cell(python, code)
    assert result.error is None, result.error
    return result.logs


async def test_the_last_expression_is_shown_as_in_a_notebook(python: Interpreter) -> None:
    assert await logs(python, "x = 20\nx + 1") == "21\n"
    assert await logs(python, "_ * 2") == "42\n"
    assert await logs(python, "x;") == ""
    assert await logs(python, "None") == ""
    assert await logs(python, "display(x, 'a')") == "20\n'a'\n"
    assert python.state == "live"


async def test_variables_functions_and_imports_stay_over_cells(python: Interpreter) -> None:
    await logs(python, "import math\ny = 1\ndef f(): return math.floor(y + 0.5)")
    assert await logs(python, "y = 6.4\nf()") == "6\n"


async def test_an_error_that_is_not_unicode_costs_no_variables(python: Interpreter) -> None:
    await logs(python, "kept = 1\nglobals()['odd\\ud800'] = (n for n in [])")
    assert (await cell(python, "raise ValueError('a \\ud800 b')")).error is not None
    assert await python.save(bytes_max=1_000_000, seconds_max=5) is not None
    assert await logs(python, "kept") == "1\n"
    assert python.unsaved == {"odd?": "generator"}


async def test_all_that_a_cell_and_its_children_print_comes_in_order(python: Interpreter) -> None:
    code = (
        "import os, subprocess, sys\nprint('a')\nprint('b', file=sys.stderr)\nos.system('echo c')\n"
        "os.write(1, b'd\\n')\nsubprocess.run(['sh', '-c', 'echo e >&2'], check=True)\nprint('f', end='')"
    )
    assert await logs(python, code) == "a\nb\nc\nd\ne\nf"


async def test_output_is_streamed_while_the_cell_runs(python: Interpreter) -> None:
    seen: list[tuple[str, str]] = []
    came = asyncio.Event()

    def hear(kind: str, text: str) -> None:
        seen.append((kind, text))
        came.set()

    flag = "import os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('ended')"
    running = asyncio.create_task(python.run(flag, timeout=20, output_bytes=1000, on_output=hear))
    await asyncio.wait_for(came.wait(), 20)
    assert seen == [("stdout", "begun\n")]
    await cell_file(python, "go")
    assert (await running).logs == "begun\nended\n"


async def cell_file(python: Interpreter, name: str) -> None:
    await asyncio.to_thread(Path(python._cwd, name).touch)


async def test_the_middle_of_what_is_too_long_is_left_out(python: Interpreter) -> None:
    result = await cell(python, "print('a' * 5000 + 'b' * 5000)\n'end'", output_bytes=1000)
    assert result.logs.startswith("a" * 500 + "\n[... 9007 bytes left out ...]\n")
    assert result.logs.endswith("b\n'end'\n")
    assert len(result.logs) < 1100


async def test_a_cell_that_writes_without_end_is_bounded(python: Interpreter) -> None:
    result = await cell(
        python, "import os\nb = b'x' * 65536\nfor _ in range(4096): os.write(1, b)\nprint('done')", output_bytes=2000
    )
    assert len(result.logs) < 3000
    assert result.logs.endswith("done\n")


async def test_a_traceback_shows_the_cells_lines_and_none_of_ours(python: Interpreter) -> None:
    await logs(python, "def half(n):\n    return n / 0")
    result = await cell(python, "try:\n    half(1)\nexcept ZeroDivisionError as e:\n    raise ValueError('no') from e")
    assert result.error is not None
    assert "return n / 0" in result.error
    assert '"<cell 1>", line 2, in half' in result.error
    assert result.error.endswith("ValueError: no\n")
    assert "kernel" not in result.error
    assert not result.died


async def test_a_syntax_error_says_where(python: Interpreter) -> None:
    result = await cell(python, "a = 1\nb b")
    assert result.error is not None
    assert result.error.startswith('  File "<cell 1>", line 2')
    assert "ast.py" not in result.error


async def test_an_error_of_any_length_and_manner_is_told(python: Interpreter) -> None:
    long = await cell(python, "raise ValueError('x' * 10_000_000)")
    assert long.error is not None
    assert len(long.error) < 40_000
    deep = await cell(python, "def f(): f()\nf()")
    assert deep.error is not None
    assert "RecursionError" in deep.error
    liar = await cell(python, "class E(Exception):\n    def __str__(self): raise SystemExit(5)\nraise E")
    assert liar.error is not None
    assert not liar.died
    assert await logs(python, "1") == "1\n"


async def test_leaving_ends_the_cell_and_not_the_interpreter(python: Interpreter) -> None:
    assert await logs(python, "a = 1\nexit()\na = 2") == ""
    assert (await cell(python, "import sys\nsys.exit('why')")).error == "SystemExit: why\n"
    assert await logs(python, "a") == "1\n"


async def test_nobody_answers_input(python: Interpreter) -> None:
    asked = await cell(python, "input('name? ')")
    assert asked.error is not None
    assert "input() cannot be answered here" in asked.error
    assert await logs(python, "import sys\nsys.stdin.read()") == "''\n"


async def test_a_cell_may_await(python: Interpreter) -> None:
    await logs(python, "import asyncio\nlock = asyncio.Lock()\nawait lock.acquire()\nq = asyncio.Queue()")
    assert await logs(python, "lock.release()\nasync with lock:\n    await q.put(3)\nawait q.get()") == "3\n"
    failed = await cell(python, "async def f(): raise KeyError('k')\nawait f()")
    assert failed.error is not None
    assert "asyncio" not in failed.error
    assert await logs(python, "asyncio.run(asyncio.sleep(0, 'own loop'))") == "'own loop'\n"


async def test_a_cell_is_interrupted_at_its_time_limit_and_its_variables_stay(python: Interpreter) -> None:
    result = await cell(python, "import time\nn = 7\ntime.sleep(60)", timeout=0.3)
    assert result.timed_out
    assert result.error is not None
    assert "KeyboardInterrupt" in result.error
    assert "0.3 s, its time limit" in result.error
    assert (await cell(python, "import asyncio\nawait asyncio.sleep(60)", timeout=0.3)).timed_out
    assert (await cell(python, "!sleep 60", timeout=0.3)).timed_out
    assert await logs(python, "n") == "7\n"


async def test_a_cell_that_cannot_be_interrupted_is_killed_and_that_is_said(tmp_path: Path) -> None:
    python = interpreter(tmp_path, times=KernelTimes(interrupted=0.3))
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: 1"
    result = await cell(python, code, timeout=0.3)
    assert result.timed_out
    assert result.died
    assert result.error is not None
    assert "could not be interrupted" in result.error
    assert python.state == "fresh"
    assert not python.is_alive
    assert await logs(python, "1") == "1\n"
    await python.close()


async def test_cancelling_interrupts_the_cell_and_the_next_waits_for_it(python: Interpreter) -> None:
    began = asyncio.Event()
    code = "n = 1\nprint('begun')\nimport time\ntime.sleep(60)"
    running = asyncio.create_task(
        python.run(code, timeout=60, output_bytes=1000, on_output=lambda kind, text: began.set())
    )
    await asyncio.wait_for(began.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.wait_for(logs(python, "n"), 10) == "1\n"


async def test_cells_that_come_together_run_one_after_the_other(python: Interpreter) -> None:
    code = "import time\nheld = globals().get('held', 0) + 1\ntime.sleep(0.02)\nprint(held)\nheld -= 1"
    assert await asyncio.gather(*(logs(python, code) for _ in range(4))) == ["1\n"] * 4


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os\nos._exit(3)", "ended itself with status 3"),
        ("import os\nos.kill(os.getpid(), 9)", "was killed"),
        ("import ctypes\nctypes.string_at(0)", "crashed (SIGSEGV)"),
        ("import os\nos.closerange(3, 4096)", "Its variables are lost"),
        ("import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(60)", "broke off"),
    ],
)
async def test_an_interpreter_that_dies_is_told_and_replaced(python: Interpreter, code: str, how: str) -> None:
    await logs(python, "x = 1")
    result = await cell(python, code)
    assert result.died
    assert result.error is not None
    assert how in result.error
    assert (python.state, python.is_alive) == ("fresh", False)
    after = await cell(python, "x")
    assert after.error is not None
    assert "NameError" in after.error


async def test_an_interpreter_that_dies_between_cells_is_told_with_the_next(python: Interpreter) -> None:
    await logs(python, "import os, threading\nthreading.Timer(0.05, os._exit, [0]).start()\nx = 1")
    for _ in range(200):
        if not python.is_alive:
            break
        await asyncio.sleep(0.02)
    assert await logs(python, "'x' in globals()") == f"[{told('fresh', {})}]\nFalse\n"


async def test_a_cell_that_forks_goes_on_once(python: Interpreter) -> None:
    code = "import os\nchild = os.fork()\nif child: os.waitpid(child, 0)\nprint('parent' if child else 'child')"
    assert await logs(python, code) == "child\nparent\n"
    assert await logs(python, "child > 0") == "True\n"
    pool = "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))"
    assert await logs(python, pool) == "[1, 2]\n"


async def test_what_a_cell_does_to_its_streams_ends_with_it(python: Interpreter) -> None:
    await cell(python, "import io, sys\nsys.stdout = sys.stderr = io.StringIO()\nprint('into nothing')")
    assert await logs(python, "print('a')") == "a\n"
    await cell(python, "import os\nos.close(0); os.close(1); os.close(2)")
    assert await logs(python, "import os\nprint('b')\nos.system('echo c')") == "b\nc\n0\n"
    await cell(python, "sys.stdout.close(); sys.stderr.close(); sys.stdin.close()")
    assert await logs(python, "print('d')") == "d\n"
    await cell(python, "os.dup2(os.open('file', os.O_CREAT | os.O_WRONLY), 1)\nprint('into a file')")
    assert await logs(python, "print('e')\nopen('file').read()") == "e\n'into a file\\n'\n"


async def test_what_a_cell_does_to_our_modules_does_not_stop_the_next(python: Interpreter) -> None:
    code = "import json, os, struct, time\njson.dumps = json.loads = os.write = os.read = time.monotonic = None"
    await cell(python, code)
    assert await logs(python, "1 + 1") == "2\n"
    assert await python.save(bytes_max=1_000_000, seconds_max=2) is not None
    result = await cell(python, "import builtins\nbuiltins.repr = builtins.len = None\n5")
    assert result.died or await logs(python, "3 * 3") == "9\n"


async def test_threads_that_go_on_printing_are_heard_with_the_next_cell(python: Interpreter) -> None:
    code = (
        "import os, threading\nread, write = os.pipe()\n"
        "def late():\n    os.read(read, 1)\n    print('late')\n    open('printed', 'w').close()\n"
        "threading.Thread(target=late).start()"
    )
    assert await logs(python, code) == ""
    await logs(python, "threading.Timer(0.05, os.write, [write, b'.']).start()")
    for _ in range(500):
        if await asyncio.to_thread(Path(python._cwd, "printed").exists):
            break
        await asyncio.sleep(0.01)
    assert await logs(python, "print('now')") == "[printed since the last cell]\nlate\nnow\n"


async def test_a_child_that_prints_for_ever_neither_ends_a_cell_nor_holds_it_up(python: Interpreter) -> None:
    started = await cell(python, "import subprocess\np = subprocess.Popen(['yes'])", output_bytes=1000)
    assert started.error is None
    result = await cell(python, "6 * 7", output_bytes=1000)
    assert result.error is None
    assert len(result.logs) < 2100
    await cell(python, "p.kill()")


async def test_images_are_png_and_bounded(python: Interpreter) -> None:
    result = await cell(python, "from PIL import Image\nImage.new('RGB', (3, 2), 'red')")
    assert len(result.images) == 1
    assert Image.open(io.BytesIO(result.images[0])).size == (3, 2)
    assert result.logs == ""
    many = await cell(python, "for _ in range(20): display(Image.new('L', (1, 1)))")
    assert len(many.images) == 16
    assert "more than 16 images: left out" in many.logs
    code = "class Odd:\n    def _repr_png_(self): return {}\n"
    assert (await cell(python, code.format("b'GIF89a'") + "Odd()")).images == ()
    assert (await cell(python, code.format("b'\\x89PNG\\r\\n\\x1a\\n' + bytes(5_000_000)") + "Odd()")).images == ()
    assert "__main__.Odd object" in await logs(python, code.format("None") + "Odd()")


async def test_open_figures_are_shown_after_the_cell_and_by_show(python: Interpreter) -> None:
    assert "matplotlib" not in await logs(python, "import sys\n[m for m in sys.modules if 'plot' in m]")
    drawn = await cell(python, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure()\nfig = plt.gcf();")
    assert drawn.error is None
    assert [Image.open(io.BytesIO(image)).format for image in drawn.images] == ["PNG", "PNG"]
    assert await logs(python, "plt.get_fignums()") == "[]\n"
    shown = await cell(python, "plt.plot([3])\nplt.show()\nprint('after')")
    assert (len(shown.images), shown.logs) == (1, "after\n")
    assert len((await cell(python, "fig")).images) == 1
    broken = await cell(python, "plt.title('$\\\\nonsense{$');")
    assert broken.error is not None
    assert "nonsense" in broken.error
    assert await logs(python, "plt.get_fignums()") == "[]\n"


async def test_the_lines_that_notebooks_know(python: Interpreter, tmp_path: Path) -> None:
    assert await logs(python, 'x = 2\n!echo "it\'s $((1 + 1))"; exit 4\nprint(x)') == "it's 2\n[exit code 4]\n2\n"
    assert await logs(python, "for i in range(2):\n    !echo again") == "again\nagain\n"
    assert await logs(python, "%%writefile note.txt\nhello\n") == "Wrote note.txt\n"
    assert (tmp_path / "note.txt").read_text() == "hello\n"
    assert await logs(python, "%%bash\ncat note.txt") == "hello\n"
    (tmp_path / "below").mkdir()
    assert await logs(python, "%cd below") == f"{tmp_path}/below\n"
    assert "pip" in await logs(python, "%pip --version")
    assert await logs(python, "s = '''\n!not a command\n%nor a magic'''\nlen(s)") == "28\n"
    assert await logs(python, "%matplotlib inline\n7 \\\n% 4") == "3\n"
    unknown = await cell(python, "%lsmagic")
    assert unknown.error is not None
    assert "UsageError: %lsmagic is not there" in unknown.error


async def test_an_interpreter_that_cannot_start_says_why(tmp_path: Path) -> None:
    missing = interpreter(tmp_path, python=str(tmp_path / "no-python"))
    with pytest.raises(SandboxFailed, match="could not be started"):
        await cell(missing, "1")
    silent = interpreter(tmp_path, python="/bin/true")
    with pytest.raises(SandboxFailed, match="could not be started"):
        await cell(silent, "1")


async def test_closing_ends_the_kernel_and_its_processes(tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    pid = int(await logs(python, "import os, subprocess\nsubprocess.Popen(['sleep', '600']).pid"))
    running = asyncio.create_task(cell(python, "import time\ntime.sleep(600)"))
    await asyncio.sleep(0)
    await python.close()
    with pytest.raises(SandboxFailed, match="was stopped"):
        await running
    for _ in range(200):
        if not _runs(pid):
            break
        await asyncio.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("state", "lost", "said"),
    [
        ("live", {}, ""),
        ("restored", {}, "its variables, functions and imports were restored."),
        ("partial", {"g": "generator"}, "were restored, but these are lost: g: generator."),
        ("fresh", {}, "of earlier cells are gone."),
        ("partial", {f"v{i}": "object" for i in range(50)}, "v39: object, and 10 more."),
    ],
)
def test_the_model_is_told_what_came_of_a_restart(state: str, lost: dict[str, str], said: str) -> None:
    sentence = told(state, lost)  # type: ignore[arg-type]  # one of the four
    assert sentence.endswith(said)
    assert "\n" not in sentence
