"""The server's side against agents that lie, babble, or fall silent: each is given up, and none costs much."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from stateroom.errors import SandboxFailed
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.channels.process import WINDOW
from stateroom.workspaces.inside import agent as wire

SECONDS: Final = 10


class Liar:
    """The other end of a channel: what a sandbox could say if its agent were somebody else's."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self._socket)

    def say(self, kind: int, number: int, body: bytes = b"", *, length: int | None = None) -> None:
        self.writer.write(wire.HEADER.pack(kind, number, len(body) if length is None else length) + body)

    def ready(self) -> None:
        self.say(wire.READY, 1, wire.pack([b"1", b"3.11.2"]))

    async def hear(self) -> tuple[int, int, bytes]:
        kind, number, length = wire.HEADER.unpack(await self.reader.readexactly(wire.HEADER.size))
        return kind, number, await self.reader.readexactly(length)


class Ours:
    """The part of a sandbox that an agent needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def touch(self) -> None:
        """Nothing bounds this one."""


@asynccontextmanager
async def facing() -> AsyncIterator[tuple[Agent, Liar]]:
    one, other = socket.socketpair()
    liar = Liar(other)
    await liar.open()
    liar.ready()
    agent = await Agent.connect(Ours(*await asyncio.open_connection(sock=one)), seconds=SECONDS)
    try:
        yield agent, liar
    finally:
        await agent.close()
        liar.writer.close()


async def started(agent: Agent, liar: Liar, **options: int) -> tuple[asyncio.Future[object], int]:
    """A command that waits for what the liar says of it."""
    task = asyncio.ensure_future(agent.run(["x"], timeout=SECONDS, keep_bytes=options.get("keep_bytes", 0)))
    _, number, _ = await liar.hear()
    liar.say(wire.STARTED, number, b"7")
    return task, number


LIES: Final[dict[str, Callable[[Liar, int], None]]] = {
    "noise": lambda liar, number: liar.writer.write(os.urandom(4_096)),
    "a frame that is too long": lambda liar, number: liar.say(wire.STDOUT, number, b"", length=0xFFFF_FFFF),
    "output without bytes": lambda liar, number: liar.say(wire.STDOUT, number),
    "more output than asked for": lambda liar, number: [
        liar.say(wire.STDOUT, number, b"x" * wire.BODY_BYTES) for _ in range(3 * WINDOW // wire.BODY_BYTES)
    ][0],
    "output of nobody": lambda liar, number: liar.say(wire.STDOUT, number + 1, b"x"),
    "a second start": lambda liar, number: liar.say(wire.STARTED, number, b"7"),
    "a start that is no number": lambda liar, number: liar.say(wire.STARTED, number, b"9" * 5_000),
    "an end that makes no sense": lambda liar, number: liar.say(wire.EXITED, number, b"x"),
    "an end with half a field": lambda liar, number: liar.say(wire.EXITED, number, struct.pack(">I", 9) + b"x"),
    "an end with a word for a number": lambda liar, number: liar.say(
        wire.EXITED, number, wire.pack([b"one", b"0", b"0", b""])
    ),
    "an answer to nothing": lambda liar, number: liar.say(wire.ANSWER, number, b"x"),
    "input that was not sent": lambda liar, number: liar.say(wire.INPUT_CREDIT, number, b"5"),
    "a gap in what is complete": lambda liar, number: liar.say(wire.GAP, number, wire.pack([b"67", b"5"])),
    "ready again": lambda liar, number: liar.ready(),
    "an unknown kind": lambda liar, number: liar.say(200, number, b""),
    "the end of the channel": lambda liar, number: liar.writer.close(),
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_agent_that_breaks_the_rules_is_given_up(lie: str) -> None:
    async with facing() as (agent, liar):
        task, number = await started(agent, liar)
        if lie == "more output than asked for":  # of a command that nobody reads
            process = asyncio.ensure_future(agent.spawn(["y"]))
            _, number, _ = await liar.hear()
            liar.say(wire.STARTED, number, b"8")
            await process
        LIES[lie](liar, number)
        with pytest.raises(SandboxFailed):
            await asyncio.wait_for(task, SECONDS)
        assert not agent.is_alive
        with pytest.raises(SandboxFailed):
            await agent.spawn(["z"])
        with pytest.raises(SandboxFailed):
            await agent.jobs()


async def test_more_than_was_to_be_kept_is_a_breach() -> None:
    async with facing() as (agent, liar):
        task, number = await started(agent, liar, keep_bytes=100)
        liar.say(wire.STDOUT, number, b"x" * 201)
        with pytest.raises(SandboxFailed, match="more output"):
            await asyncio.wait_for(task, SECONDS)


async def test_a_stream_has_one_gap_and_no_more() -> None:
    async with facing() as (agent, liar):
        task, number = await started(agent, liar, keep_bytes=100)
        for _ in range(2):  # each is told in words, which no bound would hold
            liar.say(wire.GAP, number, wire.pack([b"%d" % wire.STDOUT, b"5"]))
            liar.say(wire.STDOUT, number, b"x")
        with pytest.raises(SandboxFailed, match="a gap"):
            await asyncio.wait_for(task, SECONDS)


async def test_an_agent_that_never_says_anything_is_given_up() -> None:
    one, other = socket.socketpair()
    with other:
        ours = Ours(*await asyncio.open_connection(sock=one))
        with pytest.raises(SandboxFailed, match="did not answer"):
            await Agent.connect(ours, seconds=0.05)


async def test_tiny_pieces_of_output_cost_little_memory_while_nobody_reads() -> None:
    async with facing() as (agent, liar):
        starting = asyncio.ensure_future(agent.spawn(["x"]))
        _, number, _ = await liar.hear()
        liar.say(wire.STARTED, number, b"7")
        process = await starting
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(WINDOW // 2 // 1_000):
            for _ in range(1_000):
                liar.say(wire.STDOUT, number, b"x")
                liar.say(wire.STDERR, number, b"y")
            await liar.writer.drain()
        liar.say(wire.EXITED, number, wire.pack([b"0", b"0", b"0", b""]))
        seen = {"stdout": 0, "stderr": 0}
        async for stream, data in process.read():
            seen[stream] += len(data)
        assert seen == {"stdout": WINDOW // 2 // 1_000 * 1_000, "stderr": WINDOW // 2 // 1_000 * 1_000}
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24_576


@pytest.mark.parametrize("argv", [[], ["a\0b"], ["x" * 9_000_000]])
async def test_a_command_that_cannot_be_one_is_not_sent(argv: list[str]) -> None:
    async with facing() as (agent, _):
        with pytest.raises(OSError, match=r"command|Argument"):
            await agent.spawn(argv)
        assert agent.is_alive


async def test_what_is_waited_for_ends_with_the_channel() -> None:
    async with facing() as (agent, liar):
        waiting: list[Awaitable[object]] = [agent.jobs(), agent.job_output(1), agent.kill_job(1), agent.spawn(["x"])]
        tasks = [asyncio.ensure_future(each) for each in waiting]
        for _ in tasks:
            await liar.hear()
        liar.writer.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, SandboxFailed)


@pytest.mark.parametrize("answer", [b"x", wire.pack([b"1"]), wire.pack([b"x", b"", b"", b""]), wire.pack([b""] * 4)])
async def test_a_list_of_jobs_that_makes_no_sense_is_a_breach(answer: bytes) -> None:
    async with facing() as (agent, liar):
        asking = asyncio.ensure_future(agent.jobs())
        _, number, _ = await liar.hear()
        liar.say(wire.ANSWER, number, answer)
        with pytest.raises(SandboxFailed):
            await asyncio.wait_for(asking, SECONDS)
        assert not agent.is_alive
