"""The embedded model: a backend without a model server, so that a fresh install answers. A smoke test, nothing more.

Weights come from `models.weights`, the process that holds them from `models.engine`, the dialect from `models.chat`,
tool calls from `models.emulation`. Here is what is this model's own: its limits, its defaults and its restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from stateroom.errors import BackendError, BackendFailed, BackendUnavailable, InvalidRequest
from stateroom.models.backend import ContextItem, Delta, Finished, Model, ModelCall
from stateroom.models.chat import ChatBackend
from stateroom.models.emulation import ToolEmulation
from stateroom.models.engine import EngineProcess, EngineSettings, Started, default_cache_mib, default_threads
from stateroom.models.grammar_schema import Bounds, fit
from stateroom.models.weights import cache_directory, ensure_weights
from stateroom.settings import BackendSettings, EmbeddedSettings
from stateroom.telemetry.instruments import Instruments

MODEL: Final = "smollm2-135m-instruct"
DESCRIPTION: Final = "embedded smoke-test model: shows that the runtime works, not what a model can do"

INSTRUCTIONS: Final = "You are a helpful assistant."
"""Given when the caller gives none: with it and temperature 0 the model does best."""
TEMPERATURE: Final = 0.0
"""The same."""
OUTPUT_TOKENS: Final = 512
"""Bound on an answer when the caller sets none: this model does not always find an end."""
BOUNDS: Final = Bounds(text=300, items=8, nodes=1_000)
"""What its grammar-forced replies are held to."""
DEATH_SECONDS: Final = 1.0
"""How long to wait, after a broken connection, for the news that the engine has died."""
FIRST_BYTE_SECONDS: Final = 1_800.0
"""A full context on a busy core takes minutes to read."""
SILENCE_SECONDS: Final = 300.0

_KEY: Final = "embedded"
_OWNER: Final = "embedded:owner"
_IMAGES: Final = frozenset({"input_image", "computer_screenshot"})


class EmbeddedBackend:
    """The model in its child process, started with the first request or by `start`."""

    name = "embedded"
    can_prefill = True

    def __init__(
        self,
        settings: EmbeddedSettings,
        *,
        progress: Callable[[str], None] | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self.settings = settings
        self._progress = progress
        self._stop = threading.Event()
        self._engine = EngineProcess(self._prepare, self._started)
        self._live = _LiveEngine(self._engine, settings.slots, instruments)
        self._outer = ToolEmulation(self._live, BOUNDS)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to fetch the weights, if need be, and to load them, in the background."""
        self._loop = asyncio.get_running_loop()
        self._engine.start()

    async def ready(self) -> Started:
        """Wait until it serves. Raises BackendUnavailable when it cannot."""
        self.start()
        return await self._engine.running()

    async def models(self) -> list[Model]:
        context = self.settings.context_tokens
        return [Model(MODEL, context_tokens=context, description=DESCRIPTION, temperature=TEMPERATURE)]

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        fitted = _fitted(call)
        self.start()
        async with contextlib.aclosing(self._outer.generate(fitted)) as batches:
            async for batch in batches:
                yield batch

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        fitted = _fitted(call)
        self.start()
        return await self._outer.count_tokens(fitted)

    async def close(self) -> None:
        self._stop.set()
        await self._engine.close()
        await self._live.close()

    def _prepare(self) -> EngineSettings:
        """Everything that the child is to be told. Runs in a thread: it may fetch the weights."""
        settings = self.settings
        path = ensure_weights(cache_directory(settings.cache_dir), self._fetching, stop=self._stop)
        self._say("Starting the embedded model")
        return EngineSettings(
            model=str(path),
            alias=MODEL,
            threads=settings.threads or default_threads(),
            slots=settings.slots,
            context=settings.context_tokens,
            cache_mib=default_cache_mib(),
        )

    def _fetching(self, done: int, total: int) -> None:
        self._say(f"Fetching the embedded model: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def _started(self, started: Started) -> None:
        self._say(f"The embedded model is ready (it took {started.start_seconds:.1f} s)")

    def _say(self, text: str) -> None:
        if self._progress is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to be told
                self._loop.call_soon_threadsafe(self._progress, text)


class _LiveEngine:
    """The child as a backend: a new dialect for each start, and a second try when it died before it said anything."""

    name = EmbeddedBackend.name
    can_prefill = True

    def __init__(self, engine: EngineProcess, slots: int, instruments: Instruments | None = None) -> None:
        self._engine = engine
        self._instruments = instruments
        self._slots = _Slots(slots)
        self._chat: tuple[Started, ChatBackend] | None = None
        self._changing = asyncio.Lock()

    async def models(self) -> list[Model]:
        return await (await self._dialect())[1].models()

    async def generate(self, call: ModelCall) -> AsyncGenerator[Sequence[Delta], None]:
        owner = call.cache.setdefault(_OWNER, object())
        given = False
        for last in (False, True):
            started, chat = await self._dialect()
            async with self._slots.place(owner) as extra:
                placed = msgspec.structs.replace(call, extra={**(call.extra or {}), **(extra or {})})
                try:
                    async with contextlib.aclosing(chat.generate(placed)) as batches:
                        async for batch in batches:
                            given = True
                            yield batch
                    return
                except (BackendFailed, BackendUnavailable) as error:
                    died = await self._engine.ended(started, within=DEATH_SECONDS)
                    if not died:
                        raise
                    if given or last:
                        raise BackendFailed(
                            "The embedded model's process died while it answered; it is being started again.",
                            code="engine_died",
                        ) from error

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        return await (await self._dialect())[1].count_tokens(call)

    async def close(self) -> None:
        chat, self._chat = self._chat, None
        if chat is not None:
            await chat[1].close()

    async def _dialect(self) -> tuple[Started, ChatBackend]:
        async with self._changing:
            started = await self._engine.running()
            if self._chat is None or self._chat[0] is not started:
                await self.close()
                chat = ChatBackend(self._settings(started), started.key, instruments=self._instruments)
                with contextlib.suppress(BackendError):  # a request will say so, too
                    await chat.models()  # with the first answer it learns what this server does with connections
                self._chat = started, chat
                self._slots.forget()
            return self._chat

    def _settings(self, started: Started) -> BackendSettings:
        return BackendSettings(
            url=started.url,
            name=self.name,
            prefill="assistant",
            reasoning_field="none",
            first_byte_timeout_seconds=FIRST_BYTE_SECONDS,
            idle_timeout_seconds=SILENCE_SECONDS,
            retries=0,
            concurrency=self._slots.count + 4,
        )


class _Slots:
    """Which context's keys and values each slot of the engine holds.

    The engine saves what it evicts and loads what it has saved only when it chooses the slot itself, the least recently
    used one; and it does not see that another slot holds a context. So a context goes back to its slot by number as
    long as it is there, and everything else is left to the engine. To be wrong about it costs time only.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._owners: list[object | None] = [None] * count
        self._used = [0] * count
        self._busy: set[int] = set()
        self._turn = asyncio.Semaphore(count)
        """Requests wait here rather than in the child, where the wait would count as silence."""
        self._clock = 0

    @contextlib.asynccontextmanager
    async def place(self, owner: object) -> AsyncIterator[dict[str, Any] | None]:
        """A place for a request of this context, and what the request has to say of it."""
        async with self._turn:
            free = [slot for slot in range(self.count) if slot not in self._busy]
            known = [slot for slot in free if self._owners[slot] is owner]
            known = known or [slot for slot in free if self._owners[slot] is None]
            slot = known[0] if known else min(free, key=self._used.__getitem__)
            self._owners[slot] = owner
            self._busy.add(slot)
            try:
                yield {"id_slot": slot} if known else None
            finally:
                self._busy.discard(slot)
                self._clock += 1
                self._used[slot] = self._clock

    def forget(self) -> None:
        """The engine is a new one."""
        self._owners = [None] * self.count


# What the model takes.


class _Seen(msgspec.Struct):
    """What is known of a context, so that a turn looks at its new items only; lives in the context's cache."""

    consumed: int = 0
    last: str = ""
    has_system: bool = False
    format: tuple[Any, Any] = (None, None)
    """The format of the last call, and what it was cut down to."""


def _fitted(call: ModelCall) -> ModelCall:
    """The call as this model takes it. Raises InvalidRequest for what it cannot take."""
    seen = call.cache.setdefault(_KEY, _Seen())
    if len(call.items) < seen.consumed or (seen.consumed and call.items[seen.consumed - 1].id != seen.last):
        seen = call.cache[_KEY] = _Seen()
    _look_at(call.items[seen.consumed :], seen)
    fitted = msgspec.structs.replace(call, model=MODEL, stream=True)
    if fitted.instructions is None and not seen.has_system:
        fitted.instructions = INSTRUCTIONS
    if fitted.temperature is None:
        fitted.temperature = TEMPERATURE
    if fitted.max_output_tokens is None:
        fitted.max_output_tokens = OUTPUT_TOKENS
    if call.format is not None and call.format is not seen.format[0]:
        seen.format = (call.format, _fitted_format(call.format))
    fitted.format = None if call.format is None else seen.format[1]
    return fitted


def _fitted_format(format: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(format.get("schema"), dict):
        return format
    return {**format, "schema": fit(format["schema"], BOUNDS)}


def _look_at(items: Sequence[ContextItem], seen: _Seen) -> None:
    for held in items:
        item = held.item
        for field in ("content", "output"):
            if _has_image(item.get(field)):
                raise InvalidRequest(
                    f"The embedded model {MODEL} reads text only. Leave the image out, or attach a model server that "
                    "reads images with --backend.",
                    code="image_not_supported",
                    param="input",
                )
        seen.has_system |= item.get("role") in ("system", "developer")
        seen.consumed += 1
        seen.last = held.id


def _has_image(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value] if isinstance(value, dict) else ()
    return any(isinstance(part, dict) and part.get("type") in _IMAGES for part in parts)


# For `stateroom doctor`.


class EngineReport(msgspec.Struct, frozen=True):
    """How the engine did when it was tried."""

    model: str
    weights: Path
    threads: int
    prepare_seconds: float
    """Fetching and checking the weights."""
    start_seconds: float
    """From the start of the child to its readiness; `import_seconds` and `load_seconds` are parts of it."""
    import_seconds: float
    load_seconds: float
    first_token_seconds: float
    resident_mib: float | None
    """Memory of the child; None where the system does not say."""
    input_tokens: int


async def probe(settings: EmbeddedSettings, progress: Callable[[str], None] | None = None) -> EngineReport:
    """Start the engine and have it generate a token. Raises BackendError."""
    backend = EmbeddedBackend(settings, progress=progress)
    began = time.monotonic()
    try:
        started = await backend.ready()
        ready = time.monotonic()
        item = ContextItem("msg_probe", {"role": "user", "content": "Say hello."})
        call = ModelCall(MODEL, [item], {}, max_output_tokens=1)
        usage = None
        async with contextlib.aclosing(backend.generate(call)) as batches:
            async for batch in batches:
                usage = next((delta.usage for delta in batch if isinstance(delta, Finished)), usage)
        if usage is None or usage.output < 1:
            raise BackendError("The embedded model answered without a token. This is unexpected: please report it.")
        return EngineReport(
            model=MODEL,
            weights=ensure_weights(cache_directory(settings.cache_dir)),
            threads=settings.threads or default_threads(),
            prepare_seconds=max(0.0, ready - began - started.start_seconds),
            start_seconds=started.start_seconds,
            import_seconds=started.import_seconds,
            load_seconds=started.load_seconds,
            first_token_seconds=time.monotonic() - ready,
            resident_mib=_resident_mib(started.pid),
            input_tokens=usage.input,
        )
    finally:
        await backend.close()


def _resident_mib(pid: int) -> float | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
