"""The composition root: builds every part, in order, visibly. Nothing else knows how parts are made."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from stateroom import ids
from stateroom.access.outbound import OutboundGuard
from stateroom.access.principal import Principal
from stateroom.access.sealing import Sealer, load_key
from stateroom.api.connection import BoundedHttp
from stateroom.api.conversations import ConversationsApi
from stateroom.api.http import Edge, answer_error, answer_http_exception, answer_unexpected
from stateroom.api.models import ModelsApi
from stateroom.api.responses import ResponsesApi
from stateroom.api.surface import ResponsesSurface
from stateroom.blobs.directory import open_directory
from stateroom.blobs.hold import HeldBlobs
from stateroom.clock import SystemClock
from stateroom.errors import StateroomError, StorageError
from stateroom.journal.lock import lock_directory
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.models.backend import Backend
from stateroom.models.chat import ChatBackend
from stateroom.models.emulation import ToolEmulation
from stateroom.models.router import Router
from stateroom.runtime.branches import Branches
from stateroom.runtime.conversations import Conversations
from stateroom.runtime.dispatch import LocalDispatcher
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.generate import Generator
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.leases import LeaseKeeper
from stateroom.runtime.runs import Runs
from stateroom.runtime.worker import Worker
from stateroom.runtime.writer import Flusher
from stateroom.settings import BackendSettings, Settings
from stateroom.telemetry import start_logging
from stateroom.tools.tool import Tool
from stateroom.wire.requests import Bounds

log = logging.getLogger("stateroom.app")

JOURNAL = "journal.db"
BACKENDS_SECONDS = 2.0
"""How long a start waits to hear what the backends serve: one that is silent must not keep the server from serving."""
FLUSH_SECONDS = 1.0
"""How long clients have to take in the end of their answers when the server stops."""

FENCED_EXIT = 4
"""Exit status of a server whose data directory another one has taken over."""


class ServerInfo(msgspec.Struct, frozen=True):
    """What a started server says of itself."""

    url: str
    data: str
    models: list[str]
    durability: str
    embedded: bool


class Application:
    """The built parts, and how they start and stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        tools: Sequence[Tool] = (),
        progress: Callable[[str], None] | None = None,
        wrap_journal: Callable[[SqliteJournal], SqliteJournal] | None = None,
    ) -> None:
        """Builds everything. The data directory is taken and the journal opened here, before any loop runs.

        `wrap_journal` is for tests that break it on purpose. Raises DirectoryInUse, JournalDamaged, JournalNewer.
        """
        self.settings = settings
        limits = settings.limits
        data = Path(settings.data)
        clock = SystemClock()
        self.stopping = asyncio.Event()
        self.fenced = False

        self._lock = lock_directory(data)
        try:
            self.journal: SqliteJournal = open_sqlite(data / JOURNAL, durability=settings.durability, clock=clock)
            if wrap_journal is not None:
                self.journal = wrap_journal(self.journal)
            self.blobs = open_directory(data / "blobs", durability=settings.durability)
            sealer = Sealer(load_key(data / "secret.key"))
        except BaseException:
            self._lock.release()
            raise

        self.backends = build_backends(settings, progress)
        self.router = Router(
            self.backends, default_model=settings.default_model, unknown_models=settings.unknown_models
        )
        guard = OutboundGuard(
            allow_private=settings.allow_private_addresses,
            bytes_max=limits.image_bytes,
            timeout_seconds=limits.image_timeout_seconds,
        )
        ephemeral = MemoryJournal(clock=clock)
        self.branches = Branches(
            self.journal,
            Flusher(),
            clock,
            memory_bytes=limits.cached_context_bytes,
            holder=ids.new_id("holder"),
            on_fenced=self._on_fenced,
        )
        held = HeldBlobs(self.blobs)
        inputs = Inputs(self.journal, self.journal, self.blobs, held, guard, sealer, limits)
        self.erasure = Erasure(self.journal, self.journal, self.blobs, held, self.branches, clock)
        generator = Generator(self.router, self.blobs, sealer, limits, clock)
        hosted = {tool.type: tool for tool in tools}
        surface = ResponsesSurface(hosted)
        self.runs = Runs(
            journal=self.journal,
            ephemeral=ephemeral,
            index=self.journal,
            branches=self.branches,
            inputs=inputs,
            erasure=self.erasure,
            generator=generator,
            router=self.router,
            surfaces={surface.name: surface},
            limits=limits,
        )
        worker = Worker(generator, hosted, limits)
        self.dispatcher = self.runs.dispatcher = LocalDispatcher(
            worker, runs_max=limits.runs, waiting_max=limits.waiting_runs, on_done=self.runs.ended
        )
        self.leases = LeaseKeeper(self.journal, self.runs, self._on_fenced)
        self.conversations = Conversations(self.journal, self.branches, self.runs, inputs, self.erasure)
        self.asgi: ASGIApp = self._routes()

    def _routes(self) -> ASGIApp:
        limits = self.settings.limits
        bounds = Bounds(
            items=limits.items,
            depth=limits.depth,
            tools=limits.tools,
            content_parts=limits.content_parts,
            item_bytes=limits.item_bytes,
        )
        models = ModelsApi(self.router, self._why_unready)
        v1 = [
            *ResponsesApi(self.runs, self.conversations, bounds, limits.body_bytes).routes(),
            *ConversationsApi(self.conversations, bounds, limits.body_bytes).routes(),
            *models.routes(),
        ]
        starlette = Starlette(
            routes=[Mount("/v1", routes=v1), *models.health_routes()],
            exception_handlers={
                StateroomError: answer_error,
                HTTPException: answer_http_exception,
                Exception: answer_unexpected,
            },
        )

        async def with_principal(scope: Scope, receive: Receive, send: Send) -> None:
            scope["stateroom.principal"] = Principal()
            await starlette(scope, receive, send)

        return Edge(with_principal, loopback_only=True)

    async def start(self) -> None:
        """Ask the backends what they serve, and take up every run that was left open."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.router.refresh(), BACKENDS_SECONDS)
        recovered = await self.runs.recover()
        self.leases.start()
        self.dispatcher.at(0.0, self._sweep)
        if recovered:
            log.info("runs.recovered count=%d", recovered)

    async def stop(self) -> int:
        """Finish what runs within the bound, park the rest, close everything; returns how many were parked."""
        # A server that was fenced can end nothing that it has begun: whoever took over does.
        parked = await self.dispatcher.close(0.0 if self.fenced else self.settings.shutdown_seconds)
        await self.leases.close()
        for backend in self.backends:
            await backend.close()
        await self.journal.close()
        self._lock.release()
        return parked

    async def _sweep(self) -> None:
        try:
            await self.erasure.sweep()
        except StorageError as error:
            log.warning("blobs.not_swept code=%s they are swept at the next start", error.code)

    def _why_unready(self) -> str:
        if self.fenced:
            return "another server has taken over the data directory"
        return "the server is stopping" if self.stopping.is_set() else ""

    def _on_fenced(self) -> None:
        if not self.fenced:
            self.fenced = True
            log.error("server.fenced another server has taken over %s; this one stops", self.settings.data)
            self.stopping.set()


def build_backends(settings: Settings, progress: Callable[[str], None] | None) -> list[Backend]:
    """The configured model servers, or the embedded engine when there are none."""
    if not settings.backends:
        from stateroom.models.embedded import EmbeddedBackend  # lazy: only a server without backends needs it

        embedded = EmbeddedBackend(settings.embedded, progress=progress)
        embedded.start()  # it loads in the background, while the rest starts
        return [embedded]
    return [_build_backend(each) for each in settings.backends]


def _build_backend(settings: BackendSettings) -> Backend:
    key = os.environ.get(settings.key_env) if settings.key_env else None
    backend: Backend = ChatBackend(settings, key)
    return ToolEmulation(backend) if settings.tools == "emulate" else backend


async def serve(
    settings: Settings,
    on_ready: Callable[[ServerInfo], None],
    on_progress: Callable[[str], None],
    *,
    tools: Sequence[Tool] = (),
    wrap_journal: Callable[[SqliteJournal], SqliteJournal] | None = None,
) -> int:
    """Run the server until SIGTERM or SIGINT; returns its exit status.

    Raises OSError when the address cannot be bound, DirectoryInUse, JournalDamaged, JournalNewer.
    """
    start_logging(settings.log_level, settings.log_format)
    listening = bind(settings.host, settings.port)
    try:
        application = Application(settings, tools=tools, progress=on_progress, wrap_journal=wrap_journal)
    except BaseException:
        listening.close()
        raise
    server = _server(application)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, application.stopping.set)
    await application.start()
    serving = loop.create_task(server.serve(sockets=[listening]))
    listens = loop.create_task(server.listens.wait())
    await asyncio.wait((serving, listens), return_when=asyncio.FIRST_COMPLETED)
    on_ready(await describe(application, listening))
    _settle_memory()
    stopping = loop.create_task(application.stopping.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    if application.dispatcher.count and not application.fenced:
        seconds = settings.shutdown_seconds
        log.info(
            "server.stopping runs=%d they have %g s to end, else they go on at the next start",
            application.dispatcher.count,
            seconds,
        )
    server.should_exit = True
    listening.close()
    parked = await application.stop()
    if parked:
        log.info("runs.parked count=%d they go on at the next start", parked)
    await asyncio.wait((serving,), timeout=FLUSH_SECONDS)
    server.hang_up()
    await serving
    stopping.cancel()
    return FENCED_EXIT if application.fenced else 0


def _settle_memory() -> None:
    """What was built at the start lives as long as the process: the collector need not look at it again.

    Younger objects die by reference counting almost always; looking for cycles less often saves a tenth of a turn.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: ours finish or park the runs first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    def hang_up(self) -> None:
        """Drop the connections whose clients have not taken in the end of their answers."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(application: Application) -> _Server:
    return _Server(
        uvicorn.Config(
            application.asgi,
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Streams are to see the end of the runs that are given time to finish; `serve` hangs up afterwards.
            timeout_graceful_shutdown=math.ceil(application.settings.shutdown_seconds) + 15,
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(2048)
    except BaseException:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


async def describe(application: Application, listening: socket.socket) -> ServerInfo:
    """What the started server says of itself."""
    settings = application.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return ServerInfo(
        url=f"http://{host}:{listening.getsockname()[1]}/v1",
        data=settings.data,
        models=[model.id for model in application.router.models()],
        durability=settings.durability,
        embedded=not settings.backends,
    )
