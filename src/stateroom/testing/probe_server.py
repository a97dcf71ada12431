"""`stateroom serve` with tools whose effects can be counted, and with ways to die: for crash tests, never for users.

    python -m stateroom.testing.probe_server serve [the options of `stateroom serve`]

The tools `stateroom:probe_effect`, `stateroom:probe_idempotent` and `stateroom:probe_read` offer the functions
`probe_effect`, `probe_idempotent` and `probe_read`. Each call takes `delay_ms` and writes two lines to the file that
STATEROOM_TEST_EFFECTS names, `begin RUN CALL ATTEMPT` and `end RUN CALL ATTEMPT`, before and after that delay. For ways
to die see kill_points.py.

With STATEROOM_TEST_HURRY containers are looked after every few seconds and not every few minutes, and what nothing
refers to leaves the content store as soon.

On SIGUSR1 it writes to the file that STATEROOM_TEST_TASKS names how many tasks its event loop has, by the name of their
coroutines, as JSON.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from stateroom import serving
from stateroom.cli.main import main as run_command_line
from stateroom.journal.entries import Effect
from stateroom.testing.kill_points import KillPoints, from_environment, make_mortal
from stateroom.testing.mortal_workspaces import hurry, make_workspaces_mortal
from stateroom.tools.tool import HostedFunction, Printed, Tool, ToolCall, ToolResult

EFFECTS: Final = "STATEROOM_TEST_EFFECTS"
TASKS: Final = "STATEROOM_TEST_TASKS"
HURRY: Final = "STATEROOM_TEST_HURRY"

_PARAMETERS: Final = {
    "type": "object",
    "properties": {"token": {"type": "string"}, "delay_ms": {"type": "integer"}},
    "required": ["token"],
}


class _Arguments(msgspec.Struct):
    token: str = ""
    delay_ms: int = 0


class ProbeTool:
    """A hosted tool that leaves two lines in a file for each time it is carried out."""

    def __init__(self, effect: Effect, points: KillPoints, file: str) -> None:
        name = f"probe_{effect.value}"
        self.type = f"stateroom:{name}"
        self._function = HostedFunction(name, f"A call of kind {effect.value}, to be counted.", dict(_PARAMETERS))
        self._effect = effect
        self._points = points
        self._file = file

    @property
    def function(self) -> HostedFunction:
        return self._function

    def effect(self, call: ToolCall) -> Effect:
        return self._effect

    async def run(self, call: ToolCall, printed: Printed | None = None) -> ToolResult:
        asked = msgspec.json.decode(call.arguments, type=_Arguments)
        self._points.reach("before_effect")
        self._note("begin", call)
        self._points.reach("mid_effect")
        await asyncio.sleep(asked.delay_ms / 1000)
        self._note("end", call)
        self._points.reach("after_effect")
        return ToolResult(f"did {asked.token}")

    def _note(self, what: str, call: ToolCall) -> None:
        """One write to the end of the file: it is there once the call returns, whatever happens to this process."""
        if not self._file:
            return
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{what} {call.run_id} {call.call_id} {call.attempt}\n".encode())
        finally:
            os.close(descriptor)


def probe_tools(points: KillPoints, file: str) -> Sequence[Tool]:
    """One tool of each kind."""
    return [ProbeTool(effect, points, file) for effect in Effect]


def _with_tasks_shown(serve: Callable[..., Any], file: str) -> Callable[..., Any]:
    """The same server, which answers a signal with the tasks that it has."""

    async def shown(*given: Any, **options: Any) -> Any:
        if file:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _write_tasks, Path(file))
        return await serve(*given, **options)

    return shown


def _write_tasks(file: Path) -> None:
    names = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    aside = file.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(names))
    aside.replace(file)


def main() -> None:
    """The command line of `stateroom`, with what is needed here wired into the server."""
    points = from_environment()
    make_workspaces_mortal(points)
    if os.environ.get(HURRY):
        hurry()
    tools = probe_tools(points, os.environ.get(EFFECTS, ""))
    real = _with_tasks_shown(serving.serve, os.environ.get(TASKS, ""))
    wired = partial(real, tools=tools, wrap_journal=lambda journal: make_mortal(journal, points))
    serving.serve = wired  # the command calls what this name stands for
    run_command_line()


if __name__ == "__main__":
    main()
