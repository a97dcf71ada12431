"""Workspaces: what a command, a turn with one, a fork and a commit cost the server, and what many live ones weigh."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks import model
from benchmarks.content import CHANGES, DIRECTORIES, FILE_BYTES, FILES
from benchmarks.dialogues import LoadFailed
from benchmarks.forks import FORK_BUDGET_MS
from benchmarks.measure import (
    KIB,
    MIB,
    NotMeasured,
    cpu_seconds,
    family,
    family_cpu_seconds,
    held_bytes,
    resident_bytes,
)
from benchmarks.processes import Server
from benchmarks.table import Row, number, spread
from benchmarks.wire import Connection
from stateroom.settings import WorkspaceSettings
from stateroom.testing.sandboxes import members
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.layout import CONTENT
from stateroom.workspaces.workspace import SandboxSpec

if TYPE_CHECKING:
    from benchmarks.scenarios import Bench

EXEC_BUDGET_MS: Final = 5.0
WARMUP: Final = 10
TURNS: Final = 40
"""Of one repeat; with 2,000 files a quarter of it."""
EXECS: Final = 100
"""Of one repeat, by the driver."""
FORKS: Final = 20
"""Of one repeat."""
LIVE: Final = WorkspaceSettings().live
CALM_SECONDS: Final = 3.0
"""After the last command, until whatever watches a sandbox has found that nothing moves in it."""
COUNT: Final = DIRECTORIES * FILES
_BASH: Final = ("/bin/bash", "-c")
_SHELL: Final[dict[str, Any]] = {"type": "shell", "environment": {"type": "container_auto"}}
_FUNCTION: Final[dict[str, Any]] = {
    "type": "function",
    "name": "run",
    "parameters": {"type": "object", "properties": {"commands": {"type": "array", "items": {"type": "string"}}}},
}
_FILL: Final = f"""python3 - <<'END'
import os
for name in range({COUNT}):
    folder = f"package_{{name % {DIRECTORIES}}}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{{folder}}/module_{{name}}.py", "wb") as file:
        file.write(os.urandom({FILE_BYTES * 4 // 10}) + b"    return value\\n" * {FILE_BYTES * 6 // 170})
END"""
_CHANGE: Final = (
    f"for name in $(shuf -i 0-{COUNT - 1} -n {CHANGES}); do "
    f"head -c {FILE_BYTES} /dev/urandom > package_$((name % {DIRECTORIES}))/module_$name.py; done"
)


class Spent(msgspec.Struct, frozen=True):
    """What some calls took, in milliseconds."""

    walls: list[float]
    server: float
    """CPU of each, of the server's process."""
    sandboxes: float
    """CPU of each, of all processes below the server's."""

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)


def workspaces(bench: Bench) -> Iterator[Row]:
    """Commands by the driver alone; then turns, forks and many live workspaces in a server."""
    yield from asyncio.run(_driver(bench))
    with bench.server() as server:
        yield from asyncio.run(_turns(server, bench.scale.repeats))
        yield from asyncio.run(_many_files(server, bench.scale.repeats))
    with bench.server() as server:
        yield from asyncio.run(_live(server, bench.scale.idle_seconds))


async def _driver(bench: Bench) -> list[Row]:
    """A sandbox without a server: this process is in its place, on its core. Raises NotMeasured."""
    root = bench.folder / "sandboxes"
    root.mkdir()
    driver = BubblewrapDriver(bench.folder)
    report = await driver.probe()
    if not report.usable:
        raise NotMeasured(f"nothing on this machine keeps processes in: {report.reason}")
    try:
        with bench.cores.of_server():
            return await _commands(driver, root, bench.scale.repeats)
    finally:
        shutil.rmtree(root)


async def _commands(driver: BubblewrapDriver, root: Path, repeats: int) -> list[Row]:
    starts, execs, cpu = [], [], []
    for name in range(repeats):
        files = root / str(name)
        files.mkdir()
        spec = SandboxSpec(
            id=f"bench-{name}", files=str(files), memory_bytes=1 << 30, processes=256, disk_bytes=1 << 30
        )
        began = time.perf_counter()
        sandbox = await driver.start(spec)
        agent = await Agent.connect(sandbox)
        starts.append((time.perf_counter() - began) * 1000)
        walls = []
        for _ in range(WARMUP):
            await agent.run((*_BASH, "true"), timeout=10, keep_bytes=65_536)
        used = time.process_time()
        for _ in range(EXECS):
            began = time.perf_counter()
            await agent.run((*_BASH, "true"), timeout=10, keep_bytes=65_536)
            walls.append((time.perf_counter() - began) * 1000)
        cpu.append((time.process_time() - used) / EXECS * 1000)
        execs.append(statistics.median(walls))
        await agent.close()
        await sandbox.stop()
    group = f"A sandbox of {driver.name}, without a server"
    return [
        Row(
            group=group,
            figure="`bash -c true` in a live one, p50",
            unit="ms",
            value=statistics.median(execs),
            budget=EXEC_BUDGET_MS,
            values=execs,
            beside=f"CPU of who asks {number(statistics.median(cpu))} ms; {spread(execs)}",
        ),
        Row(
            group=group,
            figure="start, until it takes commands",
            unit="ms",
            value=statistics.median(starts),
            values=starts,
            beside=spread(starts),
        ),
    ]


async def _turns(server: Server, repeats: int) -> list[Row]:
    """A turn whose call the server carries out, beside one whose call the client answers."""
    hosted, answered = _Client(server.port), _Client(server.port)
    return [
        await _turn_row(server, "the shell, `true`", hosted.shell_turn, repeats, TURNS),
        await _turn_row(server, "a function that the client answers", answered.function_turn, repeats, TURNS),
    ]


async def _many_files(server: Server, repeats: int) -> list[Row]:
    client = _Client(server.port)
    container = await client.container()
    await client.exec(container, _FILL)
    client.tool = {"type": "shell", "environment": {"type": "container_reference", "container_id": container}}
    turns = max(1, TURNS // 4)
    changing = _Client(server.port)
    changing.tool = client.tool

    async def change() -> None:
        await changing.shell_turn(_CHANGE)

    await asyncio.sleep(CALM_SECONDS)
    forks = await _forks(server, client, container, repeats)
    return [
        await _turn_row(server, f"the shell, `true`, beside {number(COUNT)} files", client.shell_turn, repeats, turns),
        await _turn_row(server, f"the shell, {CHANGES} of {number(COUNT)} files change", change, repeats, turns),
        *forks,
    ]


async def _turn_row(server: Server, figure: str, turn: Callable[[], Awaitable[None]], repeats: int, turns: int) -> Row:
    for _ in range(WARMUP):
        await turn()
    spent = [await _spend(server, turn, turns) for _ in range(repeats)]
    costs = [each.server for each in spent]
    wall, sandboxes = (statistics.median(getattr(each, name) for each in spent) for name in ("wall", "sandboxes"))
    beside = f"p50 {number(wall)} ms; {spread(costs)}"
    if sandboxes >= 0.1:
        beside = f"p50 {number(wall)} ms; in the sandbox {number(sandboxes)} ms; {spread(costs)}"
    return Row(
        group="CPU of a turn with one tool call, two answers of the model, chains by previous_response_id",
        figure=figure,
        unit="ms",
        value=statistics.median(costs),
        values=costs,
        beside=beside,
    )


async def _forks(server: Server, client: _Client, container: str, repeats: int) -> list[Row]:
    forks: list[str] = []

    async def fork() -> None:
        forks.append(await client.container(f"/v1/containers/{container}/fork"))

    async def first_call() -> None:
        await client.exec(forks.pop(), "true")

    await _spend(server, fork, WARMUP)
    before = _content_bytes(server)
    spent = [await _spend(server, fork, FORKS) for _ in range(repeats)]
    grown = _content_bytes(server) - before
    costs = [each.server for each in spent]
    first = await _spend(server, first_call, repeats)
    group = f"Fork of a container with {number(COUNT)} files, {number(COUNT * FILE_BYTES / 1e6)} MB"
    wall = statistics.median(each.wall for each in spent)
    return [
        Row(
            group=group,
            figure="CPU",
            unit="ms",
            value=statistics.median(costs),
            budget=FORK_BUDGET_MS,
            values=costs,
            beside=f"p50 {number(wall)} ms; {spread(costs)}",
        ),
        Row(
            group=group,
            figure="the content store grows by",
            unit="KB",
            value=grown / 1000,
            budget=0.0,
            beside=f"with all {FORKS * repeats} of them",
        ),
        Row(
            group=group,
            figure="first command in it, p50",
            unit="ms",
            value=first.wall,
            values=first.walls,
            beside=f"files are put there, a sandbox is started; CPU {number(first.server)} ms; {spread(first.walls)}",
        ),
    ]


def _content_bytes(server: Server) -> int:
    path = server.data / CONTENT
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


async def _live(server: Server, idle_seconds: float) -> list[Row]:
    """As many workspaces with processes as a server has by default, and one more."""
    client = _Client(server.port)
    containers = [await client.container() for _ in range(LIVE + 1)]
    one_more = containers.pop()
    resident = resident_bytes(server.pid, alone=True)
    waiting = iter(containers)
    begun = await _spend(server, lambda: client.exec(next(waiting), "true"), LIVE)
    turns = iter(containers * 4)
    execs = await _spend(server, lambda: client.exec(next(turns), "true"), LIVE * 4)
    await asyncio.sleep(CALM_SECONDS)
    idle = await _spend(server, lambda: asyncio.sleep(idle_seconds), 1)
    sandboxes = [pid for pid in family(server.pid) if pid != server.pid]
    held, in_words = held_bytes(sandboxes)
    grown = resident_bytes(server.pid, alone=True) - resident
    last = await _spend(server, lambda: client.exec(one_more, "true"), 1)
    alive = sum(member.kind == "agent" for member in members(server.data))
    if alive != LIVE:
        raise LoadFailed(f"{alive} workspaces have processes, and not {LIVE}")
    group = f"{LIVE} live workspaces in one server"
    whole = sum(begun.walls) / 1000
    return [
        Row(
            group=group,
            figure="first command, p50",
            unit="ms",
            value=begun.wall,
            values=begun.walls,
            beside=f"all in a row in {number(whole)} s; CPU {number(begun.server)} ms; {spread(begun.walls)}",
        ),
        Row(
            group=group,
            figure="command by `exec`, in turn, p50",
            unit="ms",
            value=execs.wall,
            values=execs.walls,
            beside=f"noted, and committed; CPU {number(execs.server)} ms; {spread(execs.walls)}",
        ),
        Row(
            group=group,
            figure=f"memory of a sandbox ({in_words})",
            unit="MiB",
            value=held / LIVE / MIB,
            beside=f"{number(held / MIB)} MiB in {len(sandboxes)} processes",
        ),
        Row(
            group=group,
            figure="memory of the server, for each",
            unit="KiB",
            value=max(0, grown) / LIVE / KIB,
            beside=f"{number(resident / MIB)} → {number((resident + grown) / MIB)} MiB",
        ),
        Row(
            group=group,
            figure="CPU of the server, all idle",
            unit="ms/s",
            value=idle.server / idle_seconds,
            beside=f"sandboxes {number(idle.sandboxes / idle_seconds)} ms/s; over {number(idle_seconds)} s",
        ),
        Row(
            group=group,
            figure=f"first command of number {LIVE + 1}",
            unit="ms",
            value=last.wall,
            beside="the one that is idle for longest is committed and ended first",
        ),
    ]


async def _spend(server: Server, call: Callable[[], Awaitable[None]], times: int) -> Spent:
    """Make a call so often, one after the other."""
    alone, all_of_it = cpu_seconds(server.pid), family_cpu_seconds(server.pid)
    walls = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        walls.append((time.perf_counter() - began) * 1000)
    spent = cpu_seconds(server.pid) - alone
    below = family_cpu_seconds(server.pid) - all_of_it - spent
    return Spent(walls, spent / times * 1000, max(0.0, below) / times * 1000)


class _Item(msgspec.Struct):
    type: str
    call_id: str = ""
    output: Any = None


class _Answer(msgspec.Struct):
    id: str
    status: str
    output: list[_Item]


class _Client:
    """One client, and its chain of responses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Connection | None = None
        self._previous: dict[str, str] = {}
        self.tool = _SHELL

    async def container(self, path: str = "/v1/containers") -> str:
        """A new one."""
        asked = {"name": "benchmark"} if path == "/v1/containers" else {}
        identifier: str = msgspec.json.decode(await self._post(path, asked))["id"]
        return identifier

    async def exec(self, container: str, command: str) -> None:
        answer = await self._post(f"/v1/containers/{container}/exec", {"command": command})
        if b'"exit_code":0,' not in answer:
            raise LoadFailed(f"a command failed: {answer[:500]!r}")

    async def shell_turn(self, command: str = "true") -> None:
        answer = await self._respond(_call("shell", command), self.tool)
        said = next(item.output for item in answer.output if item.type == "shell_call_output")
        if [chunk["outcome"] for chunk in said] != [{"type": "exit", "exit_code": 0}]:
            raise LoadFailed(f"a command of a turn failed: {said!r:.500}")

    async def function_turn(self) -> None:
        answer = await self._respond(_call("run", "true"), _FUNCTION)
        call_id = next(item.call_id for item in answer.output if item.type == "function_call")
        await self._respond(
            [{"type": "function_call_output", "call_id": call_id, "output": "[exit code 0]"}], _FUNCTION
        )

    async def _respond(self, said: Any, tool: dict[str, Any]) -> _Answer:
        request = {"model": model.TOLD, "input": said, "tools": [tool], **self._previous}
        answer = msgspec.json.decode(await self._post("/v1/responses", request), type=_Answer)
        if answer.status != "completed":
            raise LoadFailed(f"a response ended as {answer.status}")
        self._previous = {"previous_response_id": answer.id}
        return answer

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        if self._connection is None or not self._connection.is_open:
            self._connection = await Connection.open(self._port)
        status, answer = await self._connection.post(path, msgspec.json.encode(body))
        if status != 200:
            raise LoadFailed(f"POST {path}: {status} {answer[:500]!r}")
        return answer


def _call(name: str, command: str) -> str:
    """What has the scripted model call this."""
    return f"call: {name} {msgspec.json.encode({'commands': [command]}).decode()}"
