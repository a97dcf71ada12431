"""The Python interpreter of a workspace, seen from the server: cells, and saving and restoring variables.

The kernel is a process in the sandbox and runs whatever a model writes: everything that it says is bounded here and
believed in nothing. Its state is bytes here and never looked into.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from stateroom.errors import SandboxDied, SandboxFailed
from stateroom.workspaces.channels.cell_output import CellOutput, Outcome, RestoreReport, SaveReport, named
from stateroom.workspaces.channels.kernel import KernelChannel, Process
from stateroom.workspaces.inside.kernel import frames
from stateroom.workspaces.layout import CLOUDPICKLE, INSIDE
from stateroom.workspaces.workspace import WORKSPACE

State = Literal["live", "restored", "partial", "fresh"]
"""live: as the last cell left it. restored, partial: brought back from a saved state, wholly or not. fresh: empty."""
OnOutput = Callable[[str, str], None]
"""Called with `stdout` and a piece of what a cell prints."""

_NAMED_MAX = 40
_T = TypeVar("_T")


class Spawner(Protocol):
    """What starts processes in the sandbox: `agent_client.Agent`."""

    async def spawn(
        self, argv: Sequence[str], *, cwd: str = ..., env: Mapping[str, str] = ..., stdin: bool = ...
    ) -> Process: ...


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a cell."""

    logs: str
    """What it and its processes have printed, and the repr of its last expression."""
    images: tuple[bytes, ...] = ()
    """PNG."""
    error: str | None = None
    """A traceback, or why there is none."""
    timed_out: bool = False
    died: bool = False
    """The interpreter ended with it: its variables are lost."""


class KernelTimes(msgspec.Struct, frozen=True):
    """How long the server waits for the kernel, in seconds, besides the time that a cell has."""

    start: float = 30.0
    interrupted: float = 3.0
    """For a cell to end that was interrupted; then the kernel is killed."""
    answer: float = 10.0
    """For anything that should be done at once."""
    restore: float = 60.0


