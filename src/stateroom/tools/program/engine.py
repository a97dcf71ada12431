"""Runs programs: each in a process of its own, from the start, with the answers that there are already.

An answer is handed to the program when it can do nothing more by itself, and always that of the earliest call which has
not had one, however fast the tools were. What a program does follows from its code, its fingerprint and what its calls
were answered with, and from nothing else. That is why it can be run again from the start at any time.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import re
import signal
import sys
from collections.abc import Sequence

import msgspec

from stateroom import ids
from stateroom.errors import InvalidRequest
from stateroom.tools.program.contract import (
    Answered,
    Caller,
    Failed,
    Finished,
    Outcome,
    Pending,
    ProgramAnswer,
    ProgramCall,
    ProgramLimits,
    ProgramTool,
    Same,
    Waiting,
    Why,
    same_text,
)
from stateroom.tools.program.fingerprints import Fingerprints, Identity
from stateroom.tools.program.listing import is_plain
from stateroom.tools.program.process import (
    CANNOT_CONFINE,
    EngineProcess,
    Gone,
    Overtime,
    Said,
    engine_library,
    first_line,
)

_REVISION = 1
"""Of the bridge. Raise it when a program would do something else than before."""
_INNER_FRAMES = re.compile(
    r"(\n {4}at eval \(native\))?\n {4}at start \(<input>:\d+:\d+\)\n {4}at <anonymous> \(<input>:\d+:\d+\)\n?\Z"
)
_ERROR_CHARACTERS = 8000
DEFAULT_LIMITS = ProgramLimits()


class Programs:
    """The engine. `key` is 32 secret bytes of this installation."""

    def __init__(self, key: bytes, *, processes: int = 32, computing: int | None = None) -> None:
        self.engine = engine_version()
        self.fingerprints = Fingerprints(key, self.engine)
        self._places = asyncio.Semaphore(processes)
        self._computing = asyncio.Semaphore(computing or os.cpu_count() or 1)

    @property
    def unavailable(self) -> str:
        """Why no program can run on this machine; empty if one can."""
        if sys.platform == "win32":
            return "programs need a POSIX system"
        if engine_library() is None:
            return "the package quickjs-ng is not installed"
        return ""

    def fingerprint(self, code: str, *, project: str, time: float) -> str:
        """For a program that is about to run for the first time, now. It says nothing that is secret."""
        return self.fingerprints.make(code, project=project, seed=ids.new_key(), time=time)

    async def probe(self) -> str:
        """Run one for real: why that does not work; empty if it does."""
        if self.unavailable:
            return self.unavailable
        code = "return 6 * 7"
        fingerprint = self.fingerprint(code, project="", time=0)
        outcome = await self.run(code, fingerprint=fingerprint, project="", tools=(), answers=(), call=_no_call)
        return "" if outcome == Finished("42") else f"the engine does not work here: {outcome}"

    async def run(
        self,
        code: str,
        *,
        fingerprint: str,
        project: str,
        tools: Sequence[ProgramTool],
        answers: Sequence[Answered],
        call: Caller,
        same: Same = same_text,
        limits: ProgramLimits = DEFAULT_LIMITS,
    ) -> Outcome:
        """Run it as far as it comes. `call` is awaited for each call without an answer, several at the same time.

        `same` says whether a call is the one that an answer was given to.
        What `call` raises ends the program and is raised here. Other calls are cancelled then, and when this is.
        Raises InvalidRequest for a fingerprint that does not belong to the code and project.
        """
        identity = self.fingerprints.read(fingerprint, code, project=project)
        if self.unavailable:
            raise InvalidRequest(f"Programs cannot run here: {self.unavailable}.", code="programs_unavailable")
        if identity.engine != self.engine:
            return Failed(
                "The server's engine for programs has changed since: write the program anew", "engine_changed"
            )
        if len(_whole(code).encode()) > limits.code_bytes:
            return Failed(f"The program is longer than {limits.code_bytes} bytes", "limit")
        segment = _Segment(identity, tools, answers, call, same, limits, self._computing)
        async with self._places:
            process = await EngineProcess.start(limits)
            try:
                ended = await segment.go(process, first_line(_program(code, identity, tools), limits))
            except BaseException:
                await segment.cancel()
                raise
            finally:
                status = await process.end()
        return await segment.close(ended, status)


class _Stopped(Exception):
    """The program goes no further, for a reason of ours."""

    def __init__(self, why: Why, error: str) -> None:
        super().__init__(error)
        self.why: Why = why


class _Segment:
    """One run of one program from its start: to its end, or to where only others can answer."""

    def __init__(
        self,
        identity: Identity,
        tools: Sequence[ProgramTool],
        answers: Sequence[Answered],
        call: Caller,
        same: Same,
        limits: ProgramLimits,
        computing: asyncio.Semaphore,
    ) -> None:
        self._identity = identity
        self._names = {tool.name for tool in tools}
        self._recorded = {answer.call_id: answer for answer in answers}
        self._call = call
        self._same = same
        self._limits = limits
        self._computing = computing
        self._parallel = asyncio.Semaphore(limits.parallel)
        self._made: list[ProgramCall] = []
        self._tasks: dict[int, asyncio.Task[ProgramAnswer | Pending]] = {}
        self._texts: list[str] = []
        self._logs: list[str] = []
        self._cut = False

    async def go(self, process: EngineProcess, first: bytes) -> Said | _Stopped | Gone:
        """Step by step, until it has ended or its next answer is somebody else's to give."""
        try:
            said = self._taken(await process.step(first, self._computing))
            position = 0
            while said.state == "running":
                answer = await self._answer(position)
                if isinstance(answer, Pending):
                    break
                line = {"position": position, "result": answer.result, "failed": answer.failed}
                said = self._taken(await process.step(msgspec.json.encode(line), self._computing))
                position += 1
            return said
        except Overtime:
            return _Stopped("limit", f"The program took longer than {self._limits.wall_seconds:g} seconds")
        except _Stopped as stopped:
            return stopped
        except Gone as gone:
            return gone

    async def cancel(self) -> None:
        """End the calls that are still at work."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self, ended: Said | _Stopped | Gone, status: int) -> Outcome:
        """What came of it, once each call that was begun has come to its end."""
        try:
            answers = {position: await task for position, task in self._tasks.items()}
        except BaseException:
            await self.cancel()
            raise
        stopped = ended if isinstance(ended, _Stopped) else self._stopped(ended, status)
        if stopped is not None:
            return self._failed(str(stopped), stopped.why)
        assert isinstance(ended, Said)
        waiting = tuple(self._made[position] for position, answer in answers.items() if isinstance(answer, Pending))
        if waiting:
            return Waiting(waiting, "\n".join(self._logs))
        if ended.state == "done":
            return Finished(self._put_out() or "\n".join(self._logs), "\n".join(self._logs), self._cut)
        error = _INNER_FRAMES.sub("", ended.error[:_ERROR_CHARACTERS]).replace("<input>", "program").strip()
        return self._failed(error, "limit" if error.startswith("InternalError: out of memory") else "error")

    def _taken(self, said: Said) -> Said:
        """Take over what it put out, and begin what it calls, if these are the calls it made the last time."""
        self._texts += said.texts
        self._logs += said.logs
        self._cut = said.cut
        if max(sum(map(len, self._texts)), sum(map(len, self._logs))) > self._limits.output_bytes:
            raise Gone  # the bridge would have cut it off
        begin = len(self._made)
        for made in said.calls:
            position = len(self._made)
            call = ProgramCall(position, made.name, made.arguments, self._identity.call_id(position))
            self._check(call)
            self._made.append(call)
        for call in self._made[begin:]:
            if call.call_id not in self._recorded:
                self._tasks[call.position] = asyncio.create_task(self._carried_out(call))
        return said

    def _check(self, call: ProgramCall) -> None:
        if call.name not in self._names or call.position >= self._limits.calls:
            raise Gone  # nothing that the bridge would have let through
        recorded = self._recorded.get(call.call_id)
        if recorded is not None and not self._same(call, recorded):
            raise _Stopped(
                "diverged",
                f"Run again, the program made another call than before: call {call.position + 1} was {recorded.name}, "
                f"now it is {call.name}, or its arguments are others",
            )

    async def _carried_out(self, call: ProgramCall) -> ProgramAnswer | Pending:
        async with self._parallel:
            return await self._call(call)

    async def _answer(self, position: int) -> ProgramAnswer | Pending:
        recorded = self._recorded.get(self._identity.call_id(position))
        if recorded is not None and position < len(self._made):
            return self._bounded(ProgramAnswer(recorded.result, recorded.failed))
        task = self._tasks.get(position)
        if task is None:
            raise Gone  # it says that it waits for a call it has not made
        while not task.done():
            working = [other for other in self._tasks.values() if not other.done()]
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for other in done:
                other.result()  # raises what it raised
        answer = task.result()
        return answer if isinstance(answer, Pending) else self._bounded(answer)

    def _bounded(self, answer: ProgramAnswer) -> ProgramAnswer:
        result = _whole(answer.result)
        size = len(result.encode())
        if size <= self._limits.answer_bytes:
            return ProgramAnswer(result, answer.failed)
        most = self._limits.answer_bytes
        return ProgramAnswer(f"The tool's answer is {size} bytes long; a program is given {most} at most", failed=True)

    def _stopped(self, ended: Said | Gone, status: int) -> _Stopped | None:
        if isinstance(ended, Gone):
            if status in (-signal.SIGPROF, -signal.SIGXCPU):
                return self._out_of_time()
            if status == CANNOT_CONFINE:
                return _Stopped("crashed", "The engine's process cannot lock itself in on this machine (seccomp)")
            return _Stopped("crashed", "The engine that ran the program ended unexpectedly")
        if ended.state == "time":
            return self._out_of_time()
        if ended.state == "memory":
            return _Stopped("limit", f"The program needs more than {self._limits.memory_bytes // 2**20} MiB of memory")
        # Every call up to the last that was answered has been made by now, had it done what it did before.
        ids = {call.call_id for call in self._made}
        if any(call_id not in ids for call_id in self._recorded):
            return _Stopped("diverged", "Run again, the program did not make a call that it had made before")
        return None

    def _out_of_time(self) -> _Stopped:
        seconds = self._limits.cpu_seconds
        return _Stopped("limit", f"The program computed for longer than {seconds:g} seconds, tools not counted")

    def _failed(self, error: str, why: Why) -> Failed:
        return Failed(error, why, self._put_out(), "\n".join(self._logs))

    def _put_out(self) -> str:
        note = [f"[cut off after {self._limits.output_bytes} characters]"] if self._cut else []
        return "\n".join(self._texts + note)


def engine_version() -> str:
    """What a program may depend on: the engine, our bridge, and the machine's arithmetic."""
    try:
        engine = importlib.metadata.version("quickjs-ng")
    except importlib.metadata.PackageNotFoundError:
        engine = "none"
    return f"{_REVISION}/quickjs-ng-{engine}/{sys.platform}-{platform.machine()}"


def _program(code: str, identity: Identity, tools: Sequence[ProgramTool]) -> dict[str, object]:
    offered = [
        {
            "name": tool.name,
            "text": tool.parameters is None,
            "typed": tool.output_schema is not None,
            "flat": is_plain(tool.name),
        }
        for tool in tools
    ]
    return {"code": _whole(code), "seed": identity.seed, "time_ms": identity.time_ms, "tools": offered}


def _whole(text: str) -> str:
    """Without halves of characters, which no JSON of ours can carry."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


async def _no_call(call: ProgramCall) -> ProgramAnswer:
    raise AssertionError(f"the probe calls nothing, not even {call.name}")
