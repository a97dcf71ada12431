"""Serving: from settings to a listening server and back, until a signal ends it. The parts are built by app.py."""

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

import msgspec
import uvicorn

from stateroom.addresses import is_loopback
from stateroom.api.connection import bounded, make_room
from stateroom.api.websocket import PING_SECONDS, PONG_SECONDS, BoundedWebSocket
from stateroom.app import Application
from stateroom.journal.sqlite import SqliteJournal
from stateroom.settings import Settings
from stateroom.telemetry.logs import start_logging
from stateroom.tools.tool import Tool

log = logging.getLogger("stateroom.app")

FLUSH_SECONDS = 1.0
"""How long clients have to take in the end of their answers when the server stops."""

FENCED_EXIT = 4
"""Exit status of a server whose data directory another one has taken over."""

DATE_SECONDS = 1.0
"""How often the date in the heads of answers is set."""

INHERITED = 3
"""The first file descriptor that a service manager hands over."""


class ServerInfo(msgspec.Struct, frozen=True):
    """What a started server says of itself."""

    url: str
    data: str
    models: list[str]
    durability: str
    embedded: bool
    keyed: bool = False
    """Whether it asks for an access key."""


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
    listening = inherited() or bind(settings.host, settings.port)
    try:
        application = Application(settings, tools=tools, progress=on_progress, wrap_journal=wrap_journal)
        if _others_reach(listening):  # a service manager may have bound what no setting says
            application.gate.demand_keys()
    except BaseException:
        listening.close()
        raise
    make_room(settings.limits.connections)
    server = _server(application)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, application)
    try:
        await application.start()
    except BaseException:
        listening.close()
        for backend in application.backends:
            await backend.close()
        raise
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
            "server.stopping runs=%d they have %g s to end, else they go on at the next start; "
            "Ctrl-C once more (or SIGTERM) to wait no longer",
            application.dispatcher.count,
            seconds,
        )
    server.leave()
    listening.close()
    parked = await application.stop()
    if parked:
        log.info("runs.parked count=%d they go on at the next start", parked)
    await asyncio.wait((serving,), timeout=FLUSH_SECONDS)
    server.hang_up()
    await serving
    stopping.cancel()
    return FENCED_EXIT if application.fenced else 0


def _stop(application: Application) -> None:
    """What a signal does: the first ends the server, the next one its waiting for runs."""
    if application.stopping.is_set() and not application.hurrying.is_set():
        log.info("server.hurried runs=%d they are not waited for", application.dispatcher.count)
        application.hurrying.set()
    application.stopping.set()


def _settle_memory() -> None:
    """What was built at the start lives as long as the process: the collector need not look at it again.

    Younger objects die by reference counting almost always; looking for cycles less often saves a tenth of a turn.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: ours finish or park the runs first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()
        self._leaves = asyncio.Event()

    def leave(self) -> None:
        """Take no more requests, and end when those that are there are answered."""
        self.should_exit = True
        self._leaves.set()

    async def main_loop(self) -> None:
        """Set the date each second until told to leave: uvicorn's own wakes an idle server ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._leaves.wait()

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


def _server(application: Application) -> Server:
    return Server(
        uvicorn.Config(
            application.asgi,
            http=bounded(application.settings.limits.connections),
            ws=BoundedWebSocket,
            ws_max_size=application.settings.limits.body_bytes,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PONG_SECONDS,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks who a client is by its address
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


def inherited() -> socket.socket | None:
    """The socket that the service manager listens on for us, so that nobody is turned away during a restart.

    Source: the protocol of sd_listen_fds(3).
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") == "0":
        return None
    listening = socket.socket(fileno=INHERITED)
    listening.setblocking(False)
    listening.set_inheritable(False)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # the processes that this one starts are not meant
    return listening


def _others_reach(listening: socket.socket) -> bool:
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not is_loopback(str(listening.getsockname()[0]))


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
        keyed=not application.gate.is_open,
    )