class Interpreter:
    """One per workspace. One cell at a time; the kernel is started with the first, and again when it has died."""

    def __init__(
        self,
        agent: Spawner,
        *,
        python: str = "python3",
        inside: str = INSIDE,
        cloudpickle: str = CLOUDPICKLE,
        cwd: str = WORKSPACE,
        env: Mapping[str, str] | None = None,
        times: KernelTimes | None = None,
    ) -> None:
        self.state: State = "fresh"
        self.lost: dict[str, str] = {}
        self.unsaved: dict[str, str] = {}
        """What the last `save` has left out. The kernel still has it."""
        self.is_dirty = False
        """Whether a cell has run since the last `save`."""
        self.agent = agent
        self._argv = (python, f"{inside}/interpreter.py", cloudpickle, f"{inside}/kernel")
        self._cwd = cwd
        self._env = dict(env or {})
        self._times = times or KernelTimes()
        self._kernel: KernelChannel | None = None
        self._lock = asyncio.Lock()
        self._to_tell = ""
        self._working: set[asyncio.Task[Any]] = set()

    @property
    def is_alive(self) -> bool:
        """Whether there is a kernel with what earlier cells have made."""
        return self._kernel is not None and self._kernel.is_alive

    async def run(
        self, code: str, *, timeout: float, output_bytes: int, on_output: OnOutput | None = None
    ) -> CellResult:
        """Carry out a cell. Cancelling interrupts it. Raises SandboxFailed when there is no kernel to be had."""
        return await self._alone(self._run(code, timeout, output_bytes, on_output))

    async def save(self, *, bytes_max: int, seconds_max: float) -> bytes | None:
        """The variables, as far as they can be saved (`unsaved` names the others). None: there is nothing to save,
        or the kernel could not."""
        return await self._alone(self._save(bytes_max, seconds_max))

    async def restore(self, state: bytes) -> None:
        """Begin anew with what `save` has returned. `state` and `lost` say what came of it; so will the next cell."""
        await self._alone(self._restore(state))

    async def close(self) -> None:
        """End the kernel and whatever it is doing."""
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._end()

    async def _alone(self, work: Coroutine[Any, Any, _T]) -> _T:
        """One thing at a time. When the caller goes away, a cell is interrupted and ends in the background."""
        try:
            await self._lock.acquire()
        except BaseException:
            work.close()
            raise
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise SandboxDied("the Python interpreter was stopped") from None
            if self._kernel is not None:
                self._kernel.hurry()
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        self._lock.release()
        if not task.cancelled():
            task.exception()  # whoever asked has gone, or has been told

    async def _run(self, code: str, timeout: float, output_bytes: int, on_output: OnOutput | None) -> CellResult:
        request = frames.encode({"code": code, "output_bytes": output_bytes})
        if len(request) > frames.CODE_BYTES:
            return CellResult(logs="", error=f"The code is too long: at most {frames.CODE_BYTES} bytes.")
        kernel = await self._started()
        output = CellOutput(output_bytes, on_output)
        if self._to_tell:
            output.say(self._to_tell)
        self.is_dirty = True
        outcome = await self._carried_out(kernel, request, output, timeout)
        self._to_tell = ""
        if outcome.died:
            await self._end()
            self.state, self.lost = "fresh", {}
        else:
            self.state, self.lost = "live", {}
        return CellResult(
            logs=output.logs(),
            images=tuple(output.images),
            error=outcome.error,
            timed_out=outcome.timed_out,
            died=outcome.died,
        )

    async def _carried_out(self, kernel: KernelChannel, request: bytes, output: CellOutput, timeout: float) -> Outcome:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        interrupted = False
        try:
            await kernel.send(frames.RUN, request, within=self._times.answer)
            while True:
                frame = await kernel.receive(deadline, hurried=not interrupted)
                if frame is None and interrupted:
                    return Outcome.killed(timeout)
                if frame is None:
                    interrupted = True
                    deadline = loop.time() + self._times.interrupted
                    kernel.interrupt()
                    continue
                outcome = output.take(*frame)
                if outcome is not None:
                    return outcome.interrupted_after(timeout) if interrupted else outcome
        except (frames.Broken, TimeoutError) as error:
            outcome = Outcome.broke_off(str(error), kernel.said)
            return msgspec.structs.replace(outcome, timed_out=interrupted)

    async def _started(self) -> KernelChannel:
        if self._kernel is not None and await self._kernel.is_idle(self._times.answer):
            return self._kernel
        if self._kernel is not None:  # it died since the last cell
            await self._end()
            self.state, self.lost = "fresh", {}
            self._to_tell = told(self.state, self.lost)
        try:
            process = await self.agent.spawn(self._argv, cwd=self._cwd, env=self._env, stdin=True)
        except OSError as error:
            raise SandboxFailed(f"The Python interpreter could not be started: {error}") from None
        kernel = KernelChannel(process)
        try:
            deadline = asyncio.get_running_loop().time() + self._times.start
            frame = await kernel.receive(deadline)
            if frame is None or frame[0] != frames.READY:
                raise frames.Broken("it did not say that it was ready")
        except frames.Broken as error:
            await kernel.end()
            said = kernel.said.strip()
            raise SandboxFailed(f"The Python interpreter could not be started: {said or error}") from None
        except BaseException:
            await kernel.end()
            raise
        self._kernel = kernel
        return kernel

    async def _save(self, bytes_max: int, seconds_max: float) -> bytes | None:
        kernel = self._kernel
        if kernel is None or not await kernel.is_idle(self._times.answer):
            return None
        parts: list[bytes] = []
        size = 0
        deadline = asyncio.get_running_loop().time() + seconds_max + self._times.answer
        try:
            request = frames.encode({"bytes_max": bytes_max, "seconds_max": seconds_max})
            await kernel.send(frames.SAVE, request, within=self._times.answer)
            while True:
                frame = await kernel.receive(deadline)
                if frame is None:
                    kernel.owes(frames.SAVED)
                    return None
                kind, body = frame
                if kind == frames.SAVED:
                    report = SaveReport.of(body)
                    self.unsaved = report.lost
                    self.is_dirty = self.is_dirty and bool(report.failed)
                    return None if report.failed else b"".join(parts)
                size += len(body)
                if kind != frames.STATE or size > bytes_max:
                    raise frames.Broken("more state than was asked for")
                parts.append(body)
        except (frames.Broken, TimeoutError):
            await kernel.end()  # the next cell finds it dead, and says so
            return None

    async def _restore(self, state: bytes) -> None:
        await self._end()
        self._to_tell = ""
        kernel = await self._started()
        self.is_dirty = False
        report = RestoreReport(failed="the interpreter died of it")
        try:
            request = {"size": len(state), "seconds": self._times.restore}
            within = self._times.restore
            await kernel.send(frames.RESTORE, frames.encode(request), within=within)
            for at in range(0, len(state), frames.STATE_BYTES):
                await kernel.send(frames.DATA, state[at : at + frames.STATE_BYTES], within=within)
            deadline = asyncio.get_running_loop().time() + within + self._times.answer
            frame = await kernel.receive(deadline)
            if frame is None or frame[0] != frames.RESTORED:
                raise frames.Broken("no answer")
            report = RestoreReport.of(frame[1])
        except (frames.Broken, TimeoutError):
            await self._end()
        self.lost = report.lost
        if report.failed or (report.lost and not report.restored):
            self.state = "fresh"
        else:
            self.state = "partial" if report.lost else "restored"
        self._to_tell = told(self.state, self.lost)

    async def _end(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.end()


def told(state: State, lost: Mapping[str, str]) -> str:
    """What the model should know after a restart, in a sentence; nothing for `live`."""
    if state == "live":
        return ""
    if state == "restored":
        return "The Python interpreter was restarted; its variables, functions and imports were restored."
    if state == "fresh":
        text = "The Python interpreter was restarted: variables, functions and imports of earlier cells are gone"
        return f"{text} ({named(lost, _NAMED_MAX)})." if lost else f"{text}."
    return (
        "The Python interpreter was restarted; its variables, functions and imports were restored, but these are "
        f"lost: {named(lost, _NAMED_MAX)}."
    )
