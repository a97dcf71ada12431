"""Speaking to the agent in a sandbox: start processes, carry their bytes, end them.

The other side is hostile: anything that runs in the sandbox may have taken the agent over. Every frame is bounded
before it is read, no number is believed that the agent could choose, and whoever breaks the rules once is given up.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol

from stateroom.errors import SandboxFailed
from stateroom.workspaces.channels.process import WINDOW, Finished, Job, Process, Stream, after_gap
from stateroom.workspaces.inside import agent as wire
from stateroom.workspaces.workspace import WORKSPACE

_REQUEST_BYTES: Final = 8 * 1024 * 1024
_UNSENT_BYTES: Final = 1024 * 1024
_FRAMES_AT_ONCE: Final = 64
_READY_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 20.0
_STREAMS: Final[dict[int, Stream]] = {wire.STDOUT: "stdout", wire.STDERR: "stderr"}


class Channel(Protocol):
    """The part of a sandbox that an agent needs."""

    @property
    def reader(self) -> asyncio.StreamReader: ...

    @property
    def writer(self) -> asyncio.StreamWriter: ...

    def touch(self) -> None: ...


class Agent:
    """The agent of one sandbox. Made with `connect`; `close` it before the sandbox is stopped."""

    def __init__(self, sandbox: Channel) -> None:
        self._sandbox = sandbox
        self._reader = sandbox.reader
        self._writer = sandbox.writer
        self._numbers = 0
        self._processes: dict[int, Process] = {}
        self._starting: dict[int, asyncio.Future[int]] = {}
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure = ""
        self._listening = asyncio.create_task(self._listen())
        self.python = ""
        """Version that the agent runs in."""

    @classmethod
    async def connect(cls, sandbox: Channel, *, seconds: float = _READY_SECONDS) -> Agent:
        """Wait until it is there. Raises SandboxFailed."""
        agent = cls(sandbox)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(agent._ready)
        except TimeoutError:
            await agent.close()
            raise SandboxFailed(f"the sandbox's agent did not answer within {seconds:g} s") from None
        except BaseException:
            await agent.close()
            raise
        return agent

    @property
    def is_alive(self) -> bool:
        return not self._failure

    def check(self) -> None:
        """Raises SandboxFailed when it is gone."""
        if self._failure:
            raise SandboxFailed(self._failure)

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: str = WORKSPACE,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
        keep_bytes: int = 0,
    ) -> Process:
        """Start a process in a session of its own. Raises SandboxFailed, and FileNotFoundError or another OSError.

        With `keep_bytes`, so much of each of its streams is kept, half of it from the end, and it is never held up by
        who reads; without, all of it comes, at the pace of the reader.
        """
        self.check()
        body = _spawning(argv, cwd, env or {}, stdin, keep_bytes)
        number = self._next()
        process = Process(self, number, 2 * keep_bytes if keep_bytes else None)
        self._processes[number] = process
        future = self._starting[number] = asyncio.get_running_loop().create_future()
        self._sandbox.touch()
        self.send(wire.SPAWN, number, body)
        try:
            process.pid = await future
        except asyncio.CancelledError:
            process.kill()
            raise
        return process

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        keep_bytes: int,
        cwd: str = WORKSPACE,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        on_output: Callable[[Stream, bytes], None] | None = None,
    ) -> Finished:
        """A command from start to end; at the end of its time it is killed. Raises like `spawn`.

        Where something is left out, the output says how much.
        """
        process = await self.spawn(argv, cwd=cwd, env=env, stdin=bool(stdin), keep_bytes=keep_bytes)
        out: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        told: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout, process.kill)
        writing = asyncio.create_task(_write_all(process, stdin)) if stdin else None
        try:
            async for stream, piece in process.read():
                data = after_gap(process.dropped[stream] - told[stream]) + piece
                told[stream] = process.dropped[stream]
                out[stream] += data
                if on_output is not None:
                    on_output(stream, data)
            code = await process.wait()
        finally:
            timer.cancel()
            if writing is not None:
                writing.cancel()
            process.kill()
        dropped: dict[Stream, int] = {stream: count for stream, count in process.dropped.items() if count}
        ended = None if process.killed else code
        return Finished(ended, bytes(out["stdout"]), bytes(out["stderr"]), dropped, process.job)

    async def jobs(self) -> tuple[Job, ...]:
        """What outlived its command, and what of that has ended lately. Raises SandboxFailed."""
        fields = self._parsed(await self._ask(wire.JOBS, b""))
        if len(fields) % 4:
            self._give_up("a list of jobs that makes no sense")
        return tuple(self._job(fields[at : at + 4]) for at in range(0, len(fields), 4))

    async def kill_job(self, number: int) -> bool:
        """Whether there was such a job. Raises SandboxFailed."""
        return await self._ask(wire.JOB_KILL, b"%d" % number) == b"1"

    async def job_output(self, number: int, count: int = wire.BODY_BYTES) -> bytes:
        """The last bytes that a job wrote. Raises SandboxFailed."""
        return (await self._ask(wire.JOB_OUTPUT, wire.pack([b"%d" % number, b"%d" % count])))[-count:]

    async def close(self) -> None:
        """Let go of the channel; at its other end that ends everything."""
        self._fail("the sandbox was stopped")
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    def send(self, kind: int, number: int, body: bytes = b"") -> None:
        if self._failure:
            return
        self._writer.write(wire.HEADER.pack(kind, number, len(body)) + body)
        if self._writer.transport.get_write_buffer_size() > _REQUEST_BYTES + _UNSENT_BYTES:
            self._fail("the sandbox's agent does not listen")

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _ask(self, kind: int, body: bytes) -> bytes:
        self.check()
        number = self._next()
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(kind, number, body)
        try:
            return await asyncio.wait_for(future, _ANSWER_SECONDS)
        except TimeoutError:
            self._give_up("the sandbox's agent does not answer")

    async def _listen(self) -> None:
        try:
            while True:
                for _ in range(_FRAMES_AT_ONCE):
                    kind, number, length = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
                    if length > wire.BODY_BYTES:
                        raise ValueError("a frame that is too long")
                    self._on_frame(kind, number, await self._reader.readexactly(length))
                await asyncio.sleep(0)
        except ValueError as error:
            self._fail(f"the sandbox's agent sent {error}")
        except (asyncio.IncompleteReadError, OSError):
            self._fail("the sandbox has ended")

    def _on_frame(self, kind: int, number: int, body: bytes) -> None:
        """Raises ValueError."""
        process = self._processes.get(number)
        if kind in _STREAMS and process is not None:
            process.output(_STREAMS[kind], body)
        elif kind in (wire.GAP, wire.INPUT_CREDIT, wire.EXITED) and process is not None:
            self._on_process(kind, number, process, body)
        elif kind in (wire.STARTED, wire.REFUSED) and number in self._starting:
            self._on_start(kind, number, body)
        elif kind == wire.ANSWER and number in self._asked:
            future = self._asked.pop(number)
            if not future.done():
                future.set_result(body)
        elif kind == wire.READY and not self._ready.done():
            self.python = wire.unpack(body)[1][:40].decode("ascii", "replace") if len(wire.unpack(body)) == 2 else ""
            self._ready.set_result(None)
        else:
            raise ValueError("a frame that answers nothing")

    def _on_start(self, kind: int, number: int, body: bytes) -> None:
        future = self._starting.pop(number)
        if kind == wire.STARTED:
            if not future.done():
                future.set_result(_number(body))
            return
        fields = wire.unpack(body)
        if len(fields) != 2:
            raise ValueError("a refusal that makes no sense")
        process = self._processes.pop(number)
        process.exited(127, False, None)
        if not future.done():
            future.set_exception(OSError(_number(fields[0]), fields[1][:200].decode("utf-8", "replace")))

    def _on_process(self, kind: int, number: int, process: Process, body: bytes) -> None:
        if kind == wire.INPUT_CREDIT:
            process.acknowledged(_number(body))
            return
        fields = wire.unpack(body)
        if kind == wire.GAP:
            if len(fields) != 2 or _number(fields[0]) not in _STREAMS:
                raise ValueError("a gap that makes no sense")
            process.gap(_STREAMS[_number(fields[0])], _number(fields[1]))
            return
        if len(fields) < 4 or number in self._starting:
            raise ValueError("an end that makes no sense")
        code, killed, is_job = _number(fields[0]), fields[1] == b"1", fields[2] == b"1"
        job = _job(number, b"", fields[3], fields[4:]) if is_job else None
        del self._processes[number]
        process.exited(code, killed, job)

    def _job(self, fields: list[bytes]) -> Job:
        try:
            return _job(_number(fields[0]), fields[1], fields[2], fields[3].split())
        except ValueError as error:
            self._give_up(str(error))

    def _parsed(self, body: bytes) -> list[bytes]:
        try:
            return wire.unpack(body)
        except (ValueError, struct.error) as error:
            self._give_up(str(error))

    def _give_up(self, why: str) -> NoReturn:
        self._fail(why)
        raise SandboxFailed(self._failure)

    def _fail(self, why: str) -> None:
        if self._failure:
            return
        self._failure = why
        self._writer.close()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._starting.values(), *self._asked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(SandboxFailed(why))
                future.exception()  # who no longer waits for it is not to be told
        self._starting.clear()
        self._asked.clear()
        for process in self._processes.values():
            process.wake()
        self._processes.clear()


def _spawning(argv: Sequence[str], cwd: str, env: Mapping[str, str], stdin: bool, keep_bytes: int) -> bytes:
    words = [word.encode("utf-8", "surrogateescape") for word in argv]
    pairs = [f"{name}={value}".encode("utf-8", "surrogateescape") for name, value in env.items()]
    numbers = [b"%d" % keep_bytes, b"%d" % WINDOW, b"%d" % stdin, b"%d" % len(words)]
    fields = [cwd.encode("utf-8", "surrogateescape"), *numbers, *words, *pairs]
    if not words or any(b"\0" in field for field in fields):
        raise OSError(22, "a command must have words, and none may have a zero byte")
    body = wire.pack(fields)
    if len(body) > _REQUEST_BYTES:
        raise OSError(7, "Argument list too long")
    return body


async def _write_all(process: Process, data: bytes) -> None:
    try:
        await process.write(data)
        process.close_stdin()
    except SandboxFailed:
        return  # whoever reads it is told


def _job(number: int, command: bytes, log: bytes, pids: Sequence[bytes]) -> Job:
    """Raises ValueError."""
    if len(pids) > 256 or len(log) > 200:
        raise ValueError("a job that makes no sense")
    words = command[:400].decode("utf-8", "replace")
    return Job(number, words, log.decode("utf-8", "replace"), tuple(_number(pid) for pid in pids))


def _number(field: bytes) -> int:
    """Raises ValueError."""
    if not 0 < len(field) <= 19 or not field.lstrip(b"-").isdigit():
        raise ValueError("a number that is none")
    return int(field)
