"""The composition root: builds every part, in order, visibly. Nothing else knows how parts are made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from stateroom import ids
from stateroom.access import keys as access_keys
from stateroom.access.keys import KeyRing, open_keys
from stateroom.access.outbound import FILE_CODES, OutboundGuard
from stateroom.access.policy import Policy
from stateroom.access.rates import Allowance, Rates
from stateroom.access.sealing import Sealer, derived_key, load_key
from stateroom.addresses import is_loopback
from stateroom.api.batch_lines import Handler, LineAnswers
from stateroom.api.batches import BatchesApi
from stateroom.api.chat import ChatApi
from stateroom.api.chat_surface import ChatSurface
from stateroom.api.compaction import CompactionApi
from stateroom.api.completions import CompletionsApi
from stateroom.api.containers import ContainersApi
from stateroom.api.conversations import ConversationsApi
from stateroom.api.direct import Direct
from stateroom.api.edge import Edge
from stateroom.api.embeddings import EmbeddingsApi
from stateroom.api.export import ExportApi
from stateroom.api.files import FilesApi
from stateroom.api.gate import Gate
from stateroom.api.http import answer_error, answer_http_exception, answer_unexpected
from stateroom.api.metrics import MetricsApi
from stateroom.api.models import ModelsApi
from stateroom.api.observed import Observed
from stateroom.api.openapi import PUBLIC, OpenApi
from stateroom.api.responses import ResponsesApi
from stateroom.api.run_events import RunEventsApi
from stateroom.api.skills import SkillsApi
from stateroom.api.sockets import Sockets
from stateroom.api.surface import ResponsesSurface
from stateroom.api.uploads import UploadsApi
from stateroom.api.webhooks import WebhooksApi
from stateroom.blobs.directory import open_directory
from stateroom.blobs.hold import HeldBlobs
from stateroom.building import build_backends, build_embeddings, build_workspaces, open_content, workspace_readings
from stateroom.clock import SystemClock
from stateroom.errors import StateroomError
from stateroom.journal.layout import BLOBS, JOURNAL, SECRET
from stateroom.journal.lock import lock_directory
from stateroom.journal.memory import MemoryJournal
from stateroom.journal.sqlite import SqliteJournal, open_sqlite
from stateroom.models.router import Router
from stateroom.runtime.batches.batches import Batches
from stateroom.runtime.batches.places import Places
from stateroom.runtime.batches.state import COLLECTION as BATCHES
from stateroom.runtime.batches.state import Batch, BatchParts
from stateroom.runtime.branches import Branches
from stateroom.runtime.chat_completions import ChatCompletions
from stateroom.runtime.compaction import Compactor
from stateroom.runtime.compactions import Compactions
from stateroom.runtime.completions import Completer
from stateroom.runtime.containers.commands import ContainerCommands
from stateroom.runtime.containers.commits import ContainerCommits
from stateroom.runtime.containers.containers import ContainerParts, Containers
from stateroom.runtime.containers.egress import ContainerEgress
from stateroom.runtime.containers.files import ContainerFiles
from stateroom.runtime.containers.of_runs import RunContainers
from stateroom.runtime.containers.upkeep import ContainerUpkeep
from stateroom.runtime.conversations import Conversations
from stateroom.runtime.dispatch import LocalDispatcher
from stateroom.runtime.erasure import Erasure
from stateroom.runtime.files.documents import Documents
from stateroom.runtime.files.files import Files
from stateroom.runtime.files.inputs import FileInputs
from stateroom.runtime.files.uploads import Uploads
from stateroom.runtime.generate import Generator
from stateroom.runtime.hosted_calls import HostedCalls
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.leases import LeaseKeeper
from stateroom.runtime.local import LocalMemory
from stateroom.runtime.moving.exports import Exporter
from stateroom.runtime.moving.imports import Importer
from stateroom.runtime.records import Records
from stateroom.runtime.retention import Retention
from stateroom.runtime.runs import Runs
from stateroom.runtime.skills.mounting import SkillMounting
from stateroom.runtime.skills.skills import Skills
from stateroom.runtime.watch import RunWatch
from stateroom.runtime.webhooks import Webhooks
from stateroom.runtime.worker import Worker
from stateroom.runtime.writer import Flusher
from stateroom.settings import ProjectSettings, Settings
from stateroom.telemetry.exposition import Exposition, Read
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.logs import AccessLog
from stateroom.telemetry.spans import Tracer
from stateroom.telemetry.tracing import start_tracing
from stateroom.tools.apply_patch import ApplyPatchTool
from stateroom.tools.code_interpreter import CodeInterpreterTool
from stateroom.tools.mcp.hosted import McpTool
from stateroom.tools.mcp.servers import McpServers
from stateroom.tools.program.engine import Programs
from stateroom.tools.shell import ShellTool
from stateroom.tools.tool import Tool
from stateroom.wire.embeddings import EmbeddingBounds
from stateroom.wire.requests import Bounds

log = logging.getLogger("stateroom.app")

BACKENDS_SECONDS = 2.0
"""How long a start waits to hear what the backends serve: one that is silent must not keep the server from serving."""


class Application:
    """The built parts, and how they start and stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        tools: Sequence[Tool] = (),
        progress: Callable[[str], None] | None = None,
        wrap_journal: Callable[[SqliteJournal], SqliteJournal] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Builds everything. The data directory is taken and the journal opened here, before any loop runs.

        `wrap_journal` is for tests that break it on purpose. Raises DirectoryInUse, JournalDamaged, JournalNewer.
        """
        self.settings = settings
        limits = settings.limits
        data = Path(settings.data)
        clock = SystemClock()
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        """Runs are not waited for any longer when the server stops."""
        self.fenced = False
        instruments = self.instruments = Instruments(tracer or start_tracing(settings.telemetry, os.environ))

        self._lock = lock_directory(data)
        try:
            self.journal: SqliteJournal = open_sqlite(data / JOURNAL, durability=settings.durability, clock=clock)
            if wrap_journal is not None:
                self.journal = wrap_journal(self.journal)
            self.blobs = open_directory(data / BLOBS, durability=settings.durability)
            self.content = open_content(data, settings)
            secret = load_key(data / SECRET)
            sealer = Sealer(secret)
            self.keys = KeyRing(open_keys(data / access_keys.FILE, clock=clock))
        except BaseException:
            self._lock.release()
            raise

        self.backends = build_backends(settings, progress, instruments)
        self.router = Router(
            self.backends, default_model=settings.default_model, unknown_models=settings.unknown_models
        )
        self.embeddings = build_embeddings(settings, self.router, instruments)
        self.completer = Completer(self.router, limits)
        guard = OutboundGuard(
            allow_private=settings.allow_private_addresses,
            bytes_max=limits.image_bytes,
            timeout_seconds=limits.image_timeout_seconds,
        )
        self.rates = Rates(clock, of_project=self._allowance, of_key=self.keys.allowance)
        ephemeral = MemoryJournal(clock=clock)
        self.branches = Branches(
            self.journal,
            Flusher(instruments=instruments),
            clock,
            memory_bytes=limits.cached_context_bytes,
            holder=ids.new_id("holder"),
            on_fenced=self._on_fenced,
        )
        self.local = LocalMemory(
            bytes_max=limits.cached_context_bytes, connection_bytes_max=limits.socket_context_bytes
        )
        self.branches.on_erase.append(self.local.erase)
        held = self.held_blobs = HeldBlobs(self.blobs)
        self.records = Records(self.journal, self.journal, self.blobs, held, clock)
        self.files = Files(self.records, self.blobs, held, bytes_max=limits.file_bytes)
        self.uploads = Uploads(self.records, self.files, self.blobs)
        self.skills = Skills(self.records, self.blobs, held, clock, limits, data)
        self.mounting = SkillMounting(self.skills, limits.skill_bytes)
        self.containers = self._containers(data, sealer, clock)
        self.run_containers = RunContainers(self.containers)
        self.commands = ContainerCommands(self.containers, Policy(settings.policy))
        self.exporter = Exporter(
            self.journal, self.journal, self.blobs, self.files, sealer, history_bytes=limits.export_history_bytes
        )
        self.importer = Importer(
            self.journal,
            self.journal,
            blobs=self.blobs,
            held=held,
            records=self.records,
            sealer=sealer,
            clock=clock,
            limits=limits,
        )
        file_guard = OutboundGuard(
            allow_private=settings.allow_private_addresses,
            bytes_max=limits.file_input_bytes,
            timeout_seconds=limits.file_seconds,
            codes=FILE_CODES,
        )
        file_inputs = FileInputs(self.files, Documents(limits), self.blobs, held, file_guard, limits)
        inputs = Inputs(self.journal, self.journal, self.blobs, held, guard, sealer, limits, file_inputs)
        self.erasure = Erasure(self.journal, self.journal, self.blobs, held, self.branches, clock)
        generator = Generator(self.router, self.blobs, sealer, limits, clock)
        self.mcp = McpServers(guard, settings.mcp)
        self.workspaces.on_end.append(self.mcp.leave)
        mcp = McpTool(self.mcp)
        places = settings.workspaces
        working = (ShellTool(places), CodeInterpreterTool(places), ApplyPatchTool()) if places.driver != "none" else ()
        hosted = {tool.type: tool for tool in (*tools, mcp, *working)}
        programs = Programs(derived_key(secret, "programs"))
        surface, chat = ResponsesSurface(hosted, programs), ChatSurface(hosted)
        calls = HostedCalls(
            hosted,
            policy=Policy(settings.policy),
            containers=self.run_containers,
            lister=mcp,
            open_tools=inputs.opened,
            held=held,
            instruments=instruments,
            programs=programs,
            clock=clock,
        )
        self.runs = Runs(
            journal=self.journal,
            ephemeral=ephemeral,
            index=self.journal,
            branches=self.branches,
            inputs=inputs,
            erasure=self.erasure,
            generator=generator,
            router=self.router,
            surfaces={surface.name: surface, chat.name: chat},
            limits=limits,
            rates=self.rates,
            hosted=calls,
        )
        compactor = Compactor(generator, self.router, sealer, clock)
        self.retention = Retention(
            self.journal,
            self.journal,
            records=self.records,
            erasure=self.erasure,
            branches=self.branches,
            clock=clock,
            of_project=lambda project: self._project(project).retention,
        )
        self.upkeep = ContainerUpkeep(
            self.containers,
            self.journal,
            self.journal,
            clock,
            of_project=lambda project: self._project(project).retention,
        )
        self.erasure.on_erased.append(self.upkeep.erased)
        self.webhooks = Webhooks(self.records, guard, sealer, clock)
        worker = Worker(generator, compactor, calls, limits, self.runs.steering, self.webhooks)
        self.dispatcher = self.runs.dispatcher = LocalDispatcher(
            worker,
            runs_max=limits.runs,
            waiting_max=limits.waiting_runs,
            on_done=self.runs.ended,
            watch=RunWatch(instruments, clock),
        )
        self.leases = LeaseKeeper(self.journal, self.runs, self._on_fenced)
        self.conversations = Conversations(self.journal, self.branches, self.runs, inputs, self.erasure)
        self.chat = ChatCompletions(self.journal, self.branches, self.runs, inputs, self.records)
        self.compactions = Compactions(self.runs, compactor, self.rates, clock)
        self.idempotency = Idempotency(self.records)
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
        models = ModelsApi(self.router, self.embeddings, self._why_unready)
        embedding_bounds = EmbeddingBounds(limits.embedding_inputs, limits.embedding_input_bytes, limits.depth)
        completions = CompletionsApi(
            self.completer,
            self.rates,
            SystemClock(),
            choices_max=limits.completion_choices,
            depth=limits.depth,
            body_bytes=limits.body_bytes,
        )
        responses = ResponsesApi(self.runs, self.conversations, self.idempotency, bounds, limits.body_bytes)
        chat = ChatApi(self.runs, self.chat, self.idempotency, SystemClock(), bounds, limits.body_bytes)
        embeddings = EmbeddingsApi(self.embeddings, self.rates, embedding_bounds, limits.body_bytes)
        self.batches = self._batches(
            {
                "/v1/responses": responses.create,
                "/v1/chat/completions": chat.create,
                "/v1/embeddings": embeddings.create,
                "/v1/completions": completions.create,
            }
        )
        v1 = [
            *ExportApi(self.exporter, self.importer, self.journal, self.idempotency, limits.import_bytes).routes(),
            *CompactionApi(self.compactions, bounds, limits.body_bytes).routes(),
            *responses.routes(),
            *RunEventsApi(self.runs).routes(),
            *ConversationsApi(self.conversations, self.idempotency, bounds, limits.body_bytes).routes(),
            *chat.routes(),
            *completions.routes(),
            *embeddings.routes(),
            *BatchesApi(self.batches, self.idempotency).routes(),
            *FilesApi(self.files, self.idempotency).routes(),
            *UploadsApi(self.uploads, self.files, self.idempotency, limits).routes(),
            *ContainersApi(
                self.containers,
                ContainerFiles(self.containers, self.files, self.blobs),
                ContainerCommits(self.containers),
                ContainerEgress(self.containers),
                self.commands,
                self.idempotency,
                limits,
            ).routes(),
            *SkillsApi(self.skills, self.idempotency, limits).routes(),
            *WebhooksApi(self.webhooks, self.idempotency).routes(),
            *models.routes(),
        ]
        starlette = Starlette(
            routes=[
                Mount("/v1", routes=v1),
                *models.health_routes(),
                *MetricsApi(self._exposition().render).routes(),
                *OpenApi().routes(),
            ],
            exception_handlers={
                StateroomError: answer_error,
                HTTPException: answer_http_exception,
                Exception: answer_unexpected,
            },
        )
        self.routes = starlette.routes
        """All of them, for whoever checks or describes them."""
        self.gate = Gate(
            self.keys,
            self.rates,
            demands_key=not is_loopback(self.settings.host),
            public=frozenset({"/health", "/ready"}) | PUBLIC,
            reading=frozenset({"/v1/responses/input_tokens"}),
            admin=("/metrics",),
        )
        self.sockets = Sockets(
            self.runs, self.local, self.gate, bounds, body_bytes=limits.body_bytes, seconds=limits.socket_seconds
        )

        direct = Direct(starlette)

        def by_kind(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            return (self.sockets if scope["type"] == "websocket" else direct)(scope, receive, send)

        edge = Edge(by_kind, self.gate, cors_origins=self.settings.cors_origins)
        access_log = AccessLog(self.settings.access_log, self.settings.log_level, self.settings.log_format)
        return Observed(edge, self.instruments, self.routes, access_log)

    def _exposition(self) -> Exposition:
        gauges: dict[str, Read] = {
            "stateroom_sockets_active": lambda: self.sockets.count,
            "stateroom_runs_active": lambda: self.dispatcher.count - self.dispatcher.waiting,
            "stateroom_runs_waiting": lambda: self.dispatcher.waiting,
            "stateroom_journal_waiting": lambda: self.journal.waiting,
            "stateroom_context_bytes": lambda: self.branches.size,
            "stateroom_webhooks_pending": lambda: self.webhooks.pending,
            "stateroom_batches_active": lambda: self.batches.count,
            "stateroom_mcp_connections": lambda: self.mcp.count,
            **workspace_readings(self.workspaces),
        }
        return Exposition(self.instruments, self.journal.meter, gauges, version("stateroom"))

    def _batches(self, handlers: Mapping[str, Handler]) -> Batches:
        return Batches(
            BatchParts(
                batches=self.records.collection(BATCHES, Batch),
                files=self.files,
                blobs=self.blobs,
                held=self.held_blobs,
                clock=SystemClock(),
                webhooks=self.webhooks,
                rates=self.rates,
                limits=self.settings.limits,
                places=Places(self.settings.limits.batch_concurrency, lambda: self.dispatcher.count),
                answering=LineAnswers(handlers, self.runs, self.idempotency),
            )
        )

    def _containers(self, data: Path, sealer: Sealer, clock: SystemClock) -> Containers:
        live = self.workspaces = build_workspaces(self.settings, data, self.content, clock, self.instruments.workspaces)
        self.skills.folders.mounted = live.mounted
        return Containers(
            ContainerParts(
                self.records, self.files, self.content, live, sealer, self.settings.workspaces, self.mounting
            )
        )

    def _project(self, name: str) -> ProjectSettings:
        return self.settings.projects.get(name, self.settings.project)

    def _allowance(self, project: str) -> Allowance:
        held = self._project(project)
        return Allowance(held.requests_per_minute, held.tokens_per_minute, held.runs)

    async def start(self) -> None:
        """Ask the backends what they serve, and take up every run that was left open."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.router.refresh(), BACKENDS_SECONDS)
        await self.webhooks.start()
        await self.skills.folders.start()
        await self.upkeep.start()
        recovered = await self.runs.recover()
        await self.batches.start()
        self.leases.start()
        self.dispatcher.at(0.0, self.retention.run)
        self.dispatcher.at(0.0, self.upkeep.run)
        if recovered:
            log.info("runs.recovered count=%d", recovered)

    async def stop(self) -> int:
        """Finish what runs within the bound, park the rest, close everything; returns how many were parked."""
        self.sockets.stop()
        self.batches.stop()
        # A server that was fenced can end nothing that it has begun: whoever took over does.
        seconds = 0.0 if self.fenced else self.settings.shutdown_seconds
        parked, _ = await asyncio.gather(
            self.dispatcher.close(seconds, self.hurrying), self.completer.close(seconds, self.hurrying)
        )
        await self.batches.close()
        await self.mcp.close()
        await self.webhooks.close()
        await self.workspaces.close()
        await self.leases.close()
        for backend in self.backends:
            await backend.close()
        await self.embeddings.close()
        await self.journal.close()
        await self.content.close()
        if self.instruments.tracer is not None:
            await asyncio.to_thread(self.instruments.tracer.close)
        self.keys.close()
        self._lock.release()
        return parked

    def _why_unready(self) -> str:
        if self.fenced:
            return "another server has taken over the data directory"
        return "the server is stopping" if self.stopping.is_set() else ""

    def _on_fenced(self) -> None:
        if not self.fenced:
            self.fenced = True
            log.error("server.fenced another server has taken over %s; this one stops", self.settings.data)
            self.stopping.set()
