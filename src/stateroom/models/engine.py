"""The engine's process: starts the child that serves the embedded model, waits for it, starts it again when it dies.

The model's memory is the child's alone. The child listens on a loopback port that it chooses, answers only to a key
made for this one start, and dies with us. Requests to it are `models.embedded`'s work, not made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.errors import BackendUnavailable

log = logging.getLogger("stateroom.models.engine")

START_SECONDS: Final = 120.0
"""How long loading the model may take."""
STABLE_SECONDS: Final = 60.0
"""A child that dies is started again at once if it has lived so long or was the first; else with a growing pause."""
RETRY_SECONDS: Final = 5.0
"""For so long a failure to start is the answer to every request; the next one afterwards tries again."""
BACKOFF_SECONDS: Final = 0.0625
BACKOFF_LIMIT: Final = 30.0

THREADS_LIMIT: Final = 8
"""A small model gains nothing from more: its threads wait for each other in busy loops."""
CACHE_MIB_LIMIT: Final = 512
"""For the keys and values of idle sessions, about 18 KiB a token."""

_CHILD: Final = Path(__file__).with_name("engine_child.py")


class EngineSettings(msgspec.Struct, frozen=True):
    """What the child is told."""

    model: str
    alias: str
    threads: int
    slots: int
    context: int
    cache_mib: int
    embedding: bool = False
    """The model makes vectors, not text."""


class Started(msgspec.Struct, frozen=True):
    """A child that serves."""

    url: str
    key: str
    pid: int
    import_seconds: float
    load_seconds: float
    start_seconds: float
    """From the start of the process to its answer."""


class _Answer(msgspec.Struct):
    url: str = ""
    import_seconds: float = 0.0
    load_seconds: float = 0.0
    error: str = ""


class EngineProcess:
    """Keeps one child alive from `start` to `close`."""

    def __init__(
        self, settings: Callable[[], EngineSettings], on_started: Callable[[Started], None] | None = None
    ) -> None:
        self._settings = settings
        """Called in a thread before the first start: it may fetch what is needed."""
        self._on_started = on_started
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._started: Started | None = None
        self._failure: BackendUnavailable | None = None
        self._failed_at = 0.0
        self._closed = False
        self.starts = 0

    def start(self) -> None:
        """Begin in the background, unless that has been done. A start that failed is tried again after a while."""
        rested = time.monotonic() - self._failed_at > RETRY_SECONDS
        if not self._closed and (self._keeper is None or (self._keeper.done() and rested)):
            self._failure = None
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def running(self) -> Started:
        """The child, started if need be. Raises BackendUnavailable when it cannot be."""
        self.start()
        async with self._changed:
            await self._changed.wait_for(lambda: self._started is not None or self._failure is not None)
        if self._started is None:
            assert self._failure is not None
            raise BackendUnavailable(self._failure.message, code=self._failure.code)
        return self._started

    async def ended(self, started: Started, *, within: float) -> bool:
        """Whether this child ends within so many seconds."""

        async def gone() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._started is not started)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone(), within)
        return self._started is not started

    async def close(self) -> None:
        """End the child for good, and wait until it is gone."""
        self._closed = True
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        await self._tell(None, BackendUnavailable("The embedded model was shut down.", code="engine_closed"))

    async def _keep(self) -> None:
        """Start the child, wait for its end, and so on. Ends when a child cannot be started."""
        deaths = 0
        try:
            settings = await asyncio.to_thread(self._settings)
            while True:
                began = time.monotonic()
                await self._live(settings)
                deaths = 1 if time.monotonic() - began > STABLE_SECONDS else deaths + 1
                await asyncio.sleep(0.0 if deaths == 1 else min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2 ** min(deaths, 16)))
        except Exception as error:  # whatever it is, those who wait for the engine have to hear of it
            failure = error if isinstance(error, BackendUnavailable) else _did_not_start(repr(error))
            log.error("engine.unavailable %s", failure.message)
            self._failed_at = time.monotonic()
            await self._tell(None, failure)

    async def _live(self, settings: EngineSettings) -> None:
        """One life of a child. Raises BackendUnavailable when it does not get as far as to serve."""
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # else the folder of the script would hide modules of the same names
            str(_CHILD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for us: we finish the runs first
        )
        last_words: deque[str] = deque(maxlen=8)
        listener = asyncio.create_task(_listen(process, last_words))
        try:
            key = ids.random_padding(48)
            answer = await _ask(process, settings, key)
            if not answer.url:
                raise _did_not_start(answer.error or " ".join(last_words))
            self.starts += 1
            log.info("engine.started pid=%d seconds=%.2f", process.pid, time.monotonic() - began)
            took = (answer.import_seconds, answer.load_seconds, time.monotonic() - began)
            started = Started(f"{answer.url}/v1", key, process.pid, *took)
            if self._on_started is not None:
                self._on_started(started)
            await self._tell(started, None)
            status = await process.wait()
            log.error("engine.died pid=%d status=%d %s", process.pid, status, " | ".join(last_words))
        finally:
            self._started = None
            await asyncio.shield(_end(process))
            listener.cancel()
        await self._tell(None, None)

    async def _tell(self, started: Started | None, failure: BackendUnavailable | None) -> None:
        async with self._changed:
            self._started, self._failure = started, failure
            self._changed.notify_all()


async def _ask(process: asyncio.subprocess.Process, settings: EngineSettings, key: str) -> _Answer:
    """Tell the child what to serve, and wait until it does."""
    assert process.stdin is not None
    assert process.stdout is not None
    told: dict[str, Any] = {**msgspec.to_builtins(settings), "key": key, "parent": os.getpid()}
    with contextlib.suppress(ConnectionError):  # it died at once: its silence says so below
        process.stdin.write(msgspec.json.encode(told) + b"\n")
        await process.stdin.drain()
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        return msgspec.json.decode(line, type=_Answer) if line else _Answer()
    except TimeoutError:
        raise _did_not_start(f"no answer within {START_SECONDS:g} seconds") from None
    except (ValueError, msgspec.DecodeError) as error:
        raise _did_not_start(f"it answered something else: {error}") from error


async def _listen(process: asyncio.subprocess.Process, last_words: deque[str]) -> None:
    """Keep the last lines that the child prints: they say why it died."""
    assert process.stderr is not None
    while line := await process.stderr.read(4096):
        last_words.extend(text[:300] for text in line.decode("utf-8", "replace").splitlines() if text.strip())


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def _did_not_start(why: str) -> BackendUnavailable:
    remedy = "Run `stateroom doctor`, or attach a model server with --backend."
    if "No module named 'xllamacpp'" in why:
        remedy = "Install the package xllamacpp (Linux and macOS), or attach a model server with --backend."
    return BackendUnavailable(
        f"The embedded model did not start: {why.strip() or 'its process died'}. {remedy}", code="engine_unavailable"
    )


def default_threads() -> int:
    """One less than the cores that are ours, at least one: a thread that must wait for a core stops all others."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(THREADS_LIMIT, int(min(cores, _quota())) - 1))


def _quota() -> float:
    """Cores that a container may use at a time."""
    try:
        allowed, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(allowed) / int(period)
    except (OSError, ValueError):  # not Linux, not a container, or "max"
        return float("inf")


def default_cache_mib() -> int:
    """An eighth of the free memory, at most 512 MiB."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # macOS does not say
        return CACHE_MIB_LIMIT // 2
    return max(16, min(CACHE_MIB_LIMIT, free // 8 // 2**20))
